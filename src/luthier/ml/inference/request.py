"""A request made ready for a transformers model (token ids, constraint, how the output is read), and the prefill queue.

The queue holds requests whose prompts still have to be prefilled, and chooses the next batch of them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol, TypeVar

import torch

from luthier.core.errors import RequestError
from luthier.core.ports import Prompt
from luthier.core.stream import PoolingRequest, TextRequest
from luthier.ml.inference.answer_row import AnswerRow, CallReader, Constraint, ConstraintFactory, Sampler
from luthier.ml.inference.batches import length_batches
from luthier.ml.inference.decode import PREFILL_TOKENS, Prefix, Request
from luthier.ml.inference.engine_prompts import ToolFormat, relevance_conversation, text_of
from luthier.ml.inference.models.chat_template import ChatTemplate
from luthier.ml.inference.thoughts import NO_THINKING, RequestTemplates, Thinking
from luthier.ml.inference.tool_calls import ToolForm
from luthier.ml.inference.transformers_engine import TransformersEngine


@dataclass(frozen=True, slots=True)
class PreparedPooling:
    """Inputs that are ready to go through the model once.

    Attributes:
        inputs: token ids of each.
        asked: the request as it came.
    """

    inputs: list[Request]
    asked: PoolingRequest


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request that is ready to be written.

    Attributes:
        asked: the request as it came.
        request: prompt ids, and the limit of thought and answer together.
        form: how the model calls tools; None where none may be called.
        thinking: how its thought is delimited, and its budget.
        constraint: makes the constraint of one choice, where there is one.
        decode: tokens as text, where thoughts are looked for.
    """

    asked: TextRequest
    request: Request
    constraint: Callable[[], Constraint] | None
    form: ToolForm | None
    thinking: Thinking = NO_THINKING
    decode: Callable[[Sequence[int]], str] | None = None

    @property
    def num_rows(self) -> int:
        """One row a choice."""
        return self.asked.num_choices

    @property
    def num_tokens(self) -> int:
        """Of one row: its prompt and all that it may write."""
        return len(self.request.ids) + self.request.max_new_tokens


class RequestPreparer:
    """Makes requests ready for one open engine. `prepare` and `pooling` may be called from several threads at once."""

    def __init__(self, engine: TransformersEngine, *, device: torch.device, num_logits: int) -> None:
        self._engine, self._device, self._num_logits = engine, device, num_logits
        tokenizer = engine.template.tokenizer
        self._backend = tokenizer.backend_tokenizer
        self._tools = ToolFormat(text_of(engine.template))
        self._templates = RequestTemplates(engine.template)
        self._constraints = ConstraintFactory(tokenizer, num_logits, engine.template.end_of_turn_ids)

    def prepare(self, asked: TextRequest) -> Prepared:
        """The request as tokens.

        Raises:
            RequestError: an empty prompt, a token or schema that is not there or cannot be followed.
            OverlongError: no room for an answer.
            TemplateError: a conversation that the model's template cannot write.
        """
        if wrong := next((one for one, _ in asked.sampling.logit_bias if not 0 <= one < self._num_logits), None):
            raise RequestError(
                f"logit_bias for the token {wrong}",
                expected=f"ids of this model's own tokenizer, 0 to {self._num_logits - 1}",
                do="leave it out",
            )
        form = self._tools.form(asked)
        # With tools and a schema the answer may be either: both go into one grammar.
        if form is not None and (asked.tool_choice == "required" or asked.json_schema is not None):
            constraint: Callable[[], Constraint] | None = self._constraints.of_grammar(
                form.grammar(asked, self._token_id)
            )
        else:
            constraint = None if asked.json_schema is None else self._constraints.of_schema(asked.json_schema)
        if asked.conversation is None:
            return Prepared(asked, self._request(asked, None), constraint, form)
        own, thoughts = self._templates.of(asked)
        request = self._request(asked, own)
        room = self._engine.room_behind(request) - request.max_new_tokens
        # The budget of the thought comes out of the context that is left behind the answer's own limit.
        thinking = thoughts.of_answer(request.ids, asked.max_thinking_tokens, room)
        request = replace(request, max_new_tokens=request.max_new_tokens + thinking.max_tokens)
        constraint = None if constraint is None else thoughts.constrained(constraint, is_open=thinking.is_open)
        return Prepared(asked, request, constraint, form, thinking, thoughts.decode)

    def row(self, key: Hashable, choice: int, adapter: str | None, prepared: Prepared) -> AnswerRow:
        """The beginning of one answer."""
        asked, form, decode = prepared.asked, prepared.form, prepared.decode or self._decode
        calls: CallReader | None = None if form is None else form.reader(asked)
        return AnswerRow(
            key=key,
            choice=choice,
            adapter=adapter,
            asked=asked,
            max_new_tokens=prepared.request.max_new_tokens,
            num_tokens=prepared.num_tokens,
            # `n` choices of one request differ by their draws alone: each has a seed of its own.
            sampler=Sampler(asked.sampling, choice, self._device),
            decode=self._decode_all if form is not None and form.has_special_marks else decode,
            end_ids=frozenset(self._engine.template.end_of_turn_ids),
            constraint=None if prepared.constraint is None else prepared.constraint(),
            calls=calls,
            thinking=prepared.thinking,
        )

    def pooling(self, request: PoolingRequest) -> PreparedPooling:
        """The inputs as tokens.

        Raises:
            RequestError: an empty input, or a token that does not exist.
            OverlongError: an input is longer than the context.
            TemplateError: a conversation that the model's template cannot write.
        """
        if request.inputs:
            found = [self._text(one) if isinstance(one, str) else self._ids(one) for one in request.inputs]
            return PreparedPooling(found, request)
        template, _ = self._templates.of(TextRequest(trained_options=request.trained_options))
        if request.pairs:
            texts = [template.render(relevance_conversation(query, document)) for query, document in request.pairs]
            return PreparedPooling([self._text(text) for text in texts], request)
        opted = request.opted_turns
        prompts = [TextRequest(conversation=one, opted_turns=opted, max_new_tokens=1) for one in request.conversations]
        return PreparedPooling([self._request(one, template) for one in prompts], request)

    def _text(self, text: str) -> Request:
        return self._engine.request_within_context(Prompt(text=text, max_new_tokens=1))

    def _ids(self, ids: Sequence[int]) -> Request:
        return self._engine.request_of_ids(ids, 1)

    def _request(self, asked: TextRequest, template: ChatTemplate | None) -> Request:
        if asked.token_ids is not None:
            return self._engine.request_of_ids(asked.token_ids, asked.max_new_tokens)
        conversation = asked.conversation
        if conversation is not None:
            conversation = self._tools.conversation(asked)
        # Seed, temperature and schema stay out of the prompt: `AnswerRow` applies them.
        return self._engine.request_within_context(
            Prompt(conversation=conversation, text=asked.text, max_new_tokens=asked.max_new_tokens), template
        )

    def _token_id(self, text: str) -> int | None:
        """Of a text that the tokenizer never takes apart."""
        added = self._engine.template.tokenizer.added_tokens_decoder
        return next((number for number, token in added.items() if token.content == text), None)

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self._backend.decode(list(ids), skip_special_tokens=True))

    def _decode_all(self, ids: Sequence[int]) -> str:
        return str(self._backend.decode(list(ids), skip_special_tokens=False))


# A longer prompt is prefilled in parts of this many tokens, between the decoding steps of other requests.
PART_TOKENS: Final = 512


@dataclass(slots=True, eq=False)
class QueuedPrompt:
    """A request for text.

    Attributes:
        key: of the request.
        prepared: its tokens and limits.
        adapter: name of its adapter; None for the base.
        owner: whom turns are shared out by; None is an owner of its own.
        prefix: the part of a long prompt that has gone through the model.
    """

    key: Hashable
    prepared: Prepared
    adapter: str | None
    owner: str | None = None
    prefix: Prefix | None = None

    @property
    def num_remaining(self) -> int:
        """How many tokens of the prompt have still to go through the model."""
        return len(self.prepared.request.ids) - (0 if self.prefix is None else self.prefix.num_tokens)

    def next_part(self) -> Sequence[int]:
        """The next tokens of a long prompt; none where all that are left go together."""
        if self.num_remaining <= PART_TOKENS:
            return ()
        ids = self.prepared.request.ids
        done = len(ids) - self.num_remaining
        return ids[done : done + PART_TOKENS]


class Owned(Protocol):
    """A request that belongs to an owner."""

    owner: str | None


_Waiting = TypeVar("_Waiting", bound=Owned)


class PrefillTurns:
    """Whose prompt goes through the model next: that of the owner who has waited longest since the last one.

    So a long prompt of one holds up a short one of another for one part at most, and not until its end.
    """

    def __init__(self) -> None:
        self._served: dict[str | None, int] = {}
        self._num_turns = 0

    def first(self, waiting: Sequence[_Waiting]) -> _Waiting:
        """The one whose turn it is: of one owner whoever came first.

        Args:
            waiting: not empty, in the order of arrival.
        """
        # `min` takes the first of equals: within an owner the order of arrival holds.
        chosen = min(waiting, key=lambda one: self._served.get(one.owner, 0))
        self._num_turns += 1
        owners = {one.owner for one in waiting}  # those who have gone start over when they come again
        self._served = {owner: turn for owner, turn in self._served.items() if owner in owners}
        self._served[chosen.owner] = self._num_turns
        return chosen


def next_prefill_batch(
    first: QueuedPrompt, arrivals: Sequence[QueuedPrompt], fits: Callable[[int], bool], max_rows: int
) -> list[QueuedPrompt]:
    """The request whose turn it is, and those of like length whose prompts go through the model with it.

    Args:
        first: whose turn it is.
        arrivals: the queue, `first` included, without those that may not go beside it.
        fits: whether rows of that many tokens can be padded.
        max_rows: of a batch.
    """
    # A long prompt goes alone: its cache has a length of its own, and parts of others would delay it.
    if first.prefix is not None or first.next_part():
        return [first]
    fitting = [one for one in arrivals if one.prefix is None and not one.next_part() and fits(one.prepared.num_tokens)]
    if first not in fitting:
        return [first]
    parts = length_batches([one.num_remaining for one in fitting], max_tokens=PREFILL_TOKENS, max_rows=max_rows)
    # Of the batches by length the one with `first`: the others have their turn later.
    own = fitting.index(first)
    return [fitting[place] for place in next(part for part in parts if own in part)]
