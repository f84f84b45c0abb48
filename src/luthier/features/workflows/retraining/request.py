"""The request of a retraining, checked against the deployed model, and the stored results of its stages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field

from luthier.core.access import Caller
from luthier.core.errors import ConflictError, NotFoundError, RequestError
from luthier.core.frozen_model import FrozenModel
from luthier.core.text.counted import counted
from luthier.features.deployments.service import deployed_run
from luthier.platform.home.context import Context
from luthier.platform.workflows.engine import Outcome, Thing

Start = Literal["base", "last"]
MIN_ROWS: Final = 20


@dataclass(frozen=True, slots=True)
class RetrainRequest:
    """The request of a retraining.

    Attributes:
        model: The name of a deployment.
        from_traffic: Also learn from answers sampled from the traffic and accepted unchanged.
        review: First queue answers that users liked (with `from_traffic`); begin only if the review queue is empty.
        panels: Rating panels to learn from in addition.
        start: `base` trains the last run's base on old and new rows together; `last` trains the last model, merged
            into its base.
        canary: Fraction of users for a canary; None only offers one.
        gate: A file of required rules.
        suite: A file of an additional suite to evaluate.
        min_rows: Minimum number of reviewed rows.
    """

    model: str
    from_traffic: bool = False
    review: bool = False
    panels: Sequence[str] = ()
    start: Start = "base"
    canary: float | None = None
    gate: Path | None = None
    suite: Path | None = None
    min_rows: int = MIN_ROWS


class RetrainSpec(FrozenModel):
    """The stored request with the deployment at that time.

    Attributes:
        run_id: The deployed run, whose recipe and rows are reused.
        judged_against: The run with which the new one is compared.
        deployment_id: The deployment.
        revision: Its revision number.
        caller: The caller.
    """

    model: str
    from_traffic: bool = False
    panels: tuple[str, ...] = ()
    start: Start = "base"
    canary: float | None = None
    gate: str | None = None
    suite: str | None = None
    min_rows: int = MIN_ROWS
    run_id: str = ""
    judged_against: str = ""
    deployment_id: str = ""
    revision: int = 0
    caller: dict[str, Any] = Field(default_factory=dict)


def spec_of(context: Context, caller: Caller, request: RetrainRequest) -> RetrainSpec:
    """The specification of a request, with the deployed model.

    Raises:
        NotFoundError: A deployment, panel or file does not exist.
        ConflictError: The deployment has no run, a canary is active, or, with `review`, the queue is not empty.
        RequestError: An invalid fraction or number of rows.
    """
    deployment = context.deployments.get(caller.project_id, request.model)
    if request.canary is not None and not 0 < request.canary < 1:
        raise RequestError(f"a canary of {request.canary:g}", expected="a fraction such as 0.1", do="correct --canary")
    # Two simultaneous canaries would share the users, and neither could be evaluated.
    if request.canary is not None and deployment.revision.canary is not None:
        raise ConflictError(
            f"{deployment.revision.canary} is being tried as a canary of {request.model} already",
            expected="one canary at a time",
            do=f"luthier promote {request.model} or luthier rollback {request.model} first, or leave --canary out",
        )
    if request.min_rows < 1:
        raise RequestError(f"--min-rows {request.min_rows}", expected="1 or more", do="correct it")
    for file in (request.gate, request.suite):
        if file is not None and not file.is_file():
            raise NotFoundError(f"no file {file}", expected="an existing file", do="correct the path")
    # Only for its error: a missing panel is rejected before anything is read.
    for panel in request.panels:
        context.rating_panels.get(caller.project_id, panel)
    # Last of the look-ups: it may have to trace a merged or exported model back to its run.
    run_id = deployed_run(context, caller, deployment.revision)
    if request.review:
        _refuse_waiting(context, caller, request)
    return RetrainSpec(
        model=request.model,
        from_traffic=request.from_traffic,
        panels=tuple(request.panels),
        start=request.start,
        canary=request.canary,
        # Absolute: the stages may continue from another working directory.
        gate=None if request.gate is None else str(request.gate.absolute()),
        suite=None if request.suite is None else str(request.suite.absolute()),
        min_rows=request.min_rows,
        run_id=run_id,
        # The two are equal at first; both are stored as the deployment may change meanwhile.
        judged_against=run_id,
        deployment_id=deployment.deployment_id,
        revision=deployment.revision.number,
        caller=caller.model_dump(mode="json"),
    )


def _refuse_waiting(context: Context, caller: Caller, request: RetrainRequest) -> None:
    from luthier.features.feedback import review as review_queue

    if request.from_traffic:
        review_queue.queue_liked(context, caller, request.model)
    waiting = len(context.review_items.ids(caller.project_id, model=request.model, status="waiting"))
    if waiting:
        raise ConflictError(
            f"{counted(waiting, 'answer')} of {request.model} {'waits' if waiting == 1 else 'wait'} to be reviewed",
            expected="a queue in which each item is reviewed",
            do="decide on them on the page /review, then start again; without --review they are left out",
        )


class Rows(Outcome):
    """Reviewed rows and rows of the last run.

    Attributes:
        sha256: Digest of each written file.
        changed_files: What has changed in the files of patterns since the last run, as sentences.
        bar_left_out: The column with a second person's answers that the bar of the last run needs; these rows lack it.
    """

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
    changed_files: tuple[str, ...] = ()
    bar_left_out: str = ""

    @property
    def num_held_out(self) -> int:
        """Held-out rows, old and new."""
        return self.num_old_held_out + self.num_new_held_out

    def lines(self) -> Sequence[str]:
        """The number of rows of each kind."""
        # A stage that has not run has all defaults, which would look like a result.
        if not self.model_fields_set:
            return []
        left = "; ".join(f"{num:,} left out: {reason}" for reason, num in self.left_out.items())
        return [
            f"{counted(self.num_new, 'reviewed row')} in addition to {self.num_old:,} of the last run "
            f"({self.num_replaced:,} replaced); held out: {self.num_old_held_out:,} old, "
            f"{self.num_new_held_out:,} new" + (f"; {left}" if left else ""),
            *self.changed_files,
            *([f"no figure is required: these rows have no column {self.bar_left_out}"] if self.bar_left_out else []),
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
        grade: Grade of the rows.
        findings: The findings.
        skipped: Reasons for checks that could not run, by name of the check.
        report: Path of the page.
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
    """The rows as versions of datasets, and the paths of their files."""

    train: VersionFields | None = None
    train_path: str = ""
    held_out: VersionFields | None = None
    held_out_path: str | None = None

    def made(self) -> Sequence[tuple[Thing, str]]:
        """The datasets."""
        # Without held-out rows there is only one dataset.
        return [("dataset", one.dataset_id) for one in (self.train, self.held_out) if one is not None]


class Trained(Outcome):
    """The new run."""

    run_id: str = ""
    report: str | None = None
    started_from: str = ""

    def lines(self) -> Sequence[str]:
        """The model from which it started."""
        return [f"started from the {self.started_from} model"] if self.started_from else []


class Judged(Outcome):
    """The new run compared with the deployed one. old, new, suite: ids of the evaluations."""

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
        """Whether all gates passed."""
        return [self.said] if self.said else []


class Canary(Outcome):
    """The canary, or the command that makes one."""

    said: str = ""
    command: str = ""
    revision: int | None = None
    fraction: float | None = None

    def lines(self) -> Sequence[str]:
        """Whether the canary was made or only offered."""
        value = f"{100 * (self.fraction or 0):.3g}%"
        made = f"revision {self.revision} gives it {value} of the users"
        return [made if self.said == "made" else f"offered: {self.command}"] if self.said else []
