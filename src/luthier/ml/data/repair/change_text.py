"""Change the strings of a row, also inside JSON that is written as a string, so that it stays valid JSON."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Final

from luthier.ml.data.files.strict_json import StrictJsonError, strict_loads
from luthier.ml.data.provenance import PROVENANCE

# A text -> the changed text, and how many times what was done.
Change = Callable[[str], tuple[str, Counter[Any]]]
_LITERAL: Final = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_HALF_PAIR: Final = re.compile("[\ud800-\udfff]")
_TEXT_FIELDS: Final = ("prompt", "completion", "instruction", "input", "output", "text")
_DIGEST: Final = re.compile(r"(?:[0-9a-f]{32}|[0-9a-f]{40}|[0-9a-f]{64})")


def change_row(fields: Mapping[str, Any], change: Change) -> tuple[dict[str, Any], Counter[Any]]:
    """A row with every string in it changed, fields in their order.

    Names of fields stay, and so do digests in the provenance: they name a document and hold no text.

    Returns:
        The changed row, and how many times each thing was done.
    """
    done: Counter[Any] = Counter()
    changed = {
        name: _change_value(value, change, done, is_provenance=name == PROVENANCE) for name, value in fields.items()
    }
    return changed, done


def _change_value(value: Any, change: Change, done: Counter[Any], *, is_provenance: bool) -> Any:
    if isinstance(value, str):
        if is_provenance and _DIGEST.fullmatch(value):
            return value
        text, what = change_text(value, change)
        done.update(what)
        return text
    if isinstance(value, dict):
        inner = value.items()
        return {name: _change_value(one, change, done, is_provenance=is_provenance) for name, one in inner}
    if isinstance(value, list):
        return [_change_value(one, change, done, is_provenance=is_provenance) for one in value]
    return value


def change_text(text: str, change: Change) -> tuple[str, Counter[Any]]:
    """One string changed. A string that is a JSON object or array, as the arguments of a tool call, stays one.

    Of such a string, first each string literal in it is changed by itself, since escapes hide where a value begins;
    then the whole, since a name beside a value may tell what it is, unless that would break it. The whole is read
    without escapes that hold letters or digits, so that no word is found in an escape (`cat` in `\\u00cat`).
    """
    if not _is_json(text):
        return change(text)
    done: Counter[Any] = Counter()

    def literal(match: re.Match[str]) -> str:
        before = json.loads(match[0], strict=False)
        after, what = change_text(before, change)
        done.update(what)
        # An unchanged literal keeps its own escapes.
        return match[0] if after == before else _as_json(after)

    inside = _LITERAL.sub(literal, text)
    if not _is_json(inside):
        return text, Counter()
    spelled: dict[str, str] = {}

    def readable(match: re.Match[str]) -> str:
        shown = _readable(match[0])
        # Two spellings of one text: the first is remembered, another one stays as it is, so that each can be restored.
        return shown if spelled.setdefault(shown, match[0]) == match[0] else match[0]

    shown = _LITERAL.sub(readable, inside)
    whole, what = change(shown)
    if whole == shown:
        return inside, done + what
    whole = _LITERAL.sub(lambda match: spelled.get(match[0]) or _escaped(match[0]), whole)
    return (whole, done + what) if _is_json(whole) else (inside, done)


def _as_json(text: str) -> str:
    """A string as a JSON literal, in escapes where it holds half a surrogate pair, which UTF-8 cannot write."""
    # Escapes only where they are needed: the rest of the text stays readable.
    return json.dumps(text, ensure_ascii=_HALF_PAIR.search(text) is not None)


def _readable(literal: str) -> str:
    """A JSON literal whose escapes are only those of a quote and a backslash; control characters as they are."""
    text: str = json.loads(literal, strict=False)
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
