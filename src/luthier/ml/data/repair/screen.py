"""Which rows a repair leaves as they are, found in batches, by workers where there are some.

Nearly all rows have nothing to mask. Patterns that are coarser than the finders, and search many rows in one call,
leave few rows to look at string by string.
"""

from __future__ import annotations

import platform
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

import polars as pl

from luthier.core.dataset import Row
from luthier.core.errors import RowProblem, WorkError
from luthier.ml.data.files.row_workers import RowWorkers
from luthier.ml.data.files.source import Source
from luthier.ml.data.personal_data.find import may_hold_personal_data, why_not
from luthier.ml.data.personal_data.recognizers import Span
from luthier.ml.data.personal_data.secrets import Secret, may_hold_secrets
from luthier.ml.data.repair.masked_values import MaskedValues
from luthier.ml.data.repair.steps import StepOptions, Steps
from luthier.ml.data.rows.read_json import JsonLine, lines_of_jsonl
from luthier.ml.data.rows.rows import Record, read_records, record_of

RowFields = dict[str, Any]
SCREENED_ROWS: Final = 1_000
_ESCAPE: Final = "\\"
_SEARCHES: Final = {"secret": may_hold_secrets, "personal_data": may_hold_personal_data}


@dataclass(frozen=True, slots=True)
class Untouched:
    """A row that nothing is to be done to, as `Record`."""

    line: int
    raw: bytes


def screened(
    source: Source,
    workers: RowWorkers,
    options: StepOptions,
    problems: Mapping[int, RowProblem],
    to_clean: Collection[int],
) -> Iterator[Record | Untouched]:
    """Each record of a file in order, or what is left of it where nothing is to be done to it.

    Args:
        source: the file.
        workers: who looks at the rows.
        options: what is done to rows.
        problems: of lines that cannot be read.
        to_clean: lines of the rows whose texts are cleaned.

    Raises:
        WorkError: a machine cannot find names of people that are to be masked.
    """
    if options.finds_names and not workers.are_remote:
        # Names are searched by a language model: once, where the rows are changed.
        yield from read_records(source)
        return
    # Lines of JSONL are parsed where the search is done, and here those alone that are touched.
    records: Iterator[Record | JsonLine] = lines_of_jsonl(source) if source.format == "jsonl" else read_records(source)
    waiting: deque[tuple[Record | JsonLine, ...]] = deque()

    def asked() -> Iterator[list[tuple[JsonLine | RowFields, bool] | None]]:
        while batch := tuple(islice(records, SCREENED_ROWS)):
            waiting.append(batch)
            yield [_to_screen(record, problems, to_clean) for record in batch]

    # Stand-ins are numbered in the order of the file, so the rows that are touched are changed in this process.
    file = source.name
    for flags in workers.map(untouched, asked(), options):
        for record, is_untouched in zip(waiting.popleft(), flags, strict=True):
            whole = record_of(record, file) if isinstance(record, JsonLine) and not is_untouched else record
            if isinstance(whole, JsonLine):
                yield Untouched(whole.number, whole.raw or b"")
            else:
                yield Untouched(whole.line, whole.raw or b"") if is_untouched else whole


def _to_screen(
    record: Record | JsonLine, problems: Mapping[int, RowProblem], to_clean: Collection[int]
) -> tuple[JsonLine | RowFields, bool] | None:
    """What the search needs of a record, and whether its texts are cleaned; None where it cannot be read."""
    if isinstance(record, JsonLine):
        return None if record.number in problems else (record, record.number in to_clean)
    if not isinstance(record.item, Row) or record.line in problems:
        return None
    return record.item.fields, record.line in to_clean


def untouched(rows: Sequence[tuple[JsonLine | RowFields, bool] | None], options: StepOptions) -> list[bool]:
    """Of each row (its line or fields, and whether its texts are cleaned) whether nothing is done to it.

    False for None, and for a line that cannot be read.

    Args:
        rows: some rows.
        options: what is done to rows.

    Raises:
        WorkError: this machine cannot find names of people that are to be masked.
    """
    noticed = _Noticed()
    steps = Steps(options, noticed)
    if steps.lacks_names:
        raise WorkError(
            "names of people are to be masked, and a machine of the cluster cannot find them",
            expected=f"presidio and its spaCy model on all machines; {platform.node()}: {why_not()}",
            do="install the same packages on all machines, or leave names out of --mask",
        )
    fields_of = [_fields_of(row[0]) if row is not None else None for row in rows]
    suspects = _suspects(fields_of, options)
    found = []
    for row, fields, is_suspect in zip(rows, fields_of, suspects, strict=True):
        if row is None or fields is None:
            found.append(False)
        elif not (is_suspect or row[1]):
            found.append(True)
        else:
            noticed.has_seen = False
            _, done = steps.apply(fields, to_clean=row[1])
            found.append(not done and not noticed.has_seen)
    return found


def _fields_of(row: JsonLine | RowFields) -> RowFields | None:
    if not isinstance(row, JsonLine):
        return row
    item = row.row("")
    return item.fields if isinstance(item, Row) else None


def _suspects(rows: Sequence[RowFields | None], options: StepOptions) -> list[bool]:
    """Where something may be masked; never false where something would be."""
    if options.finds_names:
        return [True] * len(rows)
    # A line feed between strings: no value that is found spans two of them, and each stays at a boundary of words.
    texts = (_storable("\n".join(_strings_of(fields))) if fields is not None else "" for fields in rows)
    joined = pl.Series("text", texts, dtype=pl.String)
    # A string may hold JSON, in whose escapes no pattern sees what they represent.
    found = joined.str.contains(_ESCAPE, literal=True)
    for name in options.names:
        found |= _SEARCHES[name](joined)
    return found.to_list()


def _storable(text: str) -> str:
    """The text, or one that is looked at string by string where a column cannot hold it: half a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return _ESCAPE
    return text


def _strings_of(value: Any) -> Iterator[str]:
    """Every string in a JSON value, also the keys of objects."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from _strings_of(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings_of(inner)


class _Noticed(MaskedValues):
    """Notes only that there was a value, also one in a trial that was dropped, since it has taken a stand-in."""

    has_seen = False

    def see(self, action: str, text: str, span: Span | Secret, stand_in: str) -> None:  # noqa: ARG002
        """See `MaskedValues.see`."""
        self.has_seen = True
