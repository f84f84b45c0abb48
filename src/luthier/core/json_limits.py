"""How deep and how large JSON may be that comes in, and that its texts can be written down: one rule for all of it.

Requests of the API, JSON within them (arguments of tools), fields of pages and rows of files go through it. What nests
deeper breaks what reads it later (recursion in parsers, in templates, in grammars), each in its own way.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

MAX_DEPTH: Final = 64
"""Lists and objects in each other; the hosted services allow schemas of ten levels."""
MAX_VALUES: Final = 1_000_000
"""Values and keys in one document."""
MAX_REQUEST_VALUES: Final = 50_000
"""Those of a request, numbers in lists (token ids, vectors) not counted: a wrong field may make an error of each."""
_MAX_PLACE_PARTS: Final = 6

# Half of a surrogate pair: such a text has no UTF-8 form, and cannot be stored, sent or tokenised.
_HALF: Final = re.compile("[\ud800-\udfff]")
_MARKS: Final = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"\s*(:?)|[\[{]|[\]}]', re.DOTALL)


def json_utf8(
    document: Any,
    *,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
    allow_nan: bool = True,
    default: Callable[[Any], Any] | None = None,
) -> bytes:
    """A document as JSON in UTF-8, its characters as they are; halves of surrogate pairs, which UTF-8 has not, escaped.

    Args:
        document: What to write.
        indent, separators, sort_keys, allow_nan, default: As `json.dumps` takes them.

    Raises:
        TypeError: A value of a type that JSON does not have, and no `default` for it.
        ValueError: A number that is infinite or not a number, without `allow_nan`.
    """
    text = json.dumps(
        document,
        ensure_ascii=False,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
        allow_nan=allow_nan,
        default=default,
    )
    # Python's escape of half a pair, \ud83d, is JSON's, too; and it can only be within a text of the document.
    return text.encode("utf-8", "backslashreplace")


def json_text(document: Any, *, indent: int | None = None, default: Callable[[Any], Any] | None = None) -> str:
    """The same as a text, for streams that encode it."""
    return json_utf8(document, indent=indent, default=default).decode()


@dataclass(frozen=True, slots=True)
class JsonFault:
    """What is wrong with a document.

    Attributes:
        place: where, by dots; empty for the whole.
        came: what was found.
        expected: the limit.
    """

    place: str
    came: str
    expected: str


class JsonLimitError(ValueError):
    """A document that goes beyond the limits."""

    def __init__(self, fault: JsonFault) -> None:
        self.fault = fault
        super().__init__(f"{fault.came}{f' at {fault.place}' if fault.place else ''}; expected: {fault.expected}")


def loads(text: str, *, max_values: int = MAX_VALUES) -> Any:
    """Parse JSON.

    Args:
        text: the JSON text.
        max_values: as `fault_of`.

    Raises:
        JsonLimitError: the text goes beyond the limits.
        ValueError: the text is not JSON.
    """
    if (fault := fault_of_text(text, max_values=max_values)) is not None:
        raise JsonLimitError(fault)
    return json.loads(text)


def has_nul(query: bytes) -> bool:
    """Whether the query of an address holds a NUL character: no filter needs one, and PostgreSQL refuses it in text."""
    return b"%00" in query or b"\0" in query


def fault_of_text(text: str, *, max_values: int = MAX_VALUES) -> JsonFault | None:
    """What goes beyond the limits in a JSON text; None where nothing does, and where it is not JSON.

    Most texts are only counted through: what has few brackets is not deep, and without an escaped surrogate there is no
    half of one.

    Args:
        text: the JSON text.
        max_values: values and keys, numbers in lists not counted, of which there may be `MAX_VALUES` in any case.
    """
    # str.count runs in C. Each value follows a bracket, a comma or a colon, so these bound their number from above.
    num_brackets = text.count("[") + text.count("{")
    may_be_large = 0 < max_values <= num_brackets + text.count(",") + text.count(":")
    if not may_be_large and is_plain(text):
        return None
    try:
        # Parsed only now: the quick test above has let most texts go.
        return fault_of(json.loads(text), max_values=max_values)
    except RecursionError:
        # The C parser gave up: the text is deeper than Python's stack, so the place is found without recursion.
        return _too_deep(_first_deep_field(text))
    except ValueError:
        return None


def is_shallow(text: str) -> bool:
    """Whether a JSON text is surely not too deep, by counting alone."""
    return text.count("[") + text.count("{") <= MAX_DEPTH


def is_plain(text: str) -> bool:
    """Whether a JSON text is surely neither too deep nor holds half a character, by counting alone."""
    return is_shallow(text) and not _may_hold_half(text)


def _may_hold_half(text: str) -> bool:
    """Whether there may be half of a surrogate pair. Plain searches: a pattern would hold the process for 0.1 s."""
    # An escape of the range D800 to DFFF; whole pairs are among them, which the full check then lets pass.
    if "\\ud" in text or "\\uD" in text:
        return True
    if text.isascii():
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def fault_of(value: Any, *, max_values: int = MAX_VALUES, allows_half: bool = False) -> JsonFault | None:
    """What goes beyond the limits in a parsed document, as `fault_of_text`; None where nothing does.

    Args:
        value: the parsed document.
        max_values: 0 for no limit, also on numbers: of what was held in memory as a file of rows anyway.
        allows_half: leave halves of surrogate pairs to the readers of the texts, who may not need the one that contains
            it.
    """
    # Breadth first with an explicit list: recursion would fail on the very documents that this has to refuse. A place
    # is a linked list (parent, key), written out only for a fault.
    level: list[tuple[Any, _Place]] = [(value, None)]
    num_values, num_numbers, depth = 1, 0, 0
    while level:
        below: list[tuple[Any, _Place]] = []
        for one, place in level:
            if isinstance(one, str):
                if not allows_half and _HALF.search(one):
                    return _half(place, one)
            elif isinstance(one, dict):
                for key in one:
                    if not allows_half and _HALF.search(key):
                        return _half((place, key), key)
                below += [(within, (place, key)) for key, within in one.items()]
                num_values += 2 * len(one)
            elif isinstance(one, list):
                # `type(...)`, not isinstance: bool is an int, and is counted as a value.
                others = [(within, (place, n)) for n, within in enumerate(one) if type(within) not in (int, float)]
                below += others
                num_values += len(others)
                num_numbers += len(one) - len(others)
            if max_values and (num_values > max_values or num_numbers > MAX_VALUES):
                most = max_values if num_values > max_values else MAX_VALUES
                return JsonFault(_written(place), f"more than {most:,} values", f"at most {most:,}")
        # A level of plain values is not one more: only what is within lists and objects counts.
        depth += any(isinstance(one, dict | list) for one, _ in level)
        if depth > MAX_DEPTH:
            return _too_deep(_written(next(place for one, place in level if isinstance(one, dict | list))))
        level = below
    return None


_Place = tuple[Any, str | int] | None


def _half(place: _Place, text: str) -> JsonFault:
    found = _HALF.search(text)
    code = ord(found[0]) if found else 0
    return JsonFault(_written(place), f"half of a surrogate pair (\\u{code:04x}) in a text", "whole characters")


def _too_deep(place: str) -> JsonFault:
    return JsonFault(place, "values nested too deeply", f"at most {MAX_DEPTH} lists and objects in each other")


def _written(place: _Place) -> str:
    parts: list[str] = []
    while place is not None:
        place, part = place
        parts.append(_HALF.sub("\N{REPLACEMENT CHARACTER}", str(part))[:80])
    parts.reverse()
    return ".".join(parts[:_MAX_PLACE_PARTS]) + (" ..." if len(parts) > _MAX_PLACE_PARTS else "")


def _first_deep_field(text: str) -> str:
    """The field of the outermost object in which the text nests too deep; no more of it is read than that takes."""
    depth, field = 0, ""
    for mark in _MARKS.finditer(text):
        if mark[0][0] == '"':
            if depth == 1 and mark[1]:
                field = mark[0].rstrip(": \t\r\n").strip('"')[:80]
        elif mark[0] in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                break
        else:
            depth -= 1
    return _HALF.sub("\N{REPLACEMENT CHARACTER}", field)
