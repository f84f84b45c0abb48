"""`luthier data preview`, `card` and `diff`: what a data file holds, and what changed between two versions."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from luthier.core.text.counted import counted
from luthier.platform.cli.command import (
    Answer,
    HomeOption,
    JsonOption,
    MappingOption,
    open_context,
    parse_mapping,
    parse_template_options,
)

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from luthier.features.datasets.previews import BlocksPreview, DataPreview, DatasetCard
    from luthier.ml.data.diff.compare import DatasetDiff, Figure, RowChange
    from luthier.ml.data.diff.row_changes import FieldChange


class TemplateChoice(StrEnum):
    """How a conversation becomes text."""

    AUTO = "auto"
    CHAT = "chat"
    PLAIN = "plain"


class ResetChoice(StrEnum):
    """What becomes of answers that the template needs a sequence each for."""

    TRAINING = "training"


class SystemChoice(StrEnum):
    """What becomes of system turns that the template does not take."""

    FOLD = "fold"


class ToolsChoice(StrEnum):
    """What becomes of tools that the template does not take."""

    AS_TEXT = "as_text"


class HeadChoice(StrEnum):
    """Of --objective."""

    CLASSIFY = "classify"
    REGRESS = "regress"


class ReasoningChoice(StrEnum):
    """What becomes of thoughts that the template does not write."""

    AS_TEXT = "as_text"
    DROP = "drop"


SystemOption = Annotated[
    SystemChoice | None, typer.Option("--system", help="fold: put a system turn into the first user turn.")
]
ToolsOption = Annotated[
    ToolsChoice | None, typer.Option("--tools", help="as_text: write tools, calls and results as text.")
]
ReasoningOption = Annotated[
    ReasoningChoice | None,
    typer.Option("--reasoning", help="as_text: write thoughts between <think> and </think>; drop: leave them out."),
]
ResetOption = Annotated[
    ResetChoice | None,
    typer.Option(
        "--reset-template",
        help="training: join answers that the template needs separate sequences for, as data.reset_template does.",
    ),
]
LearnReasoningOption = Annotated[
    bool | None,
    typer.Option("--learn-reasoning/--no-learn-reasoning", help="Learn thoughts, or not [default: those of the rows]."),
]

TemplateOptionsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--template-option",
        metavar="NAME=VALUE",
        help="An option for the chat template, such as enable_thinking=false. Repeatable.",
    ),
]
HeadOption = Annotated[
    HeadChoice | None,
    typer.Option("--objective", help="Show the rows for a task head, which reads the prompt and writes no text."),
]
MultiLabelOption = Annotated[
    bool, typer.Option("--multi-label", help="With --objective classify: a row may have several labels.")
]
BlockTokensOption = Annotated[
    int | None,
    typer.Option(
        "--block-tokens",
        min=1,
        metavar="N",
        help="Show plain texts in blocks of N tokens, as objective pretraining uses them.",
    ),
]


def preview(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="A data file: JSONL, JSON, CSV, Parquet (each also .gz), a workbook."),
    ],
    model: Annotated[str, typer.Option("--model", metavar="NAME", help="The base model whose tokens to show.")],
    num_rows: Annotated[int, typer.Option("--num-rows", min=1, help="How many rows, or blocks, to show.")] = 3,
    shows_all: Annotated[
        bool, typer.Option("--all", help="Show every row or block; with --json, the ids and masks of the whole file.")
    ] = False,
    mapping: MappingOption = None,
    template: Annotated[
        TemplateChoice, typer.Option("--template", help="auto: the model's chat template where it has one.")
    ] = TemplateChoice.AUTO,
    template_options: TemplateOptionsOption = None,
    system: SystemOption = None,
    tools: ToolsOption = None,
    reasoning: ReasoningOption = None,
    learn_reasoning: LearnReasoningOption = None,
    reset_template: ResetOption = None,
    block_tokens: BlockTokensOption = None,
    objective: HeadOption = None,
    multi_label: MultiLabelOption = False,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Show rows as the model sees them, token by token, with what will be learned marked."""
    from luthier.core.conversation import OptedTurns
    from luthier.features.datasets import previews as datasets

    fields = parse_mapping(mapping or ())
    with open_context(home) as context:
        if block_tokens is not None:
            _refuse_beside_blocks(
                system, tools, reasoning, learn_reasoning, reset_template, template_options, objective
            )
            blocks = datasets.preview_blocks(
                context,
                file,
                model,
                block_tokens,
                num_blocks=None if shows_all else num_rows,
                mapping=fields or None,
                template=template.value,
            )
            return Answer(as_json, blocks.as_json(), lambda console: show_blocks(console, blocks))
        found = datasets.preview(
            context,
            file,
            model,
            num_rows=None if shows_all else num_rows,
            mapping=fields or None,
            template=template.value,
            template_options=parse_template_options(template_options or ()),
            learn_reasoning=learn_reasoning,
            reset_template=None if reset_template is None else "training",
            opted=OptedTurns(
                folds_system=system is not None,
                tools_as_text=tools is not None,
                reasoning=None if reasoning is None else reasoning.value,
            ),
            task_head=None if objective is None else objective.value,
            multi_label=multi_label,
        )
    return Answer(as_json, found.as_json(), lambda console: show_preview(console, found))


def _refuse_beside_blocks(*of_conversations: object) -> None:
    """Refuse options that say how conversations are written, where blocks of plain texts are to be shown."""
    from luthier.core.errors import RequestError

    if any(option is not None for option in of_conversations):
        raise RequestError(
            "--block-tokens with an option for conversations",
            expected="plain texts, as objective pretraining takes them, or conversations",
            do="leave out --block-tokens, or --system, --tools, --reasoning, --learn-reasoning, --reset-template, "
            "--template-option and --objective",
        )


def show_blocks(console: Console, found: BlocksPreview) -> None:
    """How texts fall into blocks, then the first blocks, a line at each border between pieces."""
    from rich.text import Text

    from luthier.features.datasets.cli.token_format import legend, token_text
    from luthier.platform.cli.console import visible

    packed = found.packed
    console.print(
        visible(
            f"{found.file}: {counted(packed.num_documents, 'text')} in {counted(packed.num_blocks, 'block')} of up to "
            f"{packed.block_tokens:,} tokens, {packed.filled_fraction:.0%} full; "
            f"{counted(packed.num_cut, 'text')} cut into several"
        ),
        soft_wrap=True,
    )
    console.print(visible(found.shape_reason), soft_wrap=True)
    console.print(legend(console), soft_wrap=True)
    for number, block in enumerate(found.blocks, 1):
        size = sum(piece.num_tokens for piece in block)
        title = f"block {number} of {packed.num_blocks:,}: {counted(size, 'token')} in {counted(len(block), 'piece')}"
        console.print(Text(f"\n{title}", style="bold"), soft_wrap=True)
        for piece in block:
            console.print(f"-- {visible(piece.id)}, {counted(piece.num_tokens, 'token')}", soft_wrap=True)
            console.print(token_text(console, piece.spans), soft_wrap=True)


def show_preview(console: Console, found: DataPreview) -> None:
    """The rows with their tokens: learned ones in colour on a terminal, in brackets elsewhere."""
    from rich.text import Text

    from luthier.core.dataset import CUT_REASON, joined_note
    from luthier.features.datasets.cli.token_format import legend, token_text
    from luthier.platform.cli.console import visible

    console.print(
        visible(f"{found.file}: {counted(found.num_rows, 'row')}, {found.shape}: {found.shape_reason}"), soft_wrap=True
    )
    console.print(f"tokens of {visible(found.model)}, {found.template} template", soft_wrap=True)
    console.print(legend(console), soft_wrap=True)
    for row in found.rows:
        share = row.num_trained_tokens / row.num_tokens if row.num_tokens else 0.0
        side = f", {row.side}" if row.side is not None else ""
        side += ", answer {} of {}".format(*row.part) if row.part is not None else ""
        tokens = f"{counted(row.num_tokens, 'token')}, {row.num_trained_tokens:,} learned ({share:.0%})"
        title = f"{visible(row.id)}{side}: {tokens}"
        console.print(Text(f"\n{title}", style="bold"), soft_wrap=True)
        console.print(token_text(console, row.spans), soft_wrap=True)
    if joined := [row for row in found.rows if row.joined is not None]:
        differs = tuple(dict.fromkeys(one for row in joined for one in row.joined or ()))
        num = len({row.id for row in found.rows})
        console.print(visible(f"\n{joined_note(len(joined), num, differs)}"), soft_wrap=True)
    if cut := {row.id for row in found.rows if row.part is not None}:
        num = sum(row.part is not None for row in found.rows)
        console.print(f"\n{counted(num, 'sequence')} of {counted(len(cut), 'row')}: {CUT_REASON}", soft_wrap=True)
    if (left := found.num_rows - len({row.id for row in found.rows})) > 0:
        console.print(f"\n... and {left:,} more {'row' if left == 1 else 'rows'}", soft_wrap=True)


def card(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="A data file: JSONL, JSON, CSV, Parquet (each also .gz), a workbook."),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The file to write the card to, such as README.md.")
    ],
    name: Annotated[str | None, typer.Option("--name", help="The title [default: the file's name].")] = None,
    licence: Annotated[
        str | None, typer.Option("--licence", metavar="ID", help="The licence's id on the hub, such as cc-by-4.0.")
    ] = None,
    description: Annotated[
        str | None, typer.Option("--description", metavar="TEXT", help="What the dataset is.")
    ] = None,
    language: Annotated[
        list[str] | None,
        typer.Option("--language", metavar="CODE", help="A language code (ISO 639), such as en. Repeatable."),
    ] = None,
    uses: Annotated[str | None, typer.Option("--uses", metavar="TEXT", help="The intended use of the dataset.")] = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="NAME", help="The base model whose tokens are counted.")
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option("--against", metavar="FILE", help="The held-out file, to find rows that leak from it."),
    ] = None,
    mapping: MappingOption = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing card.")] = False,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Audit a file and write its card: Markdown with the hub's front matter, and Croissant JSON-LD next to it."""
    import datetime
    import shlex

    from luthier.features.datasets import previews as dataset_cards
    from luthier.features.datasets.data_files import AuditOptions

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
    return Answer(as_json, made.as_json(), lambda console: _show_card(console, made))


def _show_card(console: Console, made: DatasetCard) -> None:
    from luthier.platform.cli.console import facts, visible

    size, findings = counted(made.audit.num_rows, "row"), counted(len(made.audit.findings), "finding")
    rows = [
        ("card", str(made.path)),
        ("Croissant", str(made.croissant)),
        ("grade", f"{made.audit.grade}, {size}, {findings}"),
    ]
    facts(console, rows)
    if made.not_stated:
        console.print(visible(f"not stated: {', '.join(made.not_stated)}"), soft_wrap=True)


_AROUND = 60
_NUM_MOVED = 5
_STYLES = {"-": "red strike", "+": "green", "=": ""}


def diff(
    old: Annotated[Path, typer.Argument(metavar="OLD", help="A data file, or a folder that `data split` has written.")],
    new: Annotated[Path, typer.Argument(metavar="NEW", help="The same for the newer version.")],
    key: Annotated[
        str | None,
        typer.Option(
            "--key", metavar="FIELD", help="The field that identifies a row [default: its id, else its prompt]."
        ),
    ] = None,
    examples: Annotated[int, typer.Option("--examples", min=0, help="How many rows of each kind to show.")] = 5,
    mapping: MappingOption = None,
    exit_code: Annotated[bool, typer.Option("--exit-code", help="Exit code 1 if rows differ.")] = False,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Compare two versions: rows added, removed and changed word by word, fields, figures, sides of a split."""
    from luthier.features.datasets import data_files as diffs

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
        line(f"field {column.name}: {column.old or 'missing'} -> {column.new or 'removed'}")
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

    from luthier.ml.data.diff.row_changes import shortened
    from luthier.platform.cli.console import visible

    text = Text(f"  {visible(change.field)}: ", style="bold")
    for sign, piece in shortened(change.spans, _AROUND):
        text.append(visible(piece), style=f"not bold {_STYLES[sign]}")
    return text


def _print_plain(console: Console, change: FieldChange) -> None:
    """The old and the new text on a line each, so that a pipe can be searched; unchanged stretches are cut."""
    from luthier.ml.data.diff.row_changes import shortened
    from luthier.platform.cli.console import visible

    spans = shortened(change.spans, _AROUND)
    for sign, there in (("-", change.old), ("+", change.new)):
        if there is not None:
            text = "".join(piece for mark, piece in spans if mark in ("=", sign))
            # One line a field, so that grep and diff work on the output.
            folded = visible(text).replace("\n", "\u23ce")
            console.print(f"  {sign} {visible(change.field)}: {folded}", soft_wrap=True)
