"""The one page of an automatic run: the answer, each stage with its result, and where the budget went."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from luthier.core.aliases import with_new_keys
from luthier.core.errors import NotFoundError
from luthier.core.evaluation import Evaluation
from luthier.core.text.plain_yaml import write_yaml
from luthier.core.workflows.auto import AutoSpec
from luthier.core.workflows.pipeline import Pipeline, Stage
from luthier.features.workflows.automl.stages import folder_of, spent_hours
from luthier.platform.home.context import Context

if TYPE_CHECKING:
    from luthier.ml.evaluation.report.automl_page import AutoStage

STAGE_WORDS: Final = {
    "ingest": "Documents are read into rows",
    "audit": "The rows are checked",
    "repair": "What is safe to repair is repaired, and checked again",
    "split": "Rows to train on, to choose by, to judge by",
    "showdown": "A model is chosen, and whether to tune it",
    "tune": "The best recipe is searched",
    "judge": "Judged on rows that nothing was chosen by",
    "report": "This page",
}


def write_auto_report(context: Context, pipeline: Pipeline) -> Path:
    """Write the page again, also of a run that is not done. Raises StorageFullError."""
    from luthier.ml.evaluation.report.automl_page import write_auto_page

    spec = AutoSpec.model_validate(pipeline.asked)
    path = folder_of(context, pipeline.pipeline_id) / "report.html"
    stages = [_stage(stage, path.parent) for stage in pipeline.stages if stage.name != "report"]
    return write_auto_page(
        path,
        pipeline,
        spec,
        headline=headline(pipeline),
        stages=stages,
        evaluation=_evaluation(context, pipeline),
        recipe=_recipe(context, pipeline),
        spent_hours=spent_hours(pipeline),
        commands=next_commands(pipeline),
    )


def headline(pipeline: Pipeline) -> str:
    """The answer in a sentence or two: what came of it, or how far it is."""
    stopped = next((stage for stage in pipeline.stages if stage.status in ("refused", "failed")), None)
    if stopped is not None:
        return f"It ended at {stopped.name}: {stopped.reason}"
    if pipeline.came("judge"):
        showdown, judged = pipeline.came("showdown"), pipeline.came("judge")
        return str(judged["headline"] or showdown["headline"])
    waiting = pipeline.next_stage
    return f"It is not done: {waiting.name if waiting else 'report'} comes next."


def next_commands(pipeline: Pipeline) -> list[str]:
    """What to type next."""
    stopped = any(stage.status == "refused" for stage in pipeline.stages)
    tuned = pipeline.came("tune")
    if not pipeline.came("judge"):
        return [] if stopped else [f"luthier automl --resume {pipeline.pipeline_id}"]
    if run_id := tuned.get("run_id"):
        study = tuned.get("study_id")
        apply = [f"luthier studies apply {study} -o recipe.yaml"] if study else []
        return [f"luthier chat {run_id}", f"luthier runs show {run_id}", *apply]
    return []


def lines_of(stage: Stage) -> list[str]:
    """What a stage came to, a sentence each: why it went no further, what it found, the ids of what it made."""
    made = [stage.came[name] for name in ("showdown_id", "study_id", "run_id", "evaluation_id") if stage.came.get(name)]
    return [*([stage.reason] if stage.reason else []), *found_by(stage), *made]


def found_by(stage: Stage) -> list[str]:
    """What a stage has found, a sentence each."""
    came = stage.came
    found: list[str] = []
    if "grade" in came:
        found.append(f"{came['num_rows']:,} rows of grade {came['grade']}")
        found += came["reasons"][:3] if stage.name == "audit" else []
    if "actions" in came:
        done = ", ".join(f"{name} {number:,}" for name, number in came["actions"].items())
        gone = came["num_rows_before"] - came["num_rows"]
        found.append(
            f"{gone:,} {'row' if gone == 1 else 'rows'} removed; rows changed or removed by reason: {done or 'none'}"
        )
    if "sides" in came:
        found.append(
            ", ".join(f"{name.replace('_', '-')} {side['num_rows']:,}" for name, side in came["sides"].items())
        )
    if came.get("headline"):
        found.append(came["headline"])
    if came.get("skipped"):
        found.append(came["skipped"])
    return found


def _stage(stage: Stage, folder: Path) -> AutoStage:
    from luthier.ml.evaluation.report.automl_page import AutoStage

    page = stage.came.get("page")
    href = ""
    if page is not None:
        href = Path(page).relative_to(folder).as_posix() if Path(page).is_relative_to(folder) else Path(page).as_uri()
    return AutoStage(
        name=stage.name,
        words=STAGE_WORDS[stage.name],
        status=stage.status,
        lines=tuple(lines_of(stage)),
        hours=stage.came.get("seconds", 0.0) / 3600,
        href=href,
    )


def _evaluation(context: Context, pipeline: Pipeline) -> Evaluation | None:
    found = pipeline.came("judge").get("evaluation_id")
    if found is None:
        return None
    try:
        return context.evaluations.get(found)
    except NotFoundError:  # named before it is made
        return None


def _recipe(context: Context, pipeline: Pipeline) -> str:
    """The recipe of the tuned model, ready to run; empty where nothing was tuned."""
    run_id = pipeline.came("tune").get("run_id")
    if not run_id:
        return ""
    try:
        recipe = context.runs.plan(run_id).recipe
    except NotFoundError:  # the run was removed since
        return ""
    return write_yaml(with_new_keys(recipe.model_dump(mode="json", exclude_none=True)))
