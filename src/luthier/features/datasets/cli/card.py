"""`luthier data card`: describe a dataset for people and machines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from luthier.platform.cli.answer import Answer
from luthier.platform.cli.opening import open_context
from luthier.platform.cli.options import HomeOption, JsonOption, MappingOption, parse_mapping

if TYPE_CHECKING:
    from rich.console import Console

    from luthier.features.datasets.cards import DatasetCard


def card(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="JSONL, JSON, CSV or Parquet, each also .gz, or .xlsx.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The card, such as README.md.")],
    name: Annotated[str | None, typer.Option("--name", help="The title [default: the file's name].")] = None,
    licence: Annotated[
        str | None, typer.Option("--licence", metavar="ID", help="As the hub calls it, such as cc-by-4.0.")
    ] = None,
    description: Annotated[str | None, typer.Option("--description", metavar="TEXT", help="What it is.")] = None,
    language: Annotated[
        list[str] | None, typer.Option("--language", metavar="CODE", help="ISO 639, such as en. Repeatable.")
    ] = None,
    uses: Annotated[str | None, typer.Option("--uses", metavar="TEXT", help="What it is meant for.")] = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="NAME", help="The base model in whose tokens lengths are given.")
    ] = None,
    against: Annotated[
        Path | None, typer.Option("--against", metavar="FILE", help="The held-out file: which rows leak from it.")
    ] = None,
    mapping: MappingOption = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a card that is there.")] = False,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Audit a file and write its card: Markdown with the hub's front matter, and Croissant JSON-LD beside it."""
    import datetime
    import shlex

    from luthier.features.datasets import cards as dataset_cards
    from luthier.features.datasets.file_audits import AuditOptions

    given = dataset_cards.CardOptions(
        name=name, licence=licence, description=description, languages=tuple(language or ()), uses=uses
    )
    options = AuditOptions(against=against, model=model, mapping=parse_mapping(mapping or ()) or None)
    said = ["luthier", "data", "audit", file.name]
    said += ["--model", model] if model else []
    said += ["--against", against.name] if against else []
    for pair in mapping or ():
        said += ["--map", pair]
    with open_context(home) as context:
        made = dataset_cards.make_card(
            context,
            file,
            output,
            given,
            options,
            date=datetime.datetime.now(datetime.UTC).date().isoformat(),
            command=shlex.join(said),
            force=force,
        )
    return Answer(as_json, made.as_json(), lambda console: _show(console, made))


def _show(console: Console, made: DatasetCard) -> None:
    from luthier.platform.cli.console import facts, visible

    rows = [
        ("card", str(made.path)),
        ("Croissant", str(made.croissant)),
        ("grade", f"{made.audit.grade}, {made.audit.num_rows:,} rows, {len(made.audit.findings)} findings"),
    ]
    facts(console, rows)
    if made.not_stated:
        console.print(visible(f"not stated: {', '.join(made.not_stated)}"), soft_wrap=True)
