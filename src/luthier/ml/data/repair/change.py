"""First pass of a repair: every row decoded, cleaned and masked as asked, into a working file of the same line numbers.

Strings are changed anywhere in a row, also inside JSON that is written as a string, so that it stays valid JSON.
Workers elsewhere look for the rows to which something is done, where the table has such.
"""

from __future__ import annotations

import json
import platform
import re
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np

from luthier.core.dataset import Row
from luthier.core.errors import DataError, RowProblem, WorkError
from luthier.ml.data.files.row_frames import RowWorkers
from luthier.ml.data.files.source import Source, open_source
from luthier.ml.data.files.untrusted_input import StrictJsonError, bounded_lines, strict_loads
from luthier.ml.data.personal_data.find import name_finder, why_not
from luthier.ml.data.personal_data.masking import MaskedKinds, OnMasked, Pseudonyms, mask_personal_data, mask_secrets
from luthier.ml.data.personal_data.recognizers import Span
from luthier.ml.data.personal_data.secrets import Secret
from luthier.ml.data.provenance import PROVENANCE
from luthier.ml.data.repair.masked_values import MaskedValues
from luthier.ml.data.repair.request import Note, Notes, RepairRequest, add_note
from luthier.ml.data.rows.outputs import json_line
from luthier.ml.data.rows.rows import Record, read_records
from luthier.ml.data.text.clean_text import HTML_STRIPPED, clean_text

# A text -> the changed text, and how many times what was done.
Change = Callable[[str], tuple[str, Counter[Any]]]
_LITERAL: Final = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_COLON: Final = re.compile(r"\s*:")
_HALF_PAIR: Final = re.compile("[\ud800-\udfff]")
_TEXT_FIELDS: Final = ("prompt", "completion", "instruction", "input", "output", "text")
_DIGEST: Final = re.compile(r"(?:[0-9a-f]{32}|[0-9a-f]{40}|[0-9a-f]{64})")


def change_row(
    fields: Mapping[str, Any], change: Change, change_key: Change | None = None
) -> tuple[dict[str, Any], Counter[Any]]:
    """A row with every string in it changed, fields in their order.

    Names of columns stay, and so do digests in the provenance: they name a document and hold no text.

    Args:
        fields: of the row.
        change: what is done to strings.
        change_key: what is done to the keys of objects in columns; None leaves them. Where two keys become one, a
            number keeps them apart.

    Returns:
        The changed row, and how many times each thing was done.
    """
    done: Counter[Any] = Counter()
    changed: dict[str, Any] = {}
    for name, value in fields.items():
        if name == PROVENANCE:
            changed[name] = _change_value(value, change, None, done, is_provenance=True)
        else:
            changed[name] = _change_value(value, change, change_key, done)
    return changed, done


def _change_value(
    value: Any, change: Change, change_key: Change | None, done: Counter[Any], *, is_provenance: bool = False
) -> Any:
    if isinstance(value, str):
        if is_provenance and _DIGEST.fullmatch(value):
            return value
        text, what = change_text(value, change)
        done.update(what)
        return text
    if isinstance(value, dict):
        keys = {name: name for name in value}
        made: dict[str, Any] = {}
        for name, one in value.items():
            key, what = (name, Counter[Any]()) if change_key is None else change_key(name)
            done.update(what)
            inner = _change_value(one, change, change_key, done, is_provenance=is_provenance)
            made[_apart(key, name, keys)] = inner
        return made
    if isinstance(value, list):
        return [_change_value(one, change, change_key, done, is_provenance=is_provenance) for one in value]
    return value


def _apart(key: str, before: str, keys: dict[str, str]) -> str:
    """A changed key, with a number behind it where another key has this name: two values under one would be one.

    Args:
        key: as it is changed.
        before: as it was.
        keys: those of the object, as they are and as they have become, each with what it was; the new one is added.
    """
    found, number = key, 1
    while keys.setdefault(found, before) != before:
        number += 1
        found = f"{key} ({number})"
    return found


def change_text(text: str, change: Change) -> tuple[str, Counter[Any]]:
    """One string changed. A string that is a JSON object or array, as the arguments of a tool call, stays one.

    Of such a string, first each string literal in it is changed by itself, since escapes hide where a value begins;
    then the whole, since a name next to a value may show what it is, unless that would break it. The whole is read
    without escapes that hold letters or digits, so that no word is found in an escape (`cat` in `\\u00cat`).
    """
    if not _is_json(text):
        return change(text)
    done: Counter[Any] = Counter()
    keys = {key: key for match in _LITERAL.finditer(text) if _is_key(match) for key in [_decoded(match[0])]}

    def literal(match: re.Match[str]) -> str:
        before = _decoded(match[0])
        after, what = change_text(before, change)
        done.update(what)
        if _is_key(match):
            after = _apart(after, before, keys)
        # An unchanged literal keeps its own escapes.
        return match[0] if after == before else _as_json(after)

    inside = _LITERAL.sub(literal, text)
    if not _is_json(inside):
        return text, Counter()
    spelled: dict[str, str] = {}

    def readable(match: re.Match[str]) -> str:
        shown = _readable(match[0])
        # Two spellings of one text: the first is remembered, another one is not changed, so that each can be restored.
        return shown if spelled.setdefault(shown, match[0]) == match[0] else match[0]

    shown = _LITERAL.sub(readable, inside)
    whole, what = change(shown)
    if whole == shown:
        return inside, done + what
    whole = _LITERAL.sub(lambda match: spelled.get(match[0]) or _escaped(match[0]), whole)
    return (whole, done + what) if _is_json(whole) else (inside, done)


def _is_key(literal: re.Match[str]) -> bool:
    return _COLON.match(literal.string, literal.end()) is not None


def _decoded(literal: str) -> str:
    text: str = json.loads(literal, strict=False)
    return text


def _as_json(text: str) -> str:
    """A string as a JSON literal, in escapes where it holds half a surrogate pair, which UTF-8 cannot write."""
    # Escapes only where they are needed: the rest of the text stays readable.
    return json.dumps(text, ensure_ascii=_HALF_PAIR.search(text) is not None)


def _readable(literal: str) -> str:
    """A JSON literal whose escapes are only those of a quote and a backslash; control characters as they are."""
    text = _decoded(literal)
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _escaped(literal: str) -> str:
    """A literal of `_readable`, changed or not, as JSON."""
    try:
        return _as_json(json.loads(literal, strict=False))
    except json.JSONDecodeError:
        return literal


def numbers_as_text(fields: Mapping[str, Any], wrong: str, mapping: Mapping[str, str]) -> Mapping[str, Any]:
    """The row with text for each number in a field that training reads as text; the same row where there is none.

    A class may be written as a number (`"completion": 3`), and to take such rows out would take all of them.

    Args:
        fields: the row.
        wrong: the field that training refuses.
        mapping: what training reads -> the field of the row.
    """
    if not _is_number(fields.get(wrong)):
        return fields
    read = {*(mapping.get(name, name) for name in _TEXT_FIELDS), *mapping.values()}
    return {name: json.dumps(value) if name in read and _is_number(value) else value for name, value in fields.items()}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _is_json(text: str) -> bool:
    if not text.lstrip().startswith(("{", "[")):
        return False
    try:
        strict_loads(text)
    except StrictJsonError:
        return False
    return True


_SCREENED_ROWS: Final = 1_000
_MAX_KEYS: Final = 10_000
_HTML_KEPT: Final = ("encoding", "HTML kept")
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
    steps = _Steps(StepOptions.of(request, html_is_meant=html_is_meant), made.masked)
    unreadable: list[RowProblem] = []
    title, total = "change rows", request.audit.table.num_rows
    with made.path.open("wb") as file, request.audit.progress.task(title, total, "row") as task:
        at = 0
        workers, records = request.audit.table.rows.workers, read_records(source)
        for record, is_untouched in _screened(records, workers, steps.options, problems, to_clean):
            file.write(b"\n" * (record.line - at - 1))  # blank lines are no records
            at = record.line
            was = problems.get(record.line)
            if is_untouched:
                assert record.raw is not None, "a row that could be read"
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


def _screened(
    records: Iterator[Record],
    workers: RowWorkers,
    options: StepOptions,
    problems: Mapping[int, RowProblem],
    to_clean: Collection[int],
) -> Iterator[tuple[Record, bool]]:
    """Each record, and whether workers have found that nothing is to be done to it; without workers that is open."""
    if not workers.are_remote:
        yield from ((record, False) for record in records)
        return
    waiting: deque[tuple[Record, ...]] = deque()

    def asked() -> Iterator[list[tuple[dict[str, Any], bool] | None]]:
        while batch := tuple(islice(records, _SCREENED_ROWS)):
            waiting.append(batch)
            yield [
                (record.item.fields, record.line in to_clean)
                if isinstance(record.item, Row) and record.line not in problems
                else None
                for record in batch
            ]

    # Stand-ins are numbered in the order of the file, so the rows that are touched are changed in this process.
    for untouched in workers.map(_untouched, asked(), options):
        yield from zip(waiting.popleft(), untouched, strict=True)


def _untouched(rows: list[tuple[dict[str, Any], bool] | None], options: StepOptions) -> list[bool]:
    """Of each row (its fields, and whether its texts are cleaned) whether nothing is done to it; False for None."""
    noticed = _Noticed()
    steps = _Steps(options, noticed)
    if steps.lacks_names:
        raise WorkError(
            "names of people are to be masked, and a machine of the cluster cannot find them",
            expected=f"presidio and its spaCy model on all machines; {platform.node()}: {why_not()}",
            do="install the same packages on all machines, or leave names out of --mask",
        )
    found = []
    for row in rows:
        noticed.has_seen = False
        if row is None:
            found.append(False)
            continue
        _, done = steps.apply(row[0], to_clean=row[1])
        found.append(not done and not noticed.has_seen)
    return found


class _Noticed(MaskedValues):
    """Notes only that there was a value, also one in a trial that was dropped, since it has taken a stand-in."""

    has_seen = False

    def see(self, action: str, text: str, span: Span | Secret, stand_in: str) -> None:  # noqa: ARG002
        """See `MaskedValues.see`."""
        self.has_seen = True


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


def _changed(record: Record, steps: _Steps, made: Changed, was: RowProblem | None, to_clean: bool) -> bytes:
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
    made.num_html_kept += done.pop(_HTML_KEPT, 0) > 0
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


@dataclass(frozen=True, slots=True)
class StepOptions:
    """What is done to rows.

    Attributes:
        names: of "secret" and "personal_data" those that are masked, in this order.
        mask: which personal data.
        mapping: field of the shape -> column.
        has_schema: numbers become text where text is expected.
        html_is_meant: most rows hold HTML, so it is kept.
    """

    names: tuple[str, ...]
    mask: MaskedKinds
    mapping: Mapping[str, str]
    has_schema: bool
    html_is_meant: bool

    @classmethod
    def of(cls, request: RepairRequest, *, html_is_meant: bool) -> StepOptions:
        """Those of a request."""
        names = tuple(name for name in ("secret", "personal_data") if request.has(name))
        return cls(names, request.mask, request.mapping, request.has("schema"), html_is_meant)


class _Steps:
    """Cleaning, then secrets, then personal data; one set of pseudonyms for the whole file."""

    def __init__(self, options: StepOptions, masked: MaskedValues) -> None:
        self.options, self.masked = options, masked
        finds_names = "personal_data" in options.names and "name" in options.mask.kinds
        self._pseudonyms = Pseudonyms(name_finder() if finds_names else None)
        self.lacks_names = finds_names and self._pseudonyms.find_names is None
        kinds = tuple(kind for kind in options.mask.kinds if kind != "name")
        self._mask_of_fields = replace(options.mask, kinds=kinds)
        # Nearly all rows have the same keys, so each is searched once.
        self._plain_keys: set[str] = set()
        masked.find_names = self._pseudonyms.find_names

    def readable(self, fields: Mapping[str, Any], was: RowProblem | None) -> Mapping[str, Any]:
        """The row with numbers as text in the fields that hold text, where that is what is wrong with it."""
        if was is None or was.kind != "schema" or not self.options.has_schema:
            return fields
        return numbers_as_text(fields, was.field, self.options.mapping)

    def apply(self, fields: Mapping[str, Any], *, to_clean: bool) -> tuple[dict[str, Any], Counter[Any]]:
        """The row changed, and a count of (action, what was done)."""
        if not to_clean and not self.options.names:
            return dict(fields), Counter()
        return change_row(fields, self._cleaned_and_masked if to_clean else self._masked, self._masked_key)

    def _cleaned_and_masked(self, text: str) -> tuple[str, Counter[Any]]:
        cleaned, what = clean_text(text)
        if self.options.html_is_meant and HTML_STRIPPED in what:
            masked, done = self._masked(text)
            return masked, done + Counter({_HTML_KEPT: 1})
        # Cleaned first: damaged or marked-up text hides addresses and numbers from the finders.
        masked, done = self._masked(cleaned)
        return masked, done + Counter({("encoding", one): 1 for one in what})

    def _masked(self, text: str, mask: MaskedKinds | None = None) -> tuple[str, Counter[Any]]:
        done: Counter[Any] = Counter()
        for action in self.options.names:
            text, counts = self._mask(action, text, mask or self.options.mask)
            done.update({(action, kind): num for kind, num in counts.items()})
        return text, done

    def _masked_key(self, key: str) -> tuple[str, Counter[Any]]:
        if key in self._plain_keys:
            return key, Counter()
        # A word alone is rather the name of a field, such as `Parker`, than that of a person.
        masked, done = self._masked(key, self.options.mask if " " in key else self._mask_of_fields)
        if masked == key and len(self._plain_keys) < _MAX_KEYS:
            self._plain_keys.add(key)
        return masked, done

    def _mask(self, action: str, text: str, mask: MaskedKinds) -> tuple[str, dict[str, int]]:
        on_masked: OnMasked = partial(self.masked.see, action)
        if action == "secret":
            return mask_secrets(text, self._pseudonyms, on_masked)
        return mask_personal_data(text, self._pseudonyms, mask, on_masked)
