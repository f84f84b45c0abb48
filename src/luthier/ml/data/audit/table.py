"""A data file as the table that all checks look at. Nothing is refused here: what is wrong with a row is kept as such.

The rows are streamed into frames of some thousand rows each, which go to disk beyond a budget of memory
(`data.files.row_frames`).
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl

from luthier.core.conversation import Message
from luthier.core.dataset import Example, Row, Shape
from luthier.core.errors import DataError, RowProblem
from luthier.core.ids import canonical_json, sha256_file
from luthier.core.ports import Progress, ProgressTask, SilentProgress
from luthier.ml.data.audit.earlier_rows import EarlierRows, Frames
from luthier.ml.data.files.bad_field import BadFieldError
from luthier.ml.data.files.row_frames import RowFrames
from luthier.ml.data.files.row_workers import IN_PROCESS, RowWorkers, map_with_items
from luthier.ml.data.files.source import Source, changed_while_read, open_source
from luthier.ml.data.files.spill import Spill
from luthier.ml.data.provenance import label_of, row_id_of, source_of
from luthier.ml.data.rows.formats import example_of, problem_in
from luthier.ml.data.rows.row_batches import RowBatch, row_batches
from luthier.ml.data.rows.rows import read_as, read_rows
from luthier.ml.data.rows.shapes import Decision, ShapeDetector, check_mapping
from luthier.ml.data.text.normalise import RowKeys, keys_of, normalised_digest

CountTokens = Callable[[Sequence[str]], Sequence[int]]

SCHEMA: Final[Mapping[str, Any]] = {
    "line": pl.UInt32,
    "text": pl.String,
    "said": pl.String,
    "tools": pl.String,
    "prompt": pl.String,
    "completion": pl.String,
    "content_key": pl.String,
    "learned_key": pl.String,
    "prompt_key": pl.String,
    "tools_key": pl.String,
    "source": pl.String,
    "label": pl.String,
    "row_id": pl.String,
    "num_tokens": pl.UInt32,
}
_BATCH_ROWS: Final = 20_000
_BATCH_CHARACTERS: Final = 64 << 20
_TOKENISED_ROWS: Final = 2_000


@dataclass(frozen=True, slots=True)
class AuditTable:
    """A data file to be checked.

    rows: one line a readable row, in the order of the file:
        line         u32   line in the file (row number where the format has no lines)
        text         str   all that a model could see of the row, turns separated by a line break; never null
        said         str   `text` without what the assistant thought (`reasoning_content`); null without thoughts
        tools        str   the texts in the definitions of the tools that the assistant may call; null without any
        prompt       str   the turns before the last learned answer; null for plain text and unmapped rows
        completion   str   the last learned answer with its tool calls; null likewise
        content_key  str   digest of all turns with their roles, after normalisation (`data.normalise`), not thoughts
        learned_key  str   digest of thoughts, of which answers count, and of tools; null without any of these
        prompt_key   str   digest of the prompt without tools, after normalisation; null where prompt is
        tools_key    str   digest of the tools that the assistant may call; null without tools
        source       str   the document that the row comes from, where it names one
        label        str   the class of the row, where it names one
        row_id       str   the id that the row carries, where it has one
        num_tokens   u32   tokens of `text` and of the tools; null unless the table was built with a counter

    Attributes:
        path: where it is.
        file: its name, which begins the ids of rows.
        sha256: hex digest of its bytes.
        num_bytes: its size on disk.
        shape: of its rows; None where they fit none, and the texts are all strings of a row.
        shape_reason: why this shape, or none, as a sentence.
        shape_problem: the error where there is no shape.
        num_rows: every record, also those that could not be read and so are not in the table.
        problems: of records that cannot be read, and of rows in the table that cannot be mapped to their shape.
        mapping: field of the shape -> column, as asked for and as found.
        group_by: the field that gives the column `source`; None for those that name a document.
        unused: every column that goes into no field.
        shown_name: the name under which it was uploaded; None for a file of this machine.
    """

    path: Path
    file: str
    sha256: str
    num_bytes: int
    shape: Shape | None
    shape_reason: str
    shape_problem: DataError | None
    num_rows: int
    problems: tuple[RowProblem, ...]
    rows: RowFrames = field(repr=False)
    mapping: Mapping[str, str] = field(default_factory=dict)
    group_by: str | None = None
    unused: tuple[str, ...] = ()
    shown_name: str | None = None

    @property
    def frame(self) -> pl.DataFrame:
        """All rows in one frame in memory: for files that are known to be small, and for checks of plug-ins."""
        return self.rows.frame()

    @property
    def height(self) -> int:
        """How many rows could be read."""
        return self.rows.height

    @property
    def lines(self) -> npt.NDArray[np.uint32]:
        """uint32 [height], the line of each row."""
        return self.rows.column("line").to_numpy()

    @property
    def has_tokens(self) -> bool:
        """Whether tokens were counted."""
        return self.rows.column("num_tokens").null_count() == 0

    @property
    def shown_path(self) -> str:
        """What a reader of the audit finds the file by: its path, or the name under which it was uploaded."""
        return self.shown_name or str(self.path)

    @property
    def command_path(self) -> str:
        """`shown_path` as one word of a shell command."""
        return shlex.quote(self.shown_path)

    def id_of(self, line: int) -> str:
        """The id of the row on a line, as examples and messages name it."""
        return f"{self.file}:{line}"


def build_table(
    path: Path,
    *,
    shown_name: str | None = None,
    mapping: Mapping[str, str] | None = None,
    group_by: str | None = None,
    count_tokens: CountTokens | None = None,
    progress: Progress | None = None,
    spill: Spill | None = None,
    workers: RowWorkers = IN_PROCESS,
    earlier: EarlierRows | None = None,
) -> AuditTable:
    """Read a data file of any format into an AuditTable.

    Args:
        path: the file.
        shown_name: what row ids and messages call the file in place of its path, as for an uploaded file.
        mapping: field of the shape -> column.
        group_by: the field that gives the column `source`.
        count_tokens: tokens of each of the texts, for `num_tokens`.
        progress: shows both passes.
        spill: the budget of memory, and where rows beyond it go; None for one of its own.
        workers: who maps the rows, and who looks at them in the checks.
        earlier: rows that are not mapped again, where the file is mapped as they were.

    Raises:
        NotFoundError: there is no such file.
        DataError: the file as a whole cannot be read, holds no record, lacks a field that the mapping or group_by
            names, or is changed while it is read.
        StorageFullError: the rows need more memory than the budget and more disk than there is.
    """
    mapping = dict(mapping or {})
    check_mapping(mapping)
    progress = progress or SilentProgress()
    source = open_source(path, shown_name=shown_name)
    before = _state_of(path)
    sha256 = sha256_file(path)

    detector, num_unreadable = _look(source, mapping, progress, workers)
    num_rows = detector.num_rows + num_unreadable
    if num_rows == 0:
        raise DataError(f"{source.name} holds no rows", expected="at least one row", do="check how it was written")
    found, reason, problem = _shape(detector, mapping, group_by)
    form = RowForm(found.shape, found.mapping, found.group) if found else RowForm(None, mapping, group_by)
    rows = RowFrames(SCHEMA, spill, workers)
    if earlier is not None and earlier.fit(form, num_rows, has_tokens=count_tokens is not None):
        frames = earlier.frames(source, lambda rows: _batches(rows, form, count_tokens))
    else:
        frames = _frames(source, form, count_tokens, workers)
    with progress.task("read rows", num_rows, "row") as task:
        num_read, problems = _fill(rows, frames, num_rows, task)
    # The digest is computed again only where the file has another state: it may have been touched, or copied back.
    if num_read != num_rows or (_state_of(path) != before and sha256_file(path) != sha256):
        raise changed_while_read(source.name)
    return AuditTable(
        path=path,
        file=source.name,
        sha256=sha256,
        num_bytes=path.stat().st_size,
        shape=form.shape,
        shape_reason=reason,
        shape_problem=problem,
        num_rows=num_rows,
        problems=tuple(problems),
        rows=rows,
        mapping=form.mapping,
        group_by=form.group_by,
        unused=found.unused if found is not None else (),
        shown_name=shown_name,
    )


def with_rows(table: AuditTable, rows: RowFrames | pl.DataFrame) -> AuditTable:
    """The same table with other rows, such as a part of them; `num_rows` follows."""
    if isinstance(rows, pl.DataFrame):
        rows = RowFrames.of(rows)
    return replace(table, rows=rows, num_rows=rows.height)


def _state_of(path: Path) -> tuple[int, ...]:
    """What changes with the content of a file: inode, size and the times of its last changes in nanoseconds."""
    found = path.stat()
    return (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def _look(
    source: Source, mapping: Mapping[str, str], progress: Progress, workers: RowWorkers
) -> tuple[ShapeDetector, int]:
    note = read_as(source)
    detector, num_unreadable = ShapeDetector(source.name, mapping, note), 0
    with progress.task("check rows", None, "row") as task:
        if not workers.are_remote:
            return detector, _look_at(read_rows(source), detector, task.advance)
        for batch, (seen, num) in map_with_items(workers, _seen_in, row_batches(source), mapping, note):
            detector.merge(seen)
            num_unreadable += num
            task.advance(len(batch.records))
    return detector, num_unreadable


def _look_at(rows: Iterable[Row | RowProblem], detector: ShapeDetector, advance: Callable[[float], object]) -> int:
    """Show rows to a detector; the number of those that cannot be read."""
    num_unreadable = 0
    for row in rows:
        if isinstance(row, Row):
            detector.add(row)
        else:
            num_unreadable += 1
        advance(1)
    return num_unreadable


def _seen_in(batch: RowBatch, mapping: Mapping[str, str], note: str) -> tuple[ShapeDetector, int]:
    detector = ShapeDetector(batch.file, mapping, note)
    return detector, _look_at(batch.rows(), detector, lambda _: None)


def _shape(
    detector: ShapeDetector, mapping: Mapping[str, str], group_by: str | None
) -> tuple[Decision | None, str, DataError | None]:
    if detector.num_rows == 0:
        error = DataError("no record could be read", expected="at least one row", do="see the problems of the rows")
        return None, error.came, error
    try:
        found = detector.settle(group=group_by)
    except DataError as error:
        if mapping or group_by:  # the person asked for fields that are not there: no finding, a wrong request
            raise
        return None, error.came, error
    return found, found.reason, None


@dataclass(frozen=True, slots=True)
class RowForm:
    """How the rows of a file are mapped.

    Attributes:
        shape: of all rows; None where they fit none.
        mapping: field of the shape -> column.
        group_by: the field that gives the column `source`.
    """

    shape: Shape | None
    mapping: Mapping[str, str]
    group_by: str | None


def _frames(source: Source, form: RowForm, count_tokens: CountTokens | None, workers: RowWorkers) -> Iterator[Frames]:
    """Frames of the rows in order, what is wrong with their records, and how many records that are."""
    if workers.are_remote:
        for found in workers.map(_frames_of, row_batches(source), form, count_tokens):
            yield from found
        return
    yield from _batches(read_rows(source), form, count_tokens)


def _fill(rows: RowFrames, frames: Iterator[Frames], num_rows: int, task: ProgressTask) -> tuple[int, list[RowProblem]]:
    """Add all frames to the table; how many records that are, and what is wrong with them."""
    num_read, problems = 0, list[RowProblem]()
    for frame, wrong, num_records in frames:
        num_read += num_records
        problems += wrong
        rows.append(frame, min(1.0, num_read / num_rows))
        task.advance(num_records)
    return num_read, problems


def _frames_of(batch: RowBatch, form: RowForm, count_tokens: CountTokens | None) -> list[Frames]:
    return list(_batches(batch.rows(), form, count_tokens))


def _batches(rows: Iterable[Row | RowProblem], form: RowForm, count_tokens: CountTokens | None) -> Iterator[Frames]:
    """As `_frames`: at most 20,000 rows or 64 million characters at a time."""
    lines: list[tuple[Any, ...]] = []
    tools: list[str] = []
    problems: list[RowProblem] = []
    num_characters = num_records = 0
    for row in rows:
        num_records += 1
        if isinstance(row, RowProblem):
            problems.append(row)
            continue
        example = None
        if form.shape is not None:
            try:
                example = example_of(row, form.shape, form.mapping, form.group_by)
            except BadFieldError as error:
                problems.append(problem_in(row, error, form.mapping))
        lines.append(_line(row, example, form.group_by))
        tools.append(_tools_as_written(example) if count_tokens is not None else "")
        num_characters += len(lines[-1][1]) + len(lines[-1][3] or "")
        if len(lines) == _BATCH_ROWS or num_characters >= _BATCH_CHARACTERS:
            yield _frame(lines, tools, count_tokens), problems, num_records
            lines, tools, problems, num_characters, num_records = [], [], [], 0, 0
    if num_records:
        yield _frame(lines, tools, count_tokens), problems, num_records


def _frame(lines: list[tuple[Any, ...]], tools: list[str], count_tokens: CountTokens | None) -> pl.DataFrame:
    made = pl.DataFrame(lines, schema=SCHEMA, orient="row")
    return made if count_tokens is None else _with_tokens(made, tools, count_tokens)


def _tools_of(example: Example | None) -> tuple[dict[str, Any], ...]:
    # Both sides of a preference have the same tools.
    return () if example is None or example.conversation is None else example.conversation.tools


def _tools_as_written(example: Example | None) -> str:
    """The tools of a row as a template writes them, nearly; "" without tools."""
    tools = _tools_of(example)
    return json.dumps(tools, ensure_ascii=False, default=str) if tools else ""


def _line(row: Row, example: Example | None, group_by: str | None) -> tuple[Any, ...]:
    text, prompt, completion = (
        _texts(example) if example is not None else (_storable("\n".join(strings_in(row.fields))) or "", None, None)
    )
    said = None
    if example is not None and _thinks(example):
        said, text = text, _texts(example, thoughts=True)[0]
    keys = RowKeys(normalised_digest(text), None, None, None) if example is None else keys_of(example)
    # Texts alone: the escapes of JSON would hide what is in them.
    tools = _storable("\n".join(strings_in(list(_tools_of(example))))) or None
    origin = (source_of(row.fields, group_by), label_of(row.fields), row_id_of(row.fields))
    return (row.line, text, said, tools, prompt, completion, *keys, *map(_storable, origin), None)


def _thinks(example: Example) -> bool:
    sides = [side for side in (example.conversation, example.rejected) if side is not None]
    return any(message.reasoning for side in sides for message in side.messages)


def _storable(text: str | None) -> str | None:
    """The text with U+FFFD for halves of surrogate pairs, which no frame and no file can hold."""
    if text is None or text.isascii():
        return text
    # UTF-16 pairs up two halves that belong together; only lone halves are replaced.
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _texts(example: Example, *, thoughts: bool = False) -> tuple[str, str | None, str | None]:
    """All text of an example, its prompt and its completion; of a preference the chosen one, both sides in the text.

    Args:
        example: the row.
        thoughts: whether what the assistant thought is part of its turns.
    """
    if example.conversation is None:
        return example.text or "", None, None
    conversation = example.conversation
    if (last := conversation.last_answer) is None:
        return _said(conversation.messages, thoughts), None, None
    if example.rejected is not None:
        text, prompt, completion = _texts(example.sides[0], thoughts=thoughts)
        return f"{text}\n{_said(example.rejected.messages[last:], thoughts)}", prompt, completion
    prompt = _said(conversation.messages[:last], thoughts)
    completion = _turn(conversation.messages[last], thoughts)
    rest = conversation.messages[last + 1 :]
    text = f"{prompt}\n{completion}" if prompt else completion
    return (f"{text}\n{_said(rest, thoughts)}" if rest else text), prompt, completion


def _said(messages: Sequence[Message], thoughts: bool) -> str:
    return "\n".join(_turn(message, thoughts) for message in messages)


def _turn(message: Message, thoughts: bool) -> str:
    thought = message.reasoning if thoughts else None
    if not message.tool_calls and not thought:
        return message.content or ""
    calls = [_call(call.get("function", {})) for call in message.tool_calls]
    return "\n".join(part for part in (thought, message.content, *calls) if part)


def _call(function: Mapping[str, Any]) -> str:
    """A tool call as JSON, with its arguments as an object: escapes in a text of JSON would hide what is in it."""
    try:
        return canonical_json({**function, "arguments": json.loads(function.get("arguments", "{}"))})
    except ValueError:  # a number beyond all others, such as 1e999
        return canonical_json(function)


def strings_in(value: Any) -> Iterator[str]:
    """Every string inside a JSON value, in order, without the keys of objects."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from strings_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from strings_in(inner)


def _with_tokens(frame: pl.DataFrame, tools: list[str], count_tokens: CountTokens) -> pl.DataFrame:
    # In parts: encodings of all texts at once would take many times the memory of the texts.
    counts: list[int] = []
    for start in range(0, frame.height, _TOKENISED_ROWS):
        counts.extend(count_tokens(frame["text"].slice(start, _TOKENISED_ROWS).to_list()))
    # Most rows of a file have one of few sets of tools, so each is counted once.
    of_tools = {"": 0}
    for one in tools:
        if one not in of_tools:
            (of_tools[one],) = count_tokens([one])
    counts = [num + of_tools[one] for num, one in zip(counts, tools, strict=True)]
    return frame.with_columns(pl.Series("num_tokens", counts, dtype=pl.UInt32))
