"""What people read of an automatic run: what was asked, its answer, what to type next, and its one page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from luthier.core.access import Caller
from luthier.core.aliases import with_new_keys
from luthier.core.errors import NotFoundError
from luthier.core.evaluation import Evaluation
from luthier.core.text.plain_yaml import write_yaml
from luthier.core.workflows.automl import AutomlSpec
from luthier.core.workflows.pipeline import Pipeline
from luthier.features.workflows.registry import file_name, lines_of, model_names, short, workflow_of
from luthier.platform.home.context import Context
from luthier.platform.workflows.engine import spent_hours


def subject(asked: dict[str, Any]) -> str:
    """The goal."""
    return short(str(asked.get("goal", "")))


def summary(asked: dict[str, Any]) -> str:
    """The goal, the file and the budget."""
    return f"“{subject(asked)}” from {file_name(asked.get('data'))}, within {asked.get('hours', 0):.3g} h"


def details(asked: dict[str, Any]) -> dict[str, Any]:
    """What was asked, a name and a value each."""
    return {
        "Goal": asked.get("goal"),
        "Folder of documents" if asked.get("is_folder") else "Rows": file_name(asked.get("data")),
        "Base models": model_names(asked.get("models", [])),
        "Decides": asked.get("metric"),
        "Budget": f"{asked.get('hours', 0):.3g} h, {asked.get('showdown_hours', 0):.3g} h of them for the showdown",
    }


def headline(pipeline: Pipeline) -> str:
    """The answer in a sentence or two: what came of it, or how far it is."""
    stopped = next((stage for stage in pipeline.stages if stage.status in ("refused", "failed")), None)
    if stopped is not None:
        return f"It ended at {stopped.name}: {stopped.reason}"
    if pipeline.came("judge"):
        return str(pipeline.came("judge").get("headline") or pipeline.came("showdown").get("headline"))
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


def write_auto_report(context: Context, _caller: Caller, pipeline: Pipeline, path: Path) -> None:
    """Write the page, also of a run that is not done. Raises StorageFullError."""
    from luthier.ml.evaluation.report.automl_page import AutoStage, write_auto_page

    workflow = workflow_of("auto")
    spec = AutomlSpec.model_validate(pipeline.asked)
    titles, lines = {one.name: one.title for one in workflow.stages(spec)}, lines_of(workflow, pipeline)
    stages = [
        AutoStage(
            name=stage.name,
            words=titles[stage.name],
            status=stage.status,
            lines=tuple(lines[stage.name]),
            hours=stage.came.get("seconds", 0.0) / 3600,
            href=_link(stage.came.get("page"), path.parent),
        )
        for stage in pipeline.stages
        if stage.name != "report"
    ]
    write_auto_page(
        path,
        pipeline,
        spec,
        headline=headline(pipeline),
        stages=stages,
        evaluation=_evaluation(context, pipeline),
        recipe=_recipe(context, pipeline),
        spent_hours=spent_hours(workflow, pipeline),
        commands=next_commands(pipeline),
    )


def _link(page: str | None, folder: Path) -> str:
    if page is None:
        return ""
    return Path(page).relative_to(folder).as_posix() if Path(page).is_relative_to(folder) else Path(page).as_uri()


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
