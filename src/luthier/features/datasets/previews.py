"""Data files: what of them a model will see and learn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from luthier.core.errors import RequestError
from luthier.core.opted_turns import AS_THEY_ARE, OptedTurns
from luthier.core.recipe import TemplateOption
from luthier.features.recipes.checks import check_options_are_read
from luthier.platform.home.context import Context

if TYPE_CHECKING:
    from luthier.core.dataset import PackedProfile, Shape
    from luthier.ml.data.tokenise.preview import Preview


@dataclass(frozen=True, slots=True)
class DataPreview:
    """The first rows of a file as a model gets them; a preference pair as its two sides in turn.

    Attributes:
        file: The file.
        model: The base model.
        template: Whether conversations are written by the model's chat template.
        shape: The shape of the rows.
        shape_reason: Why it is this shape.
        num_rows: All rows of the file.
        rows: The rows that are shown.
    """

    file: str
    model: str
    template: Literal["chat", "plain"]
    shape: Shape
    shape_reason: str
    num_rows: int
    rows: tuple[Preview, ...]

    def as_json(self) -> dict[str, Any]:
        """The document of `luthier data preview --json`.

        Where several tokens share one character, the first of them has its text; the texts of a row joined are
        the whole text. `input_ids` and `learned` (0 or 1) are those that training takes: the loss of a row is the
        cross-entropy of each token with `learned` 1, predicted from all tokens before it.
        """
        return {
            "file": self.file,
            "model": self.model,
            "template": self.template,
            "shape": self.shape,
            "shape_reason": self.shape_reason,
            "num_rows": self.num_rows,
            "rows": [_row_json(row) for row in self.rows],
        }


def preview(
    context: Context,
    file: Path,
    model: str,
    *,
    num_rows: int | None = 3,
    mapping: Mapping[str, str] | None = None,
    template: Literal["auto", "chat", "plain"] = "auto",
    template_options: Mapping[str, TemplateOption] | None = None,
    learn_reasoning: bool | None = None,
    reset_template: Literal["training"] | None = None,
    opted: OptedTurns = AS_THEY_ARE,
) -> DataPreview:
    """What a model will see and learn of the first rows of a file. The whole file is read and checked.

    Args:
        model: The base model; it is pulled where it is missing.
        num_rows: How many rows; None for all.
        template_options, learn_reasoning, reset_template, opted: As `data` of a recipe has them.

    Raises:
        NotFoundError: No such file or model.
        DataError: Rows that cannot be read.
        TemplateError: No mask can be proved.
        ModelSourceError: The model cannot be fetched.
        RequestError: Fewer rows than one.
        RecipeError: An option that the template never reads.
    """
    if num_rows is not None and num_rows < 1:
        raise RequestError(f"num_rows={num_rows}", expected="at least 1", do="ask for one row or more")
    from luthier.ml.data.rows.formats import load_file
    from luthier.ml.data.tokenise.loss_mask import Learning, tokenise_sides
    from luthier.ml.data.tokenise.preview import preview_sides

    loaded = load_file(file, mapping=dict(mapping) if mapping else None)
    from luthier.ml.inference.models import sources
    from luthier.ml.inference.models.chat_template import ChatTemplate
    from luthier.ml.inference.opted_turns import rewritten_examples

    local = sources.pull(model, context.home, context.progress)
    chat = ChatTemplate.load(local.path, template, options=template_options)
    check_options_are_read(template_options or {}, chat, local.name)
    learning = Learning(reasoning=learn_reasoning, joins=reset_template is not None)
    shown = rewritten_examples(opted, loaded.examples[:num_rows], chat)
    rows = tuple(side for e in shown for side in preview_sides(e, tokenise_sides(e, chat, learning), chat))
    return DataPreview(
        file=str(file),
        model=local.name,
        template=chat.kind,
        shape=loaded.shape,
        shape_reason=loaded.shape_reason,
        num_rows=loaded.num_rows,
        rows=rows,
    )


@dataclass(frozen=True, slots=True)
class BlocksPreview:
    """The first blocks that the texts of a file are packed into.

    Attributes:
        file: The file.
        model: The base model.
        packed: Figures of all blocks.
        blocks: The pieces of each block that is shown.
        shape_reason: Which columns are read as what.
    """

    file: str
    model: str
    packed: PackedProfile
    blocks: tuple[tuple[Preview, ...], ...]
    shape_reason: str = ""

    def as_json(self) -> dict[str, Any]:
        """The document of `luthier data preview --block-tokens --json`."""
        return {
            "file": self.file,
            "model": self.model,
            "shape_reason": self.shape_reason,
            "packed": self.packed.model_dump(mode="json"),
            "blocks": [[_row_json(piece) for piece in block] for block in self.blocks],
        }


def preview_blocks(
    context: Context,
    file: Path,
    model: str,
    block_tokens: int,
    *,
    num_blocks: int | None = 3,
    mapping: Mapping[str, str] | None = None,
    template: Literal["auto", "chat", "plain"] = "auto",
) -> BlocksPreview:
    """The blocks that objective pretraining makes of a file of plain texts, those of the longest pieces first.

    Args:
        block_tokens: The size of a block, in tokens.
        num_blocks: How many blocks to return; None for all.

    Raises:
        RequestError: Fewer blocks than one.
        NotFoundError: No such file or model.
        DataError: The file cannot be read.
        RecipeError: Rows that are no plain texts, or blocks that are too small.
        ModelSourceError: The model cannot be fetched.
    """
    if num_blocks is not None and num_blocks < 1:
        raise RequestError(f"num_blocks={num_blocks}", expected="at least 1", do="ask for one block or more")
    from luthier.core.recipe import ObjectiveRecipe
    from luthier.ml.data.rows.formats import load_file
    from luthier.ml.data.tokenise.packing import pack_texts, piece_of
    from luthier.ml.data.tokenise.preview import preview as preview_row
    from luthier.ml.inference.models import sources
    from luthier.ml.inference.models.chat_template import ChatTemplate
    from luthier.ml.planning.resolve_objective import check_shape

    loaded = load_file(file, mapping=dict(mapping) if mapping else None)
    check_shape(ObjectiveRecipe(name="pretraining"), loaded.shape)
    local = sources.pull(model, context.home, context.progress)
    chat = ChatTemplate.load(local.path, template)
    packed = pack_texts(loaded.examples, chat, block_tokens, context.progress)
    texts = {example.id: example for example in loaded.examples}
    # piece.id is "ROW part 2 of 3"; `piece_of` leads back to the row whose text the piece was cut from.
    blocks = tuple(
        tuple(replace(preview_row(texts[piece_of(piece.id)], piece, chat), id=piece.id) for piece in block)
        for block in packed.blocks[:num_blocks]
    )
    return BlocksPreview(str(file), local.name, packed.profile, blocks, loaded.shape_reason)


def _row_json(row: Preview) -> dict[str, Any]:
    tokens = [
        # A span is the smallest run of tokens that decodes to whole characters; its text is attached to the first.
        {"id": token, "text": span.text if index == 0 else "", "learned": span.learned}
        for span in row.spans
        for index, token in enumerate(span.token_ids)
    ]
    return {
        "id": row.id,
        "side": row.side,
        "part": row.part,
        "joined": row.joined,
        "num_tokens": row.num_tokens,
        "num_trained_tokens": row.num_trained_tokens,
        "input_ids": list(row.input_ids),
        "learned": list(row.loss_mask),
        "tokens": tokens,
    }
