"""`luthier eval`: judge models on held-out rows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from luthier.cli.answer import Answer
from luthier.cli.opening import open_context
from luthier.cli.options import HomeOption, JsonOption

if TYPE_CHECKING:
    from rich.console import Console

    from luthier.core.evaluation import Evaluation
    from luthier.core.recipe import MetricName


def evaluate(
    candidate: Annotated[str, typer.Argument(metavar="MODEL_OR_RUN", help="What to judge: a base model or a run.")],
    data: Annotated[Path, typer.Option("--data", metavar="FILE", help="Held-out rows.")],
    against: Annotated[
        list[str] | None,
        typer.Option("--against", metavar="MODEL_OR_RUN", help="What to hold it against. Repeatable."),
    ] = None,
    few_shot: Annotated[
        int,
        typer.Option(
            "--few-shot", min=0, max=64, help="Also judge the base model with this many examples in its prompt."
        ),
    ] = 0,
    few_shot_from: Annotated[
        Path | None, typer.Option("--few-shot-from", metavar="FILE", help="Where those examples are taken from.")
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(
            "--metrics",
            metavar="A,B",
            help="What to measure; by default perplexity, rouge, bleu and exact_match, of plain text likelihood alone.",
        ),
    ] = None,
    mapping: Annotated[
        list[str] | None,
        typer.Option("--map", metavar="FIELD=NAME", help="Which field is which, as prompt=question. Repeatable."),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Where to cut outputs off.")] = 128,
    max_samples: Annotated[
        int | None,
        typer.Option("--max-samples", min=1, metavar="N", help="Judge only N rows, chosen by a stable hash."),
    ] = None,
    allow_leakage: Annotated[
        bool, typer.Option("--allow-leakage", help="Judge even on rows that were trained on; the verdict says so.")
    ] = False,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Judge a model or a run on held-out rows, against others on the same rows, with intervals and a verdict."""
    from luthier.cli.options import parse_mapping
    from luthier.service import evaluations

    chosen = parse_metrics(metrics) if metrics is not None else None
    with open_context(home) as context:
        found = evaluations.evaluate(
            context,
            [candidate, *(against or ())],
            data=data,
            few_shot=few_shot,
            few_shot_from=few_shot_from,
            metrics=chosen,
            mapping=parse_mapping(mapping or ()) or None,
            max_new_tokens=max_new_tokens,
            max_samples=max_samples,
            allow_leakage=allow_leakage,
        )
    return Answer(as_json, found.model_dump(mode="json"), lambda console: _show(console, found))


def parse_metrics(text: str) -> list[MetricName]:
    """`rouge,bleu` -> names. Raises RequestError, naming the nearest."""
    from difflib import get_close_matches
    from typing import get_args

    from luthier.core.errors import RequestError
    from luthier.core.recipe import MetricName

    known: tuple[MetricName, ...] = get_args(MetricName)
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        near = [get_close_matches(name, known, n=1) for name in unknown]
        meant = f"; nearest known: {', '.join(m[0] for m in near if m)}" if any(near) else ""
        raise RequestError(
            f"--metrics {text!r}" + (f": unknown {', '.join(unknown)}{meant}" if unknown else " names none"),
            expected=f"names among {', '.join(known)}",
            do="write them with commas between: --metrics rouge,bleu",
        )
    return [name for name in known if name in names]


def _show(console: Console, found: Evaluation) -> None:
    from luthier.cli import figures
    from luthier.cli.console import visible
    from luthier.cli.verdict_text import show_evaluation

    console.print(
        f"{found.evaluation_id}: {found.num_rows:,} rows of {visible(found.held_out_file)}, "
        f"{figures.duration(found.seconds)}",
        soft_wrap=True,
    )
    show_evaluation(console, found)
