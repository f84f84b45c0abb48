"""Every string of a row changed by one function, also inside JSON that is written as a string, which stays valid."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Final

from luthier.ml.data.files.untrusted_input import StrictJsonError, strict_loads
from luthier.ml.data.provenance import PROVENANCE

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
