"""The workflow of `luthier distill`: distil a teacher into a smaller model, and measure whether it was worth it.

The student learns the teacher's answers (sequence) or logits (logit). The same student learns the gold answers of the
same rows for the same number of steps. Both and the teacher are evaluated on held-out rows.

The id is the digest of everything that determines the result: the same command resumes after any stop, and gives the
same bytes. Files are in `home/students/ID/`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

from luthier.core.access import Caller
from luthier.core.errors import ConflictError, NotFoundError
from luthier.core.evaluation import Evaluation
from luthier.core.evaluation_plan import EvaluationRecipe
from luthier.core.ids import new_id
from luthier.core.recipe import Recipe
from luthier.core.text.counted import counted
from luthier.core.workflows.pipeline import Pipeline, Student, StudentRun
from luthier.features.models.names import runs_of
from luthier.features.recipes.checks import column_map
from luthier.features.workflows.distillation.request import (
    DistilRequest,
    DistilSpec,
    evaluation_of,
    recipe_of,
    seed_of,
    spec_of,
)
from luthier.features.workflows.distillation.rows import (
    StudentRows,
    find_metrics,
    judge_students,
    write_gold,
    write_taught,
)
from luthier.features.workflows.registry import file_name, model_name, short
from luthier.platform.home.context import Context
from luthier.platform.workflows.engine import (
    PausedError,
    StageSpec,
    Tell,
    TimedOutcome,
    Workflow,
    WorkflowRun,
    resume,
    silent,
)

_DOCUMENT: Final = "student.json"
_STATE: Final = "state.json"
Side = Literal["taught", "alone"]


class GoldRows(TimedOutcome):
    """Numbers of gold training rows and held-out rows. num_same_prompt: held-out rows with a training prompt."""

    num_rows: int = 0
    num_held_out: int = 0
    num_same_prompt: int = 0

    def lines(self) -> Sequence[str]:
        """The number of rows."""
        return [f"{counted(self.num_rows, 'row')}, {self.num_held_out:,} held out"] if self.num_rows else []


class Trained(TimedOutcome):
    """One of the two trainings. run: None until it ends."""

    run_id: str = ""
    run: StudentRun | None = None


class Judged(TimedOutcome):
    """The evaluation of all three on the held-out rows."""

    evaluation_id: str = ""


class Reported(TimedOutcome):
    """The page, and the sentence on it."""

    page: str = ""
    headline: str = ""

    def lines(self) -> Sequence[str]:
        """The sentence."""
        return [self.headline] if self.headline else []


def distil(context: Context, request: DistilRequest, *, caller: Caller | None = None, tell: Tell = silent) -> Student:
    """Distil into a student, train it without the teacher, evaluate both and the teacher, and write a report.

    A training stopped by a signal ends this with status "paused"; the same call resumes it, as after a kill. No work is
    done twice. If all is done, the document is read from disk.

    Args:
        context: The home.
        request: The request.
        caller: Whose project it belongs to; None for the default project.
        tell: Called with each stage that changes.

    Raises:
        RequestError: Options of the request do not go together.
        RecipeError: A recipe that would make the two trainings differ in more than the teacher.
        DataError: Rows without prompt and answer.
        LeakageError: A held-out row is a training row.
        NotFoundError: No such file, model or run.
        ConflictError: Another process works on it.
        LuthierError: A stage failed, such as a training or an engine; its error is stored before it is raised.
    """
    caller = caller or Caller()
    # The id is a digest of the request, so the same command finds its folder again.
    student_id, spec = spec_of(context, request, caller.project_id)
    folder = WORKFLOW.folder_of(context, student_id)
    if (done := _read_done(folder)) is not None:
        return done
    try:
        context.pipelines.get(student_id, caller.project_id)
    except NotFoundError:
        WORKFLOW.create(context, caller, student_id, spec, _begun_before(folder))
    with suppress(PausedError):  # the document states it
        resume(WORKFLOW, context, caller, student_id, tell)
    if (done := _read_done(folder)) is not None:
        return done
    return _student(WorkflowRun(context, caller, WORKFLOW, context.pipelines.get(student_id)))


def _begun_before(folder: Path) -> dict[str, dict[str, Any]]:
    """The runs started by a version before 28 November 2026, from the file in which it stored them."""
    file = folder / _STATE
    if not file.is_file():
        return {}
    state = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(state, dict):
        raise ConflictError(f"{file} is damaged", expected="ids of two runs", do=f"delete {folder} and start again")
    return {side: {"run_id": run_id} for side, run_id in state.items()}


def _read_done(folder: Path) -> Student | None:
    file = folder / _DOCUMENT
    return Student.model_validate_json(file.read_text(encoding="utf-8")) if file.is_file() else None


def _write_gold(run: WorkflowRun) -> GoldRows:
    """Write the rows, and check that training and evaluation accept them before the teacher works for hours."""
    from luthier.features.planning.service import make_plan
    from luthier.ml.data.rows.formats import load_file

    spec, folder = run.spec, run.folder
    folder.mkdir(parents=True, exist_ok=True)
    mapping = column_map(run.context, runs_of(run.context, (spec.teacher,)), Path(spec.data), spec.mapping).mapping
    counts = write_gold(folder, Path(spec.data), spec.held_out_rows, mapping=mapping, seed=seed_of(spec.settings))
    # Called only for its checks, like `make_plan` below.
    find_metrics(_judging(spec), load_file(folder / "held_out.jsonl").examples, teacher=spec.teacher)
    make_plan(run.context, _recipe(spec, folder / "train.jsonl", teacher=None), base_dir=folder)
    return GoldRows(num_rows=counts[0], num_held_out=counts[1], num_same_prompt=counts[2])


def _write_taught(run: WorkflowRun) -> StudentRows:
    return write_taught(
        run.context,
        run.folder,
        teacher=run.spec.teacher if run.spec.kind == "sequence" else None,
        max_new_tokens=run.spec.max_new_tokens,
        num_rows=run.outcome("rows", GoldRows).num_rows,
        uses_batch_api=run.spec.uses_batch_api,
    )


def _begin_side(run: WorkflowRun, side: Side) -> Trained:
    """An equal run of the project is reused, such as the student without a teacher of another distillation kind."""
    return Trained(run_id=_same_run(run, _side_recipe(run, side)) or new_id("run"))


def _train_side(run: WorkflowRun, side: Side) -> Trained:
    from luthier.features.training import service as training

    run_id, context = run.outcome(side, Trained).run_id, run.context
    try:
        record = context.runs.get(run_id)
    except NotFoundError:
        # Under the id that the stage has stored before: a kill between training and storing finds this very run.
        record = training.train(context, _side_recipe(run, side), base_dir=run.folder, run_id=run_id).record
    else:
        if record.status != "succeeded":
            record = training.resume(context, run_id).record
    result = record.result
    if record.status != "succeeded" or result is None:
        raise PausedError(
            f"paused: {record.stopped_because or record.status}",
            expected="a training that was not stopped",
            do="run the same command again: it continues where it was",
        )
    ended = StudentRun(
        run_id=run_id,
        method=record.method,
        num_steps=result.num_steps,
        num_examples=result.num_examples,
        num_tokens=result.num_tokens,
        num_trained_tokens=result.num_trained_tokens,
        weights_sha256=str(result.adapter_sha256),
        seconds=result.seconds,
    )
    return Trained(run_id=run_id, run=ended)


def _judge(run: WorkflowRun) -> Judged:
    evaluation_id = run.outcome("judge", Judged).evaluation_id
    if _evaluation(run) is None:
        judge_students(
            run.context,
            teacher=run.spec.teacher,
            alone=run.outcome("alone", Trained).run_id,
            taught=run.outcome("taught", Trained).run_id,
            held_out=run.folder / "held_out.jsonl",
            num_same_prompt=run.outcome("rows", GoldRows).num_same_prompt,
            asked=_judging(run.spec),
            evaluation_id=evaluation_id,
        )
    return Judged(evaluation_id=evaluation_id)


def _report(run: WorkflowRun) -> Reported:
    from luthier.core.system.files import replace_text
    from luthier.ml.evaluation.report import workflow_pages
    from luthier.ml.evaluation.workflow_verdicts import student_verdict

    page = run.folder / "report.html"
    # The document is written last: if it exists, everything before it is done.
    # Finished in memory first: the document on disk is complete or not there.
    student = _student(run).model_copy(update={"status": "done", "go_on": None, "report_path": str(page)})
    verdict = student_verdict(student)
    student = student.model_copy(update={"verdict": verdict})
    workflow_pages.write_student_report(page, student)
    replace_text(run.folder / _DOCUMENT, student.model_dump_json(indent=1) + "\n")
    return Reported(page=str(page), headline=verdict.headline)


def _student(run: WorkflowRun) -> Student:
    """Everything known about it now."""
    spec, gold, rows = run.spec, run.outcome("rows", GoldRows), run.outcome("answers", StudentRows)
    return Student(
        student_id=run.id,
        status="paused",
        kind=spec.kind,
        teacher=spec.teacher,
        student_model=spec.student,
        layers=spec.layers,
        student_parameters=spec.student_parameters,
        teacher_parameters=spec.teacher_parameters,
        data_file=spec.data,
        num_rows=rows.num_rows,
        num_refused=rows.num_refused,
        held_out_file=str(rows.held_out),
        num_held_out=gold.num_held_out,
        num_same_prompt=gold.num_same_prompt,
        taught=run.outcome("taught", Trained).run,
        alone=run.outcome("alone", Trained).run,
        evaluation=_evaluation(run),
        go_on="run the same command again: it continues where it was",
        seconds=run.spent_hours * 3600,
    )


def _evaluation(run: WorkflowRun) -> Evaluation | None:
    try:
        return run.context.evaluations.get(run.outcome("judge", Judged).evaluation_id)
    except NotFoundError:
        return None


def _judging(spec: DistilSpec) -> EvaluationRecipe | None:
    return evaluation_of(spec.settings).evaluation


def _side_recipe(run: WorkflowRun, side: Side) -> Recipe:
    """The recipe of one training: both have the batch size and the learning rate of the student without the teacher.

    Their defaults depend on the objective, and the two would differ in more than the teacher.
    """
    from luthier.features.planning.kept_defaults import changed_defaults, with_values
    from luthier.features.planning.service import make_plan, with_batch_and_rate

    rows, is_logit = run.outcome("answers", StudentRows), run.spec.kind == "logit"
    alone = _recipe(run.spec, rows.gold, teacher=None)
    if side == "alone":
        # As the other one was trained, perhaps by a version with other defaults.
        before, taught = run.context.runs.plan(run.outcome("taught", Trained).run_id), _side_recipe(run, "taught")
        kept = changed_defaults(taught, make_plan(run.context, taught, base_dir=run.folder), before)
        kept = {name: value for name, value in kept.items() if not name.startswith("objective.")}
        return with_values(with_batch_and_rate(alone, before), kept)
    taught = _recipe(run.spec, rows.taught, teacher=run.spec.teacher if is_logit else None)
    return with_batch_and_rate(taught, make_plan(run.context, alone, base_dir=run.folder)) if is_logit else taught


def _recipe(spec: DistilSpec, rows: Path, *, teacher: str | None) -> Recipe:
    # A student made of some of the teacher's layers must recover, so all of its weights are trained.
    is_whole = spec.layers is not None
    return recipe_of(spec.settings, student=spec.student, rows=rows, teacher=teacher, is_whole=is_whole)


def _same_run(run: WorkflowRun, recipe: Recipe) -> str | None:
    """A successful run of the project whose plan gives the same outcome; its weights must exist unchanged."""
    from luthier.features.evaluations.export_sources import find_source
    from luthier.features.planning.service import make_plan

    # The hash of a plan covers everything that determines the outcome, including digests of the rows.
    context, wanted = run.context, make_plan(run.context, recipe, base_dir=run.folder).hash
    equal = [one.run_id for one in context.runs.list() if one.plan_hash == wanted and one.status == "succeeded"]
    # Those of other projects are not this one's to show, and may be deleted by them.
    for run_id in context.runs.ids_of_project(run.project_id, equal):
        with suppress(ConflictError, NotFoundError):
            # Raises if the weights are missing or changed: another run is then searched for, or a new one trained.
            return find_source(context, run_id).run_id
    return None


def _unknown(_run: WorkflowRun) -> None:
    """The duration of teacher, trainings and evaluation is not forecast here."""


def _are_there(_run: WorkflowRun, rows: StudentRows) -> bool:
    return all(file.is_file() for file in (rows.taught, rows.gold, rows.held_out))


def _side(side: Side, title: str) -> StageSpec:
    begin, work = partial(_begin_side, side=side), partial(_train_side, side=side)
    return StageSpec(side, title, work, Trained, ("answers", "settings"), begin=begin, estimate=_unknown)


def _stages(_spec: DistilSpec) -> list[StageSpec]:
    asked = ("data", "held_out", "mapping", "settings")
    return [
        StageSpec("rows", "Rows to learn from, and rows to evaluate with", _write_gold, GoldRows, asked),
        StageSpec(
            "answers",
            "The teacher answers, where its answers are learned",
            _write_taught,
            StudentRows,
            ("rows", "teacher", "max_new_tokens"),
            holds=_are_there,
            estimate=_unknown,
        ),
        _side("taught", "The student learns from the teacher"),
        _side("alone", "The same student learns without the teacher"),
        StageSpec(
            "judge",
            "Both and the teacher are evaluated on the held-out rows",
            _judge,
            Judged,
            ("taught", "alone"),
            begin=lambda _run: Judged(evaluation_id=new_id("eval")),
            estimate=_unknown,
        ),
        StageSpec("report", "One page that shows whether it was worth it", _report, Reported, ("judge",)),
    ]


def _subject(asked: dict[str, Any]) -> str:
    return short(f"{model_name(asked.get('teacher', ''))} teaches {model_name(asked.get('student', ''))}")


def _details(asked: dict[str, Any]) -> dict[str, Any]:
    return {
        "Teacher": model_name(asked.get("teacher", "")),
        "Student": model_name(asked.get("student", "")),
        "Learns": "its probabilities of every token" if asked.get("kind") == "logit" else "the answers that it writes",
        "Rows": file_name(asked.get("data")),
    }


def _write_report(context: Context, _caller: Caller, pipeline: Pipeline, path: Path) -> None:
    from luthier.ml.evaluation.report.workflow_pages import write_student_report

    done = _read_done(WORKFLOW.folder_of(context, pipeline.pipeline_id))
    if done is None:
        raise NotFoundError(
            f"the report of {pipeline.pipeline_id} is missing, and so is the document that it was written from",
            expected=f"{_DOCUMENT} in its folder",
            do="see the results of its stages",
        )
    write_student_report(path, done)


WORKFLOW: Final = Workflow(
    kind="distill",
    noun="a distillation",
    request=DistilSpec,
    stages=_stages,
    folder="students",
    subject=_subject,
    summary=lambda asked: f"{_subject(asked)} on {file_name(asked.get('data'))}",
    details=_details,
    answer=lambda pipeline: str(pipeline.came("report").get("headline", "")),
    write_report=_write_report,
    reported=("done",),
    command=lambda pipeline: str(pipeline.asked["command"]),
)
