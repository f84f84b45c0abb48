"""Use cases: the rows of a dataset version: how many, their format with the reason, and a page of them.

`RowIndex` reads single rows without reading those before them. The index is next to the file that `files.local_path`
lays out, under its digest, and is removed with it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from luthier.core.access import Caller
from luthier.core.dataset import Row
from luthier.core.errors import DataError, RowProblem, WorkError
from luthier.features.datasets.store import DatasetVersion
from luthier.features.files.references import answer_about
from luthier.platform.files import service as files
from luthier.platform.files.store import StoredFile
from luthier.platform.home.context import Context
from luthier.platform.http.path_redaction import redacted_errors
from luthier.platform.processes.result_cache import (
    CachedResult,
    Subject,
    cached_result,
    start_computation,
    store_result,
)

if TYPE_CHECKING:
    from luthier.ml.data.rows.row_index import RowIndex

T = TypeVar("T")
SMALL_BYTES: Final = 4 << 20
"""Files of text up to this size are read by the process of the request."""
RETRY_SECONDS: Final = 20.0
"""After so long a file is read again, where the machine could not the last time."""
_TEXT_SUFFIXES: Final = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".tab")
_LOOKED_AT: Final = 100
"""Rows from the start of a file that show its columns."""


def open_rows(context: Context, caller: Caller, version: DatasetVersion) -> RowIndex:
    """The rows of a version by their place. The first time its file is proved and read; later that takes no time.

    Raises:
        NotFoundError: The project no longer has the file.
        DataError: The file cannot be read.
        WorkError: The content of the file is lost, or the child process that reads it has failed.
    """
    from luthier.ml.data.rows.row_index import build_index, is_quick, open_index

    file = files.get_file(context, caller.project_id, version.file_id)
    place = files.place_of(context, file)
    # Named after the content-addressed file, so an index can never belong to other rows.
    folder = place.with_name(f"rows-{place.name}")
    # The index first: `local_path` below proves the digest of the file, which reads all of it.
    if (found := open_index(place, folder)) is not None:
        return found
    path = files.local_path(context, file)
    with redacted_errors({str(path): file.filename, path.name: file.filename}):
        if is_quick(path) or is_small(version.filename, version.num_bytes):
            return build_index(path, folder)
        # In a child process: parsing a large file would hold the interpreter lock of the server for seconds.
        answer_about(context, caller.project_id, "index", version.file_id, {"folder": str(folder)})
        # The index may have been cleared between the answer of the child and now.
        return open_index(path, folder) or build_index(path, folder)


def index_state(context: Context, caller: Caller, version: DatasetVersion) -> CachedResult:
    """Whether the rows of a version can be read by their place; of a large file that begins with the first request.

    Small files are indexed directly.

    Raises:
        NotFoundError: The project no longer has the file.
        DataError: A small file cannot be read.
        WorkError: The content of a small file is lost.
    """
    from luthier.ml.data.rows.row_index import open_index

    file = files.get_file(context, caller.project_id, version.file_id)
    place = files.place_of(context, file)
    folder = place.with_name(f"rows-{place.name}")
    if open_index(place, folder) is not None:
        return CachedResult("answered")
    if is_small(version.filename, version.num_bytes):
        open_rows(context, caller, version)
        return CachedResult("answered")
    subject = Subject(file.sha256, "index", {"suffix": files.suffix_of(file.filename)})
    found = cached_result(context, subject)
    # Also where it was found in the future: the clock was set back since.
    is_over = isinstance(found.error, WorkError) and not 0 <= time.time() - found.at <= RETRY_SECONDS
    if found.state == "running" or (found.state == "failed" and not is_over):
        return found

    def make() -> dict[str, Any]:
        return answer_about(context, caller.project_id, "index", version.file_id, {"folder": str(folder)})

    return start_computation(context, subject, make)


def is_small(filename: str, num_bytes: int) -> bool:
    """Whether a file is read by the process of the request; larger and packed ones are read by a separate process."""
    return num_bytes <= SMALL_BYTES and files.suffix_of(filename) in _TEXT_SUFFIXES


def columns_of(rows: RowIndex) -> list[str]:
    """The fields that the first rows have, in the order of their first appearance."""
    from luthier.core.dataset import Row

    names: dict[str, None] = {}
    for position in range(min(rows.num_rows, _LOOKED_AT)):
        row = rows.row(position)
        if isinstance(row, Row):
            names |= dict.fromkeys(row.fields)
    return list(names)


_READING: Final = 2
"""Counts up where files are read otherwise than before, so that what was kept of them is computed again."""
_MAX_CELL_CHARACTERS: Final = 20_000
_MAX_COLUMNS: Final = 40
_MAX_PROBLEMS: Final = 20


def look(context: Context, project_id: str, file: StoredFile, columns: Mapping[str, str] | None = None) -> CachedResult:
    """What `look_at` finds, once it is found; a small file is looked at now, for others that is begun."""
    columns = dict(columns or {})
    subject = _subject(file.sha256, file.filename, columns)
    found = cached_result(context, subject)
    # Also where it was found in the future: the clock was set back since.
    # Only errors of the machine are retried. Errors of the file are the same next time.
    is_over = isinstance(found.error, WorkError) and not 0 <= time.time() - found.at <= RETRY_SECONDS
    if found.state != "unasked" and not is_over:
        return found
    if is_small(file.filename, file.num_bytes):
        return store_result(context, subject, lambda: _of_small(context, file, partial(look_at, columns=columns)))

    def answer() -> dict[str, Any]:
        look = answer_about(context, project_id, "look", file.file_id, {"columns": columns})
        # The version was stored before its rows were counted; it gets the number here.
        context.datasets.learn_num_rows(file.file_id, look["num_rows"])
        return look

    return start_computation(context, subject, answer)


def _subject(sha256: str, filename: str, columns: Mapping[str, str]) -> Subject:
    given: dict[str, Any] = {"suffix": files.suffix_of(filename), "reading": _READING}
    # Only where some were chosen: results from before columns could be chosen stay valid.
    return Subject(sha256, "look", given | ({"columns": dict(columns)} if columns else {}))


def look_of(context: Context, caller: Caller, version: DatasetVersion) -> CachedResult:
    """`look` for the file of a version.

    Raises:
        NotFoundError: The project no longer has the file.
    """
    file = files.get_file(context, caller.project_id, version.file_id)
    return look(context, caller.project_id, file, version.columns)


def known_look(context: Context, version: DatasetVersion) -> dict[str, Any] | None:
    """What `look_of` has found of a version before; None where it was not asked yet, or found nothing."""
    return cached_result(context, _subject(version.sha256, version.filename, version.columns)).answer


def known_shape(context: Context, version: DatasetVersion) -> str | None:
    """The shape of a version, if it is known already."""
    found = known_look(context, version)
    return None if found is None else found["shape"]


def rows_page(
    context: Context,
    caller: Caller,
    version: DatasetVersion,
    *,
    start: int = 0,
    num: int = 20,
    lines: Sequence[int] | None = None,
) -> dict[str, Any]:
    """A page of the rows, as `read_page` says; of a large file by its index, so that no page costs more than another.

    Args:
        context: The home.
        caller: Whose project it is.
        version: The version.
        start: The first row of the page, from 0.
        num: The most rows.
        lines: Only rows of these lines of the file; None for all.

    Raises:
        NotFoundError: The file of the version is gone.
        DataError: The file cannot be read.
        WorkError: The machine could not index it.
    """
    if is_small(version.filename, version.num_bytes):
        file = files.get_file(context, caller.project_id, version.file_id)
        return _of_small(context, file, lambda path: read_page(path, start=start, num=num, lines=lines))
    return _indexed_page(open_rows(context, caller, version), start, num, lines)


def sample_rows(
    context: Context, caller: Caller, version: DatasetVersion, most: int, *, first: int | None = None
) -> tuple[int, list[Row]]:
    """How many records a version has, and up to `most` rows spread over them; those that cannot be read are left out.

    Args:
        context: The home.
        caller: Whose project it is.
        version: The version.
        most: How many rows at most.
        first: Of the first so many records alone; None for all.

    Raises:
        NotFoundError: The project no longer has the file.
        DataError: The file cannot be read.
        WorkError: The content of the file is lost, or the child process that reads it has failed.
    """
    if is_small(version.filename, version.num_bytes):
        file = files.get_file(context, caller.project_id, version.file_id)
        found = _of_small(context, file, _all_rows)
        num_rows = min(len(found), first or len(found))
        return num_rows, [row for row in found[: num_rows : _step(num_rows, most)] if isinstance(row, Row)]
    index = open_rows(context, caller, version)
    num_rows = min(index.num_rows, first or index.num_rows)
    some = (index.row(place) for place in range(0, num_rows, _step(num_rows, most)))
    return num_rows, [row for row in some if isinstance(row, Row)]


def _step(num_rows: int, most: int) -> int:
    return max(1, -(-num_rows // most))


def _all_rows(path: Path) -> list[Row | RowProblem]:
    from luthier.ml.data.files.source import open_source
    from luthier.ml.data.rows.rows import read_rows

    return list(read_rows(open_source(path)))


def look_at(path: Path, columns: Mapping[str, str] | None = None) -> dict[str, Any]:
    """How many rows a file has, their columns, their shape and why it is that one; what is wrong where there is none.

    Args:
        path: The file.
        columns: Which column is which field, as a person has chosen.

    Raises:
        NotFoundError, DataError: The file as a whole cannot be read.
    """
    from luthier.ml.data.files.source import open_source
    from luthier.ml.data.rows.rows import read_as, read_rows
    from luthier.ml.data.rows.shapes import ShapeDetector

    source = open_source(path)
    detector, num_unreadable = ShapeDetector(source.name, dict(columns or {}), read_as(source)), 0
    problems: list[dict[str, Any]] = []
    for row in read_rows(source):
        if isinstance(row, Row):
            detector.add(row)
        else:
            num_unreadable += 1
            if len(problems) < _MAX_PROBLEMS:
                problems.append(_problem(row))
    shape, reason, do = None, "no row could be read", "see what is wrong with the rows"
    if detector.num_rows:
        try:
            shape, reason = detector.decide(group=None)
        except DataError as error:
            reason, do = error.came, error.do
    return {
        "num_rows": detector.num_rows + num_unreadable,
        "num_unreadable": num_unreadable,
        "problems": problems,
        "columns": list(islice(detector.columns, _MAX_COLUMNS)),
        "num_columns": len(detector.columns),
        "shape": shape,
        "reason": reason,
        "do": "" if shape else do,
    }


def read_page(path: Path, *, start: int, num: int, lines: Sequence[int] | None = None) -> dict[str, Any]:
    """`num` rows of a file after the first `start`.

    Args:
        path: The file.
        start: How many rows to skip.
        num: How many rows to return.
        lines: Ascending lines to choose from; None for all rows.

    Returns:
        `rows` and `has_more`. A row has its line, its fields as cells, and what is wrong where it cannot be read.
        A cell has a kind (`text`, `json`, `turns`), its text (cut at 20,000 characters) and its number of characters.

    Raises:
        NotFoundError: No such file.
        DataError: The file as a whole cannot be read.
    """
    from luthier.ml.data.files.source import open_source
    from luthier.ml.data.rows.read_json import read_jsonl
    from luthier.ml.data.rows.rows import read_rows

    source = open_source(path)
    is_jsonl = source.format == "jsonl"  # whose other rows need not even be parsed
    if lines is not None:
        wanted = set(lines[start : start + num])
        rows = read_jsonl(source, lambda _, line: line in wanted) if is_jsonl else read_rows(source)
        found = list(islice((row for row in rows if row.line in wanted), len(wanted)))
        return {"rows": [_row(row) for row in found], "has_more": start + num < len(lines)}
    if is_jsonl:
        # One row more than a page holds shows whether there is a next page.
        some = list(islice(read_jsonl(source, lambda place, _: place >= start), num + 1))
    else:
        some = list(islice(read_rows(source), start, start + num + 1))
    return {"rows": [_row(row) for row in some[:num]], "has_more": len(some) > num}


def page_of(rows: Sequence[Row | RowProblem], num: int) -> dict[str, Any]:
    """The first `num` of some rows, as `read_page` gives them."""
    return {"rows": [_row(row) for row in rows[:num]], "has_more": len(rows) > num}


def _indexed_page(rows: RowIndex, start: int, num: int, lines: Sequence[int] | None) -> dict[str, Any]:
    if lines is None:
        places = list(range(start, min(start + num, rows.num_rows)))
        has_more = start + num < rows.num_rows
    else:
        places = [place for line in lines[start : start + num] if (place := rows.position(line)) is not None]
        has_more = start + num < len(lines)
    return {"rows": [_row(rows.row(place)) for place in places], "has_more": has_more}


def _row(row: Row | RowProblem) -> dict[str, Any]:
    if isinstance(row, RowProblem):
        return {"line": row.line, "cells": {}, "problem": _problem(row)["reason"]}
    return {"line": row.line, "cells": {name: cell_of(value) for name, value in row.fields.items()}, "problem": None}


def cell_of(value: Any) -> dict[str, Any]:
    """A value of a row as displayed: kind, text, number of characters, and the turns of a conversation."""
    if isinstance(value, str):
        return {"kind": "text", "text": value[:_MAX_CELL_CHARACTERS], "num_characters": len(value)}
    # default=str: Parquet has dates and decimals, which JSON does not.
    text = json.dumps(value, ensure_ascii=False, default=str)
    cell = {"kind": "json", "text": text[:_MAX_CELL_CHARACTERS], "num_characters": len(text)}
    # A cut conversation would show broken turns, so a long one is shown as JSON.
    if len(text) <= _MAX_CELL_CHARACTERS and (turns := _turns(value)):
        return cell | {"kind": "turns", "turns": turns}
    return cell


def _turns(value: Any) -> list[list[str]]:
    """Role and text of each turn, where a value is a conversation and nothing of it would be left out; else none."""
    if not isinstance(value, list):
        return []
    turns = []
    for turn in value:
        for role, text in (("role", "content"), ("from", "value")):
            # Exactly these keys: turns with tool calls or weights would lose them in this view.
            is_turn = isinstance(turn, dict) and turn.keys() == {role, text}
            if is_turn and isinstance(turn[role], str) and isinstance(turn[text], str):
                turns.append([turn[role], turn[text]])
    # One value that is no turn makes the whole list plain JSON, so that nothing is left out of sight.
    return turns if len(turns) == len(value) else []


def _problem(problem: RowProblem) -> dict[str, Any]:
    reason = " ".join(part for part in (problem.field, problem.value, problem.reason) if part)
    return {"line": problem.line, "reason": reason}


def _of_small(context: Context, file: StoredFile, answer: Callable[[Path], T]) -> T:
    path = files.local_path(context, file)
    with redacted_errors({str(path): file.filename, path.name: file.filename}):
        return answer(path)
