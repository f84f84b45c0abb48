"""The columns of a data file: the types of their values, which column is which field of a shape, and class labels.

Types are seen from all rows, nested fields too. A field of a shape is the column of its name, else the one that differs
in capitals and spaces only. A column `label` next to a text contains classes where its values can be learned as such.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from luthier.core.errors import DataError

Kind = Literal["text", "integer", "number", "boolean", "object", "list", "null"]
TypeName = Literal["text", "integer", "number", "boolean", "object", "list", "null", "mixed"]

_MAX_DEPTH: Final = 8
_MAX_MEMBERS: Final = 500


@dataclass(frozen=True, slots=True)
class ValueType:
    """What is in one place of all rows.

    Attributes:
        kinds: of values, each once, sorted.
        num_filled: how many values there are that are not null.
        members: of objects, by name in the order of their first appearance.
        items: of lists; None where no list held anything.
        is_cut: nested deeper than 8 levels, or of more than 500 names, so that the rest is not described.
    """

    kinds: tuple[Kind, ...]
    num_filled: int
    members: dict[str, ValueType]
    items: ValueType | None
    is_cut: bool

    @property
    def type(self) -> TypeName:
        """The one type of the values, nulls aside; whole numbers among others are numbers; else `mixed`."""
        kinds = set(self.kinds) - {"null"}
        if kinds == {"integer", "number"}:
            return "number"
        if len(kinds) > 1:
            return "mixed"
        return kinds.pop() if kinds else "null"

    def in_words(self) -> str:
        """`text`, `list of objects (role, content)`, `integer or text`."""
        if self.type == "list":
            items = self.items
            if items is None:
                return "empty lists"
            inner = {"text": "texts", "object": "objects", "list": "lists", "mixed": "mixed values", "null": "nulls"}
            named = f" ({', '.join(items.members)})" if items.members else ""
            return f"list of {inner.get(items.type, f'{items.type}s')}{named}"
        if self.type == "object":
            return f"object ({', '.join(self.members)})" if self.members else "empty object"
        return " or ".join(kind for kind in self.kinds if kind != "null") or "null"


@dataclass
class _Growing:
    kinds: set[Kind] = field(default_factory=set)
    num_filled: int = 0
    members: dict[str, _Growing] = field(default_factory=dict)
    items: _Growing | None = None
    is_cut: bool = False

    def add(self, value: Any, depth: int = 0) -> None:
        kind = _kind(value)
        self.kinds.add(kind)
        self.num_filled += kind != "null"
        if kind not in ("object", "list"):
            return
        if depth == _MAX_DEPTH:
            self.is_cut = True
        elif kind == "list":
            for inner in value:
                self.items = self.items or _Growing()
                self.items.add(inner, depth + 1)
        else:
            for name, inner in value.items():
                if name not in self.members:
                    # Objects with data as keys (an id for each entry) would otherwise grow without bound.
                    if len(self.members) == _MAX_MEMBERS:
                        self.is_cut = True
                        continue
                    self.members[name] = _Growing()
                self.members[name].add(inner, depth + 1)

    def done(self) -> ValueType:
        members = {name: member.done() for name, member in self.members.items()}
        items = self.items.done() if self.items else None
        return ValueType(tuple(sorted(self.kinds)), self.num_filled, members, items, self.is_cut)


class ColumnScan:
    """Scans rows. Keeps the names and types of fields, not the values."""

    def __init__(self) -> None:
        self._root = _Growing()

    def add(self, fields: dict[str, Any]) -> None:
        """Take one row into account."""
        self._root.add(fields)

    def columns(self) -> dict[str, ValueType]:
        """The fields so far, by name, in the order of their first appearance; the first 500 names."""
        return self._root.done().members


def columns_of(rows: Iterable[dict[str, Any]]) -> dict[str, ValueType]:
    """The fields of all rows, by name, in the order of their first appearance."""
    scan = ColumnScan()
    for fields in rows:
        scan.add(fields)
    return scan.columns()


def _kind(value: Any) -> Kind:
    if value is None:
        return "null"
    # Before int: bool is a subclass of it.
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int):
        return "integer"
    if isinstance(value, float):
        return "number"
    if isinstance(value, dict):
        return "object"
    return "list" if isinstance(value, list | tuple) else "text"


QUESTION_AND_ANSWER: Final = ("question", "answer")
"""Columns of these names are a prompt and its completion."""
CONTEXTS: Final = ("context", "passage", "document", "documents", "options", "choices", "input", "history")
"""What a question next to such a column may depend on."""
PROMPTS: Final = ("prompt", "question", "query", "instruction", "input", "problem")
"""Names of columns that may hold a prompt."""
ANSWERS: Final = ("completion", "answer", "response", "output", "reply", "solution", "target")
"""Names of columns that may hold what answers it."""
LABEL: Final = "label"
OTHER_CLASSES: Final = ("category", "class", "intent", "sentiment", "topic", "target", "labels")
"""Names of columns that may hold the class of a text, or a fact about it."""


def plain_name(name: str) -> str:
    """A name without outer spaces and capitals, for comparing columns."""
    return " ".join(name.casefold().split())


def columns_like(name: str, columns: Iterable[str]) -> list[str]:
    """The column of that very name; else all that differ from it in capitals and spaces only."""
    columns = list(columns)
    return [name] if name in columns else [column for column in columns if plain_name(column) == plain_name(name)]


def proposed_pair(columns: Iterable[str]) -> tuple[str, str] | None:
    """The columns that look like a prompt and its completion; None where one of them is missing."""
    columns = list(columns)
    pair = [
        next((like[0] for name in names if (like := columns_like(name, columns))), None) for names in (PROMPTS, ANSWERS)
    ]
    return None if pair[0] is None or pair[1] is None else (pair[0], pair[1])


def retrieval_columns(columns: Iterable[str]) -> dict[str, str]:
    """The fields of a shape that columns of a retrieval dataset are, as sentence-transformers names these.

    Args:
        columns: Of the file.

    Returns:
        Field of the shape -> column: a query with its passage, or with a passage of each kind; empty without both.
    """
    columns = list(columns)
    query, positive, negative = (
        next((like[0] for name in names if (like := columns_like(name, columns))), None)
        for names in (("anchor", *PROMPTS), ("positive",), ("negative",))
    )
    if query is None or positive is None:
        return {}
    if negative is None:
        return {"prompt": query, "completion": positive}
    return {"prompt": query, "chosen": positive, "rejected": negative}


_MAX_SIGNATURES: Final = 10_000


def resolve_once(
    known: dict[tuple[str, ...], dict[str, str]],
    mapping: Mapping[str, str],
    fields: Iterable[str],
    columns: tuple[str, ...],
) -> dict[str, str]:
    """`resolve` for rows: those of a file mostly have the same columns, so that each set of them is resolved once.

    Args:
        known: what was resolved before; filled here.
        mapping: as of `resolve`.
        fields: as of `resolve`.
        columns: of the row.
    """
    found = known.get(columns)
    if found is None:
        found = resolve(mapping, fields, columns)
        # JSONL can have other columns in every row; beyond this many sets memory would grow with the file.
        if len(known) < _MAX_SIGNATURES:
            known[columns] = found
    return found


def resolve(mapping: Mapping[str, str], fields: Iterable[str], columns: Iterable[str]) -> dict[str, str]:
    """A mapping with the columns as they are written, and with the fields that only one column can be.

    A column that is not there, or may be several, is used as written; a field that may be several is left out.

    Args:
        mapping: field -> column, as a person wrote it.
        fields: fields of shapes; a column with the name of one represents it.
        columns: of the file.
    """
    columns = list(columns)
    found = {}
    for target, column in mapping.items():
        like = columns_like(column, columns)
        found[target] = like[0] if len(like) == 1 else column
    # A column that a person has mapped is not also taken for the field that it resembles.
    taken = set(found.values())
    for name in fields:
        if name in found or name in columns:
            continue
        like = [column for column in columns_like(name, columns) if column not in taken]
        if len(like) == 1:
            found[name] = like[0]
    return found


def refuse_ambiguous(file: str, target: str, name: str, columns: Iterable[str]) -> None:
    """Check that a name matches at most one column.

    Args:
        file: name of the file, for the message.
        target: the field that the column is for.
        name: the name as written.
        columns: of the file.

    Raises:
        DataError: several columns differ from the name in capitals and spaces only.
    """
    like = columns_like(name, columns)
    if len(like) > 1:
        raise DataError(
            f"{file} has {len(like)} columns that may be {name!r}: {', '.join(map(repr, like))}",
            expected=f"one column for {target}",
            do=f"name it: --map {target}={like[0]!r}, or rename the others",
        )


def is_question_and_answer(fields: Mapping[str, Any]) -> bool:
    """Whether a row holds a question and its answer under these names, both filled."""
    filled = {plain_name(name) for name, value in fields.items() if value is not None}
    return filled.issuperset(QUESTION_AND_ANSWER)


_MAX_DIFFERENT: Final = 100_000
_FEWEST_ROWS: Final = 20
_MAX_DIFFERENT_FRACTION: Final = 0.5


@dataclass
class LabelScan:
    """The labels of all rows.

    Attributes:
        num_filled: rows with one plain value as label.
        num_nested: rows whose label is a list or an object.
        different: the different labels as texts, at most 100,000.
    """

    num_filled: int = 0
    num_nested: int = 0
    different: set[str] = field(default_factory=set)

    def add(self, value: Any) -> None:
        """Take the label of one row into account."""
        if isinstance(value, dict | list):
            self.num_nested += 1
        elif value is not None and value != "":
            self.num_filled += 1
            # A limit for memory: far more labels than that are no classes anyway, which the fraction below shows.
            if len(self.different) < _MAX_DIFFERENT:
                self.different.add(as_text(value))

    def merge(self, later: LabelScan) -> None:
        """Take the labels of other rows into account."""
        self.num_filled += later.num_filled
        self.num_nested += later.num_nested
        for label in later.different:
            if len(self.different) >= _MAX_DIFFERENT:
                break
            self.different.add(label)


def check_classes(file: str, labels: LabelScan, num_rows: int, column: str) -> None:
    """Check that the labels next to the texts of a file are clearly classes to be learned.

    Args:
        file: name of the file, for the message.
        labels: the labels of all rows.
        num_rows: rows of the file.
        column: name of the label's column.

    Raises:
        DataError: labels are nested, missing in some rows, or too many to be classes.
    """
    num = len(labels.different)
    if labels.num_nested:
        what = f"{labels.num_nested:,} rows of {file} have a {column} of several values next to their text"
    elif labels.num_filled < num_rows:
        without = num_rows - labels.num_filled
        what = f"{without:,} of {num_rows:,} rows of {file} have a text and no {column}, the others have both"
    elif num_rows >= _FEWEST_ROWS and num > _MAX_DIFFERENT_FRACTION * num_rows:
        what = f"{file} has {num:,} different values of {column} for {num_rows:,} texts, too many for classes"
    else:
        return
    raise DataError(
        what,
        expected="a text and its class in each row, or a choice of what is learned",
        do=f"name it: --map text=text learns the texts alone, --map prompt=text --map completion={column} the {column}",
    )


def as_text(value: Any) -> Any:
    """A class as the text that a model learns: numbers and booleans as JSON writes them, anything else unchanged."""
    return json.dumps(value) if isinstance(value, bool | int | float) else value
