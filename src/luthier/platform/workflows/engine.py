"""The one engine of workflows: a declaration names its stages, the engine runs, stores and resumes them.

A stage gets the run with the results of the stages before it and returns its own as a document. The engine stores the
document before it begins the next stage, so a process that was killed at any moment resumes with the stage that it was
in. That stage runs again from its beginning: what it had begun (the id of a run, say) is in `StageSpec.begin`, which is
stored before its work starts, so that nothing is begun twice.

What a stage depends on is declared, too. Its digest covers the fields of the request, the files and the stages that it
names. On resume, a stage whose digest has changed runs again, and so does all that depends on it; the rest is kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from pydantic import ConfigDict

from luthier.core.access import Caller
from luthier.core.aliases import command_of
from luthier.core.errors import ConflictError, LuthierError, RequestError, WorkError
from luthier.core.frozen_model import FrozenModel
from luthier.core.ids import sha256_document, sha256_file
from luthier.core.registry import STORED
from luthier.core.system.files import file_lock
from luthier.core.workflows.pipeline import Pipeline, PipelineKind, Stage
from luthier.platform.home.context import Context

LOCK_SECONDS: Final = 1.0
Thing = Literal["run", "study", "evaluation", "showdown", "dataset", "suite"]
_THINGS: Final[dict[str, Thing]] = {
    "showdown_id": "showdown",
    "study_id": "study",
    "run_id": "run",
    "evaluation_id": "evaluation",
}


T = TypeVar("T", bound="Outcome")
Save = Callable[[Pipeline], None]
Tell = Callable[[Pipeline, Stage], None]


class StageRefusedError(LuthierError):
    """What a stage has found ends the workflow, without a failure: prompting is enough, a gate refuses the model."""


_RESUMED_BY_ID: Final = ("showdown", "auto", "retrain")
"""Kinds whose command has `--resume ID`; others are resumed by the command that began them."""


class PausedError(WorkError):
    """The stage was stopped by SIGTERM or SIGINT; the workflow can be resumed."""


class Outcome(FrozenModel):
    """The result of a stage. Every field has a default: before the stage ends, only what `begin` has set is stored.

    Fields of another version are ignored, so that stored workflows of any version resume.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False, protected_namespaces=())

    @property
    def why_skipped(self) -> str:
        """Why there is nothing to do; empty where there is. Asked of what `begin` returns."""
        return ""

    def lines(self) -> Sequence[str]:
        """What the stage has found, a sentence each, without ids and files."""
        return []

    def made(self) -> Sequence[tuple[Thing, str]]:
        """What the stage has made or is about to make: kind and id of each thing."""
        return [(thing, found) for name, thing in _THINGS.items() if (found := getattr(self, name, None))]

    def stored(self) -> dict[str, Any]:
        """The fields that were set, as JSON."""
        return self.model_dump(mode="json", exclude_unset=True)


class TimedOutcome(Outcome):
    """A result that says how long its stage has worked.

    Attributes:
        seconds: Set by the engine. A stage may set more, where processes that were killed have worked for it, too.
    """

    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class StageSpec:
    """The declaration of a stage.

    Attributes:
        name: Unique within the workflow; stored.
        title: What the stage is for, in a few words, as pages show it.
        work: Does it. May be called again after a kill.
        outcome: The type of what `work` returns.
        needs: Fields of the request and names of earlier stages that the result depends on.
        reads: Files from outside that it depends on, by their content.
        begin: Names what `work` is about to make, or says in `why_skipped` that there is nothing to do.
        holds: Whether what the stage has made is still there; where it is not, the stage runs again.
        estimate: Seconds that it should take; 0 for what takes little, None where that is not known.
        page: The file name of the page that it writes into the folder of the workflow.
    """

    name: str
    title: str
    work: Callable[[WorkflowRun], Outcome]
    outcome: type[Outcome] = Outcome
    needs: Sequence[str] = ()
    reads: Callable[[WorkflowRun], Sequence[Path]] = lambda _run: ()
    begin: Callable[[WorkflowRun], Outcome] | None = None
    holds: Callable[[WorkflowRun, Any], bool] = lambda _run, _outcome: True
    estimate: Callable[[WorkflowRun], float | None] = lambda _run: 0.0
    page: str = ""


@dataclass(frozen=True, slots=True)
class Workflow:
    """The declaration of a workflow: its stages in order, and how it is named, resumed and shown.

    Attributes:
        kind: As stored.
        noun: With its article, such as "a showdown".
        request: The type of the request, which is stored and never changes.
        stages: The stages of a request, in order.
        folder: The folder of the home that holds a folder for each of them.
        subject: What it is about, in a few words, from the stored request.
        summary: The request on one line, from the stored one.
        details: The request, a name and a value each, without folders.
        answer: What came of one that is done, in a sentence, from its record alone.
        headline: The same with its figures; None where it is `answer`.
        write_report: Writes its page again; None where it has none.
        reported: The statuses in which it has a page.
        hours_before: Hours that were spent before the first stage, from the stored request.
        command: The command that resumes one; by default `luthier COMMAND --resume ID`.
    """

    kind: PipelineKind
    noun: str
    request: type[FrozenModel]
    stages: Callable[[Any], Sequence[StageSpec]]
    folder: str
    subject: Callable[[dict[str, Any]], str] = lambda _asked: ""
    summary: Callable[[dict[str, Any]], str] = lambda _asked: ""
    details: Callable[[dict[str, Any]], dict[str, Any]] = lambda _asked: {}
    answer: Callable[[Pipeline], str] = lambda _pipeline: ""
    headline: Callable[[Context, Caller, Pipeline], str] | None = None
    write_report: Callable[[Context, Caller, Pipeline, Path], None] | None = None
    reported: Sequence[str] = ()
    hours_before: Callable[[dict[str, Any]], float] = lambda _asked: 0.0
    command: Callable[[Pipeline], str] = lambda one: f"luthier {command_of(one.kind)} --resume {one.pipeline_id}"

    def folder_of(self, context: Context, pipeline_id: str) -> Path:
        """Where the files and pages of one are."""
        return context.settings.home / self.folder / pipeline_id

    def create(
        self,
        context: Context,
        caller: Caller,
        pipeline_id: str,
        request: FrozenModel,
        came: dict[str, dict[str, Any]] | None = None,
    ) -> Pipeline:
        """Store a new one, with no stage done yet.

        Args:
            context: The home.
            caller: Whose project it belongs to.
            pipeline_id: Its id.
            request: The request.
            came: What was begun of stages already, by their name.
        """
        stages = tuple(Stage(name=one.name, came=(came or {}).get(one.name, {})) for one in self.stages(request))
        made = Pipeline(pipeline_id=pipeline_id, kind=self.kind, asked=request.model_dump(mode="json"), stages=stages)
        return context.pipelines.create(made, caller.project_id)


@dataclass
class WorkflowRun:
    """A workflow at work: what its stages get.

    Attributes:
        context: The home.
        caller: For whom it works.
        workflow: The declaration.
        pipeline: The current record.
        spec: The request, as the workflow's own type.
        material: What stages share in memory, such as rows that were read; by a name.
    """

    context: Context
    caller: Caller
    workflow: Workflow
    pipeline: Pipeline
    spec: Any = None
    material: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.spec is None:
            self.spec = self.workflow.request.model_validate(self.pipeline.asked, context=STORED)

    @property
    def id(self) -> str:
        """The id of the workflow."""
        return self.pipeline.pipeline_id

    @property
    def project_id(self) -> str:
        """The project that it belongs to."""
        return self.caller.project_id

    @property
    def folder(self) -> Path:
        """Where its files and pages are."""
        return self.workflow.folder_of(self.context, self.id)

    @property
    def spent_hours(self) -> float:
        """What its stages have worked, up to now."""
        return spent_hours(self.workflow, self.pipeline)

    def outcome(self, name: str, kind: type[T]) -> T:
        """The result of a stage, or what it has begun.

        Args:
            name: Of the stage.
            kind: The type of its result.
        """
        return kind.model_validate(self.pipeline.came(name), context=STORED)


def silent(_pipeline: Pipeline, _stage: Stage) -> None:
    """Reports nothing."""


def spent_hours(workflow: Workflow, pipeline: Pipeline) -> float:
    """What the stages that are done have taken, with what was spent before the first."""
    worked = sum(stage.came.get("seconds", 0.0) for stage in pipeline.stages)
    return workflow.hours_before(pipeline.asked) + float(worked) / 3600


def remaining_seconds(run: WorkflowRun) -> float | None:
    """What the stages that are left should take; None where that is not known of one of them."""
    left = [spec.estimate(run) for spec in run.workflow.stages(run.spec) if not _is_over(run.pipeline, spec.name)]
    known = [seconds for seconds in left if seconds is not None]
    return sum(known) if len(known) == len(left) else None


def lock_of(context: Context, pipeline_id: str) -> Path:
    """The file that a process holds locked while it works on a workflow."""
    return context.settings.home / "pipelines" / pipeline_id / "lock"


@contextmanager
def hold(lock: Path, what: str) -> Iterator[int]:
    """Work on a workflow alone for the duration of the block.

    Args:
        lock: The file of the lock.
        what: What it locks, for the message.

    Yields:
        The descriptor of the lock: a child process that inherits it holds the lock, too.

    Raises:
        ConflictError: Another process works on it.
    """
    with file_lock(lock, what=what, timeout_seconds=LOCK_SECONDS) as descriptor:
        yield descriptor


def resume(
    workflow: Workflow,
    context: Context,
    caller: Caller,
    pipeline_id: str,
    tell: Tell = silent,
    material: dict[str, Any] | None = None,
) -> WorkflowRun:
    """Do all stages that are not done, one after the other.

    Args:
        workflow: The declaration.
        context: The home.
        caller: Whose project it is looked for in.
        pipeline_id: Its id.
        tell: Called with the record and the stage whenever a stage changes.
        material: What stages share in memory.

    Returns:
        The final run: all stages are done, or one is `refused` and ended it.

    Raises:
        NotFoundError: The project has no such workflow.
        RequestError: It is of another kind.
        ConflictError: Another process works on it, or it lacks a stage of the declaration.
        PausedError: A stage was stopped.
        LuthierError: A stage failed; its error is stored before it is raised.
    """
    found = context.pipelines.get(pipeline_id, caller.project_id)
    if found.kind != workflow.kind:
        raise RequestError(
            f"{pipeline_id} is of kind {found.kind}",
            expected=f"the id of {workflow.noun}",
            do=f"resume it: luthier {command_of(found.kind)} --resume {pipeline_id}"
            if found.kind in _RESUMED_BY_ID
            else f"see the command that resumes it: luthier pipelines show {pipeline_id}",
        )
    # Stages begin runs: also those of a command belong to the project of the workflow.
    with hold(lock_of(context, pipeline_id), f"pipeline {pipeline_id}"), context.owned_by(caller.project_id):
        record = context.pipelines.get(pipeline_id)  # the process that held it before may have changed it
        run = WorkflowRun(context, caller, workflow, record, material={} if material is None else material)
        run_stages(run, context.pipelines.save, tell)
    return run


def run_stages(run: WorkflowRun, save: Save, tell: Tell = silent) -> None:
    """Do the stages of a run that are not done, in order. The caller holds its lock.

    Args:
        run: Whose record is kept up to date.
        save: Stores the record; called before and after each stage.
        tell: Called with the record and the stage whenever a stage changes.

    Raises:
        ConflictError: The record lacks a stage of the declaration.
        PausedError: A stage was stopped.
        LuthierError: A stage failed; its error is stored before it is raised.
    """
    if run.pipeline.next_stage is None:
        return
    digests: dict[str, str] = {}
    for spec in run.workflow.stages(run.spec):
        stage = run.pipeline.stage(spec.name)
        if stage is None:
            raise ConflictError(
                f"{run.id} has no stage {spec.name}: {', '.join(one.name for one in run.pipeline.stages)}",
                expected="the stages of this version of Luthier",
                do="finish it with the version that began it, or begin again",
            )
        # In order: the digest of a stage covers those of the earlier stages that it needs.
        digests[spec.name] = _digest(run, spec, digests)
        is_unchanged = stage.inputs in ("", digests[spec.name])  # empty: stored before digests were
        if stage.status == "done" and is_unchanged and spec.holds(run, run.outcome(spec.name, spec.outcome)):
            # What depends on it was computed from the result that is kept, so that result's digest counts.
            digests[spec.name] = stage.inputs
            continue
        # An interrupted stage continues with the ids that it has begun; one whose inputs changed starts from nothing.
        begun = stage.came if is_unchanged and stage.status != "done" else {}
        begins = Stage(name=spec.name, status="running", came=begun, inputs=digests[spec.name])
        if not _worked(run, spec, begins, save, tell):
            return


def _worked(run: WorkflowRun, spec: StageSpec, stage: Stage, save: Save, tell: Tell) -> bool:
    """Do one stage; returns whether the workflow continues after it."""
    now = run.context.access.now

    def _keep(status: str, **changed: Any) -> None:
        nonlocal stage
        stage = stage.model_copy(update={"status": status, **changed})
        run.pipeline = run.pipeline.changed(stage)
        save(run.pipeline)
        tell(run.pipeline, stage)

    began = time.perf_counter()
    stage = stage.model_copy(update={"began_at": now()})
    try:
        run.context.check_access()
        if not stage.came and spec.begin is not None:
            stage = stage.model_copy(update={"came": spec.begin(run).stored()})
        # Stored before the work: a kill from here on finds the ids of what was begun.
        _keep("running")
        # What `begin` returned, read back as the stage's own type.
        found = run.outcome(spec.name, spec.outcome)
        if not found.why_skipped:
            found = spec.work(run)
    # A result, not a failure: it is stored and nothing is raised.
    except StageRefusedError as error:
        _keep("refused", reason=error.came, ended_at=now())
        return False
    except PausedError as error:
        _keep("paused", reason=error.came, ended_at=now())
        raise
    except LuthierError as error:
        _keep("failed", reason=error.came, ended_at=now())
        raise
    except Exception as error:
        _keep("failed", reason=f"{type(error).__name__}: {error}", ended_at=now())
        raise
    if isinstance(found, TimedOutcome):
        # max: the stage may know of time that killed processes spent, the engine only of this one.
        found = found.model_copy(update={"seconds": max(time.perf_counter() - began, found.seconds)})
    # What was begun is kept with the result: ids of runs and studies are shown from there.
    _keep("done", came=stage.came | found.stored(), ended_at=now())
    return True


def _digest(run: WorkflowRun, spec: StageSpec, digests: dict[str, str]) -> str:
    """Over what the result of a stage depends on. A file that is not there counts as an empty digest."""
    # A name in `needs` is an earlier stage where there is one of that name, else a field of the request.
    asked = {name: run.pipeline.asked.get(name) for name in spec.needs if name not in digests}
    stages = {name: digests[name] for name in spec.needs if name in digests}
    files = {str(path): sha256_file(path) if path.is_file() else "" for path in spec.reads(run)}
    return sha256_document({"asked": asked, "stages": stages, "files": files})


def _is_over(pipeline: Pipeline, name: str) -> bool:
    stage = pipeline.stage(name)
    return stage is not None and stage.status == "done"
