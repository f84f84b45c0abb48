"""The workflow of `luthier automl`: from a file and a goal to an evaluated model, or to "prompt only".

Documents are first read into rows. The held-out rows of the split are used once, by the final evaluation.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from luthier.core.access import Caller
from luthier.core.errors import LuthierError, NotFoundError
from luthier.core.ids import new_id
from luthier.core.recipe import DataRecipe, Recipe, TrainingRecipe
from luthier.core.workflows.pipeline import AutomlSpec, ModelComparisonResult, Pipeline
from luthier.features.planning.budgets import BudgetTooSmallError
from luthier.features.workflows.automl.outcomes import (
    Audited,
    Chosen,
    Judged,
    Repaired,
    Reported,
    RowsFile,
    Side,
    SplitRows,
    Tuned,
)
from luthier.features.workflows.automl.report import (
    details,
    headline,
    judging_hours,
    subject,
    summary,
    write_auto_report,
)
from luthier.features.workflows.automl.request import completed
from luthier.features.workflows.model_comparison import workflow as showdowns
from luthier.features.workflows.model_comparison.request import ModelComparisonRequest
from luthier.features.workflows.model_comparison.sizes import ModelComparisonTooSmallError
from luthier.platform.home.context import Context
from luthier.platform.workflows.engine import (
    PausedError,
    StageRefusedError,
    StageSpec,
    Tell,
    Workflow,
    WorkflowRun,
    resume,
    silent,
)

VALIDATION, HELD_OUT = 0.1, 0.1
_MUST_NOT: Final = "F"
_GRADES_ARE: Final = "an error about 1% of the rows or more, or about the file as a whole"


def begin(context: Context, asked: AutomlSpec, *, caller: Caller | None = None, auto_id: str | None = None) -> Pipeline:
    """Check the request and store it; reads no rows yet.

    Args:
        context: The home.
        asked: The request; defaults are filled in.
        caller: Whose project it belongs to; None for the default project.
        auto_id: Its id; by default a new one.

    Raises:
        NotFoundError, ModelSourceError: The data or a model does not exist or could not be fetched.
        RequestError: No goal, no hours (BudgetTooSmallError for too few), no files, or an unsupported file type.
    """
    spec, auto_id = completed(context, asked), auto_id or new_id("auto")
    # The folder comes before the record: a record without its folder could not be resumed.
    WORKFLOW.folder_of(context, auto_id).mkdir(parents=True, exist_ok=True)
    return WORKFLOW.create(context, caller or Caller(), auto_id, spec)


def go_on(context: Context, auto_id: str, *, tell: Tell = silent, caller: Caller | None = None) -> Pipeline:
    """Do all remaining work. Returns the record: done, or with a `refused` stage that gives the reason.

    The page is written at the end, and also if a stage fails or ends the workflow.
    Raises NotFoundError where there is none, ConflictError where another process works on it, else that of a stage.
    """
    caller = caller or Caller()
    path = WORKFLOW.folder_of(context, auto_id) / "report.html"
    try:
        done = resume(WORKFLOW, context, caller, auto_id, tell).pipeline
    except LuthierError:
        pipeline = context.pipelines.get(auto_id, caller.project_id)
        if pipeline.kind == "auto" and any(stage.status == "failed" for stage in pipeline.stages):
            write_auto_report(context, caller, pipeline, path)
        raise
    if done.came("report").get("page") is None:
        write_auto_report(context, caller, done, path)
    return done


def _ingest(run: WorkflowRun) -> RowsFile:
    """Read documents into rows of text; documents already read before a kill are not read again."""
    from luthier.features.datasets.documents import ingest

    output = Path(run.outcome("ingest", RowsFile).file)
    # `ingest` writes the file atomically, so an existing file is complete.
    if not output.is_file():
        ingest(run.context, [Path(run.spec.data)], output, model=run.spec.models[0])
    return RowsFile(file=str(output))


def _begin_ingest(run: WorkflowRun) -> RowsFile:
    """Documents that have changed since are read again."""
    output = run.folder / "rows.jsonl"
    output.unlink(missing_ok=True)
    return RowsFile(file=str(output))


def _audit(run: WorkflowRun) -> Audited:
    return Audited(**_audited(run, _rows_file(run), run.folder / "audit.html"))


def _repair(run: WorkflowRun) -> Repaired:
    """Make all safe repairs. The workflow ends if the rows are still unfit for training."""
    from luthier.features.datasets.data_files import RepairOptions, repair

    output = run.folder / "repaired.jsonl"
    document = repair(run.context, _rows_file(run), output, RepairOptions(mapping=run.spec.map, force=True)).document
    found = _audited(run, output, run.folder / "audit_repaired.html")
    # The audit after the repair decides, so that faults that can be repaired never end a workflow.
    if found["grade"] == _MUST_NOT:
        raise StageRefusedError(
            f"the rows have grade {found['grade']} even after repair: {'; '.join(found['reasons'])}",
            expected=f"no grade {_MUST_NOT}, which is {_GRADES_ARE}",
            do=f"see {run.folder / 'audit_repaired.html'}, and correct the rows",
        )
    actions = {one["id"]: one["num_rows"] for one in document["actions"] if one["num_rows"]}
    counts = {"num_rows_before": document["num_rows"], "num_rows": document["num_rows_after"]}
    return Repaired(**{**found, **counts, "file": str(output), "actions": actions})


def _split(run: WorkflowRun) -> SplitRows:
    from luthier.features.datasets.data_files import SplitOptions, split

    options = SplitOptions(
        folder=run.folder / "split",
        validation=VALIDATION,
        held_out=HELD_OUT,
        seed=run.spec.seed,
        group_by=run.spec.group_by,
        mapping=run.spec.map,
        force=True,
    )
    made = split(run.context, Path(run.outcome("repair", Repaired).file), options)
    sides = {name: Side(num_rows=side["num_rows"]) for name, side in made.document["sides"].items()}
    return SplitRows(folder=str(made.folder), sides=sides)


def _choose(run: WorkflowRun) -> Chosen:
    """Choose the base model, and whether to tune it, on the validation rows, so that the held-out rows stay unseen."""
    showdown_id = run.outcome("showdown", Chosen).showdown_id
    try:
        run.context.pipelines.get(showdown_id, run.project_id)
    except NotFoundError:
        _begin_model_comparison(run, showdown_id)
    result = showdowns.go_on(run.context, showdown_id, caller=run.caller)
    answer, page = result.recommendation, str(showdowns.page_of(run.context, showdown_id))
    if answer.word == "nothing":
        raise StageRefusedError(
            answer.headline, expected="a system that gets some rows right", do=f"see what they wrote: {page}"
        )
    hours = result.hours
    return Chosen(word=answer.word, headline=answer.headline, page=page, hours=hours, seconds=hours * 3600)


def _begin_model_comparison(run: WorkflowRun, showdown_id: str) -> None:
    folder, spec = Path(run.outcome("split", SplitRows).folder), run.spec
    request = ModelComparisonRequest(
        models=spec.models,
        data=folder / "train.jsonl",
        held_out=folder / "validation.jsonl",
        hours=spec.showdown_hours,
        mapping=spec.map,
        group_by=spec.group_by,
        metric=spec.metric,
        few_shot=spec.few_shot,
        instruction=spec.goal,
        max_new_tokens=spec.max_new_tokens,
        most_judged=spec.most_judged,
        seed=spec.seed,
        is_probed=spec.is_probed,
    )
    try:
        showdowns.begin(run.context, request, caller=run.caller, showdown_id=showdown_id)
    except ModelComparisonTooSmallError as error:
        # The model comparison has a fixed share of the hours, so its requirement is scaled to the whole run.
        whole = error.needed_hours * spec.hours / spec.showdown_hours
        raise BudgetTooSmallError(
            f"{spec.hours:.3g} h in all, {spec.showdown_hours:.3g} h of them to choose a model; {error.came}",
            expected=f"at least {whole:.2g} h in all",
            do="start again with more hours, fewer models or smaller ones",
        ) from error


def _begin_tune(run: WorkflowRun) -> Tuned:
    """Name the search, or the reason against one: prompting is enough."""
    if _result(run).recommendation.word == "prompting" and not run.spec.always_tunes:
        return Tuned(skipped="prompting is enough", run_id=None)
    return Tuned(study_id=new_id("study"))


def _begin_study(run: WorkflowRun, study_id: str) -> Tuned | None:
    """Store the search under its id; what the stage ends with where the budget is too small for one."""
    from luthier.features.studies import service as studies

    result = _result(run)
    answer = result.recommendation
    assert answer.contender is not None
    # The time of the final evaluation is reserved, as the search uses its whole budget.
    left = run.spec.hours - run.spent_hours - judging_hours(result.spec, run.spec.most_judged, run.spec.hours)
    request = studies.StudyRequest(
        recipe=_recipe(run, result.spec.contenders[answer.contender].model),
        # Never 0 or below if the model comparison has used up everything: such a small budget is rejected, which is
        # handled below.
        hours=max(left, 1e-6),
        most_trials=run.spec.most_trials,
        seed=run.spec.seed,
    )
    try:
        studies.begin(run.context, request, project_id=run.project_id, study_id=study_id)
    except BudgetTooSmallError as error:
        done = [one for one in result.tunings if one.contender == answer.contender and not one.reason]
        what = "the short training of the model comparison is evaluated" if done else "no tuned model is evaluated"
        run_id = done[0].run_id if done else None
        return Tuned(skipped=f"no search: {error.came}; {what}", study_id=None, run_id=run_id)
    return None


def _tune(run: WorkflowRun) -> Tuned:
    """Search for the best recipe of the chosen model, and train with it."""
    from luthier.features.studies import service as studies

    study_id = str(run.outcome("tune", Tuned).study_id)
    try:
        run.context.studies.get(study_id)
    except NotFoundError:
        if (ended := _begin_study(run, study_id)) is not None:
            return ended
    study = studies.go_on(run.context, study_id)
    if study.status != "done":
        on_its_own = "" if study.needs_hours is None else f"{study.way_on}, then "
        raise PausedError(
            f"paused: the search is {study.status}" + (", its budget used up" if on_its_own else ""),
            expected="all stages done",
            do=f"resume it: {on_its_own}luthier automl --resume {run.id}",
        )
    hours = study.hours
    return Tuned(run_id=study.final_run_id, page=study.report_path, hours=hours, seconds=hours * 3600)


def _judge(run: WorkflowRun) -> Judged:
    """Compare the tuned model, if there is one, with prompting its base, on unused rows."""
    from luthier.features.workflows.automl.report import judge_at_end

    evaluation_id = run.outcome("judge", Judged).evaluation_id
    try:
        found = run.context.evaluations.get(evaluation_id)
    except NotFoundError:
        held_out = Path(run.outcome("split", SplitRows).folder) / "held_out.jsonl"
        run_id = run.outcome("tune", Tuned).run_id
        found = judge_at_end(run.context, run.spec, _result(run), held_out, run_id, evaluation_id, run.project_id)
    return Judged(headline=found.verdict.headline if found.verdict else "")


def _report(run: WorkflowRun) -> Reported:
    page = run.folder / "report.html"
    write_auto_report(run.context, run.caller, run.pipeline, page)
    return Reported(page=str(page))


def _rows_file(run: WorkflowRun) -> Path:
    """The original rows: those of the file, or those read from documents."""
    return Path(run.outcome("ingest", RowsFile).file or run.spec.data)


def _audited(run: WorkflowRun, file: Path, html: Path) -> dict[str, Any]:
    from luthier.features.datasets.data_files import AuditOptions, audit

    # The same options before and after the repair: otherwise the two grades could not be compared.
    options = AuditOptions(mapping=run.spec.map, group_by=run.spec.group_by)
    found = audit(run.context, file, options, html=html).audit
    reasons = tuple(found.grade_reasons[:5])
    return {"grade": found.grade, "reasons": reasons, "num_rows": found.num_rows, "page": str(html)}


def _result(run: WorkflowRun) -> ModelComparisonResult:
    showdown_id = run.outcome("showdown", Chosen).showdown_id
    return run.context.assessments.get("showdown", ModelComparisonResult, run.project_id, showdown_id)


def _recipe(run: WorkflowRun, model: str) -> Recipe:
    folder = Path(run.outcome("split", SplitRows).folder)
    data = DataRecipe(
        train=str(folder / "train.jsonl"),
        validation=str(folder / "validation.jsonl"),
        map=run.spec.map,
        group_by=run.spec.group_by,
    )
    training = TrainingRecipe(overlong="drop", seed=run.spec.seed)  # a run counts and lists dropped rows
    return Recipe(base_model=model, data=data, training=training)


def _asked_files(run: WorkflowRun) -> Sequence[Path]:
    data = Path(run.spec.data)
    # Sorted: the digest of a folder must not depend on the order in which its file system lists it.
    return [data] if data.is_file() else sorted(path for path in data.rglob("*") if path.is_file())


def _judging_seconds(run: WorkflowRun) -> float:
    """Included in the time of the search until the model comparison has measured it."""
    is_known = bool(run.outcome("showdown", Chosen).word)
    return judging_hours(_result(run).spec, run.spec.most_judged, run.spec.hours) * 3600 if is_known else 0.0


def _choosing_seconds(run: WorkflowRun) -> float:
    return float(run.spec.showdown_hours) * 3600


def _searching_seconds(run: WorkflowRun) -> float:
    """All remaining time except the final evaluation: a search uses its whole budget."""
    choosing = 0.0 if run.outcome("showdown", Chosen).word else _choosing_seconds(run)
    return max(0.0, float(run.spec.hours - run.spent_hours) * 3600 - choosing - _judging_seconds(run))


def _stages(spec: AutomlSpec) -> list[StageSpec]:
    rows = ("data", "map", "group_by")
    before: tuple[str, ...] = ("ingest",) if spec.is_folder else ()
    files = (lambda _run: ()) if spec.is_folder else _asked_files
    ingest = StageSpec(
        "ingest",
        "Documents are read into rows",
        _ingest,
        RowsFile,
        needs=("data", "models"),
        reads=_asked_files,
        begin=_begin_ingest,
    )
    return [
        *([ingest] if spec.is_folder else []),
        StageSpec(
            "audit", "The rows are checked", _audit, Audited, needs=(*rows, *before), reads=files, page="audit.html"
        ),
        StageSpec(
            "repair",
            "Safe repairs are made, and the rows are checked again",
            _repair,
            Repaired,
            needs=(*rows, *before),
            reads=files,
            page="audit_repaired.html",
        ),
        StageSpec(
            "split",
            "Rows to train with, to validate with, to evaluate with",
            _split,
            SplitRows,
            needs=("repair", "seed", "group_by", "map"),
        ),
        StageSpec(
            "showdown",
            "A model is chosen, and whether to tune it",
            _choose,
            Chosen,
            needs=("split", "models", "goal", "metric"),
            begin=lambda _run: Chosen(showdown_id=new_id("showdown")),
            estimate=_choosing_seconds,
        ),
        StageSpec(
            "tune",
            "The best recipe is searched",
            _tune,
            Tuned,
            needs=("showdown", "always_tunes"),
            begin=_begin_tune,
            estimate=_searching_seconds,
        ),
        StageSpec(
            "judge",
            "Evaluated on rows that were not used for any choice",
            _judge,
            Judged,
            needs=("split", "showdown", "tune"),
            begin=lambda _run: Judged(evaluation_id=new_id("eval")),
            estimate=_judging_seconds,
        ),
        StageSpec("report", "One page with all results", _report, Reported, needs=("judge",)),
    ]


WORKFLOW: Final = Workflow(
    kind="auto",
    noun="an automl run",
    request=AutomlSpec,
    stages=_stages,
    folder="autos",
    subject=subject,
    summary=summary,
    details=details,
    answer=headline,
    write_report=write_auto_report,
    reported=("done", "refused", "failed"),
)
