"""The texts of a row that a person may change, each under the place where it is, and the row as JSON.

A place is written as a JSON pointer (RFC 6901): `/completion`, `/messages/1/content`.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from luthier.core.errors import RequestError
from luthier.ml.data.files.untrusted_input import StrictJsonError, strict_loads

TURN_LISTS: Final = ("messages", "conversations", "prompt", "completion", "chosen", "rejected")
_TURN_TEXTS: Final = ("content", "value")
_SPEAKERS: Final = ("role", "from")
# What a form cannot return unchanged: controls, and halves of surrogate pairs.
_NOT_IN_FORMS: Final = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
# In addition, what a person cannot see: written as escapes, JSON means the same.
_UNSEEN: Final = re.compile(
    "[\x7f-\x9f\xad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ud800-\udfff\ufeff\ufffe\uffff]"
)


@dataclass(frozen=True, slots=True)
class TextField:
    """One text of a row.

    Attributes:
        pointer: JSON pointer of the text in its row.
        name: of the field.
        speaker: of the turn that it belongs to, empty elsewhere.
        part: of the turn, where it is not its content, such as `tool_calls`.
        text: the text itself, or the value as JSON.
        is_text: whether it is a text that a form can carry; all else is shown as JSON, to be changed in the whole row
            only.
    """

    pointer: str
    name: str
    speaker: str
    part: str
    text: str
    is_text: bool


def text_fields(fields: Mapping[str, Any]) -> list[TextField]:
    """What a row contains, in its order: single turns, other fields whole."""
    found: list[TextField] = []
    for name, value in fields.items():
        if name in TURN_LISTS and _are_turns(value):
            for number, turn in enumerate(value):
                found.extend(_of_turn(name, number, turn))
        else:
            found.append(_text_field(f"/{_escaped(name)}", name, "", "", value))
    return found


def with_texts(fields: Mapping[str, Any], texts: Mapping[str, str]) -> dict[str, Any]:
    """A copy of the row with other texts in fields of `text_fields`. A change of line ends alone is ignored.

    Raises:
        RequestError: a place that holds no text.
    """
    made = copy.deepcopy(dict(fields))
    known = {place.pointer: place for place in text_fields(fields) if place.is_text}
    for pointer, text in texts.items():
        if pointer not in known:
            raise RequestError(
                f"the row has no text at {pointer!r}",
                expected=f"one of {', '.join(known)}" if known else "a row with texts",
                do="open the row again: it may not be the one that you see",
            )
        changed = _with_plain_ends(text)
        # Browsers send \r\n for every line end of a form: unchanged texts keep the ends that they had.
        if changed == _with_plain_ends(known[pointer].text):
            continue
        # RFC 6901: ~1 before ~0, so that "~01" becomes "~1" and not "/".
        *way, last = (part.replace("~1", "/").replace("~0", "~") for part in pointer.split("/")[1:])
        at: Any = made
        for part in way:
            at = at[int(part)] if isinstance(at, list) else at[part]
        at[last] = changed
    return made


def as_json(fields: Mapping[str, Any]) -> str:
    """The row as JSON over several lines; what a person could not see in it is an escape."""
    text = json.dumps(fields, ensure_ascii=False, indent=2, default=str)
    return _UNSEEN.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def from_json(text: str) -> dict[str, Any]:
    """The row that a person wrote as JSON.

    Raises:
        RequestError: the text is not JSON, or no object.
    """
    try:
        value = strict_loads(text)
    except StrictJsonError as error:
        where = f" (line {error.line}, column {error.column})" if error.line else ""
        raise RequestError(
            f"this is not JSON: {error.reason}{where}", expected="one JSON object", do="correct it at that place"
        ) from error
    if not isinstance(value, dict):
        raise RequestError("this is JSON, but not an object", expected="one JSON object", do="write the row as { ... }")
    return value


def _are_turns(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(turn, dict) for turn in value)


def _of_turn(name: str, number: int, turn: Mapping[str, Any]) -> Iterator[TextField]:
    speaker = next((str(turn[key]) for key in _SPEAKERS if isinstance(turn.get(key), str)), "turn")
    said = {key: value for key, value in turn.items() if key not in _SPEAKERS}
    is_mute = all(value is None for value in said.values())
    for key, value in said.items():
        is_said = key in _TURN_TEXTS
        where = f"{name}[{number}]" if is_said else f"{name}[{number}].{key}"
        if is_mute or value is not None:
            part = "" if is_said else key
            yield _text_field(f"/{_escaped(name)}/{number}/{_escaped(key)}", where, speaker, part, value)


def _text_field(pointer: str, name: str, speaker: str, part: str, value: Any) -> TextField:
    if isinstance(value, str) and not _NOT_IN_FORMS.search(value):
        return TextField(pointer, name, speaker, part, value, is_text=True)
    return TextField(pointer, name, speaker, part, _in_words(value), is_text=False)


def _in_words(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=1, default=str)


def _with_plain_ends(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")
