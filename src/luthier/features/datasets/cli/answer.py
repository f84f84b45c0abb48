"""`luthier data answer`: a teacher answers prompts; a student learns the file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from luthier.platform.cli.answer import Answer
from luthier.platform.cli.opening import open_context
from luthier.platform.cli.options import ForceOption, HomeOption, JsonOption, MappingOption, parse_mapping

if TYPE_CHECKING:
    from rich.console import Console

    from luthier.features.datasets.answers import Answering


def answer(
    file: Annotated[Path, typer.Argument(metavar="ROWS", help="Rows with prompts, in any shape, with answers or not.")],
    teacher: Annotated[
        str,
        typer.Option(
            "--teacher",
            metavar="ENGINE",
            help="Who answers: a base model, a folder, a run, or http(s)://host:port/v1#MODEL "
            "(key: LUTHIER_TEACHER_API_KEY or OPENAI_API_KEY).",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Where the answers go, .jsonl.")],
    mapping: MappingOption = None,
    max_rows: Annotated[
        int | None, typer.Option("--max-rows", min=1, metavar="N", help="Use only the first N rows.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Longer answers are refused.")] = 512,
    temperature: Annotated[float, typer.Option("--temperature", min=0, help="0 writes the likeliest.")] = 0.0,
    seed: Annotated[int, typer.Option("--seed", help="Rules the draws where the temperature is not 0.")] = 0,
    price_input: Annotated[
        float | None, typer.Option("--price-input", min=0, metavar="USD", help="For a million tokens of prompts.")
    ] = None,
    price_output: Annotated[
        float | None, typer.Option("--price-output", min=0, metavar="USD", help="For a million tokens of answers.")
    ] = None,
    keep_thoughts: Annotated[
        bool,
        typer.Option("--keep-thoughts", help="Write a teacher's thoughts into the rows, too, for a student to learn."),
    ] = False,
    force: ForceOption = False,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Have a teacher answer every prompt, for a student to learn; empty and cut answers are refused and listed."""
    from luthier.features.datasets import answers as answerings
    from luthier.features.datasets.syntheses import Prices

    fields = parse_mapping(mapping or ())
    with open_context(home) as context:
        found = answerings.answer(
            context,
            file,
            teacher=teacher,
            output=output,
            mapping=fields or None,
            max_rows=max_rows,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            force=force,
            keeps_thoughts=keep_thoughts,
            prices=Prices(price_input, price_output),
        )
    return Answer(as_json, found.as_json(), lambda console: _show(console, found))


def _thoughts(found: Answering) -> str:
    what = (
        "kept as reasoning_content" if found.has_kept_thoughts else "left out of the rows (--keep-thoughts keeps them)"
    )
    return f"the teacher thought before {found.num_thoughts:,} answers; {what}"


def _show(console: Console, found: Answering) -> None:
    from luthier.features.datasets.cli.synthesise import tokens_text
    from luthier.platform.cli import figures
    from luthier.platform.cli.console import facts, visible

    left = f" ({found.num_rows_left:,} more rows were left out by --max-rows)" if found.num_rows_left else ""
    count = f"{found.num_answers:,} {'answer' if found.num_answers == 1 else 'answers'}"
    console.print(visible(f"{found.output}: {count} to {found.num_rows:,} rows of {found.file}{left}"), soft_wrap=True)
    rows = [
        ("teacher", found.teacher),
        ("refused", f"{found.num_refused:,}, listed in {found.refused_file}" if found.num_refused else "none"),
        *((f"  {reason}", f"{number:,}") for reason, number in found.refused.items()),
        *((("thoughts", _thoughts(found)),) if found.num_thoughts else ()),
        ("tokens", tokens_text(found.teacher_usage)),
        (
            "cost",
            "no prices were given, so no cost is claimed"
            if found.cost_usd is None
            else f"{found.cost_usd:.4f} USD: the teacher's new tokens at the prices given",
        ),
        ("time", figures.duration(found.seconds)),
    ]
    facts(console, rows)
