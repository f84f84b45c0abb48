"""What ends an assistant's turn: the special token that the template writes, or else one that stops a generation.

Templates differ. Most write their own token after each answer; some write none, so that the token of the next role ends
the turn (`<|user|>`), and some end a call of a tool in another way than an answer (`<|call|>`). All are measured by
rendering; whatever stops a generation by the tokenizer and generation_config.json counts, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from luthier.ml.inference.models.thought_writing import Render

_QUESTION, _ANSWER, _NEXT = "Which wood?", "Spruce-wood", "Which glue?"
CALLS: Final[list[dict[str, Any]]] = [
    {"id": "abcdefgh1", "type": "function", "function": {"name": "price", "arguments": {"wood": _ANSWER}}}
]
"""A call to probe with; its id is as long as the strictest templates want it."""


@dataclass(frozen=True, slots=True)
class TurnEnd:
    """The token that ends a turn.

    Attributes:
        id: of the token.
        text: of the token.
        is_written: whether the template writes it after a last turn.
    """

    id: int
    text: str
    is_written: bool


@dataclass(frozen=True, slots=True)
class EndProbe:
    """What is needed to find the ends of turns.

    Attributes:
        render: renders messages with the template.
        special: the special tokens by id.
        encode: ids of a text.
        stops: ids that stop a generation, the tokenizer's own first.
    """

    render: Render
    special: Mapping[int, str]
    encode: Callable[[str], list[int]]
    stops: tuple[int, ...]

    def of_answer(self, tail: str) -> TurnEnd | None:
        """The end of an answer.

        Args:
            tail: what the template writes after a last one.
        """
        if (own := self._first(tail)) is not None:
            # A template's first token may close the answer's frame only; a stop token behind it is the real end.
            if own not in self.stops:
                own = self._stop_of_every(tail) or own
            return TurnEnd(own, self.special[own], is_written=True)
        turns: list[dict[str, Any]] = [
            {"role": "user", "content": _QUESTION},
            {"role": "assistant", "content": _ANSWER},
            {"role": "user", "content": _NEXT},
        ]
        return self._of_next_role(turns)

    def _stop_of_every(self, tail: str) -> int | None:
        """A token that stops a generation, where the template writes it after last and earlier answers alike.

        Some templates close the answer with a token of its own before the one that ends the turn.
        """
        turns: list[dict[str, Any]] = [
            {"role": "user", "content": _QUESTION},
            {"role": "assistant", "content": _ANSWER},
            {"role": "user", "content": _NEXT},
        ]
        text = self.render(turns, False)
        if text is None or _ANSWER not in text:
            return None
        earlier = set(self.encode(text.rpartition(_ANSWER)[2].partition(_NEXT)[0]))
        return next((token for token in self.encode(tail) if token in self.stops and token in earlier), None)

    def of_call(self, answer: TurnEnd) -> TurnEnd:
        """The end of a turn that calls a tool; that of an answer where the template takes no calls."""
        turns: list[dict[str, Any]] = [
            {"role": "user", "content": _QUESTION},
            {"role": "assistant", "content": "", "tool_calls": CALLS},
        ]
        text = self.render(turns, False)
        if text is None or _ANSWER not in text:
            return answer
        if answer.is_written:
            # Behind the call's argument, which holds the answer's text.
            tail = text.rpartition(_ANSWER)[2]
            found = [token for token in self.encode(tail) if token in self.special]
            written = found[-1] if found and tail.rstrip().endswith(self.special[found[-1]].strip()) else None
            return answer if written is None else TurnEnd(written, self.special[written], is_written=True)
        result = {"role": "tool", "content": _NEXT, "tool_call_id": CALLS[0]["id"], "name": "price"}
        return self._of_next_role([*turns, result]) or answer

    def _of_next_role(self, turns: list[dict[str, Any]]) -> TurnEnd | None:
        """The token of the role that follows, where it stops a generation; else the first that does."""
        shorter, longer = self.render(turns[:-1], False), self.render(turns, False)
        if shorter is not None and longer is not None and longer.startswith(shorter):
            first = self._first(longer[len(shorter) :])
            if first is not None and first in self.stops:
                return TurnEnd(first, self.special[first], is_written=False)
        known = [token for token in self.stops if token in self.special]
        return TurnEnd(known[0], self.special[known[0]], is_written=False) if known else None

    def _first(self, text: str) -> int | None:
        """The first special token of a text."""
        return next((token for token in self.encode(text) if self.special.get(token, "").strip()), None)
