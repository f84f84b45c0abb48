"""Tokens as text that is sent as it comes: whole characters only, without any part of a stop text."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_UNKNOWN = "\ufffd"


class TextStream:
    """The text of a growing list of tokens, piece by piece.

    A token may hold a part of a character, so the end of the text can change with the next token: what is still open is
    held back.

    Args:
        decode: token ids to text, special tokens left out.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._ids: list[int] = []
        # Some tokenizers write a token differently at the beginning of a text: the tokens that were
        # emitted last are decoded again before those that were not.
        self._context, self._emitted = 0, 0

    def add(self, token: int) -> str:
        """The text that is certain with this token; often empty."""
        self._ids.append(token)
        text = self._open_text()
        # Bytes that are no whole character decode to U+FFFD: the next token may complete them.
        if not text or text.endswith(_UNKNOWN):
            return ""
        # The context moves on, so that decoding costs a few tokens a step and not the whole answer.
        self._context, self._emitted = self._emitted, len(self._ids)
        return text

    def end(self) -> str:
        """What was held back: no token comes any more."""
        text = self._open_text()
        self._context, self._emitted = self._emitted, len(self._ids)
        return text

    def _open_text(self) -> str:
        before = self._decode(self._ids[self._context : self._emitted])
        return self._decode(self._ids[self._context :])[len(before) :]


class StopTexts:
    """Looks for texts that end an answer, also where they come in several pieces.

    Where several would match, the one that is complete first counts, so that it does not matter in which pieces the
    text comes.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.found = False

    def add(self, text: str) -> str:
        """What of the text so far is certain not to be part of a stop text. Sets `found` where one is complete."""
        if not self._stops or self.found:
            return "" if self.found else text
        self._held += text
        # By the place where a stop text ends: the one that a reader would see complete first.
        matches = [(place + len(stop), place) for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if matches:
            self.found = True
            return self._take(min(matches)[1])
        return self._take(len(self._held) - self._num_open())

    def end(self) -> str:
        """What was held back: no text comes any more."""
        return "" if self.found else self._take(len(self._held))

    def _take(self, num: int) -> str:
        taken, self._held = self._held[:num], self._held[num:]
        return taken

    def _num_open(self) -> int:
        """How many characters at the end may be the beginning of a stop text."""
        longest = min(len(self._held), max(len(stop) for stop in self._stops) - 1)
        for num in range(longest, 0, -1):
            if any(stop.startswith(self._held[-num:]) for stop in self._stops):
                return num
        return 0
