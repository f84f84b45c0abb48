"""Text that a model writes while somebody reads along: what is requested, and the events that come back.

Started    once a request: it was taken up
Piece      any number of times a choice: text, or calls of tools, that will not change any more
Ended      once a choice
Pooled     instead of pieces, to a `PoolingRequest`
Failed     instead of all that would still have come
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, TypeAdapter, model_validator

from luthier.core.conversation import AS_THEY_ARE, Conversation, OptedTurns
from luthier.core.defaults import NEW_TOKENS
from luthier.core.engine_rates import EngineRates
from luthier.core.errors import LuthierError, OverlongError
from luthier.core.frozen_model import FrozenModel
from luthier.core.plan import Quantisation
from luthier.core.recipe import TemplateOption

MAX_CHOICES: Final = 16
GREEDY_BELOW: Final = 1e-4
"""At this temperature the softmax is one-hot already; with a much smaller one it would overflow."""


class Sampling(FrozenModel):
    """How the next token is drawn.

    Attributes:
        temperature: 0 is greedy; what is under 0.0001 counts as 0.
        top_p: only the likeliest tokens that have this much of the probability together are drawn.
        top_k: only so many of the likeliest tokens are drawn, before `top_p` counts their probability; 0 for all.
        min_p: only tokens that have at least this share of the probability of the likeliest one are drawn.
        seed: rules the draws; choice number N of a request draws with `seed + N`.
        frequency_penalty, presence_penalty: taken off the logit of a token for each time that the answer has it
            already, and once if it has it at all.
        logit_bias: what is added to the logits of tokens, by id.
    """

    temperature: float = Field(default=1.0, ge=0.0)
    top_p: float = Field(default=1.0, ge=0.0, le=1.0)
    top_k: int = Field(default=0, ge=0)
    min_p: float = Field(default=0.0, ge=0.0, le=1.0)
    seed: int = 0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature < GREEDY_BELOW or self.top_p == 0 or self.top_k == 1


class TextRequest(FrozenModel):
    """One prompt to be continued; exactly one of `conversation`, `text` and `token_ids` is set.

    The tools that may be called are in `conversation.tools`.

    Attributes:
        conversation: turns to answer.
        text: plain text to continue.
        token_ids: the same as ids of this model's tokenizer.
        sampling: how tokens are drawn.
        max_new_tokens: of each choice; an answer ends where the context does in any case.
        stop: an answer ends before the first of these texts.
        num_choices: answers to write.
        num_top: None for no likelihoods, else how many of the likeliest tokens come with each.
        json_schema: the answer is JSON of this schema and nothing else (`{"type": "object"}` for any object).
        tool_choice: `none`: they are as if not there; `required`: the answer is one or more calls.
        tool_name: with `required`, the one tool that is called.
        calls_in_parallel: false for at most one call an answer.
        strict_tools: names of tools whose calls match their schema, although the model decides whether it calls one.
            Only the engine transformers does this; required calls always match.
        template_options: what the chat template is given with the conversation; goes before `trained_options`.
        trained_options: what the model was trained with, for the same purpose.
        opted_turns: what of the conversation is written in another way, as the model was trained.
        reasoning_effort: how much to think, as OpenAI names it; the engine sets the template's option for it.
        max_thinking_tokens: of a thought, as `core.ports.Prompt` has it; 0: it counts among `max_new_tokens`.
        returns_token_ids: whether `Ended` holds the ids of all new tokens; engines outside of this project give none.
        drops_oldest: whether the oldest turns of a conversation that is too long are left out, instead of refusing it.
        num_dropped: messages that an engine has left out of it already.
        thinks: true turns thinking on where the chat template has a switch for it, and refuses a model that has no
            place for thoughts; false turns it off; None leaves it to the template.
        thinking_budget: after that many tokens a thought is closed, and the answer follows; None for no such limit.
            Only the engine transformers does this.
        counts_tokens: the prompt is only counted: nothing is written, or one token where another server answers.
        echo: the prompt, with the likelihoods of its tokens where those are requested, comes `before` each answer, or
            `alone`. Only the engine transformers does this.
        cache_scope: requests of one scope alone continue from each other's prompts: how fast an answer begins says what
            has been asked before.
    """

    conversation: Conversation | None = None
    text: str | None = None
    token_ids: tuple[int, ...] | None = None
    sampling: Sampling = Sampling()
    max_new_tokens: int = Field(default=NEW_TOKENS, ge=1)
    stop: tuple[str, ...] = ()
    num_choices: int = Field(default=1, ge=1, le=MAX_CHOICES)
    num_top: int | None = None
    json_schema: dict[str, Any] | None = None
    tool_choice: Literal["none", "auto", "required"] = "auto"
    tool_name: str | None = None
    calls_in_parallel: bool = True
    strict_tools: tuple[str, ...] = ()
    template_options: dict[str, TemplateOption] = Field(default_factory=dict)
    trained_options: dict[str, TemplateOption] = Field(default_factory=dict)
    opted_turns: OptedTurns = AS_THEY_ARE
    reasoning_effort: str | None = None
    max_thinking_tokens: int | None = Field(default=0, ge=0)
    returns_token_ids: bool = False
    drops_oldest: bool = False
    num_dropped: int = 0
    thinks: bool | None = None
    thinking_budget: int | None = Field(default=None, ge=1)
    counts_tokens: bool = False
    echo: Literal["before", "alone"] | None = None
    cache_scope: str | None = None

    @property
    def tools(self) -> tuple[dict[str, Any], ...]:
        """The tools that may be called, as OpenAI writes them; none where they may not."""
        # With "none" the template must not show the tools either, or the model calls them.
        if self.conversation is None or self.tool_choice == "none":
            return ()
        return self.conversation.tools


RequestFeature = Literal["logprobs", "penalties", "thought_before_json"]
"""What an engine may do otherwise than the engine transformers."""


def features_of(request: TextRequest) -> frozenset[RequestFeature]:
    """The features of `RequestFeature` that a request needs."""
    found: set[RequestFeature] = set()
    if request.num_top is not None or request.echo is not None:
        found.add("logprobs")
    if request.sampling.frequency_penalty or request.sampling.presence_penalty:
        found.add("penalties")
    is_constrained = request.json_schema is not None or request.tool_choice == "required"
    if is_constrained and request.conversation is not None:
        found.add("thought_before_json")
    return frozenset(found)


class SpeculativeConfig(FrozenModel):
    """How tokens are drafted, which the model then checks several at a time; the names are vLLM's.

    Attributes:
        method: `ngram`: what followed the last tokens where they came before, in the prompt or the answer;
            `draft_model`: what a smaller model with the same tokens writes.
        num_speculative_tokens: the most tokens of a draft.
        prompt_lookup_max: ngram: how many of the last tokens must have come before.
        model: draft_model: that model, as the engine takes models: a GGUF file for llama.cpp.
    """

    method: Literal["ngram", "draft_model"]
    num_speculative_tokens: int = Field(ge=1, le=64)
    prompt_lookup_max: int = Field(default=3, ge=1, le=64)
    model: str | None = None

    @model_validator(mode="after")
    def _has_a_model_to_draft(self) -> Self:
        if (self.method == "draft_model") != (self.model is not None):
            raise ValueError(f"method {self.method} with model {self.model}: draft_model needs one, and ngram has none")
        return self

    def for_vllm(self) -> str:
        """The JSON of vLLM's option, without what its method does not have."""
        unused = {"ngram": {"model"}, "draft_model": {"prompt_lookup_max"}}[self.method]
        return self.model_dump_json(exclude=unused)


class EngineSettings(FrozenModel):
    """How an engine shares its time and memory among requests; the names are vLLM's. None: the engine's own default.

    Attributes:
        max_num_seqs: the most answers that are written in parallel.
        max_num_batched_tokens: the most tokens of one step; longer prompts go through the model in parts, between the
            steps of the active answers.
        enable_prefix_caching: whether a prompt that begins as an earlier one resumes from what is in memory.
        speculative_config: None drafts nothing.
    """

    max_num_seqs: int | None = Field(default=None, ge=1, le=1024)
    max_num_batched_tokens: int | None = Field(default=None, ge=32)
    enable_prefix_caching: bool | None = None
    speculative_config: SpeculativeConfig | None = None

    @model_validator(mode="after")
    def _has_a_token_for_each_answer(self) -> Self:
        if self.max_num_batched_tokens and self.max_num_seqs and self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens {self.max_num_batched_tokens} for max_num_seqs {self.max_num_seqs}: "
                "a step has a token of each answer, so it must be as many or more"
            )
        return self


ENGINE_DEFAULTS: Final = EngineSettings()


class Served(FrozenModel):
    """A model as loaded for serving.

    Attributes:
        engine: the name of what runs it, in the table of engines. Models that differ in `adapter_path` and
            `template_options` alone share one base in memory.
        path: the folder or file of its weights.
        sha256: of the base's weights, so that a base pulled again is loaded again.
        adapter_path: None for a base model and for one that was trained whole.
        adapter_stamp: of the files of an adapter that is opened as part of its base; the process that loads models sets
            it.
        template: how it reads prompts.
        precision: None takes what is fastest on this machine.
        quantisation: how the base is packed; None for plain weights.
        template_options: what it was trained with: what its chat template is given with a conversation, unless a
            request says otherwise.
        opted_turns: what of each conversation is written in another way, as in training.
        settings: of the engine; the process that loads models sets it.
        fallback: the same model for another engine, which answers what this one does otherwise (`for_requests`).
        hands_over: features that the fallback answers.
        rates: how fast both engines are, where the load decides which of them answers; by number of variants.
    """

    engine: str = "transformers"
    path: str
    sha256: str
    adapter_path: str | None = None
    adapter_stamp: str = ""
    template: Literal["auto", "chat", "plain"] = "auto"
    precision: Literal["float32", "bfloat16"] | None = None
    quantisation: Quantisation | None = None
    template_options: tuple[tuple[str, TemplateOption], ...] = ()
    opted_turns: OptedTurns = AS_THEY_ARE
    settings: EngineSettings = ENGINE_DEFAULTS
    fallback: Served | None = None
    hands_over: tuple[RequestFeature, ...] = ()
    rates: tuple[EngineRates, ...] = ()

    def for_requests(self, requests: Iterable[TextRequest]) -> Served:
        """What answers these prompts of one request: the fallback where any of them has a feature that it takes."""
        if self.fallback is None:
            return self
        handed = frozenset(self.hands_over)
        return self.fallback if any(handed & features_of(request) for request in requests) else self

    @property
    def for_vectors(self) -> Served:
        """What sends inputs through the model without writing: engines with a fallback only write."""
        return self if self.fallback is None else self.fallback


class Decoding(FrozenModel):
    """How a loaded model writes.

    Attributes:
        path: a word for programs, `batched` the fastest.
        description: a phrase for people.
    """

    path: str
    description: str


class LoadedModel(FrozenModel):
    """A model in the memory of the process that answers.

    Attributes:
        served: the model as loaded.
        decoding: None where its engine does not say it.
    """

    served: Served
    decoding: Decoding | None = None

    def answers(self, asked: Served) -> bool:
        """Whether it is what answers for a model: the model itself, or the base that its adapter is put over."""
        own = self.served
        # Two unknown digests are equal as text: only then the paths decide.
        has_same_weights = own.sha256 == asked.sha256 and (bool(own.sha256) or own.path == asked.path)
        runs_alike = own.engine == asked.engine and own.quantisation == asked.quantisation
        # None leaves the precision to the machine, so any loaded one will do.
        has_same_precision = asked.precision in (None, own.precision)
        return has_same_weights and runs_alike and has_same_precision and own.adapter_path in (None, asked.adapter_path)


class TokenLikelihood(FrozenModel):
    """A token with its likelihood.

    Attributes:
        token: its text.
        log_probability: natural logarithm of its probability, before temperature and penalties.
    """

    token: str
    log_probability: float


class WrittenToken(FrozenModel):
    """A token of an answer.

    Attributes:
        chosen: the token that was written.
        offset: the character of the answer at which it begins.
        top: the likeliest in its place.
    """

    chosen: TokenLikelihood
    offset: int
    top: tuple[TokenLikelihood, ...] = ()


class Started(FrozenModel):
    """The prompt is understood and goes through the model next.

    Attributes:
        kind: names the event.
        num_prompt_tokens: tokens of the prompt; 0 where the engine learns it only at the end.
        num_dropped: messages that were left out, since the conversation was too long.
    """

    kind: Literal["started"] = "started"
    num_prompt_tokens: int
    num_dropped: int = 0


class CallPiece(FrozenModel):
    """More of a call of a tool.

    Attributes:
        index: of the call in the answer.
        arguments: more of the JSON text of its arguments.
        call_id, name: with the first piece of a call, None with those after it.
    """

    index: int
    call_id: str | None = None
    name: str | None = None
    arguments: str = ""


def joined_calls(pieces: Iterable[CallPiece]) -> tuple[dict[str, Any], ...]:
    """The calls that these pieces make up, in OpenAI's format.

    Args:
        pieces: in the order in which they were written; the first one of a call has its name.
    """
    found: dict[int, dict[str, Any]] = {}
    for piece in pieces:
        if piece.name is not None:
            function = {"name": piece.name, "arguments": ""}
            found[piece.index] = {"id": piece.call_id, "type": "function", "function": function}
        found[piece.index]["function"]["arguments"] += piece.arguments
    return tuple(found.values())


class Piece(FrozenModel):
    """More of an answer: whole characters only.

    Attributes:
        kind: names the event.
        choice: the number of the choice, from 0 on.
        text: whole characters that follow what was sent before.
        num_new_tokens: of thought and answer so far.
        tokens: those that begin in it, where likelihoods were requested; of the thought, then of the answer.
        num_thought_tokens: how many of `tokens`, the first ones, are of the thought and its delimiters.
        calls: more of calls of tools, whose text is never part of `text`.
        reasoning: more of the thought, nor is it.
        of_prompt: the text is the prompt (`echo`); its first token, which follows nothing, has the likelihood 0.
    """

    kind: Literal["piece"] = "piece"
    choice: int = 0
    text: str
    num_new_tokens: int = 0
    tokens: tuple[WrittenToken, ...] = ()
    num_thought_tokens: int = 0
    calls: tuple[CallPiece, ...] = ()
    reasoning: str = ""
    of_prompt: bool = False

    @property
    def answer_tokens(self) -> tuple[WrittenToken, ...]:
        """The tokens of the answer alone."""
        return self.tokens[self.num_thought_tokens :]


EndReason = Literal["stop", "length", "tool_calls"]


class Ended(FrozenModel):
    """An answer is complete.

    stop: by itself or by a stop text; tool_calls: by itself, and it calls tools; length: by its limit or the context's.

    Attributes:
        kind: names the event.
        choice: the number of the choice, from 0 on.
        reason: why it ended.
        num_new_tokens: without the end token.
        num_prompt_tokens: where only the end reports it, and `Started` had to report 0.
        num_cached_tokens: of the prompt's tokens those that were known from an earlier prompt and not computed again.
        num_thinking_tokens: of the new ones those of the thought, its delimiters included.
        ends_in_thought: the answer never began.
        token_ids: the new tokens, where the request needs them.
        stop_text: the stop text of the request that ended it; None where another reason did.
    """

    kind: Literal["ended"] = "ended"
    choice: int = 0
    reason: EndReason
    num_new_tokens: int
    num_prompt_tokens: int | None = None
    num_cached_tokens: int = 0
    num_thinking_tokens: int = 0
    ends_in_thought: bool = False
    token_ids: tuple[int, ...] | None = None
    stop_text: str | None = None


class Pooled(FrozenModel):
    """What a `PoolingRequest` gives.

    Attributes:
        kind: names the event.
        outputs: [inputs][outputs], in the order of the inputs: a vector, the probability of each class, or one number
            (regress, rank).
        num_prompt_tokens: tokens of all inputs.
        truncated: places of the inputs that were cut to the longest text of the model.
    """

    kind: Literal["pooled"] = "pooled"
    outputs: tuple[tuple[float, ...], ...]
    num_prompt_tokens: int
    truncated: tuple[int, ...] = ()


class Failed(FrozenModel):
    """Nothing more will come.

    What it took to refuse it is counted by them.

    Attributes:
        kind: names the event.
        error: as `LuthierError.as_json` writes it.
        num_refused_tokens: of a prompt that was refused for its length.
        num_contexts: how many times the context of the model that is, rounded up.
        is_of_engine: whether the engine itself has failed, so that another one may answer the same request.
    """

    kind: Literal["failed"] = "failed"
    error: dict[str, Any]
    num_refused_tokens: int = 0
    num_contexts: int = 0
    is_of_engine: bool = False

    @classmethod
    def of(cls, error: LuthierError, *, is_of_engine: bool = False) -> Failed:
        """The event that reports an error."""
        if not isinstance(error, OverlongError) or not error.most_tokens:
            return cls(error=error.as_json(), is_of_engine=is_of_engine)
        # Ceiling division.
        num_contexts = -(-error.num_tokens // error.most_tokens)
        return cls(error=error.as_json(), num_refused_tokens=error.num_tokens, num_contexts=num_contexts)


StreamEvent = Started | Piece | Ended | Pooled | Failed
stream_event: TypeAdapter[StreamEvent] = TypeAdapter(Annotated[StreamEvent, Field(discriminator="kind")])
