"""`luthier data repair`: what an audit finds is changed or removed, into a new file, with a reason for every row."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from luthier.platform.cli.answer import Answer
from luthier.platform.cli.opening import open_context
from luthier.platform.cli.options import HomeOption, JsonOption, MappingOption, parse_mapping

if TYPE_CHECKING:
    from rich.console import Console

    from luthier.features.datasets.file_repairs import WrittenRepair


def repair(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="JSONL, JSON, CSV or Parquet, each also .gz, or .xlsx.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Where the rows go, as JSONL.")],
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="CHECK,...", help="Repair only what these checks find. Repeatable."),
    ] = None,
    skip: Annotated[
        list[str] | None, typer.Option("--skip", metavar="CHECK,...", help="Leave these repairs out. Repeatable.")
    ] = None,
    against: Annotated[
        Path | None, typer.Option("--against", metavar="FILE", help="The held-out file: rows that leak from it go.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="NAME", help="The base model: lengths in its tokens, its context.")
    ] = None,
    mapping: MappingOption = None,
    mask: Annotated[
        list[str] | None,
        typer.Option(
            "--mask", metavar="KIND,...", help="Mask every value of these kinds: names,streets,phones,... Repeatable."
        ),
    ] = None,
    no_mask: Annotated[
        list[str] | None, typer.Option("--no-mask", metavar="KIND,...", help="Leave these kinds as they are.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier repair.")] = False,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Repair a file into a new one: damaged text, personal data, secrets, duplicates, leaks; a reason for every row."""
    from luthier.features.datasets import file_audits as audits
    from luthier.features.datasets import file_repairs as repairs

    options = repairs.RepairOptions(
        only=audits.names_of(only),
        skip=audits.names_of(skip),
        against=against,
        model=model,
        mapping=parse_mapping(mapping or ()) or None,
        force=force,
        mask=_kinds(mask),
        leave=_kinds(no_mask),
    )
    with open_context(home) as context:
        made = repairs.repair(context, file, output, options)
    return Answer(as_json, made.as_json(), lambda console: _show(console, made))


def _kinds(given: list[str] | None) -> tuple[str, ...]:
    return tuple(name.strip() for text in given or () for name in text.split(",") if name.strip())


def _show_masked(console: Console, found: dict[str, Any]) -> None:
    """What was masked, by kind, with the first values before and after; and which kinds were left."""
    from luthier.platform.cli.console import visible

    for one in found["masked"]:
        values = f"{one['num_values']:,} value{'' if one['num_values'] == 1 else 's'}"
        rows = f"{one['num_rows']:,} row{'' if one['num_rows'] == 1 else 's'}"
        console.print(visible(f"masked   {one['kind']}: {values} in {rows}"), soft_wrap=True)
        for example in one["examples"]:
            console.print(visible(f"         line {example['line']:,}: {_one_line(example['before'])}"), soft_wrap=True)
            console.print(visible(f"           becomes {_one_line(example['after'])}"), soft_wrap=True)
    if found["mask"] is not None and found["mask"]["left"]:
        console.print(f"not masked  {', '.join(found['mask']['left'])} (--mask KIND masks these, too)", soft_wrap=True)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _show(console: Console, made: WrittenRepair) -> None:
    from luthier.platform.cli.console import facts, make_table, visible

    found = made.document
    fates = found["fates"]
    console.print(
        visible(
            f"{found['file']}: {found['num_rows']:,} rows; {fates['kept']:,} kept, {fates['changed']:,} changed, "
            f"{fates['removed']:,} removed"
        ),
        soft_wrap=True,
    )
    table = make_table(("repair", "does", "rows"), num_text_columns=2)
    for action in found["actions"]:
        table.add_row(action["id"], action["action"], f"{action['num_rows']:,}")
    console.print(table)
    _show_masked(console, found)
    console.print(
        f"grade {found['grade_before']} before, {found['grade_after']} after, by these checks only", soft_wrap=True
    )
    for left in found["left"]:
        console.print(visible(f"left     {left['check']}: {left['message']}"), soft_wrap=True)
    if found["num_rows_with_html_kept"]:
        console.print(
            f"left     HTML in {found['num_rows_with_html_kept']:,} rows to clean: most rows hold it, so it is meant",
            soft_wrap=True,
        )
    paths = (("rows", made.output), ("fates", made.manifest), ("summary", made.summary))
    facts(console, [(name, str(path)) for name, path in paths])
