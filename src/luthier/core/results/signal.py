"""What is watched of a deployed model: signals, each against what it was before, and the report that holds them."""

from __future__ import annotations

from typing import Literal

from luthier.core.frozen_model import FrozenModel

SignalState = Literal["steady", "changed", "unknown"]
SignalGroup = Literal["serving", "input", "output", "quality", "bias"]


class Signal(FrozenModel):
    """One thing that is watched.

    Attributes:
        name: such as `latency_p95_seconds`, `prompt_length_psi`.
        title: its name for people.
        group: what kind of signal it is.
        unit: of its values.
        value: now, in `unit`, with its 95% interval.
        low: lower end of the 95% interval.
        high: upper end of the 95% interval.
        reference: what it is compared with (the window before, or the training profile), None where there is nothing
            yet.
        p_value: adjusted for all signals and all looks; None where no test was made.
        state: `unknown` where there is too little data, which `sentence` says.
        since: seconds since 1970 of the first exchange that the change is seen in.
        examples: ids of exchanges that show it.
        sentence: the finding.
        do: what to do about it, where it has changed.
    """

    name: str
    title: str
    group: SignalGroup
    unit: str
    value: float | None
    low: float | None = None
    high: float | None = None
    reference: float | None = None
    p_value: float | None = None
    state: SignalState = "unknown"
    since: float | None = None
    examples: tuple[str, ...] = ()
    sentence: str = ""
    do: str = ""


class WatchReport(FrozenModel):
    """All signals of a model in a window of time (seconds since 1970, `until` not included).

    Attributes:
        project_id: the project.
        model: the model, by the name it is requested under.
        since: begin of the window.
        until: end of the window.
        num_exchanges: in the window.
        num_with_text: of these, with their words kept.
        num_dropped: that the log had to drop.
        signals: what is watched.
        cautions: what the reader has to know, a sentence each.
    """

    project_id: str
    model: str
    since: float
    until: float
    num_exchanges: int
    num_with_text: int
    num_dropped: int = 0
    signals: tuple[Signal, ...] = ()
    cautions: tuple[str, ...] = ()

    def signal(self, name: str) -> Signal | None:
        """A signal by its name."""
        return next((one for one in self.signals if one.name == name), None)
