"""Answers that are JSON objects, as columns of fields and back in the form in which the rows write them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any, Final, NamedTuple

FieldPath = tuple[str, ...]
"""The keys that lead to a field."""
_LOOKED_AT: Final = 50
_MAX_DEPTH: Final = 50


class Raw(str):
    """JSON as it is written, such as the number 1.50, which would become 1.5 as a float."""

    __slots__ = ()


class JsonStyle(NamedTuple):
    """How JSON is written.

    Attributes:
        comma, colon: between the entries of an object, and behind their keys.
        indent: spaces before the entries of an object that has a line for each; None for one line.
        is_ascii: whether other characters are written as escapes.
    """

    comma: str = ", "
    colon: str = ": "
    indent: int | None = None
    is_ascii: bool = False


_USUAL: Final = JsonStyle()


def fields_of(answer: str) -> dict[FieldPath, Any] | None:
    """The fields of an answer that is a JSON object, those of inner objects too; None for any other text.

    Lists are fields as a whole. Numbers are `Raw`.
    """
    if not answer.lstrip().startswith("{"):
        return None
    try:
        found = json.loads(answer, parse_float=Raw, parse_int=Raw, parse_constant=Raw)
        if not isinstance(found, dict) or not _is_within(found, _MAX_DEPTH):
            return None
        # Half a surrogate has no UTF-8, and the answer that is made of it could not be stored.
        dumped(found).encode()
        return dict(_leaves(found, ()))
    except (ValueError, RecursionError):
        return None


def _is_within(value: Any, depth: int) -> bool:
    """Whether objects and lists are at most so deep in each other."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return not inner or (depth > 0 and all(_is_within(one, depth - 1) for one in inner))


def _leaves(value: Any, path: FieldPath) -> Iterator[tuple[FieldPath, Any]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(inner, (*path, key))
    elif path:
        yield path, value


def written(fields: Mapping[FieldPath, Any], style: JsonStyle) -> str:
    """The object with these fields."""
    document: dict[str, Any] = {}
    for path, value in fields.items():
        inner = document
        for key in path[:-1]:
            inner = inner.setdefault(key, {})
        inner[path[-1]] = value
    return dumped(document, style)


def dumped(value: Any, style: JsonStyle = _USUAL, level: int = 0) -> str:
    """A value as JSON, as `json.dumps` writes it, with `Raw` unchanged.

    Args:
        value: what is written.
        style: how.
        level: how deep it is within others.
    """
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, dict) and value:
        entries = [
            f"{json.dumps(key, ensure_ascii=style.is_ascii)}{style.colon}{dumped(inner, style, level + 1)}"
            for key, inner in value.items()
        ]
        return _joined("{", entries, "}", style, level)
    if isinstance(value, list) and value:
        return _joined("[", [dumped(inner, style, level + 1) for inner in value], "]", style, level)
    return json.dumps(value, ensure_ascii=style.is_ascii)


def _joined(opening: str, entries: Sequence[str], closing: str, style: JsonStyle, level: int) -> str:
    if style.indent is None:
        return f"{opening}{style.comma.join(entries)}{closing}"
    line = "\n" + " " * style.indent * (level + 1)
    return f"{opening}{line}{f'{style.comma.rstrip()}{line}'.join(entries)}{line[: -style.indent]}{closing}"


def style_of(answers: Sequence[str]) -> JsonStyle:
    """The style that reproduces most of these answers, which are JSON objects."""
    some = [(answer.strip(), fields) for answer in answers[:_LOOKED_AT] if (fields := fields_of(answer)) is not None]
    marks = ((", ", ": "), (",", ":"), (",", ": "))
    styles = [
        JsonStyle(comma, colon, indent, is_ascii)
        for indent, (comma, colon), is_ascii in product((None, 2, 4), marks, (False, True))
    ]
    # max keeps the first of equals: the usual one.
    return max(styles, key=lambda style: sum(written(fields, style) == answer for answer, fields in some))
