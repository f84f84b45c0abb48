"""Request preparation for a transformers model (token ids, constraint, output parsing), and the prefill queue.

The queue contains requests whose prompts are not prefilled yet, and chooses the next batch; a group has rows whose
answers are decoded together.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Protocol, TypeVar

import torch
from torch import Tensor

from luthier.core.errors import RequestError
from luthier.core.pooling import PoolingRequest
from luthier.core.ports import Prompt
from luthier.core.stream import TextRequest
from luthier.ml.inference.answer_row import AnswerRow, Constraint, ConstraintFactory, Sampler
from luthier.ml.inference.batches import length_batches
from luthier.ml.inference.decode import PREFILL_TOKENS, Batch, Prefix, Request
from luthier.ml.inference.engine_prompts import ToolFormat, fitted
from luthier.ml.inference.kv_cache import RowBatch, shallow
from luthier.ml.inference.models.own_embedding import own_ending, shortened
from luthier.ml.inference.models.own_reranker import pair_ids
from luthier.ml.inference.models.templates.chat_template import ChatTemplate
from luthier.ml.inference.thoughts import NO_THINKING, RequestTemplates, Thinking
from luthier.ml.inference.tool_calls.channels import CallReader
from luthier.ml.inference.tool_calls.forms import ToolForm
from luthier.ml.inference.transformers_engine import TransformersEngine

_Input = TypeVar("_Input")
_CONTINUED_TOKENS: Final = 8


@dataclass(frozen=True, slots=True)
class PreparedPooling:
    """Prepared inputs for a single pass.

    Attributes:
        inputs: token ids of each.
        asked: the original request.
        truncated: places of the texts that were cut to the longest one that the model reads.
    """

    inputs: list[Request]
    asked: PoolingRequest
    truncated: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request that is ready for generation.

    Attributes:
        asked: the original request.
        request: prompt ids, and the joint limit of reasoning and answer.
        form: the tool call format; None if no tool may be called.
        thinking: delimiters and budget of its reasoning.
        constraint: creates the constraint of one choice, if any.
        decode: converts tokens to text, with the marks of reasoning and of calls; None for the usual way.
    """

    asked: TextRequest
    request: Request
    constraint: Callable[[], Constraint] | None
    form: ToolForm | None
    thinking: Thinking = NO_THINKING
    decode: Callable[[Sequence[int]], str] | None = None

    @property
    def num_rows(self) -> int:
        """The number of rows, one per choice."""
        return self.asked.num_choices

    @property
    def num_tokens(self) -> int:
        """Tokens of one row: its prompt plus its maximum new tokens."""
        return len(self.request.ids) + self.request.max_new_tokens


class RequestPreparer:
    """Prepares requests for one open engine. `prepare` and `pooling` are thread-safe."""

    def __init__(self, engine: TransformersEngine, *, device: torch.device, num_logits: int) -> None:
        self._engine, self._device, self._num_logits = engine, device, num_logits
        tokenizer = engine.template.tokenizer
        self._backend = tokenizer.backend_tokenizer
        self._tools = ToolFormat.of(engine.template)
        self._templates = RequestTemplates(engine.template)
        self._constraints = ConstraintFactory(tokenizer, num_logits, engine.template.end_of_turn_ids)

    def prepare(self, asked: TextRequest) -> Prepared:
        """The request as tokens.

        Raises:
            RequestError: the prompt is empty, a token does not exist, or a schema cannot be enforced.
            OverlongError: there is no room for an answer.
            TemplateError: the model's template cannot render the conversation.
        """
        return fitted(asked, self._prepared, lambda made: made.request.max_new_tokens)

    def _prepared(self, asked: TextRequest) -> Prepared:
        if wrong := next((one for one, _ in asked.sampling.logit_bias if not 0 <= one < self._num_logits), None):
            raise RequestError(
                f"logit_bias for the token {wrong}",
                expected=f"ids of this model's own tokenizer, 0 to {self._num_logits - 1}",
                do="leave it out",
            )
        form = self._tools.form(asked)
        # With tools and a schema the answer may be either: one grammar covers both.
        if form is not None and (asked.tool_choice == "required" or asked.json_schema is not None):
            constraint: Callable[[], Constraint] | None = self._constraints.of_grammar(
                form.grammar(asked, self._token_id)
            )
        elif form is not None and asked.strict_tools:
            # No regular expression matches a special token: those around a thought are named.
            shown = self._templates.of(asked)[1].shown
            constraint = self._constraints.of_grammar(form.strict_grammar(asked, self._token_id, shown))
        else:
            constraint = None if asked.json_schema is None else self._constraints.of_schema(asked.json_schema)
        if asked.conversation is None:
            return Prepared(asked, self._request(asked, None), constraint, form)
        own, thoughts = self._templates.of(asked)
        request = self._request(asked, own)
        room = self._engine.room_behind(request) - request.max_new_tokens
        # The reasoning budget is taken from the context that remains after the answer's limit.
        thinking = thoughts.of_answer(request.ids, asked.max_thinking_tokens, room)
        request = replace(request, max_new_tokens=request.max_new_tokens + thinking.max_tokens)
        constraint = None if constraint is None else thoughts.constrained(constraint, is_open=thinking.is_open)
        # Marks of calls are special tokens in many vocabularies; the others stay hidden.
        marks = form.marks if form is not None and self._tools.has_special_marks(form) else ()
        decode = thoughts.decoder(marks) if marks else thoughts.decode
        return Prepared(asked, request, constraint, form, thinking, decode)

    def row(self, prompt: QueuedPrompt, choice: int) -> AnswerRow:
        """The initial state of one answer.

        Args:
            prompt: what it answers.
            choice: number of the answer among those of the request.
        """
        prepared = prompt.prepared
        asked, form, decode = prepared.asked, prepared.form, prepared.decode or self._decode
        # The beginning of an answer to a conversation is that of a text; a continuation keeps the space that it begins
        # with, which some tokenizers drop where a text begins. Vectors of a trained prompt are no text.
        ids = prepared.request.ids[self._engine.num_virtual_tokens :] if asked.conversation is None else ()
        calls: CallReader | None = None if form is None else form.reader(asked)
        return AnswerRow(
            key=prompt.key,
            choice=choice,
            adapter=prompt.adapter,
            asked=asked,
            max_new_tokens=prepared.request.max_new_tokens,
            num_tokens=prepared.num_tokens,
            # The `n` choices of a request differ only by their seed.
            sampler=Sampler(asked.sampling, choice, self._device),
            decode=decode,
            end_ids=frozenset(self._engine.template.end_of_turn_ids),
            constraint=None if prepared.constraint is None else prepared.constraint(),
            calls=calls,
            calls_for_stops=form.reader(asked) if form is not None and asked.stop else None,
            thinking=prepared.thinking,
            num_cached_tokens=max(0, prompt.num_cached_tokens - self._engine.num_virtual_tokens),
            continued_ids=ids[-_CONTINUED_TOKENS:],
        )

    def pooling(self, request: PoolingRequest) -> PreparedPooling:
        """The inputs as tokens.

        Raises:
            RequestError: an input is empty, or a token does not exist.
            OverlongError: an input is longer than the context.
            TemplateError: the model's template cannot render the conversation.
        """
        if request.inputs:
            # The same ending as where the model is trained or compared: what a vector is made of may be its state.
            end = own_ending(self._engine.template.tokenizer) if request.adds_ending else ""
            texts = [one + end if one and isinstance(one, str) else one for one in request.inputs]
            if request.max_tokens is not None:
                return self._cut(texts, request, request.max_tokens)
            found = [self._input(one, name) for one, name in _named(texts)]
            return PreparedPooling(found, request)
        template, _ = self._templates.of(TextRequest(trained_options=request.trained_options))
        if request.pairs:
            documents, truncated = self._short_documents(request)
            pairs = [
                pair_ids(template, query, document, request.pair_format, request.instruction)
                for (query, _), document in zip(request.pairs, documents, strict=True)
            ]
            return PreparedPooling([self._input(ids, name) for ids, name in _named(pairs)], request, truncated)
        opted = request.opted_turns
        prompts = [TextRequest(conversation=one, opted_turns=opted, max_new_tokens=1) for one in request.conversations]
        return PreparedPooling([self._request(one, template, name) for one, name in _named(prompts)], request)

    def _short_documents(self, request: PoolingRequest) -> tuple[list[str], tuple[int, ...]]:
        """The documents of pairs, longer ones cut behind their last token that is read; which ones were cut."""
        most, found, truncated = request.max_tokens, [], []
        for place, (_, document) in enumerate(request.pairs):
            # Without the tokens that the tokenizer adds: they are no part of the document.
            ends = [] if most is None else self._backend.encode(document, add_special_tokens=False).offsets
            if most is not None and len(ends) > most:
                truncated.append(place)
                document = document[: ends[most - 1][1]]
            found.append(document)
        return found, tuple(truncated)

    def _cut(self, texts: Sequence[str | Sequence[int]], request: PoolingRequest, max_tokens: int) -> PreparedPooling:
        """Texts as tokens, longer ones cut; token ids are the caller's own and stay as they are."""
        template = self._engine.template
        found, truncated = [], []
        for place, (one, name) in enumerate(_named(texts)):
            ids = template.ids(one) if isinstance(one, str) else list(one)
            if isinstance(one, str) and len(ids) > max_tokens:
                truncated.append(place)
                ids = shortened(ids, max_tokens, template.tokenizer)
            found.append(self._input(ids, name))
        return PreparedPooling(found, request, tuple(truncated))

    def _input(self, given: str | Sequence[int], name: str) -> Request:
        if isinstance(given, str):
            return self._engine.request_within_context(Prompt(text=given, max_new_tokens=1), name=name)
        return self._engine.request_of_ids(given, 1, name)

    def _request(self, asked: TextRequest, template: ChatTemplate | None, name: str = "the prompt") -> Request:
        if asked.token_ids is not None:
            return self._engine.request_of_ids(asked.token_ids, asked.max_new_tokens, name)
        conversation = asked.conversation
        if conversation is not None:
            conversation = self._tools.conversation(asked)
        # Seed, temperature and schema are not part of the prompt: `AnswerRow` applies them.
        return self._engine.request_within_context(
            Prompt(conversation=conversation, text=asked.text, max_new_tokens=asked.max_new_tokens), template, name
        )

    def _token_id(self, text: str) -> int | None:
        """The id of a text that is a single token."""
        added = self._engine.template.tokenizer.added_tokens_decoder
        return next((number for number, token in added.items() if token.content == text), None)

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self._backend.decode(list(ids), skip_special_tokens=True))


def _named(inputs: Sequence[_Input]) -> list[tuple[_Input, str]]:
    """Inputs of one request with their names in errors, by their places."""
    if len(inputs) == 1:
        return [(inputs[0], "the input")]
    return [(one, f"input {number:,} of {len(inputs):,}") for number, one in enumerate(inputs, 1)]


# Longer prompts are prefilled in parts of this many tokens, between decoding steps of other requests.
PART_TOKENS: Final = 512


@dataclass(slots=True, eq=False)
class QueuedPrompt:
    """A request in the prefill queue.

    Attributes:
        key: of the request.
        prepared: its tokens and limits.
        adapter: name of its adapter; None for the base.
        owner: used for fair scheduling; None counts as one owner.
        prefix: the part of it that is computed: of a long prompt, or of an earlier one that begins so.
        order: its number in the order of arrival.
        row: the answer that it continues; None where it begins one for each choice.
        num_cached_tokens: how many of its tokens were known from an earlier prompt.
        following: of a prompt that is returned, for each token but the first: its log-probability, and the likeliest
            tokens in its place; None where these are no numbers.
    """

    key: Hashable
    prepared: Prepared
    adapter: str | None
    owner: str | None = None
    prefix: Prefix | None = None
    order: int = 0
    row: AnswerRow | None = None
    num_cached_tokens: int = 0
    following: list[tuple[float, list[tuple[int, float]]] | None] = field(default_factory=list)

    @property
    def reads_prompt(self) -> bool:
        """Whether the likelihoods of its own tokens are returned, so that each of them goes through the model."""
        asked = self.prepared.asked
        return self.row is None and asked.echo is not None and asked.num_top is not None

    @property
    def is_short(self) -> bool:
        """Whether what remains of it fits into one pass."""
        return self.num_remaining <= PART_TOKENS

    @property
    def is_read(self) -> bool:
        """Whether the likelihoods of all its tokens are known."""
        return len(self.following) >= len(self.prepared.request.ids) - 1

    def continue_from(self, prefix: Prefix | None) -> None:
        """Begin with what is kept of an earlier prompt; None: with its first token."""
        self.prefix = prefix
        self.num_cached_tokens = 0 if prefix is None else prefix.num_tokens

    @property
    def reader(self) -> tuple[str | None, str | None]:
        """Its adapter and the scope of its request: only prompts with the same ones may continue from each other."""
        return self.adapter, self.prepared.asked.cache_scope

    @property
    def num_rows(self) -> int:
        """The number of answers that continue it."""
        return self.prepared.num_rows if self.row is None else 1

    @property
    def num_remaining(self) -> int:
        """The number of prompt tokens that are not computed yet."""
        return len(self.prepared.request.ids) - (0 if self.prefix is None else self.prefix.num_tokens)

    def next_part(self) -> Sequence[int]:
        """The next tokens of a long prompt; empty if the rest fits into one pass."""
        ids = self.prepared.request.ids
        done = len(ids) - self.num_remaining
        if self.reads_prompt and not self.is_read:
            # All but the last token, behind which the answer begins.
            return ids[done : min(done + PART_TOKENS, len(ids) - 1)]
        if self.is_short:
            return ()
        return ids[done : done + PART_TOKENS]


class Owned(Protocol):
    """A request that belongs to an owner."""

    owner: str | None


_Waiting = TypeVar("_Waiting", bound=Owned)


class PrefillTurns:
    """Chooses the next prompt: that of the owner who has waited longest since their last one.

    So a long prompt of one owner delays a short one of another by at most one part.
    """

    def __init__(self) -> None:
        self._served: dict[str | None, int] = {}
        self._num_turns = 0

    def first(self, waiting: Sequence[_Waiting]) -> _Waiting:
        """The next request; within an owner, in order of arrival.

        Args:
            waiting: not empty, in the order of arrival.
        """
        # `min` takes the first of equals: within an owner the order of arrival holds.
        chosen = min(waiting, key=lambda one: self._served.get(one.owner, 0))
        self._num_turns += 1
        owners = {one.owner for one in waiting}  # owners without requests start over when they return
        self._served = {owner: turn for owner, turn in self._served.items() if owner in owners}
        self._served[chosen.owner] = self._num_turns
        return chosen


def next_prefill_batch(
    first: QueuedPrompt, queue: Sequence[QueuedPrompt], fits: Callable[[int], bool], max_rows: int
) -> list[QueuedPrompt]:
    """The next request, and requests of similar length behind the same prefix to prefill with it.

    Args:
        first: the next request.
        queue: the waiting requests with `first`, without those that cannot share its batch.
        fits: whether rows of that many tokens can be padded.
        max_rows: of a batch.
    """
    # A long prompt is processed alone: its cache has a different length, and parts of others would delay it.
    if first.next_part():
        return [first]
    fitting = [
        one for one in queue if one.prefix is first.prefix and not one.next_part() and fits(one.prepared.num_tokens)
    ]
    if first not in fitting:
        return [first]
    parts = length_batches([one.num_remaining for one in fitting], max_tokens=PREFILL_TOKENS, max_rows=max_rows)
    # Of the batches by length, the one with `first`; the others follow later.
    own = fitting.index(first)
    begun = [fitting[place] for place in next(part for part in parts if own in part)]
    requests = [one.prepared.request for one in begun]
    widest = max(len(one.ids) for one in requests) + max(one.max_new_tokens for one in requests)
    # Behind a prefix the padding of shorter rows is in the middle of their tokens, where windows count it.
    return begun if first.prefix is None or fits(widest) else [first]


@dataclass(slots=True, eq=False)
class RowGroup:
    """Rows that share a batch.

    Attributes:
        batch: the rows and their cache.
        logits: [rows, vocabulary] of the next token of each.
        num_room: remaining tokens in preallocated buffers; None for an ordinary cache.
    """

    batch: Batch | RowBatch
    logits: Tensor
    num_room: int | None

    def keep(self, rows: Collection[int]) -> None:
        """Drop all rows but these."""
        places = [place for place, number in enumerate(self.batch.rows) if number in rows]
        if places and len(places) < len(self.batch.rows):
            self.batch.keep(places)
            self.logits = self.logits[torch.tensor(places, device=self.logits.device)]
        elif not places:
            # A batch without rows cannot be indexed; whoever holds the group removes it.
            self.batch.rows = []

    def taken(self, rows: Collection[int]) -> RowGroup:
        """These of its rows as their own group, which leaves this one; the group itself where it has no others."""
        left = [number for number in self.batch.rows if number not in rows]
        if not left or not isinstance(self.batch, Batch):
            return self
        part = RowGroup(replace(self.batch, cache=shallow(self.batch.cache)), self.logits, self.num_room)
        part.keep(rows)
        self.keep(left)
        # It is as wide as the rows that have left it: laid out again without their columns.
        self.num_room = 0
        return part
