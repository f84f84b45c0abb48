"""`luthier data synthesise`: pairs to train on, written from passages and held against them."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from luthier.platform.cli.answer import Answer
from luthier.platform.cli.opening import open_context
from luthier.platform.cli.options import ForceOption, HomeOption, JsonOption

if TYPE_CHECKING:
    from rich.console import Console

    from luthier.features.datasets.syntheses import Synthesis
    from luthier.ml.inference.cached_engine import Usage


class KindChoice(StrEnum):
    """What a pair is."""

    QA = "qa"
    INSTRUCTION = "instruction"


def synthesise(
    file: Annotated[Path, typer.Argument(metavar="ROWS", help="Rows with passages in `text`, as ingest writes them.")],
    teacher: Annotated[
        str,
        typer.Option(
            "--teacher",
            metavar="ENGINE",
            help="Who writes: a base model, a folder, a run, or http(s)://host:port/v1#MODEL "
            "(key: LUTHIER_TEACHER_API_KEY or OPENAI_API_KEY).",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Where the pairs go, .jsonl.")],
    kind: Annotated[
        KindChoice, typer.Option("--kind", help="Questions with answers, or instructions.")
    ] = KindChoice.QA,
    pairs_per_passage: Annotated[
        int, typer.Option("--pairs-per-passage", min=1, max=20, help="How many pairs to ask for, one after another.")
    ] = 1,
    judge: Annotated[
        str | None, typer.Option("--judge", metavar="ENGINE", help="Who checks that the passage entails each answer.")
    ] = None,
    min_support: Annotated[
        float,
        typer.Option("--min-support", min=0, max=1, help="Share of an answer's words that must stand in the passage."),
    ] = 0.6,
    max_rows: Annotated[
        int | None, typer.Option("--max-rows", min=1, metavar="N", help="Use only the first N rows.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Where to cut replies off.")] = 256,
    temperature: Annotated[float, typer.Option("--temperature", min=0, help="0 writes the likeliest.")] = 0.0,
    seed: Annotated[int, typer.Option("--seed", help="Rules the draws where the temperature is not 0.")] = 0,
    price_input: Annotated[
        float | None, typer.Option("--price-input", min=0, metavar="USD", help="For a million tokens of prompts.")
    ] = None,
    price_output: Annotated[
        float | None, typer.Option("--price-output", min=0, metavar="USD", help="For a million tokens of replies.")
    ] = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Have a teacher write pairs from passages; answers that their passage does not support are refused and listed."""
    from luthier.features.datasets import syntheses

    with open_context(home) as context:
        found = syntheses.synthesise(
            context,
            file,
            teacher=teacher,
            output=output,
            kind=kind.value,
            pairs_per_passage=pairs_per_passage,
            judge=judge,
            min_support=min_support,
            max_rows=max_rows,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            force=force,
            prices=syntheses.Prices(price_input, price_output),
        )
    return Answer(as_json, found.as_json(), lambda console: _show(console, found))


def _show(console: Console, found: Synthesis) -> None:
    from luthier.platform.cli import figures
    from luthier.platform.cli.console import facts, visible

    left = f" ({found.num_rows_left:,} more rows were left out by --max-rows)" if found.num_rows_left else ""
    pairs = f"{found.num_pairs:,} {'pair' if found.num_pairs == 1 else 'pairs'}"
    console.print(
        visible(f"{found.output}: {pairs} from {found.num_rows:,} rows of {found.file}{left}"), soft_wrap=True
    )
    rows = [
        ("kind", found.kind),
        ("teacher", found.teacher),
        ("judge", found.judge or "none: overlap of words alone decides"),
        ("support", f"{found.mean_support:.2f} on average, at least {found.min_support:g}"),
        ("refused", f"{found.num_refused:,}, listed in {found.refused_file}" if found.num_refused else "none"),
    ]
    rows += [(f"  {reason}", f"{number:,}") for reason, number in found.refused.items()]
    rows.append(("tokens", tokens_text(found.teacher_usage)))
    if found.judge_usage is not None:
        rows.append(("  of the judge", tokens_text(found.judge_usage)))
    cost = "" if found.cost_usd is None else f"{found.cost_usd:.4f} USD: "
    rows += [("cost", cost + found.cost_note), ("time", figures.duration(found.seconds))]
    facts(console, rows)


def tokens_text(usage: Usage) -> str:
    """What was asked now, and what came from the cache."""
    new = f"{usage.num_prompt_tokens:,} prompt + {usage.num_new_tokens:,} new in {usage.num_requests:,} requests"
    cached = f"{usage.num_cached_prompt_tokens:,} + {usage.num_cached_new_tokens:,} in {usage.num_cached_requests:,}"
    return f"{new}; from the cache {cached}"
