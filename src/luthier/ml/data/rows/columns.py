"""Which fields the rows of a file have, and what sort of values are in them: seen from all rows, nested ones too."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final, Literal

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
    """Scans rows one by one. Keeps the names and types of fields, not the values."""

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
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int):
        return "integer"
    if isinstance(value, float):
        return "number"
    if isinstance(value, dict):
        return "object"
    return "list" if isinstance(value, list | tuple) else "text"
