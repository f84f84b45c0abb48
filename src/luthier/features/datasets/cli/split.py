"""`luthier data split`: one file into train, validation and held-out, and the proof that nothing leaks."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from luthier.platform.cli.answer import Answer
from luthier.platform.cli.opening import open_context
from luthier.platform.cli.options import HomeOption, JsonOption, MappingOption, parse_mapping

if TYPE_CHECKING:
    from rich.console import Console

    from luthier.features.datasets.file_splits import WrittenSplit

_NUM_STRATA = 20


def split(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="JSONL, JSON, CSV or Parquet, each also .gz, or .xlsx.")],
    held_out: Annotated[float, typer.Option("--held-out", help="The fraction that judges, once.")] = 0.1,
    validation: Annotated[float, typer.Option("--validation", help="The fraction that steers training.")] = 0.1,
    group_by: Annotated[
        str | None,
        typer.Option(
            "--group-by",
            metavar="FIELD",
            help="Rows of one value stay together; `source`: the document; `none`. [default: provenance.file if any]",
        ),
    ] = None,
    stratify_by: Annotated[
        str | None, typer.Option("--stratify-by", metavar="FIELD", help="Each side has its share of each value.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Another seed, another split.")] = 0,
    folder: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="[default: FILE's name with -split, beside it]")
    ] = None,
    near_threshold: Annotated[
        float, typer.Option("--near-threshold", help="Rows as alike as this (Jaccard) stay on one side.")
    ] = 0.8,
    near_duplicates: Annotated[
        bool, typer.Option("--near-duplicates/--no-near-duplicates", help="Whether to search for near-duplicates.")
    ] = True,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier split in that folder.")] = False,
    mapping: MappingOption = None,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Split a file so that no document, no text and no near-duplicate stands on two sides, and prove it."""
    from luthier.features.datasets import file_splits as splits

    options = splits.SplitOptions(
        folder=folder,
        validation=validation,
        held_out=held_out,
        seed=seed,
        group_by=group_by,
        stratify_by=stratify_by,
        near_threshold=near_threshold if near_duplicates else None,
        mapping=parse_mapping(mapping or ()) or None,
        force=force,
    )
    with open_context(home) as context:
        made = splits.split(context, file, options)
    return Answer(as_json, made.as_json(), lambda console: _show(console, made))


def _show(console: Console, made: WrittenSplit) -> None:
    from rich.text import Text

    from luthier.platform.cli.console import make_table, visible

    found = made.document
    console.print(
        visible(f"{found['file']}: {found['num_rows']:,} rows in {found['num_groups']:,} groups, seed {found['seed']}"),
        soft_wrap=True,
    )
    console.print(visible(f"grouping: {found['grouping']}"), soft_wrap=True)
    table = make_table(("side", "file", "rows", "share", "asked", "groups"), num_text_columns=2)
    for side, part in found["sides"].items():
        figures = (f"{part['num_rows']:,}", f"{part['fraction']:.2%}", f"{part['fraction_asked']:.2%}")
        where = visible(str(made.folder / part["file"]))
        table.add_row(side.replace("_", "-"), where, *figures, f"{part['num_groups']:,}")
    console.print(table)
    _show_strata(console, made)
    for text in _proof(made):
        console.print(text, soft_wrap=True)
    for name in found["removed"]:
        console.print(visible(f"removed  {name} of an earlier split"), soft_wrap=True)
    for warning in found["warnings"]:
        console.print(Text.assemble(("warning  ", "yellow"), visible(warning)), soft_wrap=True)
    # Quoted for a shell: the line is meant to be copied.
    sides = " ".join(f"--set data.{side}={shlex.quote(path)}" for side, path in made.recipe_data().items())
    console.print(visible(f"next     luthier train RECIPE {sides}"), soft_wrap=True)


def _show_strata(console: Console, made: WrittenSplit) -> None:
    from luthier.platform.cli.console import make_table, visible

    strata, sides = made.document["strata"], list(made.document["sides"])
    if not strata:
        return
    names = [side.replace("_", "-") for side in sides]
    table = make_table((made.document["stratified_by"], *names))
    for stratum, counts in list(strata.items())[:_NUM_STRATA]:
        total = sum(counts.values())
        table.add_row(visible(stratum), *(f"{counts[side]:,} ({counts[side] / total:.1%})" for side in sides))
    console.print(table)
    if len(strata) > _NUM_STRATA:
        console.print(f"... and {len(strata) - _NUM_STRATA:,} more, in split.json", soft_wrap=True)


def _proof(made: WrittenSplit) -> list[str]:
    proof, threshold = made.document["proof"], made.document["near_threshold"]
    near, groups = proof["near_duplicate"], proof["same_group"]
    parts = [f"{proof['exact']} texts"]
    parts.append("near-duplicates not searched" if near is None else f"{near} near-duplicates (Jaccard {threshold})")
    parts += [] if groups is None else [f"{groups} groups"]
    lines = [f"on two sides, read back from the files: {', '.join(parts)}"]
    if proof["same_prompt"]:
        lines.append(f"{proof['same_prompt']:,} rows of validation and held-out have a prompt that train answers too")
    return lines
