"""What a data file holds: a preview of what a model will see and learn, and dataset cards.

A card describes the file as text for people and in two notations for machines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from luthier.core.conversation import AS_THEY_ARE, OptedTurns
from luthier.core.errors import RequestError
from luthier.core.recipe import TemplateOption
from luthier.features.recipes.template_options import check_options_are_read, check_switches
from luthier.platform.home.context import Context

if TYPE_CHECKING:
    from luthier.core.dataset import Example, PackedProfile, Shape
    from luthier.core.results.audit import Audit
    from luthier.features.datasets.data_files import AuditOptions
    from luthier.ml.data.tokenise.preview import Preview
    from luthier.ml.inference.models.templates.chat_template import ChatTemplate


@dataclass(frozen=True, slots=True)
class DataPreview:
    """The first rows of a file as a model gets them; a preference pair as its two sides.

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
    task_head: Literal["classify", "regress"] | None = None,
    multi_label: bool = False,
) -> DataPreview:
    """What a model will see and learn of the first rows of a file. The whole file is read and checked.

    Args:
        context: The home.
        file: The rows.
        model: The base model; it is pulled where it is missing.
        num_rows: How many rows; None for all.
        mapping: Field of the shape -> column.
        template: The chat template or plain text; `auto` takes what the model has.
        template_options: As `data` of a recipe has them.
        learn_reasoning: As `data` of a recipe has it.
        reset_template: As `data` of a recipe has it.
        opted: As `data` of a recipe has them.
        task_head: What a head in place of text learns of the rows; None for text.
        multi_label: Whether a row may have several labels.

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
    from luthier.ml.inference.engine_prompts import rewritten_examples
    from luthier.ml.inference.models import sources
    from luthier.ml.inference.models.templates.chat_template import ChatTemplate

    local = sources.pull(model, context.home, context.progress)
    chat = ChatTemplate.load(local.path, template, options=template_options)
    check_options_are_read(template_options or {}, chat, local.name)
    check_switches(template_options or {}, chat, local.name)
    learning = Learning(reasoning=learn_reasoning, joins=reset_template is not None)
    shown = rewritten_examples(opted, loaded.examples[:num_rows], chat)
    if task_head is not None:
        every = rewritten_examples(opted, loaded.examples, chat)
        rows = _head_rows(task_head, every, len(shown), chat, multi_label=multi_label)
    else:
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


def _head_rows(
    kind: Literal["classify", "regress"],
    examples: Sequence[Example],
    num_rows: int,
    chat: ChatTemplate,
    *,
    multi_label: bool,
) -> tuple[Preview, ...]:
    """The first rows as a head reads them whose classes are those of the whole file."""
    from luthier.ml.data.tokenise.heads import fit_task_head, targets_of, tokenise_prompt
    from luthier.ml.data.tokenise.preview import preview_head_row

    # The width is of no concern: nothing is trained.
    head, shown = fit_task_head(kind, {"train": examples}, 1, multi_label=multi_label).head, examples[:num_rows]
    targets = targets_of(shown, head)
    rows = [replace(tokenise_prompt(e, chat), target=t or ()) for e, t in zip(shown, targets, strict=True)]
    return tuple(preview_head_row(e, row, chat, head) for e, row in zip(shown, rows, strict=True))


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
        context: The home.
        file: The texts.
        model: The base model; it is pulled where it is missing.
        block_tokens: The size of a block, in tokens.
        num_blocks: How many blocks to return; None for all.
        mapping: Field of the shape -> column.
        template: The chat template or plain text; `auto` takes what the model has.

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
    from luthier.ml.inference.models.templates.chat_template import ChatTemplate
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
        "target": row.target,
        "tokens": tokens,
    }


@dataclass(frozen=True, slots=True)
class CardOptions:
    """What a person states about a dataset; what is left out is written as not stated.

    Attributes:
        name: None takes the file's name.
        licence: An SPDX id.
        description: What the data is.
        languages: ISO 639 codes; none takes what the audit finds.
        uses: Its intended use.
    """

    name: str | None = None
    licence: str | None = None
    description: str | None = None
    languages: tuple[str, ...] = ()
    uses: str | None = None


@dataclass(frozen=True, slots=True)
class DatasetCard:
    """A card that was written.

    Attributes:
        path: The Markdown file.
        croissant: The Croissant document next to it.
        audit: The audit that it shows.
        metadata: The front matter of the card.
        num_files: How many files it describes.
        not_stated: What is not stated.
    """

    path: Path
    croissant: Path
    audit: Audit
    metadata: dict[str, Any]
    num_files: int
    not_stated: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """The document of `luthier data card --json`."""
        return {
            "card": str(self.path),
            "croissant": str(self.croissant),
            "grade": self.audit.grade,
            "num_rows": self.audit.num_rows,
            "num_files": self.num_files,
            "not_stated": list(self.not_stated),
            "metadata": self.metadata,
        }


def make_card(
    context: Context,
    file: Path,
    output: Path,
    options: CardOptions | None = None,
    audit_options: AuditOptions | None = None,
    *,
    date: str,
    command: str,
    force: bool = False,
) -> DatasetCard:
    """Audit a file and write its card (`README.md`) and Croissant (`README.croissant.json` next to it).

    Where the file is one side of a split (`split.json` next to it), the other sides are described too.

    Args:
        context: The home.
        file: The rows.
        output: The file of the card.
        options: What a person states about the rows; None for nothing.
        audit_options: Of the audit; None takes the defaults.
        date: The date of the audit, ISO 8601.
        command: The command that makes the card again.
        force: Replace a card that exists.

    Raises:
        NotFoundError: No such file or model.
        DataError: The file cannot be read, has no readable rows, or changed meanwhile.
        RequestError: The output is an input, or no Markdown file.
        ConflictError: An output exists.
    """
    from luthier.core.errors import DataError
    from luthier.features.datasets import data_files as audits
    from luthier.ml.data.card.croissant import croissant
    from luthier.ml.data.card.facts import CardRequest, look, split_beside
    from luthier.ml.data.card.write import card_text, front_matter
    from luthier.ml.data.rows.outputs import check_free, check_outputs

    options = options or CardOptions()
    beside = croissant_path(output)
    check_outputs([output, beside], [file])
    check_free([output, beside], force=force)
    found = audits.audit(context, file, audit_options).audit
    split = split_beside(file)
    looked = {name: look(path, name, context.progress) for name, path in split.files.items()}
    name = next(name for name, path in split.files.items() if path.name == file.name)
    described, origins = looked[name]
    # Audit and description each read the file; different digests mean that it changed in between.
    if described.sha256 != found.sha256:
        raise DataError(
            f"{file.name} was changed while it was read",
            expected="a file that does not change",
            do="wait until the program that writes the file has finished, then start again",
        )
    request = CardRequest(
        audit=found,
        described=described,
        files=tuple(facts for facts, _ in looked.values()),
        origins=origins,
        name=options.name or file.name.split(".", 1)[0] or file.name,
        date=date,
        command=command,
        licence=options.licence,
        description=options.description,
        languages=options.languages,
        uses=options.uses,
        split_note=split.note,
    )
    _write(output, card_text(request), beside, croissant(request))
    return DatasetCard(output, beside, found, front_matter(request), len(request.files), _not_stated(request))


def croissant_path(output: Path) -> Path:
    """`README.croissant.json` for `README.md`.

    Raises:
        RequestError: A name that no card can have.
    """
    if output.suffix.lower() not in (".md", ".markdown"):
        raise RequestError(
            f"--output {output}", expected="a Markdown file, such as README.md", do="give it a name that ends in .md"
        )
    return output.with_name(f"{output.stem}.croissant.json")


def _write(output: Path, card: str, beside: Path, croissant: dict[str, Any]) -> None:
    import json

    from luthier.core.system.files import replace_text

    output.parent.mkdir(parents=True, exist_ok=True)
    # Each file is replaced whole by a rename, so a reader never sees half a card.
    replace_text(output, card)
    replace_text(beside, json.dumps(croissant, indent=2, ensure_ascii=False) + "\n")


def _not_stated(request: Any) -> tuple[str, ...]:
    known = {
        "description": request.description,
        "licence": request.licence_known,
        "languages": request.languages_known,
        "uses": request.uses,
        "sources": request.origins.sources,
    }
    return tuple(name for name, value in known.items() if not value)
