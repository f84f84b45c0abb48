"""Monitoring of a deployed model: signals and the report that holds them, alerts with their rules, settings.

A signal compares what is watched with what it was before. An alert is a signal that has changed, from when it is
reported until it is back to normal.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field

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


AlertStatus = Literal["open", "closed"]


class Alert(FrozenModel):
    """What is reported.

    Attributes:
        alert_id: its id.
        project_id: the project.
        model: the model, by the name it is requested under.
        signal: its state at the last look.
        status: closed once the signal is well again.
        opened_at: seconds since 1970.
        closed_at: seconds since 1970; None while it is open.
    """

    alert_id: str
    project_id: str
    model: str
    signal: Signal
    status: AlertStatus = "open"
    opened_at: float = 0.0
    closed_at: float | None = None


class AlertRule(FrozenModel):
    """How many looks in a row open and close an alert, the first time in a week.

    Attributes:
        open_after: looks at which the signal has changed.
        close_after: looks at which it has not.
    """

    open_after: Annotated[int, Field(ge=1, le=24)] = 1
    close_after: Annotated[int, Field(ge=1, le=24)] = 3


class AlertSettings(FrozenModel):
    """What is monitored for a project, and who is notified.

    Attributes:
        is_on: whether the server looks at all.
        every_minutes: how often.
        window_hours: what a look is about, up to now.
        models: monitored in addition to all deployments.
        left_out: deployments that are not.
        emails: who is sent a mail.
        rule: when alerts open and close.
    """

    is_on: bool = True
    every_minutes: Annotated[int, Field(ge=5, le=24 * 60)] = 60
    window_hours: Annotated[int, Field(ge=1, le=24 * 31)] = 24
    models: Annotated[tuple[str, ...], Field(max_length=50)] = ()
    left_out: Annotated[tuple[str, ...], Field(max_length=500)] = ()
    emails: Annotated[tuple[str, ...], Field(max_length=20)] = ()
    rule: AlertRule = AlertRule()


SETTINGS_KIND: Final = "signals"
"""The kind of the documents of `watches` that hold the settings of a model."""


class WatchSettings(FrozenModel):
    """Kept for each model of a project.

    Attributes:
        groups: names of groups of people, and the regular expressions (of either case) that identify a prompt as
            of them.
        corpus: documents that answers may cite, absolute.
        data: rows like those that it was trained on, absolute; None takes those of its run.
        normal_since: seconds since 1970; what was before is not to be compared with.
        judge: a model that scores samples of its answers, as `luthier eval --judge` names it; None evaluates none.
        judge_is_configured: `judge` was chosen on a page as the model that LUTHIER_TEACHER names: it is not asked once
            the operator has configured another one.
        num_judged: answers of the window, and as many of the time before.
        suite: a suite that judges it again and again, absolute; None has none.
        suite_file_id: a suite that is a file of the project, in place of `suite`.
        suite_every_hours: from one beginning to the next.
    """

    groups: dict[str, str] = Field(default_factory=dict)
    corpus: str | None = None
    data: str | None = None
    normal_since: float = 0.0
    judge: str | None = None
    judge_is_configured: bool = False
    num_judged: Annotated[int, Field(ge=20, le=1000)] = 60
    suite: str | None = None
    suite_file_id: str | None = None
    suite_every_hours: Annotated[float, Field(ge=1, le=24 * 366)] = 24.0
