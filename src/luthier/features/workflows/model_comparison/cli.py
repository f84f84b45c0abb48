"""`luthier compare-models`: choose a base model, and decide whether it needs tuning."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from luthier.core.defaults import NEW_TOKENS, NUM_JUDGED, NUM_SHOTS
from luthier.core.text.counted import counted
from luthier.core.text.printed_commands import in_home
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
    from luthier.core.workflows.pipeline import ModelComparisonResult
    from luthier.features.workflows.model_comparison.request import ModelComparisonRequest

ModelsOption = Annotated[
    str | None, typer.Option("--models", metavar="A,B", help="Base models, separated by commas.", show_default=False)
]
DataOption = Annotated[Path | None, typer.Option("--data", metavar="FILE", help="Rows for training.")]
HeldOutOption = Annotated[Path | None, typer.Option("--held-out", metavar="FILE", help="Rows for evaluation.")]
HoursOption = Annotated[float | None, typer.Option("--budget-hours", metavar="H", help="Time limit of the comparison.")]
MetricOption = Annotated[
    str | None, typer.Option("--metric", metavar="NAME", help="The deciding metric [default: as `luthier eval`].")
]
FewShotOption = Annotated[int, typer.Option("--few-shot", min=0, max=64, help="Examples in the prompt.")]
InstructionOption = Annotated[
    str | None,
    typer.Option(
        "--instruction",
        metavar="TEXT",
        help="Task instruction for models that are not tuned; empty: none. [default: derived from the training rows "
        "where they contain none]",
    ),
]
NewTokensOption = Annotated[int, typer.Option("--max-new-tokens", min=1, help="Length limit of answers.")]
JudgedOption = Annotated[int, typer.Option("--max-samples", min=1, metavar="N", help="Evaluate at most N rows.")]
MethodOption = Annotated[str, typer.Option("--method", metavar="NAME", help="Tuning method of the candidates.")]
SeedOption = Annotated[
    int, typer.Option("--seed", min=0, max=2**31 - 1, help="Seed of row order and choice of examples.")
]
ProbeOption = Annotated[bool, typer.Option("--probe/--no-probe", help="Train a few real steps to choose sizes.")]
ResumeOption = Annotated[
    str | None, typer.Option("--resume", metavar="ID", help="Continue a paused or killed comparison.")
]


def compare_models(
    ctx: typer.Context,
    models: ModelsOption = None,
    data: DataOption = None,
    held_out: HeldOutOption = None,
    budget_hours: HoursOption = None,
    metric: MetricOption = None,
    few_shot: FewShotOption = NUM_SHOTS,
    instruction: InstructionOption = None,
    mapping: MappingOption = None,
    max_new_tokens: NewTokensOption = NEW_TOKENS,
    max_samples: JudgedOption = NUM_JUDGED,
    method: MethodOption = "lora",
    seed: SeedOption = 0,
    probe: ProbeOption = True,
    resume: ResumeOption = None,
    project: ProjectOption = "default",
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Evaluate several base models without and with examples, tune each briefly in the same way, and recommend one or
    none.

    All get the same rows, as many as the budget permits. Ctrl-C pauses, --resume continues; `luthier pipelines` shows
    the progress.
    """
    from luthier.features.workflows.model_comparison import workflow as showdowns
    from luthier.features.workflows.model_comparison.request import ModelComparisonRequest
    from luthier.features.workflows.model_comparison.workflow import page_of
    from luthier.features.workflows.views import teller
    from luthier.platform.cli.command import parse_mapping

    given = {"--models": models, "--data": data, "--held-out": held_out, "--budget-hours": budget_hours}
    refuse_beside_resume(ctx)
    check_asked(given, resume, _EXAMPLE)
    with open_context(home) as context:
        showdown_id, caller = resume, caller_of(context, project)
        if showdown_id is None:
            # Ensured by `check_asked`, which the type checker cannot know.
            assert models is not None
            assert data is not None
            assert held_out is not None
            assert budget_hours is not None
            request = ModelComparisonRequest(
                models=split_names(models),
                data=data,
                held_out=held_out,
                hours=budget_hours,
                mapping=parse_mapping(mapping or ()) or None,
                metric=metric,
                few_shot=few_shot,
                instruction=instruction,
                max_new_tokens=max_new_tokens,
                most_judged=max_samples,
                method=method,
                seed=seed,
                is_probed=probe,
            )
            # Printed before the work begins: after a kill, the id is enough to continue.
            showdown_id = _begin(context, caller, request)
        found = showdowns.go_on(context, showdown_id, tell=teller(), caller=caller)
        page = page_of(context, showdown_id)
    document = {**found.model_dump(mode="json"), "report_path": str(page)}
    return Answer(as_json, document, lambda console: show_model_comparison(console, found, page))


_EXAMPLE = (
    "luthier compare-models --models smollm2-135m-instruct,gemma3-270m --data train.jsonl --held-out test.jsonl "
    "--budget-hours 1"
)


def check_asked(given: Mapping[str, object], resume: str | None, example: str) -> None:
    """Check for all arguments of a new comparison, unless one is resumed.

    Raises:
        RequestError: An argument is missing without --resume.
    """
    from luthier.core.errors import RequestError

    if resume is None and (missing := [name for name, value in given.items() if value is None]):
        raise RequestError(
            f"no {', '.join(missing)}",
            expected=f"{', '.join(given)}; or --resume with an id",
            do=f"write for example: {example}",
        )


def split_names(text: str) -> tuple[str, ...]:
    """The names in `a,b`, without blanks."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _begin(context: Any, caller: Caller, request: ModelComparisonRequest) -> str:
    from luthier.core.workflows.pipeline import ModelComparisonSpec
    from luthier.features.workflows.model_comparison import workflow as showdowns
    from luthier.platform.cli.console import stderr_console, visible

    pipeline = showdowns.begin(context, request, caller=caller)
    spec = ModelComparisonSpec.model_validate(pipeline.asked)
    planned, num_contenders = spec.planned_hours, len(spec.contenders)
    contenders = counted(num_contenders, "contender")
    stderr_console().print(
        visible(
            f"{pipeline.pipeline_id}: {contenders}, {counted(spec.num_examples, 'example')} trained on and "
            f"{counted(spec.num_judged, 'row')} evaluated with each; {planned.low:.2g} to {planned.high:.2g} h "
            f"expected of {spec.hours:.3g} h"
        ),
        soft_wrap=True,
    )
    return pipeline.pipeline_id


def show_model_comparison(console: Console, found: ModelComparisonResult, page: Path) -> None:
    """Print the recommendation, every system, the differences in conditions, and the path of the page."""
    from luthier.ml.charts.judged_rows import metric_heading
    from luthier.ml.evaluation.report.workflow_pages import system_rows
    from luthier.platform.cli.console import make_table, visible

    answer, primary = found.recommendation, found.spec.primary
    console.print(visible(answer.headline), soft_wrap=True)
    for line in answer.reasons:
        console.print(visible(f"  {line}"), soft_wrap=True)
    # In addition to another metric, as it is comparable across models for any answers.
    also = [] if primary == "bits_per_byte" else ["bits per byte"]
    table = make_table(
        ["system", "licence", metric_heading(primary), *also, "s/answer", "USD/1,000 answers"], num_text_columns=2
    )
    for row in system_rows(found):
        cells = [
            f"{'*' if row.is_chosen else ' '} {row.name}",
            row.licence,
            row.value,
            *([row.bits_per_byte] if also else []),
        ]
        table.add_row(*(visible(cell or "-") for cell in (*cells, row.seconds, row.usd)))
    console.print(table)
    for title, lines in (("keep in mind", answer.cautions), ("not the same for all", found.not_equal)):
        for line in lines:
            console.print(visible(f"{title}: {line}"), soft_wrap=True)
    console.print(visible(f"report: {page}"), soft_wrap=True)
    # Only this answer has a run to continue with.
    if answer.word == "tuned":
        run = next(one.run_id for one in found.tunings if one.contender == answer.contender)
        line = f"the short training is run {run}; look at it with: luthier runs show {run}"
        console.print(in_home(line), soft_wrap=True)
