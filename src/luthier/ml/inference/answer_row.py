"""The state of one answer during generation: constrained logits to a sampled token, tokens to text, text to events.

The next token is chosen greedily or sampled, with min-p, top-k, top-p and penalties. Under a JSON schema or a
grammar, llguidance computes the allowed next tokens; the logits of all others are set to -inf before sampling, so the
distribution is renormalised over the allowed tokens.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from luthier.core.errors import RequestError
from luthier.core.stream import CallPiece, Ended, EndReason, Piece, Sampling, TextRequest, TokenLikelihood, WrittenToken
from luthier.core.text.json_schema import check_schema
from luthier.ml.inference.thoughts import NO_THINKING, AnswerText, TextStream, Thinking
from luthier.ml.inference.tool_calls.call_spans import CallSpans
from luthier.ml.inference.tool_calls.channels import CallReader
from luthier.ml.inference.tool_calls.grammars import COMPACT

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class Sampler:
    """Samples the tokens of one answer. Equal logits, options and seeds give equal tokens.

    Args:
        rules: temperature, nucleus, penalties, biases and seed of the request.
        number: of the choice; each choice has a separate random generator.
        device: of the random generator, which is that of the logits.
    """

    def __init__(self, rules: Sampling, number: int, device: torch.device) -> None:
        self._rules = rules
        self._counts: dict[int, int] = {}
        self._generator: torch.Generator | None = None
        if not rules.is_greedy:
            self._generator = torch.Generator(device=device)
            # torch takes seeds of 63 bits.
            self._generator.manual_seed((rules.seed + number) % (1 << 63))

    @property
    def takes_likeliest(self) -> bool:
        """Whether it always picks the token with the largest logit."""
        rules = self._rules
        changes_logits = rules.frequency_penalty or rules.presence_penalty or rules.logit_bias
        return self._generator is None and not changes_logits

    def draw(self, logits: Tensor) -> int:
        """The next token.

        Args:
            logits: [vocabulary].
        """
        # fp32: in bf16 a softmax over a large vocabulary does not sum to 1.
        scores = self._with_penalties(self._with_bias(logits.float()))  # [vocabulary] in fp32
        if self._generator is None:
            token = int(scores.argmax())
        else:
            probabilities = torch.softmax(scores / self._rules.temperature, -1)
            probabilities = _truncated(probabilities, self._rules)
            # multinomial normalises, so the nucleus need not sum to 1.
            token = int(torch.multinomial(probabilities, 1, generator=self._generator))
        if self._rules.frequency_penalty or self._rules.presence_penalty:
            self._counts[token] = self._counts.get(token, 0) + 1
        return token

    def _with_bias(self, logits: Tensor) -> Tensor:
        if not self._rules.logit_bias:
            return logits
        tokens, biases = zip(*self._rules.logit_bias, strict=True)
        index = torch.tensor(tokens, device=logits.device)
        return logits.index_add(0, index, torch.tensor(biases, dtype=logits.dtype, device=logits.device))

    def _with_penalties(self, logits: Tensor) -> Tensor:
        if not self._counts:
            return logits
        tokens = torch.tensor(list(self._counts), device=logits.device)
        counts = torch.tensor(list(self._counts.values()), dtype=logits.dtype, device=logits.device)
        penalties = self._rules.frequency_penalty * counts + self._rules.presence_penalty
        return logits.index_add(0, tokens, -penalties)


def _truncated(probabilities: Tensor, rules: Sampling) -> Tensor:
    """Without the tokens that are not drawn: in the order of vLLM, min_p, top_k, and top_p of what these have left."""
    if rules.min_p:
        probabilities = probabilities.masked_fill(probabilities < rules.min_p * probabilities.max(), 0.0)
    if 0 < rules.top_k < len(probabilities):
        kept, places = probabilities.topk(rules.top_k)
        probabilities = torch.zeros_like(probabilities).scatter(0, places, kept)
    if rules.top_p >= 1:
        return probabilities
    if rules.min_p or rules.top_k:
        probabilities = probabilities / probabilities.sum()
    return _nucleus(probabilities, rules.top_p)


def _nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """The smallest set of likeliest tokens with total probability `top_p`; all others get probability 0."""
    # [vocabulary], the likeliest first.
    ordered, places = probabilities.sort(descending=True)
    # The probability of all likelier tokens: the token that crosses top_p is kept.
    before = ordered.cumsum(-1) - ordered
    # The likeliest one always stays: in fp32 a very small top_p is 0.
    ordered[1:][before[1:] >= top_p] = 0.0
    # Back into the order of the vocabulary.
    return torch.zeros_like(probabilities).scatter(0, places, ordered)


def likelihoods(logits: Tensor, token: int, num_top: int) -> tuple[float, list[tuple[int, float]]]:
    """The log-probability of a token, and the likeliest tokens with their log-probabilities.

    Args:
        logits: [vocabulary].
        token: id of the token.
        num_top: how many of the likeliest; 0 for none.
    """
    return likelihoods_of(logits[None], [token], num_top)[0]


def likelihoods_of(logits: Tensor, tokens: Sequence[int], num_top: int) -> list[tuple[float, list[tuple[int, float]]]]:
    """As `likelihoods` of each position, with one transfer from the device for all.

    Args:
        logits: [positions, vocabulary].
        tokens: id of the token of each position.
        num_top: how many of the likeliest; 0 for none.
    """
    log_probabilities = torch.log_softmax(logits.float(), -1)
    ids = torch.tensor(list(tokens), device=logits.device)
    own = log_probabilities.gather(-1, ids[:, None])[:, 0].tolist()
    found = log_probabilities.topk(min(num_top, logits.shape[-1]))
    tops = zip(found.indices.tolist(), found.values.tolist(), strict=True)
    return [(one, list(zip(*top, strict=True))) for one, top in zip(own, tops, strict=True)]


Decode = Callable[[Sequence[int]], str]


class Constraint(Protocol):
    """Restricts sampling to the tokens that a schema or grammar allows next."""

    def mask(self, logits: Tensor) -> Tensor:
        """Forbid tokens.

        Args:
            logits: [vocabulary].

        Returns:
            [vocabulary], minus infinity at every forbidden token.
        """
        ...

    def take(self, token: int) -> None:
        """Advance the state by a sampled token.

        Raises:
            RequestError: the token is not allowed here.
        """
        ...


@dataclass(slots=True)
class AnswerRow:
    """One choice of one request.

    Attributes:
        key: of its request.
        choice: index of the choice, from 0.
        adapter: name of the adapter; None for the base.
        asked: the request.
        max_new_tokens: limit of reasoning and answer together; `asked.max_new_tokens` limits the answer alone.
        num_tokens: tokens of its prompt plus its maximum new tokens.
        sampler: samples its tokens.
        decode: token ids to text.
        end_ids: ids of the tokens that end the answer.
        constraint: restricts sampling; None for no restriction.
        calls: separates tool calls from text; None if no tool may be called.
        calls_for_stops: another reader of the same calls, in which stop texts do not count; None where there are none.
        thinking: delimiters of its reasoning, and its budget.
        num_cached_tokens: tokens of its prompt that were known from an earlier one.
        continued_ids: the last tokens of the text that it continues; none where it answers a conversation.
        has_ended: whether its last event was emitted.
        num_new_tokens: tokens generated so far, without the end token.
        token_ids: of them.
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
    calls_for_stops: CallReader | None = None
    thinking: Thinking = NO_THINKING
    num_cached_tokens: int = 0
    continued_ids: Sequence[int] = ()
    has_ended: bool = False
    num_new_tokens: int = 0
    token_ids: list[int] = field(default_factory=list)
    _text: TextStream = field(init=False)
    _answer: AnswerText = field(init=False)
    _places: CallSpans | None = field(init=False)
    _num_characters: int = 0
    _num_emitted: int = 0
    _open_tokens: list[WrittenToken] = field(default_factory=list)
    _closing: list[int] = field(default_factory=list)
    _is_closed: bool = False

    def __post_init__(self) -> None:
        self._text = TextStream(self.decode, self.continued_ids)
        self._answer = AnswerText(self.asked, self.thinking, self.calls_for_stops)
        # Only where likelihoods are requested: it reads character by character.
        is_placed = self.asked.num_top is not None
        self._places = CallSpans(self.calls) if is_placed and self.calls is not None else None

    @property
    def takes_likeliest(self) -> bool:
        """Whether its next token is simply the likeliest one."""
        return self.sampler.takes_likeliest and self.constraint is None

    def write(self, logits: Tensor, likeliest: int) -> tuple[int, list[Piece | Ended]]:
        """Sample one token.

        Args:
            logits: [vocabulary].
            likeliest: the index of the largest logit.

        Returns:
            The token and the resulting events.

        Raises:
            RequestError: the constraint rejects the sampled token.
        """
        # The caller has computed the argmax of all rows in one transfer; only rows that need more touch their logits.
        token = likeliest
        if (closing := self._closing_token()) is not None:
            token = closing
            if self.constraint is not None:
                self.constraint.take(token)
        elif not self.takes_likeliest:
            token = self.sampler.draw(logits if self.constraint is None else self.constraint.mask(logits))
            if self.constraint is not None:
                self.constraint.take(token)
        if token in self.end_ids:
            # The end token itself is neither counted nor decoded.
            return token, self._end("stop")
        self.num_new_tokens += 1
        self.token_ids.append(token)
        if self.asked.num_top is not None:
            # From the model's own logits, before penalties and constraint: what OpenAI's API reports.
            self._open_tokens.append(self._likelihoods(token, logits))
        text = self._text.add(token)
        self._num_characters += len(text)
        events = self._pieces(*self._answer.add(text, self.num_new_tokens))
        # Two limits: for all tokens, and separately for reasoning and answer if the reasoning has its own budget.
        is_full = self.num_new_tokens == self.max_new_tokens or self._answer.is_full(self.num_new_tokens)
        if self._answer.found_stop or is_full:
            events += self._end("stop" if self._answer.found_stop else "length")
        return token, events

    def _closing_token(self) -> int | None:
        """The next token that closes a thought which has used up its budget; None where it continues by itself."""
        budget = self.asked.thinking_budget
        is_used_up = budget is not None and self.num_new_tokens >= budget and self._answer.ends_in_thought
        if is_used_up and not self._is_closed:
            self._is_closed, self._closing = True, list(self.thinking.closing_ids)
        elif self.constraint is not None and not self._answer.ends_in_thought:
            self._closing = []  # the answer has begun, and its form may not allow the blank lines behind a thought
        return self._closing.pop(0) if self._closing else None

    def _end(self, reason: EndReason) -> list[Piece | Ended]:
        """The remaining text, which may still contain a stop text, and the end event."""
        # Set first: the caller uses it to drop the row, for any later events.
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
            # Tokens after the stop text are not reported.
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
            num_cached_tokens=self.num_cached_tokens,
            num_thinking_tokens=self._answer.num_thinking,
            ends_in_thought=self._answer.ends_in_thought,
            token_ids=tuple(self.token_ids) if self.asked.returns_token_ids else None,
            stop_text=self._answer.stop_text,
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
        num_thought = self._answer.num_of_thought(tokens)
        # Calls are removed after the offsets are matched: these refer to the generated text.
        calls: list[CallPiece] = []
        if (reader := self._places or self.calls) is not None:
            text, calls = reader.add(text)
            if is_last:
                rest, more = reader.end()
                text, calls = text + rest, calls + more
        if self._places is not None:
            of_text = self._places.text_tokens(tokens[num_thought:], self._answer.answer_start, is_last=is_last)
            tokens = (*tokens[:num_thought], *of_text)
        if not (text or reasoning or tokens or calls):
            return []
        return [
            Piece(
                choice=self.choice,
                text=text,
                num_new_tokens=self.num_new_tokens,
                tokens=tuple(tokens),
                num_thought_tokens=num_thought,
                calls=tuple(calls),
                reasoning=reasoning,
            )
        ]

    def _likelihoods(self, token: int, logits: Tensor) -> WrittenToken:
        own, top = likelihoods(logits, token, self.asked.num_top or 0)
        text, *others = self._text.texts_of([token, *(one for one, _ in top)])
        values = zip(others, (value for _, value in top), strict=True)
        return WrittenToken(
            chosen=TokenLikelihood(token=text, log_probability=own),
            offset=self._num_characters,
            top=tuple(TokenLikelihood(token=other, log_probability=value) for other, value in values),
        )


class ConstraintFactory:
    """Builds the constraints for the answers of one model.

    Args:
        tokenizer: The model's own tokenizer.
        num_logits: Width of the model's logits; may exceed the size of the tokenizer's vocabulary.
        end_ids: Ids of the tokens that end an answer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, num_logits: int, end_ids: Sequence[int]) -> None:
        self._tokenizer, self._num_logits, self._end_ids = tokenizer, num_logits, list(end_ids)

    def of_schema(self, schema: dict[str, Any]) -> Callable[[], Constraint]:
        """A constraint to JSON of this schema.

        Returns:
            A function that makes the constraint of one answer.

        Raises:
            RequestError: The schema has a keyword that cannot be enforced.
        """
        check_schema(schema)
        library = _library()
        try:
            grammar = library.LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=COMPACT)
        except ValueError as error:
            raise _refused(str(error)) from error
        return self._constraint(grammar)

    def of_grammar(self, grammar: str) -> Callable[[], Constraint]:
        """A constraint to a grammar in llguidance's dialect of Lark.

        Returns:
            A function that makes the constraint of one answer.

        Raises:
            RequestError: llguidance cannot compile the grammar.
        """
        return self._constraint(_library().LLMatcher.grammar_from_lark(grammar))

    def _constraint(self, grammar: str) -> Callable[[], Constraint]:
        first = _library().LLMatcher(self._known, grammar, log_level=0)
        if first.is_error():
            raise _refused(first.get_error())
        # The grammar is compiled once; each answer gets a copy of the parser in its initial state.
        return lambda: _GrammarConstraint(first.deep_copy(), self._num_logits)

    @cached_property
    def _known(self) -> Any:
        """The vocabulary in llguidance's form. Building it takes a second, so it is built once, on first use."""
        # `n_vocab` is the width of the logits: ids past the tokenizer's own are then never allowed.
        from llguidance.hf import from_tokenizer

        return from_tokenizer(self._tokenizer, n_vocab=self._num_logits, eos_token=self._end_ids)


class _GrammarConstraint:
    """The constraint of one answer: the state of its parser."""

    def __init__(self, matcher: Any, num_logits: int) -> None:
        self._matcher, self._num_logits = matcher, num_logits

    def mask(self, logits: Tensor) -> Tensor:
        # The bitmask packs eight tokens into a byte, the lowest bit first: [vocabulary / 8] becomes [vocabulary].
        bits = torch.frombuffer(bytearray(self._matcher.compute_bitmask()), dtype=torch.uint8)
        shifts = torch.arange(8, dtype=torch.uint8)
        allowed = ((bits[:, None] >> shifts) & 1).reshape(-1)[: self._num_logits].bool()
        return logits.masked_fill(~allowed.to(logits.device), float("-inf"))

    def take(self, token: int) -> None:
        if not self._matcher.consume_token(token):
            # A retry would fail in the same way, so this is a client error (not retried) rather than a server error.
            raise RequestError(
                f"the answer left its form: {self._matcher.get_error()[:200]}",
                expected="a form that can be followed",
                do="ask with a simpler schema",
            )


def _library() -> Any:
    try:
        import llguidance
    except ImportError as error:
        raise RequestError(
            "an answer that follows a schema, and llguidance is not installed on the server",
            expected="the package llguidance",
            do="pip install llguidance, or ask without response_format and without tool_choice",
        ) from error
    return llguidance


def _refused(reason: str) -> RequestError:
    first = next((line for line in reason.splitlines() if line.strip()), "")
    return RequestError(
        f"a schema that cannot be followed: {first[:300]}",
        expected="a JSON schema of what can be enforced (type, properties, required, enum, items, anyOf, ...)",
        do="take out the keyword that the message names",
    )
