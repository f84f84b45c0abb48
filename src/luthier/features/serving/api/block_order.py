"""Pieces of an answer in an order in which every block is whole before the next one begins.

Blocks are thoughts, texts and calls of tools. Streams of responses and of messages have them one after the other. A
server that is asked for an answer may write several calls at once, a bit of each in turn: what belongs to a later block
is then held until the one before it is whole. Our own engines write one after the other, and nothing is held.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from pydantic_core import from_json

from luthier.core.stream import CallPiece, Piece, WrittenToken

Kind = Literal["reasoning", "text", "call"]


@dataclass(frozen=True, slots=True)
class Part:
    """More of one block.

    Attributes:
        kind: Of the block.
        text: More of a thought or text.
        tokens: Those of the text, where likelihoods were requested.
        call: More of a call; the first part of a call has its name.
    """

    kind: Kind
    text: str = ""
    tokens: tuple[WrittenToken, ...] = ()
    call: CallPiece | None = None


@dataclass(slots=True, eq=False)
class _Block:
    kind: Kind
    held: list[Part] = field(default_factory=list)
    arguments: str = ""

    def is_whole(self) -> bool:
        """Whether nothing more of it comes, where another block has begun behind it."""
        if self.kind != "call":
            return True
        # Most pieces end in the middle of it: only those that may be its end are parsed.
        if not self.arguments.rstrip().endswith("}"):
            return False
        try:
            from_json(self.arguments)
        except ValueError:
            return False
        return True


class BlockOrder:
    """The blocks of one answer. The first that is not whole passes through; those behind it are held."""

    def __init__(self) -> None:
        self._blocks: deque[_Block] = deque()
        self._calls: dict[int, _Block] = {}
        self._tokens: tuple[WrittenToken, ...] = ()

    def add(self, piece: Piece) -> Iterator[Part]:
        """Take in more of the answer; yields what may be shown now."""
        for part in self._parts(piece):
            block = self._block_of(part)
            if block is None:
                continue
            block.held.append(part)
            block.arguments += part.call.arguments if part.call is not None else ""
            yield from self._shown()

    def end(self) -> Iterator[Part]:
        """What is held, at the end of the answer."""
        while self._blocks:
            yield from self._blocks.popleft().held

    def _parts(self, piece: Piece) -> Iterator[Part]:
        """What continues a call that has begun before, then thought and text, which follow it, then the other calls."""
        num_begun = next((place for place, call in enumerate(piece.calls) if call.name is not None), len(piece.calls))
        # Tokens may come before their text, which is held back while it may still be a call; then they are of the call.
        self._tokens = () if piece.calls and not piece.text else self._tokens + piece.answer_tokens
        for call in piece.calls[:num_begun]:
            yield Part("call", call=call)
        if piece.reasoning:
            yield Part("reasoning", piece.reasoning)
        if piece.text:
            tokens, self._tokens = self._tokens, ()
            yield Part("text", piece.text, tokens)
        for call in piece.calls[num_begun:]:
            yield Part("call", call=call)

    def _block_of(self, part: Part) -> _Block | None:
        """The block that a part belongs to; None for more of a call that is whole, or that has not begun."""
        if part.call is not None and part.call.name is None:
            found = self._calls.get(part.call.index)
            return found if found in self._blocks else None
        last = self._blocks[-1] if self._blocks else None
        if part.call is None and last is not None and last.kind == part.kind:
            return last
        made = _Block(part.kind)
        self._blocks.append(made)
        if part.call is not None:
            self._calls[part.call.index] = made
        return made

    def _shown(self) -> Iterator[Part]:
        while self._blocks:
            first = self._blocks[0]
            yield from first.held
            first.held = []
            # The last one continues, as far as is known.
            if len(self._blocks) == 1 or not first.is_whole():
                return
            self._blocks.popleft()
