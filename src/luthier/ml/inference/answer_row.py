"""One answer that is being written: from logits to tokens, from tokens to text, and to the events that report it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from luthier.core.stream import CallPiece, Ended, EndReason, Piece, TextRequest, TokenLikelihood, WrittenToken
from luthier.ml.inference.sampling import Sampler, likelihoods
from luthier.ml.inference.text_stream import TextStream
from luthier.ml.inference.thoughts import NO_THINKING, AnswerText, Thinking

Decode = Callable[[Sequence[int]], str]


class Constraint(Protocol):
    """Lets only those tokens be drawn that a schema or grammar allows next."""

    def mask(self, logits: Tensor) -> Tensor:
        """Forbid tokens.

        Args:
            logits: [vocabulary].

        Returns:
            [vocabulary], minus infinity at every token that must not come next.
        """
        ...

    def take(self, token: int) -> None:
        """Advance the state by a drawn token.

        Raises:
            RequestError: the token is not allowed here.
        """
        ...


class CallReader(Protocol):
    """Tells calls of tools from the text of an answer."""

    @property
    def num_calls(self) -> int:
        """How many calls have begun."""
        ...

    def add(self, text: str) -> tuple[str, list[CallPiece]]:
        """What of the text so far is certain: text beside calls, and more of calls."""
        ...

    def end(self) -> tuple[str, list[CallPiece]]:
        """What was held back: no text comes any more."""
        ...


@dataclass(slots=True)
class AnswerRow:
    """One choice of one request.

    Attributes:
        key: of its request.
        choice: number of the choice, from 0.
        adapter: name of the adapter; None for the base.
        asked: the request.
        max_new_tokens: limit of thought and answer together; the answer alone has `asked.max_new_tokens`.
        num_tokens: tokens of its prompt and of all that it may write.
        sampler: draws its tokens.
        decode: token ids to text.
        end_ids: ids of the tokens that end the answer.
        constraint: what may be drawn; None for anything.
        calls: separates tool calls from text; None where no tool may be called.
        thinking: how its thought is delimited, and its budget.
        has_ended: whether its last event was made.
        num_new_tokens: tokens written so far, the end token not counted.
    """

    key: Hashable
    choice: int
    adapter: str | None
    asked: TextRequest
    max_new_tokens: int
    num_tokens: int
    sampler: Sampler
    decode: Decode
    end_ids: frozenset[int]
    constraint: Constraint | None = None
    calls: CallReader | None = None
    thinking: Thinking = NO_THINKING
    has_ended: bool = False
    num_new_tokens: int = 0
    _text: TextStream = field(init=False)
    _answer: AnswerText = field(init=False)
    _num_characters: int = 0
    _num_emitted: int = 0
    _open_tokens: list[WrittenToken] = field(default_factory=list)
    _ids: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._text = TextStream(self.decode)
        self._answer = AnswerText(self.asked, self.thinking)

    @property
    def takes_likeliest(self) -> bool:
        """Whether its next token is the likeliest, whatever else there is to it."""
        return self.sampler.takes_likeliest and self.constraint is None

    def write(self, logits: Tensor, likeliest: int) -> tuple[int, list[Piece | Ended]]:
        """Draw one token.

        Args:
            logits: [vocabulary].
            likeliest: the index of the largest logit.

        Returns:
            The token and the events that it causes.

        Raises:
            RequestError: the constraint refuses the drawn token.
        """
        # The caller has computed the argmax of all rows in one transfer; only rows that need more touch their logits.
        token = likeliest
        if not self.takes_likeliest:
            token = self.sampler.draw(logits if self.constraint is None else self.constraint.mask(logits))
            if self.constraint is not None:
                self.constraint.take(token)
        if token in self.end_ids:
            # The end token itself is neither counted nor decoded.
            return token, self._end("stop")
        self.num_new_tokens += 1
        if self.asked.returns_token_ids:
            self._ids.append(token)
        if self.asked.num_top is not None:
            # From the model's own logits, before penalties and constraint: what OpenAI's API reports.
            self._open_tokens.append(self._likelihoods(token, logits))
        text = self._text.add(token)
        self._num_characters += len(text)
        events = self._pieces(*self._answer.add(text, self.num_new_tokens))
        # Two limits: of all tokens, and of thought and answer each where the thought has a budget of its own.
        is_full = self.num_new_tokens == self.max_new_tokens or self._answer.is_full(self.num_new_tokens)
        if self._answer.found_stop or is_full:
            events += self._end("stop" if self._answer.found_stop else "length")
        return token, events

    def _end(self, reason: EndReason) -> list[Piece | Ended]:
        """The rest of the text, which may yet hold a stop text, and the end."""
        # Set first: the caller drops the row by it, whatever events follow.
        self.has_ended = True
        reasoning, left = "", ""
        if not self._answer.found_stop:
            # Text that the decoder held back may complete a stop text.
            reasoning, left = self._answer.add(self._text.end(), self.num_new_tokens)
            more, rest = self._answer.end(self.num_new_tokens)
            reasoning, left = reasoning + more, left + rest
        if self._answer.found_stop:
            reason = "stop"
            num_emitted = self._answer.num_dropped + self._num_emitted + len(left)
            # Tokens behind the stop text are not reported.
            self._open_tokens = [token for token in self._open_tokens if token.offset < num_emitted]
        events: list[Piece | Ended] = [*self._pieces(reasoning, left, is_last=True)]
        # OpenAI reports a call of the tool that the request itself named as an ordinary end.
        calls_tools = self.calls is not None and self.calls.num_calls > 0 and self.asked.tool_name is None
        if reason == "stop" and calls_tools:
            reason = "tool_calls"
        ended = Ended(
            choice=self.choice,
            reason=reason,
            num_new_tokens=self.num_new_tokens,
            num_thinking_tokens=self._answer.num_thinking,
            ends_in_thought=self._answer.ends_in_thought,
            token_ids=tuple(self._ids) if self.asked.returns_token_ids else None,
        )
        return [*events, ended]

    def _pieces(self, reasoning: str, text: str, *, is_last: bool = False) -> list[Piece | Ended]:
        self._num_emitted += len(text)
        tokens: Sequence[WrittenToken] = ()
        if self._open_tokens and (text or reasoning or is_last):
            num_emitted = self._answer.num_dropped + self._num_emitted
            # Offsets count all characters written; `num_dropped` are those of the thought and its delimiters.
            tokens = [token for token in self._open_tokens if is_last or token.offset < num_emitted]
            self._open_tokens = self._open_tokens[len(tokens) :]
        # Calls are taken out after the offsets are matched: likelihoods refer to the text as it was written.
        calls: list[CallPiece] = []
        if self.calls is not None:
            text, calls = self.calls.add(text)
            if is_last:
                rest, more = self.calls.end()
                text, calls = text + rest, calls + more
        if not (text or reasoning or tokens or calls):
            return []
        return [
            Piece(
                choice=self.choice,
                text=text,
                num_new_tokens=self.num_new_tokens,
                tokens=tuple(tokens),
                calls=tuple(calls),
                reasoning=reasoning,
            )
        ]

    def _likelihoods(self, token: int, logits: Tensor) -> WrittenToken:
        own, top = likelihoods(logits, token, self.asked.num_top or 0)
        return WrittenToken(
            chosen=TokenLikelihood(token=self.decode([token]), log_probability=own),
            offset=self._num_characters,
            top=tuple(TokenLikelihood(token=self.decode([one]), log_probability=value) for one, value in top),
        )
