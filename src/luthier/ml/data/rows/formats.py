"""Read a data file: bytes -> rows -> examples, or one error that names every bad place.

Two passes: the first looks at the fields of all rows to decide their shape, the second maps them. A JSONL, CSV or
Parquet file is streamed in both, so the memory needed is that of the examples, not of the file and its raw rows too.
Where a budget is given, examples beyond it are in files (`files.sequences`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from pydantic_core import to_json

from luthier.core.conversation import Conversation
from luthier.core.dataset import Example, Row, Shape
from luthier.core.errors import DataError, RowProblem
from luthier.core.ids import sha256_file
from luthier.ml.data.files.bad_field import ABSENT, BadFieldError, EmptyAnswerError, check_text, shorten
from luthier.ml.data.files.sequences import RecordStore, SequenceWriter
from luthier.ml.data.files.source import Source, changed_while_read, open_source
from luthier.ml.data.files.spill import Spill
from luthier.ml.data.provenance import OWN_GROUPS, field_at
from luthier.ml.data.rows.chat_rows import (
    alpaca_conversation,
    chat_conversation,
    plain_text,
    prompt_completion_conversation,
)
from luthier.ml.data.rows.columns import as_text, plain_name
from luthier.ml.data.rows.preference_rows import preference_sides, unpaired_conversation
from luthier.ml.data.rows.prompt_rows import ANSWER, PromptRows, PromptRule
from luthier.ml.data.rows.rows import read_as, read_rows
from luthier.ml.data.rows.shapes import GROUP, Decision, ShapeDetector, check_mapping, renamed
from luthier.ml.data.rows.sharegpt_rows import sharegpt_conversation

_CONVERSATIONS: dict[Shape, Callable[[dict[str, Any]], Conversation]] = {
    "chat": chat_conversation,
    "sharegpt": sharegpt_conversation,
    "prompt_completion": prompt_completion_conversation,
    "alpaca": alpaca_conversation,
}
_MEDIA: Final = ("image", "images", "audio", "audios", "video", "videos")
_MEDIA_PLACE: Final = re.compile(r"<\|?(?:image|audio|video)(?:_pad|_\d{1,3})?\|?>")
"""Where a turn has an image, as the files of LLaVA and LLaMA-Factory mark it."""


@dataclass(frozen=True, slots=True)
class LoadedFile:
    """A data file that was read whole: every one of its rows is an example.

    Attributes:
        file: path as given.
        sha256: hex digest of the file's bytes as they are on disk, packed or not.
        shape: what its rows are.
        shape_reason: one sentence why this shape was taken, which columns are its fields, and how the file is written.
        num_rows: rows of the file.
        examples: one for each row, in order; a tuple, or a sequence in files where they are larger than memory.
        mapping: field of the shape -> column, where the two differ.
        unused: every column that goes into no field.
    """

    file: str
    sha256: str
    shape: Shape
    shape_reason: str
    num_rows: int
    examples: Sequence[Example]
    mapping: Mapping[str, str] = field(default_factory=dict)
    unused: tuple[str, ...] = ()


def load_file(
    path: Path,
    *,
    mapping: dict[str, str] | None = None,
    group_by: str | None = None,
    spill: Spill | None = None,
    shown_name: str | None = None,
    prompts: PromptRule | None = None,
) -> LoadedFile:
    """Read a JSONL, JSON, CSV or Parquet file, each also .gz, or a workbook (.xlsx), in any of the shapes of
    `core.dataset.Shape`.

    Args:
        path: the file.
        mapping: field of the shape -> field of the file, such as {"prompt": "question"}; overrides detection.
        group_by: the field of the file that keeps rows together in a split.
        spill: the budget of memory, and where examples beyond it go; None keeps all of them in memory.
        shown_name: what messages and ids of rows call the file; the last part of its path where None.
        prompts: how rows that end with a prompt are taken; None refuses them.

    Raises:
        NotFoundError: there is no such file.
        StorageFullError: the examples need more memory than the budget and more disk than there is.
        DataError: the file or any of its rows is wrong; all bad rows are in `problems`.
    """
    mapping = dict(mapping or {})
    check_mapping(mapping)
    group = _group_field(mapping, group_by)
    source = open_source(path, shown_name=shown_name)
    # Before the first pass, and again after the second: a file that is being written would pass unnoticed.
    sha256 = sha256_file(path)

    detector = ShapeDetector(source.name, mapping, read_as(source))
    unreadable = []
    complete = None if prompts is None else PromptRows(mapping, prompts)
    for row in _read(source, complete):
        if isinstance(row, Row):
            detector.add(row)
        else:
            unreadable.append(row)
    num_rows = detector.num_rows + len(unreadable)
    if num_rows == 0:
        raise DataError(f"{source.name} holds no rows", expected="at least one row", do="check how it was written")
    if detector.num_rows == 0:
        raise _wrong_rows(source.name, unreadable, num_rows)
    try:
        found = detector.settle(group=group)
    except DataError as error:
        if unreadable:  # the file is damaged, so what is left of it may not show its shape
            raise _wrong_rows(source.name, [*unreadable, *error.problems], num_rows) from error
        raise

    examples, problems = _map_rows(_read(source, complete), found, spill, has_prompts=complete is not None)
    if problems:
        raise _wrong_rows(source.name, problems, num_rows)
    if len(examples) != num_rows or sha256_file(path) != sha256:
        raise changed_while_read(source.name)
    return LoadedFile(str(path), sha256, found.shape, found.reason, num_rows, examples, found.mapping, found.unused)


_MODEL_BYTES: Final = 1_000
"""Of an example, a conversation or a message in memory, beside its texts."""


def example_writer(spill: Spill | None) -> SequenceWriter[Example]:
    """Collects examples: a tuple within the budget, a sequence in files beyond it."""
    return SequenceWriter(
        spill,
        _memory_bytes,
        lambda spill: RecordStore(spill, to_json, Example.model_validate_json),
    )


def _memory_bytes(example: Example) -> int:
    """About what an example takes in memory."""
    size = _MODEL_BYTES + len(example.text or "")
    for side in (example.conversation, example.rejected):
        if side is not None:
            texts = sum(len(message.content or "") + len(message.reasoning or "") for message in side.messages)
            # Python objects dominate short rows; of texts the characters are counted, 1 to 4 bytes each in CPython.
            size += _MODEL_BYTES * (1 + len(side.messages)) + texts
    return size


def _read(source: Source, complete: PromptRows | None) -> Iterator[Row | RowProblem]:
    return read_rows(source) if complete is None else map(complete, read_rows(source))


def _map_rows(
    rows: Iterator[Row | RowProblem], found: Decision, spill: Spill | None, *, has_prompts: bool
) -> tuple[Sequence[Example], list[RowProblem]]:
    examples, problems = example_writer(spill), []
    for row in rows:
        if isinstance(row, RowProblem):
            problems.append(row)
            continue
        try:
            example = example_of(row, found.shape, found.mapping, found.group)
            if has_prompts and example.reference == ANSWER:
                example = example.model_copy(update={"has_answer": False})
            examples.append(example)
        except BadFieldError as error:
            problems.append(problem_in(row, error, found.mapping))
    return examples.sequence(), problems


def problem_in(row: Row, error: BadFieldError, mapping: Mapping[str, str]) -> RowProblem:
    """What is wrong with a row that cannot be mapped; the field goes by the name that the file gives it."""
    field = _name_in_file(error.field, mapping)
    problem = RowProblem(row.file, row.line, field, shorten(error.value), error.reason)
    return replace(problem, kind="empty_answer") if isinstance(error, EmptyAnswerError) else problem


def example_of(row: Row, shape: Shape, mapping: Mapping[str, str], group: str | None) -> Example:
    """Map one row.

    Args:
        row: the raw row.
        shape: of the file.
        mapping: as in `load_file`.
        group: the field that keeps rows together.

    Raises:
        BadFieldError: the row lacks a field, or holds another type in it.
    """
    fields = renamed(row.fields, mapping) if mapping else row.fields
    value = _group_value(row.fields, group) if group is not None else None
    if shape == "prompt_completion" and _names_answers(mapping):
        # named explicitly, so a column `label` is no reason to doubt it, and a number is a class
        fields = {name: inner for name, inner in fields.items() if name != "label"}
        if "completion" in fields:
            fields["completion"] = as_text(fields["completion"])
    if shape == "text":
        return Example(id=row.id, text=plain_text(fields), group=value)
    if shape == "preference":
        chosen, rejected = preference_sides(fields)
        _refuse_media(fields, chosen)
        return Example(id=row.id, conversation=chosen, rejected=rejected, group=value)
    if shape == "unpaired":
        conversation, is_wanted = unpaired_conversation(fields)
        _refuse_media(fields, conversation)
        return Example(id=row.id, conversation=conversation, is_wanted=is_wanted, group=value)
    conversation = _CONVERSATIONS[shape](fields)
    _refuse_media(fields, conversation)
    return Example(id=row.id, conversation=conversation, group=value)


def _refuse_media(fields: Mapping[str, Any], conversation: Conversation) -> None:
    """Raise BadFieldError where a row has an image beside its turns, without which their text means something else.

    The name of a column alone says nothing: an address of a picture may be a fact about the row.
    """
    for name in _MEDIA:
        value = fields.get(name)
        if not value:
            continue
        is_file = any(isinstance(one, dict | bytes) for one in (value if isinstance(value, list) else [value]))
        if is_file or any(_MEDIA_PLACE.search(message.content or "") for message in conversation.messages):
            reason = (
                "belongs to the turns, and only text can be trained here, no images, audio or video; to learn the "
                "text alone, remove the field, and places such as <image> from the turns"
            )
            raise BadFieldError(name, ABSENT if is_file else value, reason)


def _names_answers(mapping: Mapping[str, str]) -> bool:
    """Whether the mapping says which column is the completion, more than in other capitals."""
    column = mapping.get("completion")
    return column is not None and (column == "completion" or plain_name(column) != "completion")


def _group_field(mapping: Mapping[str, str], group_by: str | None) -> str | None:
    mapped = mapping.get(GROUP)
    if mapped is not None and group_by is not None and mapped != group_by:
        raise DataError(
            f"the group is given twice: group={mapped!r} in the mapping and group_by={group_by!r}",
            expected="one field that keeps rows together",
            do="remove one of the two",
        )
    return mapped or group_by


def _group_value(fields: Mapping[str, Any], group: str) -> str | None:
    """What keeps a row together with others; None for a row that names no document, where that is the group."""
    value = fields.get(group, ABSENT)
    if value is ABSENT or value is None:
        if (inside := field_at(fields, group)) is not None:
            return check_text(group, inside)
        if group in OWN_GROUPS:
            return None
    if not isinstance(value, str | int | float):
        shown = ABSENT if value is ABSENT else value
        raise BadFieldError(group, shown, "has no group: the field is absent, null, or not a plain value")
    return check_text(group, str(value))


def _name_in_file(field: str, mapping: Mapping[str, str]) -> str:
    """The field under the name that the file gives it, so that a person finds it there."""
    for target, column in mapping.items():
        if field == target or field.startswith((f"{target}[", f"{target}.")):
            return column + field.removeprefix(target)
    return field


def _wrong_rows(file: str, problems: list[RowProblem], num_rows: int) -> DataError:
    num_wrong = len({problem.line for problem in problems})
    return DataError(
        f"{num_wrong:,} of {num_rows:,} rows of {file} {'is' if num_wrong == 1 else 'are'} wrong",
        expected="only valid rows: none is skipped silently",
        do="repair or remove these rows",
        problems=problems,
    )
