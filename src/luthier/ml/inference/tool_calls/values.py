"""Calls between the marks of a family: lists of JSON, and arguments that are not written as JSON.

    LFM2, Olmo 3,      [get_weather(city="Cremona", days=2), clock()]     calls as Python writes them
    Llama 4
    Gemma 4            call:get_weather{city:<|"|>Cremona<|"|>,days:2}    keys and values with its own quotation mark
    FunctionGemma      call:get_weather{city:<escape>Cremona<escape>}     the same with another one
    Nemotron, Jamba    [{"name": "clock", "arguments": {}}]               a list of JSON
    Command R7B, A     [{"tool_name": "clock", "parameters": {}}]         a list of JSON
    Apertus            [{"clock": {}}]                                    a list of JSON

The chat templates of LFM2 and Gemma write texts as they are, without escaping quotes in them. So a text in quotes ends
at the quote that is followed by what may follow a value.

Sources: Liquid AI, "Tool Use" of its documentation, and the chat template of LFM2.5-8B-A1B; Google, "Function calling
with Gemma 4", and the chat template of gemma-4-31B-it; the chat templates of the other families.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Container, Sequence
from typing import Any, Final

from luthier.ml.inference.tool_calls.arguments import MAX_NAME_CHARACTERS, TOOL_NAME

Calls = list[tuple[str, dict[str, Any]]]
"""Names and arguments, in order."""

QUOTE: Final = '<|"|>'
"""Begins and ends a text in a call of Gemma 4."""
ESCAPE: Final = "<escape>"
"""The same in a call of FunctionGemma."""
_NAME: Final = re.compile(TOOL_NAME)
_PYTHON_KEY: Final = re.compile(r"[^\s=,()\[\]{}'\"]{1,256}")
_BARE_KEY: Final = re.compile(r"[^:,{}\[\]<>\"]{1,256}")
_BARE: Final = re.compile(r"[^,{}\[\]]+")
_PLAIN: Final = re.compile(r"[^\s,()\[\]{}'\":=]+")
_INTEGER: Final = re.compile(r"[-+]?[0-9]{1,4000}")
_WORDS: Final[dict[str, Any]] = {
    "True": True, "False": False, "None": None, "true": True, "false": False, "null": None,
}  # fmt: skip
_ESCAPES: Final = {
    "\\": "\\", "'": "'", '"': '"', "n": "\n", "r": "\r", "t": "\t", "b": "\b", "f": "\f", "v": "\v", "a": "\a",
    "0": "\0", "\n": "",
}  # fmt: skip
# No other spaces: the grammar of strict calls knows the same.
_LIST_HEAD: Final = re.compile(rf"[ \t\r\n]*\[[ \t\r\n]*([a-zA-Z0-9_-]{{0,{MAX_NAME_CHARACTERS}}})([ \t\r\n]*\()?")
_BEHIND_VALUE: Final = re.compile(r"\s*(?:[,)\]}:]|\Z)")
_ESCAPE: Final = re.compile(
    r"\\(?:u([0-9a-fA-F]{4})|U(000[0-9a-fA-F]{5}|0010[0-9a-fA-F]{4})|x([0-9a-fA-F]{2})|(.))", re.DOTALL
)


def python_calls(text: str) -> Calls | None:
    """The calls of a list as LFM2 writes it; None where the text is no such list.

    Args:
        text: all that is between the marks of the list.
    """
    cursor = _Cursor(text)
    try:
        if (listed := json_calls(text)) is not None:
            return listed
        is_list = cursor.takes("[")
        calls: Calls = []
        while not (cursor.takes("]") if is_list else cursor.is_at_end):
            if calls:
                cursor.need(",")
            calls.append(_python_call(cursor))
        cursor.need_end()
    except (ValueError, RecursionError):
        return None
    return calls or None


def may_begin_list(text: str, tools: Container[str]) -> bool:
    """Whether a text may be the beginning of a list of calls as Python writes it.

    Args:
        text: such as the beginning of an answer.
        tools: the names of those that may be called.
    """
    head = _LIST_HEAD.match(text)
    if head is None:
        return False
    return head[1] in tools if head[2] else not text[head.end() :].strip()


def python_lines(text: str) -> Calls | None:
    """The calls as Olmo 3 writes them, one a line; None where the text is something else.

    Args:
        text: all that is between the marks of the calls.
    """
    if text.lstrip().startswith("["):
        return python_calls(text)
    cursor = _Cursor(text)
    calls: Calls = []
    try:
        while not cursor.is_at_end:
            calls.append(_python_call(cursor))
            cursor.takes(",")
    except (ValueError, RecursionError):
        return None
    return calls or None


def python_value(text: str) -> Any:
    """One value as Python writes it.

    Raises:
        ValueError: the text is something else.
    """
    cursor = _Cursor(text)
    try:
        found = _python_value(cursor)
        cursor.need_end()
    except RecursionError as error:
        raise ValueError("a value that is nested too deeply") from error
    return found


def encodable(text: str) -> str:
    """JSON with halves of surrogate pairs, which UTF-8 does not have, escaped as JSON escapes them."""
    return text.encode("utf-8", "backslashreplace").decode()


def json_string(quoted: str) -> str:
    """A JSON string decoded; unchanged, including quotes, if it is not valid JSON, so that it matches no tool."""
    try:
        return str(json.loads(quoted))
    except ValueError:
        return quoted


def python_text(name: str, arguments: dict[str, Any]) -> str:
    """A call as LFM2 writes it, inside of its list."""
    return f"{name}({', '.join(f'{key}={_python_of(value)}' for key, value in arguments.items())})"


def gemma_call(text: str, quote: str = QUOTE) -> Calls | None:
    """The call of Gemma 4; None where the text is none.

    Args:
        text: all that is between the marks of the call.
        quote: begins and ends a text in it.
    """
    cursor = _Cursor(text, quote)
    try:
        cursor.need("call:")
        name = cursor.match(_NAME)
        if (arguments := _json_object(cursor.rest)) is not None:
            return [(name, arguments)]
        cursor.need("{")
        arguments = _gemma_object(cursor)
        cursor.need_end()
    except (ValueError, RecursionError):
        return None
    return [(name, arguments)]


class _Cursor:
    """A place in a text; each method skips white space first. quote: begins and ends a text of Gemma's."""

    def __init__(self, text: str, quote: str = QUOTE) -> None:
        self.text, self.place, self.quote = text, 0, quote

    @property
    def rest(self) -> str:
        """All that follows."""
        return self.text[self.place :]

    @property
    def is_at_end(self) -> bool:
        """Whether nothing but white space follows."""
        self.skip_space()
        return self.place == len(self.text)

    def skip_space(self) -> None:
        """Go on to what is no white space."""
        while self.place < len(self.text) and self.text[self.place].isspace():
            self.place += 1

    def begins(self, *marks: str) -> bool:
        """Whether one of the marks follows."""
        self.skip_space()
        return self.text.startswith(marks, self.place)

    def takes(self, mark: str) -> bool:
        """Whether the mark follows; it is passed then."""
        self.skip_space()
        if not self.text.startswith(mark, self.place):
            return False
        self.place += len(mark)
        return True

    def need(self, mark: str) -> None:
        """Pass the mark. Raises ValueError where it does not follow."""
        if not self.takes(mark):
            raise ValueError(f"no {mark!r} at {self.place}")

    def need_end(self) -> None:
        """Raises ValueError where something follows."""
        if not self.is_at_end:
            raise ValueError(f"more at {self.place}")

    def match(self, pattern: re.Pattern[str]) -> str:
        """Pass what the pattern matches, and return it. Raises ValueError where it does not match."""
        self.skip_space()
        found = pattern.match(self.text, self.place)
        if found is None:
            raise ValueError(f"nothing of the kind at {self.place}")
        self.place = found.end()
        return found[0]

    def up_to(self, mark: str) -> str:
        """Pass all up to and with the mark, without skipping space; returns what is before it."""
        end = self.text.index(mark, self.place)
        found, self.place = self.text[self.place : end], end + len(mark)
        return found

    def json_text(self) -> str:
        """Pass a text in JSON's form, and return it."""
        found, self.place = json.JSONDecoder(strict=False).raw_decode(self.text, self.place)
        return str(found)


def json_calls(text: str) -> Calls | None:
    """The calls of a list of JSON objects, or of one such object; None where the text is something else.

    Args:
        text: all that is between the marks of the list.
    """
    calls: Calls = []
    for one in _json_objects(text):
        name, arguments = named_arguments(one)
        arguments = arguments or {}
        if not isinstance(name, str) or not isinstance(arguments, dict):
            return None
        calls.append((name, arguments))
    return calls or None


def named_arguments(call: dict[str, Any]) -> tuple[Any, Any]:
    """The name of the tool and the arguments in a call that is written as JSON; None for each that it does not have.

    Args:
        call: a document; models that describe tools as OpenAI does also write calls in that way, with both below
            `function`, or with the name there.
    """
    inner = call.get("function")
    if isinstance(inner, dict):
        call = inner
    return call.get("name", call.get("tool_name", inner)), call.get("arguments", call.get("parameters"))


def keyed_calls(text: str) -> Calls | None:
    """The calls of a list of objects whose only key is a name, as Apertus writes it; else as `json_calls`.

    Args:
        text: all that is between the marks of the list.
    """
    objects = _json_objects(text)
    calls = [(name, arguments) for one in objects if len(one) == 1 for name, arguments in one.items()]
    if not calls or len(calls) < len(objects) or not all(isinstance(arguments, dict) for _, arguments in calls):
        return json_calls(text)
    return calls


def _json_objects(text: str) -> list[dict[str, Any]]:
    """The objects of a list of JSON, or the only one; none where the text is something else."""
    try:
        found = json.loads(text)
        json.dumps(found, allow_nan=False)  # Python reads infinities, too
    except (ValueError, RecursionError):
        return []
    listed = found if isinstance(found, list) else [found]
    return listed if all(isinstance(one, dict) for one in listed) else []


def _json_object(text: str) -> dict[str, Any] | None:
    try:
        found = json.loads(text)
        json.dumps(found, allow_nan=False)  # Python reads infinities, too
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _python_call(cursor: _Cursor) -> tuple[str, dict[str, Any]]:
    name, arguments = cursor.match(_NAME), dict[str, Any]()
    cursor.need("(")
    while not cursor.takes(")"):
        if arguments:
            cursor.need(",")
        key = cursor.match(_PYTHON_KEY)
        cursor.need("=")
        arguments[key] = _python_value(cursor)
    return name, arguments


def _python_value(cursor: _Cursor) -> Any:
    if cursor.begins("'", '"'):
        return _python_string(cursor)
    for begin, end in (("[", "]"), ("(", ")")):
        if cursor.takes(begin):
            return _items(cursor, end, _python_value)
    if not cursor.takes("{"):
        return _plain(cursor.match(_PLAIN))
    found: dict[str, Any] = {}
    while not cursor.takes("}"):
        if found:
            cursor.need(",")
        key = _python_value(cursor)
        cursor.need(":")
        found[key if isinstance(key, str) else json.dumps(key)] = _python_value(cursor)
    return found


def _items(cursor: _Cursor, end: str, value: Callable[[_Cursor], Any]) -> list[Any]:
    found: list[Any] = []
    while not cursor.takes(end):
        if found:
            cursor.need(",")
            if cursor.takes(end):  # a comma behind the last one, as in a tuple of one
                break
        found.append(value(cursor))
    return found


def _python_string(cursor: _Cursor) -> str:
    text, start = cursor.text, cursor.place
    quote = text[start]
    if text.startswith(quote * 3, start):
        cursor.place += 3
        return _unescaped(cursor.up_to(quote * 3))
    place = start + 1
    while place < len(text):
        if text[place] == "\\":
            place += 2
            continue
        if text[place] == quote and _BEHIND_VALUE.match(text, place + 1) is not None:
            cursor.place = place + 1
            return _unescaped(text[start + 1 : place])
        place += 1
    raise ValueError(f"a text that does not end at {start}")


def _unescaped(text: str) -> str:
    def one(found: re.Match[str]) -> str:
        number = found[1] or found[2] or found[3]
        if number is not None:
            return chr(int(number, 16))
        # As Python does, an escape that it does not know stays as it is.
        return _ESCAPES.get(found[4], found[0])

    made = _ESCAPE.sub(one, text)
    # JSON's escapes write a character beyond the first 65,536 as two halves.
    return made.encode("utf-16", "surrogatepass").decode("utf-16", "replace") if "\\" in text else made


def _plain(word: str) -> Any:
    """A word or a number. Raises ValueError for anything else."""
    if word in _WORDS:
        return _WORDS[word]
    if _INTEGER.fullmatch(word):
        return int(word)
    number = float(word)
    if not math.isfinite(number):
        raise ValueError(f"{word} is not a JSON number")
    return number


def _gemma_object(cursor: _Cursor) -> dict[str, Any]:
    """An object behind its opening brace."""
    found: dict[str, Any] = {}
    while not cursor.takes("}"):
        if found:
            cursor.need(",")
        if cursor.takes(cursor.quote):
            key = cursor.up_to(cursor.quote)
        elif cursor.begins('"'):
            key = cursor.json_text()
        else:
            key = cursor.match(_BARE_KEY).rstrip()
        cursor.need(":")
        found[key] = _gemma_value(cursor)
    return found


def _gemma_value(cursor: _Cursor) -> Any:
    if cursor.takes(cursor.quote):
        return cursor.up_to(cursor.quote)
    if cursor.begins('"'):
        return cursor.json_text()
    if cursor.takes("{"):
        return _gemma_object(cursor)
    if cursor.takes("["):
        return _items(cursor, "]", _gemma_value)
    word = cursor.match(_BARE).rstrip()
    try:
        return _plain(word)
    except ValueError:  # a text whose quotes were forgotten
        return word


def _python_of(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_python_of(key)}: {_python_of(one)}" for key, one in value.items()) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(map(_python_of, value)) + "]"
    return json.dumps(value, ensure_ascii=False)
