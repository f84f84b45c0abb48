"""First pass of a repair: every row decoded, cleaned and masked as asked, in a working file of the same lines."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np

from luthier.core.dataset import Row
from luthier.core.errors import DataError, RowProblem
from luthier.ml.data.files.source import Source, open_source
from luthier.ml.data.files.untrusted_input import bounded_lines
from luthier.ml.data.repair.masked_values import MaskedValues
from luthier.ml.data.repair.request import Note, Notes, RepairRequest, add_note
from luthier.ml.data.repair.screen import Untouched, screened
from luthier.ml.data.repair.steps import HTML_KEPT, StepOptions, Steps
from luthier.ml.data.rows.outputs import json_line
from luthier.ml.data.rows.rows import Record

_NUMBERS: Final = "a number where text is expected, such as a label: written as text"
_DECODED: Final = "its bytes are not UTF-8: read as Windows-1252"


@dataclass
class Changed:
    """The working file: line n is record n of the original as JSON, empty where it cannot be read.

    Attributes:
        path: the file.
        changed: why rows were changed, by line.
        removed: why rows are removed, by line.
        masked: what was masked, with examples.
        num_html_kept: rows that were to be cleaned with texts left as they were, since they hold HTML and most rows do,
            so that it is meant.
    """

    path: Path
    changed: Notes = field(default_factory=dict)
    removed: Notes = field(default_factory=dict)
    masked: MaskedValues = field(default_factory=MaskedValues)
    num_html_kept: int = 0


def change_rows(request: RepairRequest, to_clean: Collection[int], *, html_is_meant: bool, folder: Path) -> Changed:
    """Write the working file into a folder.

    Args:
        request: what to repair, and how.
        to_clean: lines of the rows whose texts are cleaned; rows that had to be decoded are as well.
        html_is_meant: most rows hold HTML, so it is kept.
        folder: for the working file.

    Raises:
        DataError: rows cannot be read and it was not asked to remove such rows.
    """
    made, to_clean = Changed(folder / "rows.jsonl"), frozenset(to_clean)
    problems = {problem.line: problem for problem in request.audit.table.problems}
    source = open_source(request.file)
    # Only formats that are read line by line can be decoded line by line.
    undecoded = {line for line, problem in problems.items() if problem.kind == "encoding"}
    if undecoded and request.has("encoding") and source.format in ("jsonl", "csv"):
        source = utf8_copy(source, folder)
    lines = request.audit.table.lines
    readable = set(lines[np.isin(lines, list(problems))].tolist())
    steps = Steps(StepOptions.of(request, html_is_meant=html_is_meant), made.masked)
    unreadable: list[RowProblem] = []
    title, total = "change rows", request.audit.table.num_rows
    with made.path.open("wb") as file, request.audit.progress.task(title, total, "row") as task:
        at, workers = 0, request.audit.table.rows.workers
        for record in screened(source, workers, steps.options, problems, to_clean):
            file.write(b"\n" * (record.line - at - 1))  # blank lines are no records
            at = record.line
            was = problems.get(record.line)
            if isinstance(record, Untouched):
                file.write(record.raw + b"\n")
            elif isinstance(record.item, Row) and (was is None or was.kind == "encoding" or record.line in readable):
                file.write(_changed(record, steps, made, was, record.line in to_clean) + b"\n")
            else:
                file.write(b"\n")
                problem = was or (record.item if isinstance(record.item, RowProblem) else None)
                unreadable += _remove(request, made, record, problem)
            task.advance()
    if unreadable:
        raise DataError(
            f"{len(unreadable):,} of {total:,} rows of {request.audit.table.file} cannot be read",
            expected="readable rows, or repairs that remove the others",
            do="add schema and encoding to --only (or remove them from --skip)",
            problems=unreadable,
        )
    return made


def utf8_copy(source: Source, folder: Path) -> Source:
    """The file with each line that is not UTF-8 read as Windows-1252, where it can be; other lines as they are.

    A line that is too long is cut short in the copy.
    """
    name = source.path.name[: -len(".gz")] if source.is_gzip else source.path.name
    path = folder / "utf8" / name
    path.parent.mkdir()
    with source.open() as file, path.open("wb") as copy:
        for line, _ in bounded_lines(file):
            copy.write(_utf8(line))
            if not line.endswith(b"\n"):
                copy.write(b"\n")
    return Source(path, source.format, is_gzip=False)


def _utf8(line: bytes) -> bytes:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        try:
            return line.decode("cp1252").encode()
        except UnicodeDecodeError:  # five bytes mean nothing in Windows-1252
            return line
    return line


def _changed(record: Record, steps: Steps, made: Changed, was: RowProblem | None, to_clean: bool) -> bytes:
    """The line of a row, unmodified where nothing was changed."""
    row = record.item
    assert isinstance(row, Row) and record.raw is not None  # noqa: PT018 - the caller looked
    is_decoded = was is not None and was.kind == "encoding"
    given = steps.readable(row.fields, was)
    fields, done = steps.apply(given, to_clean=to_clean or is_decoded)
    steps.masked.end(record.line, done)
    if given is not row.fields:
        add_note(made.changed, record.line, Note("schema", _NUMBERS))
    if is_decoded:
        add_note(made.changed, record.line, Note("encoding", _DECODED))
    made.num_html_kept += done.pop(HTML_KEPT, 0) > 0
    for action in ("encoding", "secret", "personal_data"):
        what = {name: num for (of, name), num in sorted(done.items()) if of == action}
        if what:
            counted = ", ".join(name if num == 1 else f"{num} x {name}" for name, num in what.items())
            said = ", ".join(what) if action == "encoding" else f"masked: {counted}"
            add_note(made.changed, record.line, _note(action, said))
    # An unchanged row keeps its bytes: writing it again could change spaces and the form of numbers.
    return json_line(fields) if record.line in made.changed else record.raw


@lru_cache(maxsize=10_000)
def _note(action: str, reason: str) -> Note:
    # One object for the many rows that are changed for one reason.
    return Note(action, reason)


def _remove(request: RepairRequest, made: Changed, record: Record, problem: RowProblem | None) -> list[RowProblem]:
    """Note why the record goes; the problem itself where it may not."""
    now = record.item
    assert isinstance(problem, RowProblem)
    reason = problem.reason
    if problem.kind == "encoding" and request.has("encoding"):
        if isinstance(now, RowProblem) and now.reason != reason:
            reason = f"its bytes are not UTF-8, and read as Windows-1252 it {now.reason}"
    elif not request.has("schema"):
        return [problem]
    add_note(made.removed, record.line, Note(problem.kind if request.has(problem.kind) else "schema", reason))
    return []
