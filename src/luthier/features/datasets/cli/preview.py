"""`luthier data preview`: what of a file will be trained."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from luthier.platform.cli.answer import Answer
from luthier.platform.cli.opening import open_context
from luthier.platform.cli.options import HomeOption, JsonOption, MappingOption, parse_mapping, parse_template_options

if TYPE_CHECKING:
    from rich.console import Console

    from luthier.features.datasets.previews import BlocksPreview, DataPreview


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


class ReasoningChoice(StrEnum):
    """What becomes of thoughts that the template does not write."""

    AS_TEXT = "as_text"
    DROP = "drop"


SystemOption = Annotated[
    SystemChoice | None, typer.Option("--system", help="fold: a system turn goes into the first user turn.")
]
ToolsOption = Annotated[
    ToolsChoice | None, typer.Option("--tools", help="as_text: tools, calls and results are written as text.")
]
ReasoningOption = Annotated[
    ReasoningChoice | None,
    typer.Option("--reasoning", help="as_text: thoughts between <think> and </think>; drop: no thoughts."),
]
ResetOption = Annotated[
    ResetChoice | None,
    typer.Option(
        "--reset-template",
        help="training: answers that the template needs a sequence each for are joined into one, as "
        "data.reset_template does.",
    ),
]
LearnReasoningOption = Annotated[
    bool | None,
    typer.Option(
        "--learn-reasoning/--no-learn-reasoning", help="Whether thoughts are learned; left out: those of the rows."
    ),
]

TemplateOptionsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--template-option",
        metavar="NAME=VALUE",
        help="What the chat template is given, as enable_thinking=false. Repeatable.",
    ),
]
BlockTokensOption = Annotated[
    int | None,
    typer.Option(
        "--block-tokens",
        min=1,
        metavar="N",
        help="Show the blocks of N tokens that objective pretraining makes of plain texts.",
    ),
]


def preview(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="JSONL, JSON, CSV or Parquet, each also .gz, or .xlsx.")],
    model: Annotated[str, typer.Option("--model", metavar="NAME", help="The base model whose tokens to show.")],
    num_rows: Annotated[int, typer.Option("--num-rows", min=1, help="How many rows, or blocks, to show.")] = 3,
    shows_all: Annotated[
        bool, typer.Option("--all", help="Show every row, or block: with --json the ids and masks of a whole file.")
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
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Show rows as the model gets them, token by token, with what will be learned marked."""
    from luthier.core.opted_turns import OptedTurns
    from luthier.features.datasets import previews as datasets

    fields = parse_mapping(mapping or ())
    with open_context(home) as context:
        if block_tokens is not None:
            _refuse_beside_blocks(system, tools, reasoning, learn_reasoning, reset_template, template_options)
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
        )
    return Answer(as_json, found.as_json(), lambda console: show_preview(console, found))


def _refuse_beside_blocks(*of_conversations: object) -> None:
    """Refuse options that say how conversations are written, where blocks of plain texts are to be shown."""
    from luthier.core.errors import RequestError

    if any(option is not None for option in of_conversations):
        raise RequestError(
            "--block-tokens with an option for conversations",
            expected="plain texts, as objective pretraining takes them, or conversations",
            do="leave out --block-tokens, or --system, --tools, --reasoning, --learn-reasoning, --reset-template and "
            "--template-option",
        )


def show_blocks(console: Console, found: BlocksPreview) -> None:
    """How texts fall into blocks, then the first blocks, a line at each border between pieces."""
    from rich.text import Text

    from luthier.features.datasets.cli.token_format import legend, token_text
    from luthier.platform.cli.console import visible

    packed = found.packed
    console.print(
        visible(
            f"{found.file}: {packed.num_documents:,} texts in {packed.num_blocks:,} blocks of up to "
            f"{packed.block_tokens:,} tokens, {packed.filled_fraction:.0%} full; {packed.num_cut:,} texts cut into "
            "several"
        ),
        soft_wrap=True,
    )
    console.print(visible(found.shape_reason), soft_wrap=True)
    console.print(legend(console), soft_wrap=True)
    for number, block in enumerate(found.blocks, 1):
        size = sum(piece.num_tokens for piece in block)
        title = f"block {number} of {packed.num_blocks:,}: {size:,} tokens in {len(block):,} pieces"
        console.print(Text(f"\n{title}", style="bold"), soft_wrap=True)
        for piece in block:
            console.print(f"-- {visible(piece.id)}, {piece.num_tokens:,} tokens", soft_wrap=True)
            console.print(token_text(console, piece.spans), soft_wrap=True)


def show_preview(console: Console, found: DataPreview) -> None:
    """The rows with their tokens: learned ones in colour on a terminal, in brackets elsewhere."""
    from rich.text import Text

    from luthier.core.dataset import CUT_REASON, joined_note
    from luthier.features.datasets.cli.token_format import legend, token_text
    from luthier.platform.cli.console import visible

    console.print(
        visible(f"{found.file}: {found.num_rows:,} rows, {found.shape}: {found.shape_reason}"), soft_wrap=True
    )
    console.print(f"tokens of {visible(found.model)}, {found.template} template", soft_wrap=True)
    console.print(legend(console), soft_wrap=True)
    for row in found.rows:
        share = row.num_trained_tokens / row.num_tokens if row.num_tokens else 0.0
        side = f", {row.side}" if row.side is not None else ""
        side += ", answer {} of {}".format(*row.part) if row.part is not None else ""
        title = f"{visible(row.id)}{side}: {row.num_tokens:,} tokens, {row.num_trained_tokens:,} learned ({share:.0%})"
        console.print(Text(f"\n{title}", style="bold"), soft_wrap=True)
        console.print(token_text(console, row.spans), soft_wrap=True)
    if joined := [row for row in found.rows if row.joined is not None]:
        differs = tuple(dict.fromkeys(one for row in joined for one in row.joined or ()))
        num = len({row.id for row in found.rows})
        console.print(visible(f"\n{joined_note(len(joined), num, differs)}"), soft_wrap=True)
    if cut := {row.id for row in found.rows if row.part is not None}:
        num = sum(row.part is not None for row in found.rows)
        console.print(f"\n{num:,} sequences of {len(cut):,} rows: {CUT_REASON}", soft_wrap=True)
    if (left := found.num_rows - len({row.id for row in found.rows})) > 0:
        console.print(f"\n... and {left:,} more {'row' if left == 1 else 'rows'}", soft_wrap=True)
