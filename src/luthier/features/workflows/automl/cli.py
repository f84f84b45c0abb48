"""`luthier automl`: from a file and a goal to an evaluated model, or to the finding that prompting is enough."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from luthier.core.defaults import NEW_TOKENS, NUM_JUDGED
from luthier.core.text.printed_commands import in_home
from luthier.features.workflows.model_comparison.cli import (
    JudgedOption,
    MetricOption,
    NewTokensOption,
    ProbeOption,
    check_asked,
    split_names,
)
from luthier.platform.cli.command import (
    Answer,
    HomeOption,
    JsonOption,
    MappingOption,
    ProjectOption,
    caller_of,
    open_context,
    refuse_beside_resume,
)

if TYPE_CHECKING:
    from rich.console import Console

    from luthier.core.access import Caller
    from luthier.core.workflows.pipeline import AutomlSpec, Pipeline
    from luthier.platform.home.context import Context

DataOption = Annotated[Path | None, typer.Option("--data", metavar="FILE_OR_DIR", help="Rows, or documents.")]
GoalOption = Annotated[
    str | None, typer.Option("--goal", metavar="TEXT", help="The task, as an instruction to an untuned model.")
]
HoursOption = Annotated[float | None, typer.Option("--budget-hours", metavar="H", help="Time limit of the whole run.")]
ModelsOption = Annotated[
    str | None,
    typer.Option(
        "--models", metavar="A,B", help="Base models to compare [default: models of the catalogue on this machine]."
    ),
]
GroupOption = Annotated[
    str | None, typer.Option("--group-by", metavar="FIELD", help="Rows with the same value stay in one split.")
]
TrialsOption = Annotated[int, typer.Option("--trials", min=1, metavar="N", help="Maximum number of trials.")]
SeedOption = Annotated[int, typer.Option("--seed", min=0, max=2**31 - 1, help="Seed of the split and of all sampling.")]
AnywayOption = Annotated[bool, typer.Option("--tune-anyway", help="Search even if prompting is enough.")]
ResumeOption = Annotated[str | None, typer.Option("--resume", metavar="ID", help="Continue a paused or killed run.")]


def automl(
    ctx: typer.Context,
    data: DataOption = None,
    goal: GoalOption = None,
    budget_hours: HoursOption = None,
    models: ModelsOption = None,
    mapping: MappingOption = None,
    group_by: GroupOption = None,
    metric: MetricOption = None,
    trials: TrialsOption = 40,
    max_samples: JudgedOption = NUM_JUDGED,
    max_new_tokens: NewTokensOption = NEW_TOKENS,
    seed: SeedOption = 0,
    tune_anyway: AnywayOption = False,
    probe: ProbeOption = True,
    resume: ResumeOption = None,
    project: ProjectOption = "default",
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Audit, repair and split the rows, choose a model, search for its recipe, evaluate it once, and write one page.

    If prompting is enough, nothing more is trained. Ctrl-C pauses, --resume continues; `luthier pipelines` shows the
    progress.
    """
    from luthier.core.workflows.pipeline import AutomlSpec
    from luthier.features.workflows.automl import workflow as autos
    from luthier.features.workflows.automl.request import checked_hours
    from luthier.features.workflows.views import shown, teller
    from luthier.platform.cli.command import parse_mapping
    from luthier.platform.cli.console import visible

    refuse_beside_resume(ctx)
    check_asked({"--data": data, "--goal": goal, "--budget-hours": budget_hours}, resume, _EXAMPLE)
    with open_context(home) as context:
        auto_id, caller = resume, caller_of(context, project)
        if auto_id is None:
            assert data is not None
            assert goal is not None
            asked = AutomlSpec(
                data=str(data),
                goal=goal,
                hours=checked_hours(budget_hours),
                models=() if models is None else split_names(models),
                map=dict(parse_mapping(mapping or ())) or None,
                group_by=group_by,
                metric=metric,
                max_new_tokens=max_new_tokens,
                most_judged=max_samples,
                most_trials=trials,
                seed=seed,
                always_tunes=tune_anyway,
                is_probed=probe,
            )
            auto_id = _begin(context, caller, asked)
        done = autos.go_on(context, auto_id, tell=teller(), caller=caller)
        document, show = _document(context, done), shown(context, caller, auto_id)

    def show_all(console: Console) -> None:
        console.print(visible(document["headline"]), soft_wrap=True)
        show(console)
        for line in document["next_commands"]:
            console.print(visible(in_home(f"  {line}")), soft_wrap=True)

    exit_code = 1 if any(stage.status == "refused" for stage in done.stages) else 0
    return Answer(as_json, document, show_all, exit_code)


_EXAMPLE = 'luthier automl --data rows.jsonl --goal "Answer with one SQL query." --budget-hours 2'


def _begin(context: Context, caller: Caller, asked: AutomlSpec) -> str:
    from luthier.core.workflows.pipeline import AutomlSpec
    from luthier.features.workflows.automl import workflow as autos
    from luthier.platform.cli.console import stderr_console, visible

    pipeline = autos.begin(context, asked, caller=caller)
    spec = AutomlSpec.model_validate(pipeline.asked)
    line = (
        f"{pipeline.pipeline_id}: {spec.hours:.3g} h in all, {spec.showdown_hours:.3g} h of them to choose among "
        f"{', '.join(spec.models)}; the search has what is left when the rows are ready, less the final evaluation"
    )
    stderr_console().print(visible(line), soft_wrap=True)
    return pipeline.pipeline_id


def _document(context: Context, done: Pipeline) -> dict[str, Any]:
    from luthier.features.workflows.automl.report import evaluation_of, headline, next_commands
    from luthier.features.workflows.automl.workflow import WORKFLOW
    from luthier.platform.workflows.engine import spent_hours

    found = evaluation_of(context, done)
    verdict = found.verdict if found is not None else None
    return {
        **done.model_dump(mode="json"),
        "verdict": None if verdict is None else verdict.model_dump(mode="json"),
        "headline": headline(done),
        "hours": spent_hours(WORKFLOW, done),
        "run_id": done.came("tune").get("run_id"),
        "report_path": str(WORKFLOW.folder_of(context, done.pipeline_id) / "report.html"),
        "next_commands": next_commands(done),
    }
