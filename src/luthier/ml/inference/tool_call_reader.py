"""Separates tool calls from text while both are being written: the arguments of a call are streamed as they grow."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Set as AbstractSet
from typing import Final

from luthier.core.stream import CallPiece

_BLANKS: Final = " \t\r\n"
_NAME: Final = r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)'


class ToolCallReader:
    """Reads one answer.

    Args:
        begin, end: what surrounds a call; `end` may be empty.
        only_whole: whether a call is the whole answer or none.
        is_list: whether calls are in a JSON list behind `begin`.
        names: of the tools that may be called; a call of another one is returned as text.
        most: how many calls are reported, the rest being left out; None for all.

    Attributes:
        num_calls: how many calls have begun.
    """

    def __init__(
        self, begin: str, end: str, *, only_whole: bool, is_list: bool, names: AbstractSet[str], most: int | None
    ) -> None:
        self._begin, self._end, self._is_list = begin, end, is_list
        self._names, self._most = names, most
        self._held = ""
        self._is_inside = only_whole
        self._arguments: _Arguments | None = None
        self._is_behind = False  # behind the arguments of a call, before its end
        self._opening = begin  # emitted as text if it turns out to be no call
        self._only_whole = only_whole
        self.num_calls = 0

    def add(self, text: str) -> tuple[str, list[CallPiece]]:
        """What of the text so far is certain: text beside calls, and more of calls."""
        self._held += text
        emitted, calls = "", list[CallPiece]()
        while True:
            # One piece of text may end a call and begin the next: repeated until nothing changes any more.
            before = (self._held, self._is_inside, self._is_behind)
            if self._arguments is not None:
                calls += self._more_arguments(self._arguments)
            elif self._is_behind:
                self._skip_end()
            elif self._is_inside:
                emitted += self._head(calls)
            else:
                emitted += self._text()
            if before == (self._held, self._is_inside, self._is_behind):
                return emitted, calls

    def end(self) -> tuple[str, list[CallPiece]]:
        """What was held back: no text comes any more."""
        left, self._held = self._held, ""
        # A call that was cut off stays as streamed: its arguments cannot be taken back.
        if self._arguments is not None or self._is_behind or (self.num_calls and not left.strip(_BLANKS)):
            return "", []
        if self._is_inside and not self._only_whole:
            left = self._opening + left
        return left, []

    def _text(self) -> str:
        """Text, up to where a call begins or may begin."""
        if self._only_whole or not self._begin:
            return self._take(len(self._held)) if not self.num_calls else self._drop()
        place = self._held.find(self._begin)
        if place >= 0:
            before = self._take(place)
            emitted = before.rstrip(_BLANKS)
            self._opening = before[len(emitted) :] + self._take(len(self._begin))
            self._is_inside = True
            return emitted
        # The end of the text may be the beginning of a mark, and blanks before a mark are not part of the text.
        sure = len(self._held) - _num_open(self._held, self._begin)
        sure = len(self._held[:sure].rstrip(_BLANKS))
        if self.num_calls and not self._held[:sure].strip(_BLANKS):
            return ""
        return self._take(sure)

    def _head(self, calls: list[CallPiece]) -> str:
        """Before the arguments of a call; returns what turned out to be text."""
        if self._most is not None and self.num_calls >= self._most:
            # More calls than asked for: without a mark to look for, the rest is dropped.
            self._is_inside, self._begin = False, ""
            return self._drop()
        if self._is_list:
            self._held = self._held.lstrip(_BLANKS + "[,")
            if self._held.startswith("]"):
                self._is_inside = False
                self._take(1)
                return ""
        # Name first, then arguments: in this order the arguments can be streamed as they grow.
        if (match := re.match(_NAME, self._held)) is not None:
            name = _json_text(match[1])
            if name not in self._names:
                return self._give_up()
            self._take(match.end())
            calls.append(self._begun(name))
            self._arguments = _Arguments()
            return ""
        return self._whole(calls)

    def _whole(self, calls: list[CallPiece]) -> str:
        """A call whose parts are in another order, once it is complete; returns what turned out to be text."""
        # Parsed again with each piece: an unfinished JSON object raises ValueError.
        opened = self._held.lstrip(_BLANKS)
        if opened and not opened.startswith("{"):
            return self._give_up()
        try:
            found, length = json.JSONDecoder().raw_decode(opened)
        except ValueError:
            # The closing mark is there and the JSON is not: it never will be.
            is_complete = bool(self._end) and self._end in self._held
            return self._give_up() if is_complete else ""
        except RecursionError:  # nested more deeply than the parser goes
            return self._give_up()
        name = found.get("name")
        arguments = found.get("arguments", found.get("parameters", {}))
        # A model may write anything as the name, a list among it, which no set can look up.
        if not isinstance(name, str) or name not in self._names or not isinstance(arguments, dict | str):
            return self._give_up()
        text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        self._take(len(self._held) - len(opened) + length)
        calls.append(self._begun(name).model_copy(update={"arguments": text}))
        self._is_behind = True
        return ""

    def _begun(self, name: str) -> CallPiece:
        self.num_calls += 1
        return CallPiece(index=self.num_calls - 1, call_id=f"call_{uuid.uuid4().hex[:24]}", name=name)

    def _more_arguments(self, arguments: _Arguments) -> list[CallPiece]:
        text = self._take(arguments.num_own(self._held))
        if arguments.has_ended:
            self._arguments, self._is_behind = None, True
        return [CallPiece(index=self.num_calls - 1, arguments=text)] if text else []

    def _skip_end(self) -> None:
        """What closes a call: braces, blanks, and the mark that ends it."""
        # The outer object's brace behind the arguments; small models write one too many.
        self._held = self._held.lstrip(_BLANKS + "}")
        if not self._held or (self._end and len(self._held) < len(self._end) and self._end.startswith(self._held)):
            return
        if self._end and self._held.startswith(self._end):
            self._take(len(self._end))
        # In a list the next call follows without a mark of its own.
        self._is_behind, self._is_inside = False, self._is_list

    def _give_up(self) -> str:
        """It is no call: what begins it is text, and a later one may yet be one."""
        self._is_inside = False
        opening = "" if self._only_whole else self._opening
        return opening + (self._take(len(self._held)) if self._only_whole else "")

    def _take(self, num: int) -> str:
        taken, self._held = self._held[:num], self._held[num:]
        return taken

    def _drop(self) -> str:
        self._held = ""
        return ""


class _Arguments:
    """Finds the end of a JSON object that comes in pieces."""

    def __init__(self) -> None:
        self._depth, self._is_text, self._is_escaped = 0, False, False
        self.has_ended = False

    def num_own(self, text: str) -> int:
        """How many characters of the text, which goes on where the last one ended, belong to the object."""
        for place, character in enumerate(text):
            # Braces inside of a string, and quotes behind a backslash, do not count.
            if self._is_escaped:
                self._is_escaped = False
            elif self._is_text:
                self._is_escaped = character == "\\"
                self._is_text = character != '"'
            elif character == '"':
                self._is_text = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth == 0:
                    self.has_ended = True
                    return place + 1
        return len(text)


def _json_text(quoted: str) -> str:
    """A JSON string as text; itself, quotes and all, where it is not valid JSON, so that it is no tool's name."""
    try:
        return str(json.loads(quoted))
    except ValueError:
        return quoted


def _num_open(text: str, mark: str) -> int:
    """How many characters at the end may be the beginning of the mark."""
    for num in range(min(len(text), len(mark) - 1), 0, -1):
        if mark.startswith(text[-num:]):
            return num
    return 0
