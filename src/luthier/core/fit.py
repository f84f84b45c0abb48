"""How well a run fitted its rows, and what to do about it."""

from __future__ import annotations

from typing import Literal

from luthier.core.frozen_model import FrozenModel

FitKind = Literal["overfitted", "still_learning", "unstable", "settled", "unknown"]


class Remedy(FrozenModel):
    """One thing to do in the next run.

    Attributes:
        text: what to do, for people.
        settings: what asks for it, each as an argument of `--set`; may be empty.
    """

    text: str
    settings: tuple[str, ...] = ()


class Fit(FrozenModel):
    """What training and validation loss say of a run, as text and numbers.

    overfitted: validation loss rose after its best while training loss fell. still_learning: it was falling to the end.
    unstable: it rose, and training loss did not fall. settled: none of these. unknown: it was not looked at often
    enough.

    Attributes:
        kind: overfitted: validation loss rose after its best while training loss fell; still_learning: it was falling
            to the end; unstable: it rose, and training loss did not fall; settled: none of these; unknown: too few
            validations.
        seen: the finding with its figures.
        best_step: of the weights that are kept; 0 where there was no validation.
        last_step: the last step that was done.
        remedies: the most telling first.
    """

    kind: FitKind
    seen: str
    best_step: int = 0
    last_step: int = 0
    remedies: tuple[Remedy, ...] = ()

    @property
    def title(self) -> str:
        """The kind as text."""
        return _TITLES[self.kind]


_TITLES: dict[FitKind, str] = {
    "overfitted": "It learned rows by heart",
    "still_learning": "It was still learning at the end",
    "unstable": "It went astray",
    "settled": "It has settled",
    "unknown": "Nobody looked whether it learned by heart",
}
