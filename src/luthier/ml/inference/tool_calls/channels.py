"""Tool calls in the channels of gpt-oss, as the calls that the reader of Hermes understands.

    <|start|>assistant to=functions.NAME<|channel|>commentary json<|message|>{...}          as its template writes it
    <|channel|>commentary to=functions.NAME <|constrain|>json<|message|>{...}               as the model often does

An answer may say something in the channel `commentary` before its call: that is its text, without the marks of the
channel.

Source: OpenAI, "OpenAI Harmony Response Format", function calling and preambles.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Final, Protocol

from luthier.ml.inference.models.templates.thinking import num_open
from luthier.ml.inference.tool_calls.arguments import TOOL_NAME, CallArguments

if TYPE_CHECKING:
    from luthier.core.stream import CallPiece

_OPENING: Final = ("<|start|>assistant", "<|channel|>", "<|end|>", " to=functions.")
_CHANNEL: Final = r"(?:<\|channel\|>(?:commentary|analysis|final))?"
_CALL: Final = re.compile(
    rf"(?:<\|start\|>assistant)?{_CHANNEL}\s*to=functions\.({TOOL_NAME})\s*{_CHANNEL}\s*"
    r"(?:<\|constrain\|>)?\s*(?:json)?\s*<\|message\|>\s*(?=\{)"
)
_HEADER: Final = re.compile(rf"(?:<\|start\|>assistant)?{_CHANNEL}\s*<\|message\|>|<\|end\|>")
_LONGEST_HEADER: Final = 256
MARKS: Final = ("<|start|>", "<|channel|>", "<|constrain|>", "<|message|>", "<|end|>")


class CallReader(Protocol):
    """Separates tool calls from the text of an answer."""

    @property
    def num_calls(self) -> int:
        """The number of calls begun so far."""
        ...

    @property
    def num_held(self) -> int:
        """Characters that are held back, which may still become text or call."""
        ...

    def add(self, text: str) -> tuple[str, list[CallPiece]]:
        """Process more text; returns what is certain so far: plain text and parts of calls."""
        ...

    def end(self) -> tuple[str, list[CallPiece]]:
        """Flush what was held back, at the end of the text."""
        ...


class ChannelCallReader:
    """Reads one answer.

    Args:
        reader: of calls between `begin` and `end`.
        begin, end: the marks of a call that it reads.
    """

    def __init__(self, reader: CallReader, begin: str, end: str) -> None:
        self._reader, self._begin, self._end = reader, begin, end
        self._held = ""
        self._arguments: CallArguments | None = None

    @property
    def num_calls(self) -> int:
        """The number of calls begun so far."""
        return self._reader.num_calls

    @property
    def num_held(self) -> int:
        """Characters that are held back."""
        return len(self._held) + self._reader.num_held

    def add(self, text: str) -> tuple[str, list[CallPiece]]:
        """Process more text; returns what is certain so far: plain text and parts of calls."""
        self._held += text
        written: list[str] = []
        while self._held:
            before = len(self._held)
            written.append(self._more_arguments(self._arguments) if self._arguments else self._text())
            if len(self._held) == before:
                break
        return self._reader.add("".join(written))

    def end(self) -> tuple[str, list[CallPiece]]:
        """Flush what was held back, at the end of the text."""
        text, calls = self._reader.add(self._take(len(self._held)))
        rest, more = self._reader.end()
        return text + rest, calls + more

    def _text(self) -> str:
        """Text up to the next header, or the beginning of the call that follows a header."""
        places = [place for mark in _OPENING if (place := self._held.find(mark)) >= 0]
        if not places:
            return self._take(len(self._held) - max(num_open(self._held, mark) for mark in _OPENING))
        if min(places):
            return self._take(min(places))
        if (call := _CALL.match(self._held)) is not None:
            self._take(call.end())
            self._arguments = CallArguments()
            return f'{self._begin}{{"name": {json.dumps(call[1])}, "arguments": '
        if (header := _HEADER.match(self._held)) is not None:
            self._take(header.end())
            return ""
        # A header that is not complete; what is too long for one is text.
        return "" if len(self._held) < _LONGEST_HEADER else self._take(1)

    def _more_arguments(self, arguments: CallArguments) -> str:
        text = self._take(arguments.num_own(self._held))
        if not arguments.has_ended:
            return text
        self._arguments = None
        return f"{text}}}{self._end}"

    def _take(self, num: int) -> str:
        taken, self._held = self._held[:num], self._held[num:]
        return taken
