"""Which tokens of an answer are of its text, and which of its calls of tools."""

from __future__ import annotations

from collections.abc import Sequence

from luthier.core.stream import CallPiece, WrittenToken
from luthier.ml.inference.tool_calls.channels import CallReader


class CallSpans:
    """Separates calls from the text of one answer, as its reader does, and the tokens of the text from the others.

    The marks around calls, and white space that is left out beside them, are not of the text. The reader gets one
    character after the other, so that a place is found to the character; only for answers with likelihoods.

    Args:
        reader: of the calls of the answer.
    """

    def __init__(self, reader: CallReader) -> None:
        self._reader = reader
        self._open = ""  # characters that may still become text or call
        self._is_text = bytearray()  # of each character before these
        self._waiting: list[tuple[int, WrittenToken]] = []

    @property
    def num_calls(self) -> int:
        """The number of calls begun so far."""
        return self._reader.num_calls

    @property
    def num_held(self) -> int:
        """Characters that are held back."""
        return self._reader.num_held

    def kinds(self, start: int) -> bytes:
        """Of each decided character from this one on, in order, whether it is of the text."""
        return bytes(self._is_text[start:])

    def add(self, text: str) -> tuple[str, list[CallPiece]]:
        """Process more text; returns what is certain so far: plain text and parts of calls."""
        written, calls = "", list[CallPiece]()
        for character in text:
            self._open += character
            more, found = self._reader.add(character)
            self._decide(len(more), has_calls=bool(found))
            written, calls = written + more, calls + found
        return written, calls

    def end(self) -> tuple[str, list[CallPiece]]:
        """Flush what was held back, at the end of the text."""
        written, calls = self._reader.end()
        self._decide(len(written), has_calls=bool(calls))
        self._pass(len(self._open), is_text=False)
        return written, calls

    def text_tokens(self, tokens: Sequence[WrittenToken], start: int, *, is_last: bool) -> tuple[WrittenToken, ...]:
        """The tokens of the text, among these and earlier ones of which it was not certain.

        Args:
            tokens: more tokens of the answer.
            start: the place of the answer's first character, as their places are counted.
            is_last: whether no more come, and the text has ended.
        """
        self._waiting += [(max(0, token.offset - start), token) for token in tokens]
        found = []
        while self._waiting:
            place, token = self._waiting[0]
            end = place + max(1, len(token.chosen.token))
            kinds = self._is_text[place:end]
            # One character of the text is enough: it is shown now, and the rest may be held back for long.
            if not any(kinds) and end > len(self._is_text) and not is_last:
                break
            # A token without text of its own, such as a hidden one at the end, is of what is before it.
            if any(kinds or self._is_text[-1:] or b"\1"):
                found.append(token)
            del self._waiting[0]
        return tuple(found)

    def _decide(self, num_written: int, *, has_calls: bool) -> None:
        if not num_written and not has_calls:
            return
        # What a reader returns ends where what it holds begins.
        num_decided = max(0, len(self._open) - self._reader.num_held)
        num_text = min(num_written, num_decided)
        if has_calls:  # text comes before a call
            self._pass(num_text, is_text=True)
            self._pass(num_decided - num_text, is_text=False)
        else:
            self._pass(num_decided - num_text, is_text=False)
            self._pass(num_text, is_text=True)

    def _pass(self, num: int, *, is_text: bool) -> None:
        self._is_text += (b"\1" if is_text else b"\0") * num
        self._open = self._open[num:]
