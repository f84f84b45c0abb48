"""The results of the stages of a retraining, as they are stored."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from luthier.core.frozen_model import FrozenModel
from luthier.platform.workflows.engine import Outcome, Thing


class Rows(Outcome):
    """The reviewed rows beside those of the last run. sha256: of each file that was written."""

    num_reviewed: int = 0
    by_source: dict[str, int] = Field(default_factory=dict)
    left_out: dict[str, int] = Field(default_factory=dict)
    num_old: int = 0
    num_new: int = 0
    num_replaced: int = 0
    num_old_held_out: int = 0
    num_new_held_out: int = 0
    num_validation: int = 0
    sha256: dict[str, str] = Field(default_factory=dict)

    @property
    def num_held_out(self) -> int:
        """Rows to judge by, old and new."""
        return self.num_old_held_out + self.num_new_held_out

    def lines(self) -> Sequence[str]:
        """How many rows there are of each kind."""
        # A stage that has not run yet has all defaults, and they would read as a result.
        if not self.model_fields_set:
            return []
        left = "; ".join(f"{num:,} left out: {reason}" for reason, num in self.left_out.items())
        return [
            f"{self.num_new:,} reviewed rows beside {self.num_old:,} of the last run "
            f"({self.num_replaced:,} replaced); held out: {self.num_old_held_out:,} old, "
            f"{self.num_new_held_out:,} new" + (f"; {left}" if left else "")
        ]


class FoundProblem(FrozenModel):
    """A finding of the audit, in short."""

    check: str = ""
    severity: str = ""
    count: int = 0
    message: str = ""


class Audited(Outcome):
    """The audit of all rows.

    Attributes:
        grade: Of the rows.
        findings: What it found.
        skipped: Why a check could not be run, by its name.
        report: Its page.
    """

    grade: str = ""
    findings: tuple[FoundProblem, ...] = ()
    skipped: dict[str, str] = Field(default_factory=dict)
    report: str = ""

    def lines(self) -> Sequence[str]:
        """The grade, and the first findings."""
        return [f"grade {self.grade}", *(one.message for one in self.findings[:3])] if self.grade else []


class VersionFields(FrozenModel):
    """A version of a dataset."""

    dataset_id: str
    version: int
    sha256: str


class Versions(Outcome):
    """The rows as versions of datasets, and where their files are."""

    train: VersionFields | None = None
    train_path: str = ""
    held_out: VersionFields | None = None
    held_out_path: str | None = None

    def made(self) -> Sequence[tuple[Thing, str]]:
        """The datasets."""
        # Without held-out rows there is one dataset alone.
        return [("dataset", one.dataset_id) for one in (self.train, self.held_out) if one is not None]


class Trained(Outcome):
    """The new run."""

    run_id: str = ""
    report: str | None = None
    started_from: str = ""

    def lines(self) -> Sequence[str]:
        """What it started from."""
        return [f"started from the {self.started_from} model"] if self.started_from else []


class Judged(Outcome):
    """The new run against the deployed one. old, new, suite: ids of what the judging makes."""

    old: str = ""
    new: str = ""
    suite: str = ""
    old_word: str = ""
    old_said: str = ""
    new_word: str = ""
    new_said: str = ""
    suite_said: str = ""

    def lines(self) -> Sequence[str]:
        """The comparison on each kind of rows."""
        said = [f"{which} rows: {what}" for which, what in (("old", self.old_said), ("new", self.new_said)) if what]
        return ["; ".join(said)] if said else []

    def made(self) -> Sequence[tuple[Thing, str]]:
        """Two evaluations, and the result of the suite."""
        found: list[tuple[Thing, str]] = [("evaluation", one) for one in (self.old, self.new) if one]
        return [*found, ("suite", self.suite)] if self.suite else found


class Gated(Outcome):
    """The release gates that were checked."""

    said: str = ""
    checked: tuple[str, ...] = ()
    sha256: str = ""

    def lines(self) -> Sequence[str]:
        """Whether it has passed."""
        return [self.said] if self.said else []


class Canary(Outcome):
    """The canary that was made, or the command that makes it."""

    said: str = ""
    command: str = ""
    revision: int | None = None
    fraction: float | None = None

    def lines(self) -> Sequence[str]:
        """Whether it was made or offered."""
        made = f"revision {self.revision} gives it {self.fraction or 0:.0%} of the users"
        return [made if self.said == "made" else f"offered: {self.command}"] if self.said else []
