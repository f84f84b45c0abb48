"""`luthier data diff`: what changed between two versions of a dataset."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from luthier.platform.cli.answer import Answer
from luthier.platform.cli.opening import open_context
from luthier.platform.cli.options import HomeOption, JsonOption, MappingOption, parse_mapping

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from luthier.ml.data.diff.compare import DatasetDiff, RowChange
    from luthier.ml.data.diff.figures import Figure
    from luthier.ml.data.diff.words import FieldChange

_AROUND = 60
_NUM_MOVED = 5
_STYLES = {"-": "red strike", "+": "green", "=": ""}


def diff(
    old: Annotated[Path, typer.Argument(metavar="OLD", help="A data file, or a folder that `data split` has written.")],
    new: Annotated[Path, typer.Argument(metavar="NEW", help="The same of the newer version.")],
    key: Annotated[
        str | None, typer.Option("--key", metavar="FIELD", help="What names a row [default: its id, else its prompt].")
    ] = None,
    examples: Annotated[int, typer.Option("--examples", min=0, help="How many rows of each kind to show.")] = 5,
    mapping: MappingOption = None,
    exit_code: Annotated[bool, typer.Option("--exit-code", help="Exit code 1 where rows differ.")] = False,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Compare two versions: rows added, removed and changed word by word, fields, figures, sides of a split."""
    from luthier.features.datasets import file_diffs as diffs

    with open_context(home) as context:
        found = diffs.compare(
            context, old, new, key=key, mapping=parse_mapping(mapping or ()) or None, num_examples=examples
        )
    code = 1 if exit_code and found.is_different else 0
    return Answer(as_json, found.as_json(), lambda console: _show(console, found), code)


def _show(console: Console, found: DatasetDiff) -> None:
    from rich.text import Text

    from luthier.platform.cli.console import visible

    def line(text: str | Text) -> None:
        console.print(text if isinstance(text, Text) else visible(text), soft_wrap=True)

    line(f"{found.old} -> {found.new}, rows matched by {found.key}")
    counts = f"{found.num_same:,} same, {len(found.changed):,} changed, "
    line(counts + f"{len(found.added):,} added, {len(found.removed):,} removed")
    for note in found.notes:
        line(Text(visible(note), style="bold red" if note.startswith("leak") else "yellow"))
    if found.shapes[0] != found.shapes[1]:
        line(f"shape: {found.shapes[0] or 'none'} -> {found.shapes[1] or 'none'}")
    for column in found.columns:
        line(f"field {column.name}: {column.old or 'not there'} -> {column.new or 'gone'}")
    for move in found.moves:
        line(f"\n{len(move.rows):,} from {move.old_side} to {move.new_side}")
        for one, two in move.rows[:_NUM_MOVED]:
            line(f"  {one} -> {two}")
        if (left := len(move.rows) - _NUM_MOVED) > 0:
            line(f"  and {left:,} more")
    _show_figures(console, [figure for figure in found.figures if figure.change])
    for example in found.examples:
        _show_example(console, example)
    num_shown = len(found.examples)
    left = len(found.changed) + len(found.added) + len(found.removed) - num_shown
    if left > 0:
        line(f"\nand {left:,} more {'row' if left == 1 else 'rows'}; --json names all of them")


def _show_figures(console: Console, changed: list[Figure]) -> None:
    from luthier.platform.cli.console import make_table, visible

    if not changed:
        return
    table = make_table(("figure", "old", "new", "change"))
    for figure in changed:
        table.add_row(visible(figure.name), *_values(figure))
    console.print()
    console.print(table)


def _values(figure: Figure) -> tuple[str, str, str]:
    from luthier.platform.cli import figures

    def shown(value: float | None) -> str:
        if value is None:
            return "-"
        if figure.unit == "fraction":
            return f"{value:.1%}"
        return figures.size(int(value)) if figure.unit == "bytes" else f"{value:,.0f}"

    change = figure.change or 0.0
    sign = "+" if change > 0 else "-"
    return shown(figure.old), shown(figure.new), sign + shown(abs(change))


def _show_example(console: Console, example: RowChange) -> None:
    from rich.text import Text

    from luthier.platform.cli.console import visible

    sign, style = {"changed": ("~", "yellow"), "added": ("+", "green"), "removed": ("-", "red")}[example.kind]
    names = " -> ".join(name for name in (example.old, example.new) if name is not None)
    console.print(Text(f"\n{sign} {visible(names)}", style=style), soft_wrap=True)
    for change in example.fields:
        if console.is_terminal:
            console.print(_in_colour(change), soft_wrap=True)
        else:
            _print_plain(console, change)


def _in_colour(change: FieldChange) -> Text:
    """Removed words struck through in red, new ones in green."""
    from rich.text import Text

    from luthier.ml.data.diff.words import shortened
    from luthier.platform.cli.console import visible

    text = Text(f"  {visible(change.field)}: ", style="bold")
    for sign, piece in shortened(change.spans, _AROUND):
        text.append(visible(piece), style=f"not bold {_STYLES[sign]}")
    return text


def _print_plain(console: Console, change: FieldChange) -> None:
    """The old and the new text on a line each, so that a pipe can be searched; unchanged stretches are cut."""
    from luthier.ml.data.diff.words import shortened
    from luthier.platform.cli.console import visible

    spans = shortened(change.spans, _AROUND)
    for sign, there in (("-", change.old), ("+", change.new)):
        if there is not None:
            text = "".join(piece for mark, piece in spans if mark in ("=", sign))
            # One line a field, so that grep and diff work on the output.
            folded = visible(text).replace("\n", "\u23ce")
            console.print(f"  {sign} {visible(change.field)}: {folded}", soft_wrap=True)
