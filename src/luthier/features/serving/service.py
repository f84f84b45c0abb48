"""Use cases: generate answers, complete or streamed."""

from __future__ import annotations

import json
import logging
import queue
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final, TypeVar

from luthier.core.access import Caller
from luthier.core.conversation import AS_THEY_ARE, Conversation, Message
from luthier.core.defaults import SECOND_VERDICT_TOKENS
from luthier.core.errors import LuthierError, WorkError, error_from
from luthier.core.ids import sha256_document
from luthier.core.pooling import PoolingRequest
from luthier.core.stream import (
    CallPiece,
    Ended,
    EndReason,
    Failed,
    Piece,
    Pooled,
    Sampling,
    Served,
    Started,
    TextRequest,
    WrittenToken,
    joined_calls,
)
from luthier.core.task_head import refuse_other_use
from luthier.features.serving.engine_balance import EnginePick, PickReason
from luthier.features.serving.inference_client import Event
from luthier.features.serving.models import Routed, head_of, route, served_model, user_of
from luthier.features.serving.open_request import OnEvent
from luthier.features.serving.prompt_window import PromptWindow
from luthier.features.usage.service import use_of
from luthier.platform.auth.service import charge_tokens
from luthier.platform.home.context import Context

log = logging.getLogger("luthier.service")
_Asked = TypeVar("_Asked", TextRequest, PoolingRequest)
GRADE_TOKENS: Final = 256
"""Of an answer that grades, which sets no limit; a thought before it is in addition."""


@dataclass(slots=True)
class Choice:
    """One answer so far.

    Attributes:
        pieces: Its text, in pieces as received.
        thoughts: The reasoning before it, in pieces.
        tokens: The tokens of its text with their log-probabilities, if requested; none of the reasoning.
        calls: Pieces of its tool calls.
        num_new_tokens: Generated so far, including reasoning.
        num_thinking_tokens: Reasoning tokens among them; known once it has ended.
        reason: The finish reason; None while it is generated.
        stop_text: The stop text of the request that ended it; None where another reason did.
        prompt: The prompt, where the request has it returned; None where not.
    """

    pieces: list[str] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    tokens: list[WrittenToken] = field(default_factory=list)
    calls: list[CallPiece] = field(default_factory=list)
    num_new_tokens: int = 0
    num_thinking_tokens: int = 0
    reason: EndReason | None = None
    stop_text: str | None = None
    prompt: Piece | None = None

    @property
    def text(self) -> str:
        """The whole text, without reasoning."""
        return "".join(self.pieces)

    @property
    def reasoning(self) -> str:
        """The reasoning; empty if there is none."""
        return "".join(self.thoughts)

    def tool_calls(self) -> list[dict[str, Any]]:
        """The tool calls, in OpenAI's format."""
        return list(joined_calls(self.calls))


@dataclass(slots=True)
class Answer:
    """The answers to one or several prompts so far; `hear` accepts their events, from one thread at a time.

    Attributes:
        choices: All choices, prompt after prompt.
        num_prompts: How many prompts were sent.
        num_started: How many of them the engine has started.
        num_prompt_tokens: Tokens of these prompts, each counted once regardless of its number of choices.
        num_cached_tokens: How many of them were known from earlier prompts, once all choices have ended.
        error: The error that ended the request.
        routed: The target, if known, for usage accounting.
        num_refused_tokens: Tokens of prompts that were rejected for their length.
        num_contexts: The same in multiples of the model's context, rounded up.
        num_dropped: Messages that were left out of a conversation that was too long, where the request allows it.
    """

    choices: list[Choice]
    num_prompts: int = 1
    num_started: int = 0
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    error: LuthierError | None = None
    routed: Routed | None = None
    num_refused_tokens: int = 0
    num_contexts: int = 0
    num_dropped: int = 0

    def hear(self, event: Event) -> None:
        """Apply one event."""
        if isinstance(event, Started):
            self.num_started += 1
            self.num_prompt_tokens += event.num_prompt_tokens
            self.num_dropped += event.num_dropped
        elif isinstance(event, Failed):
            # The first failure is reported: later ones are often its consequences.
            self.error = self.error or error_from(event.error)
            self.num_refused_tokens += event.num_refused_tokens
            self.num_contexts += event.num_contexts
        elif isinstance(event, Piece):
            choice = self.choices[event.choice]
            if event.of_prompt:
                choice.prompt = event
                return
            choice.pieces.append(event.text)
            choice.thoughts.append(event.reasoning)
            choice.tokens += event.answer_tokens
            choice.calls += event.calls
            choice.num_new_tokens = event.num_new_tokens
        elif isinstance(event, Ended):
            choice = self.choices[event.choice]
            choice.num_new_tokens, choice.reason = event.num_new_tokens, event.reason
            choice.num_thinking_tokens, choice.stop_text = event.num_thinking_tokens, event.stop_text
            if event.choice % (len(self.choices) // self.num_prompts) == 0:  # a prompt counts once for all its choices
                self.num_prompt_tokens += event.num_prompt_tokens or 0
                self.num_cached_tokens += event.num_cached_tokens

    @property
    def has_started(self) -> bool:
        """Whether every prompt was started."""
        return self.num_started == self.num_prompts

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will come."""
        return self.error is not None or all(choice.reason is not None for choice in self.choices)

    @property
    def num_new_tokens(self) -> int:
        """Of all choices."""
        return sum(choice.num_new_tokens for choice in self.choices)

    @property
    def num_thinking_tokens(self) -> int:
        """Reasoning tokens of all choices."""
        return sum(choice.num_thinking_tokens for choice in self.choices)


def new_seed() -> int:
    """A random seed for a request without one."""
    return secrets.randbits(31)


@dataclass(frozen=True, slots=True)
class Answering:
    """What answers a request.

    Attributes:
        engine: The engine by its name.
        reason: Why this engine.
        fingerprint: Of the model and its configuration, the engine among it.
    """

    engine: str = ""
    reason: PickReason = "only"
    fingerprint: str = ""

    @classmethod
    def of(cls, pick: EnginePick) -> Answering:
        """Of the engine of a request."""
        served = pick.served
        # Fields at their defaults are left out, so that they do not change the fingerprints of models that lack them.
        unset = {name for name in ("template_options", "opted_turns") if getattr(served, name) in ((), AS_THEY_ARE)}
        unset |= {"adapter_stamp", "settings", "fallback", "hands_over", "rates"}  # what does not answer this request
        digest = sha256_document(served.model_dump(mode="json", exclude=unset))
        return cls(served.engine, pick.reason, f"fp_{digest[:10]}")


def ask(
    context: Context,
    caller: Caller,
    model: str | Routed,
    requests: Sequence[TextRequest],
    hear: OnEvent,
    *,
    engine: str | None = None,
    moved: Callable[[Answering], None] = lambda _: None,
) -> tuple[Callable[[], None], Answering]:
    """Generate answers to prompts; returns a function that cancels it, and what answers.

    Args:
        context: The home.
        caller: Whose budget and slots are used.
        model: Its name, or the routed target.
        requests: One per prompt. Choices are numbered across all of them.
        hear: Called with every event, from another thread; it must not block.
        engine: The engine that the client asks for; None or `auto` leaves it to the load.
        moved: Called where another engine answers than the one returned, since that has failed before it began.

    Raises:
        QuotaError: The caller's daily token budget is used up.
        NotFoundError: No such model.
        RequestError: The model does not generate text, or the engine does not run it or not such a request.
        BusyError: Too many requests are running or waiting.
        WorkError: The server is shutting down. Errors of the request itself are reported as `Failed`.
    """
    # Charging zero tokens checks the budget before any work is queued.
    charge_tokens(context, caller, 0)
    served = model.served if isinstance(model, Routed) else served_model(context, caller, model)
    refuse_head(model.model if isinstance(model, Routed) else model, served)
    client = context.inference_client
    # One engine for all prompts of a request: its answers have one shape, and one fingerprint.
    pick = client.pick(served, requests, engine)

    def send(request: TextRequest, hear_each: OnEvent, *, had_slot: bool) -> Callable[[], None]:
        _, asked = as_trained(pick.served, request)
        return client.ask_picked(
            pick,
            asked.model_copy(update={"cache_scope": caller.project_id}),
            hear_each,
            as_loaded=as_loaded,
            key=_place_of(caller),
            moved=lambda other: moved(Answering.of(other)),
            had_slot=had_slot,
        )

    window = PromptWindow(requests, send, hear)
    window.begin()
    return window, Answering.of(pick)


def refuse_head(name: str, served: Served) -> None:
    """Raise RequestError if a model has a task head instead of text output; the message names the right endpoint."""
    if (head := head_of(served)) is not None:
        refuse_other_use(name, head.kind, None)


def as_trained(served: Served, request: _Asked) -> tuple[Served, _Asked]:
    """A model in loadable form, and a request with the template options and turn rewriting of the model's training.

    Explicit options of the request are kept, and a difference from training is logged.
    """
    trained = dict(served.template_options)
    if isinstance(request, TextRequest) and (otherwise := template_option_warning(served, request)) is not None:
        _warn_once(served.adapter_path or served.path, otherwise)
    if served.opted_turns != AS_THEY_ARE:
        request = request.model_copy(update={"opted_turns": served.opted_turns})
    if trained:
        request = request.model_copy(update={"trained_options": trained})
    return as_loaded(served), request


def as_loaded(served: Served) -> Served:
    """A model without what it was trained with, so that it shares its base with models trained otherwise."""
    if not served.template_options and served.opted_turns == AS_THEY_ARE:
        return served
    return served.model_copy(update={"template_options": (), "opted_turns": AS_THEY_ARE})


def template_option_warning(served: Served, request: TextRequest) -> str | None:
    """A warning about template options that differ from the model's training; None if there are none."""
    trained, asked = dict(served.template_options), request.template_options
    if not trained and served.adapter_path is None:
        return None  # probably a base model
    told = [f"{name}={json.dumps(value)}" for name, value in sorted(asked.items()) if trained.get(name) != value]
    told += [] if request.reasoning_effort is None else [f"reasoning_effort={request.reasoning_effort}"]
    if not told:
        return None
    with_what = f"the template options {json.dumps(trained)}" if trained else "the chat template's own defaults"
    return f"the request sets {', '.join(told)}; the model was trained with {with_what}: answers may be worse"


@lru_cache(maxsize=256)
def _warn_once(model: str, otherwise: str) -> None:
    """Log once for all equal requests."""
    log.warning("%s: %s", model, otherwise)


def ask_pooling(
    context: Context, caller: Caller, model: str | Routed, request: PoolingRequest, hear: OnEvent
) -> Callable[[], None]:
    """Run single-pass inference on inputs; returns a function that cancels it. Charge the usage with `charge_pooled`.

    Args:
        context: The home.
        caller: Whose budget and slots are used.
        model: Its name, or what that was routed to.
        request: The inputs.
        hear: Called once, with `Pooled` or `Failed`.

    Raises:
        QuotaError: The caller's daily token budget is used up.
        NotFoundError: No such model.
        RequestError: The model does not support this.
        BusyError: Too many requests are running or waiting.
        WorkError: The server is shutting down.
    """
    # As in `ask`: an exhausted budget is rejected before any work is queued.
    charge_tokens(context, caller, 0)
    served = model.served if isinstance(model, Routed) else served_model(context, caller, model)
    head = head_of(served)
    refuse_other_use(
        model.model if isinstance(model, Routed) else model, None if head is None else head.kind, request.kind
    )
    loaded, asked = as_trained(served.for_vectors, request)
    return context.inference_client.ask(loaded, asked, hear, key=_place_of(caller))


def charge_pooled(context: Context, caller: Caller, made: Pooled, routed: Routed | None = None) -> None:
    """Charge the tokens of such inputs to the caller's budget.

    Args:
        context: The home.
        caller: Whose budget is used.
        made: The result with its tokens.
        routed: The target whose use is counted; None counts none.
    """
    use = None if routed is None else use_of(context, caller, routed, made.num_prompt_tokens, 0)
    charge_tokens(context, caller, made.num_prompt_tokens, may_refuse=False, use=use)


def answer(
    context: Context,
    caller: Caller,
    model: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    max_tokens: int | None,
    temperature: float = 0.0,
    seed: int = 0,
) -> str:
    """The answer of a model to messages, with the rights of the caller's key; blocks and charges its tokens.

    Args:
        context: The home.
        caller: Whose budget and slots are used.
        model: Its name.
        messages: Chat messages, the last of which is answered.
        max_tokens: Maximum new tokens, those of a thought among them; None: `GRADE_TOKENS`, and a thought;
            where that is too few, `SECOND_VERDICT_TOKENS`.
        temperature: Sampling temperature; 0 is greedy.
        seed: Of sampling.

    Raises:
        QuotaError: The caller's daily token budget is used up.
        NotFoundError: No such model.
        BusyError: Too many requests are running or waiting.
        RequestError: The model does not support the messages.
        WorkError: The model cannot answer now, or without a limit is cut off before its verdict.
    """
    conversation = Conversation(messages=tuple(Message.model_validate(dict(message)) for message in messages))
    sampling = Sampling(temperature=temperature, seed=seed)

    def ask(most: int) -> tuple[str, bool]:
        request = TextRequest(
            conversation=conversation,
            sampling=sampling,
            max_new_tokens=max_tokens or most,
            max_thinking_tokens=None if max_tokens is None else 0,
        )
        choice = complete(context, caller, model, [request])[0].choices[0]
        return choice.text, choice.reason == "length"

    return whole_grade(model, ask, has_own_limit=max_tokens is not None)


def whole_grade(model: str, ask: Callable[[int], tuple[str, bool]], *, has_own_limit: bool) -> str:
    """The reply of a grading model, which is asked again with more room where it was cut off before its verdict.

    Args:
        model: Its name, for the error.
        ask: Gets the most new tokens; returns the reply, and whether it was cut off.
        has_own_limit: Whether the grader limits the tokens: then the first reply is taken as it is.

    Raises:
        WorkError: The reply is cut off before its verdict, with more room too.
    """
    from luthier.ml.evaluation.judge.replies import has_result

    # What leads to a verdict has its own numbers and labels: a reply without its end is no grade.
    for most in (GRADE_TOKENS, SECOND_VERDICT_TOKENS):
        text, is_cut = ask(most)
        # A limit of the grader itself is meant: one token is enough for a digit.
        if has_own_limit or not is_cut or has_result(text):
            return text
    raise WorkError(
        f"{model} was cut off after {SECOND_VERDICT_TOKENS:,} tokens, before its verdict",
        expected="a grade",
        do="have the grader ask for the verdict alone",
    )


def complete(
    context: Context, caller: Caller, model: str, requests: Sequence[TextRequest], user: str | None = None
) -> tuple[Answer, str]:
    """The whole answers to prompts, and the fingerprint of the model; blocks and charges their tokens.

    Args:
        context: The home.
        caller: Whose budget and slots are used.
        model: Its name.
        requests: One for each prompt.
        user: The end user, if the request names one.

    Raises:
        QuotaError: The caller's daily token budget is used up.
        NotFoundError: The project has no such model.
        BusyError: Too many requests are running or waiting.
        RequestError: The model does not support a request.
        WorkError: The model cannot answer now.
    """
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    routed = route(context, caller, model, user_of(caller, requests, user))
    choices = [Choice() for one in requests for _ in range(one.num_choices)]
    heard = Answer(choices, num_prompts=len(requests), routed=routed)
    answering: list[Answering] = []
    cancel, first = ask(context, caller, routed, requests, events.put, moved=answering.append)
    try:
        while not heard.has_ended:
            heard.hear(events.get())
    finally:
        # Where one prompt fails, nobody waits for the others.
        cancel()
    charge(context, caller, heard)
    if heard.error is not None:
        raise heard.error
    return heard, (answering[-1] if answering else first).fingerprint


def charge(context: Context, caller: Caller, heard: Answer) -> None:
    """Charge the tokens of an answer, complete or not, and of rejected prompts to the caller's budget.

    Rejected prompts are not model usage and not part of the cost of a deployment.
    """
    if num_tokens := heard.num_prompt_tokens + heard.num_new_tokens:
        routed = heard.routed
        use = None if routed is None else use_of(context, caller, routed, heard.num_prompt_tokens, heard.num_new_tokens)
        charge_tokens(context, caller, num_tokens, may_refuse=False, use=use)
    charge_refused(context, caller, heard.num_refused_tokens)


def charge_refused(context: Context, caller: Caller, num_tokens: int) -> None:
    """Charge the tokens of a prompt that was rejected for its length to the caller's budget."""
    if num_tokens:
        charge_tokens(context, caller, num_tokens, may_refuse=False)


def _place_of(caller: Caller) -> str | None:
    """The key by which concurrent requests are counted; None for a local user."""
    return caller.key_id or caller.member_id
