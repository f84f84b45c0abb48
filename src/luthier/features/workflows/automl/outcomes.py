"""The results of the stages of `luthier automl`, as they are stored."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from luthier.core.frozen_model import FrozenModel
from luthier.core.text.counted import counted
from luthier.platform.workflows.engine import TimedOutcome


class RowsFile(TimedOutcome):
    """Documents as rows of text."""

    file: str = ""


class Audited(TimedOutcome):
    """The findings of an audit of the original rows."""

    grade: str = ""
    reasons: tuple[str, ...] = ()
    num_rows: int = 0
    page: str = ""

    def lines(self) -> Sequence[str]:
        """The grade, and the first reasons for it."""
        return [*self.grade_line(), *self.reasons[:3]]

    def grade_line(self) -> list[str]:
        """The grade alone."""
        return [f"{counted(self.num_rows, 'row')} of grade {self.grade}"] if self.grade else []


class Repaired(Audited):
    """The repairs, and the audit after them.

    Attributes:
        actions: Rows changed or removed, by reason.
    """

    num_rows_before: int = 0
    file: str = ""
    actions: dict[str, int] | None = None

    def lines(self) -> Sequence[str]:
        """The grade, and the number of rows changed or removed by reason."""
        if self.actions is None:
            return self.grade_line()
        done = ", ".join(f"{name} {number:,}" for name, number in self.actions.items())
        removed = f"{counted(self.num_rows_before - self.num_rows, 'row')} removed"
        return [*self.grade_line(), f"{removed}; rows changed or removed by reason: {done or 'none'}"]


class Side(FrozenModel):
    """One part of a split."""

    num_rows: int


class SplitRows(TimedOutcome):
    """The rows for training, for decisions, and for the final evaluation."""

    folder: str = ""
    sides: dict[str, Side] = Field(default_factory=dict)

    def lines(self) -> Sequence[str]:
        """The number of rows in each part."""
        found = ", ".join(f"{name.replace('_', '-')} {side.num_rows:,}" for name, side in self.sides.items())
        return [found] if found else []


class Headed(TimedOutcome):
    """A result with a sentence about it."""

    headline: str = ""

    def lines(self) -> Sequence[str]:
        """The sentence."""
        return [self.headline] if self.headline else []


class Chosen(Headed):
    """The model comparison that chose the base model. hours: its duration."""

    showdown_id: str = ""
    hours: float = 0.0
    word: str = ""
    page: str = ""


class Tuned(TimedOutcome):
    """The search and its final run; without a search the reason, and the run of the model comparison, if any."""

    skipped: str = ""
    study_id: str | None = None
    run_id: str | None = None
    page: str | None = None
    hours: float = 0.0

    @property
    def why_skipped(self) -> str:
        """Prompting is enough, or the budget is too small for a search."""
        return self.skipped

    def lines(self) -> Sequence[str]:
        """The reason why there was no search."""
        return [self.skipped] if self.skipped else []


class Judged(Headed):
    """The evaluation on rows that no decision used."""

    evaluation_id: str = ""


class Reported(TimedOutcome):
    """The page about the whole run."""

    page: str = ""
