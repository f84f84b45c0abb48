"""Texts for evaluations and synthesis by the engine process of the server: no second copy of a model in memory.

A job or a command of the home asks the server as a batch does (`engine_lending`): behind live requests, a few prompts
at a time. It is asked only where its answers are those of an engine that the caller would open: the same weights,
precision, template and adapter, run by the engine transformers on its batched path. In float32 the answers are then
equal; in bfloat16 the last bits of a sum depend on which rows share a batch, so that the setting `share_engine` has to
allow it.

Where live requests never pause, a job gets one answer at a time. After `share_engine_wait_seconds` of that it asks no
more, and its own engine writes the rest.
"""

from __future__ import annotations

import queue
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

from luthier.core.errors import LuthierError, OverlongError, error_from
from luthier.core.ports import Generation, Prompt
from luthier.core.stream import Failed, LoadedModel, Served, Started, StreamEvent, TextRequest
from luthier.core.system.gpu_device import has_gpu
from luthier.features.models.resolve import Candidate
from luthier.features.serving.borrowed_engine import Cancel, Lender, ServerConnection
from luthier.features.serving.model_facts import settled_template
from luthier.ml.inference.engine_wrappers import StreamedAnswer, text_request
from luthier.platform.home.context import Context

NUM_AT_ONCE: Final = 16
"""Prompts that one caller has sent and that are not answered: as many as a batch."""
_EXACT: Final = "float32"
_LOOK_SECONDS: Final = 0.5


class SharedEngines:
    """The models that the server of a home has in memory.

    Args:
        context: The home.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._server = ServerConnection(context.home)

    def of(self, candidate: Candidate, num_answers: int) -> LentEngine | None:
        """The server's engine for a candidate; None where the caller needs its own engine.

        Args:
            candidate: A base model or a run.
            num_answers: How many answers the work needs in all.
        """
        settings = self._context.settings
        if settings.share_engine == "never" or num_answers < settings.share_engine_from:
            return None
        if settings.share_engine == "exact" and candidate.precision != _EXACT:
            return None
        # The server computes on the GPU where there is one.
        if (candidate.device == "cpu") == has_gpu():
            return None
        if (lender := self._server.lender) is None:
            return None
        with suppress(LuthierError):  # a model that cannot be read is reported by the caller's own engine
            wanted = _wanted(self._context, candidate)
            for one in lender.loaded:
                if _runs_alike(one, wanted):
                    model = one.served.model_copy(update={"adapter_path": candidate.adapter_path})
                    return LentEngine(lender, model, candidate, settings.share_engine_wait_seconds)
        return None

    def close(self) -> None:
        """End the connection."""
        self._server.close()


def _wanted(context: Context, candidate: Candidate) -> Served:
    """What the server must have in memory, but for the path, which may be another name of the folder."""
    from luthier.ml.inference.models import sources

    path = Path(candidate.model_path).resolve()
    known = {Path(one.path).resolve(): one.sha256 for one in sources.local_models(context.home)}
    return Served(
        path=str(path),
        # Of a model that was trained whole the server knows no digest: its folder never changes.
        sha256=known.get(path, ""),
        adapter_path=candidate.adapter_path,
        template=settled_template(candidate.model_path, candidate.template),
        precision=candidate.precision,
        quantisation=candidate.quantisation,
    )


def _runs_alike(loaded: LoadedModel, wanted: Served) -> bool:
    """Whether a model in memory writes what an engine over the wanted files would write, up to the last bits."""
    own = loaded.served
    if loaded.decoding is None or loaded.decoding.path != "batched":
        return False
    return (
        own.engine == "transformers"
        and str(Path(own.path).resolve()) == wanted.path
        and own.sha256 == wanted.sha256
        and own.precision == wanted.precision
        and own.quantisation == wanted.quantisation
        and own.template == wanted.template
        and own.adapter_path in (None, wanted.adapter_path)
    )


@dataclass(slots=True)
class LentAnswers:
    """What has no answer when the work has ended.

    Attributes:
        left: Prompts that the server did not answer since it does not have the model any more, or has ended.
        overlong: Prompts that do not fit into the context, with the error of each.
        held_back_seconds: For how long live requests had left one place when the work was given up for that; 0 where it
            was not.
    """

    left: list[int] = field(default_factory=list)
    overlong: dict[int, OverlongError] = field(default_factory=dict)
    held_back_seconds: float = 0.0


class LentEngine:
    """The server's engine for one candidate.

    Args:
        lender: The connection.
        model: The model as the server has it in memory, with the candidate's adapter.
        candidate: The base model or run.
        wait_seconds: For how long live requests may leave one place before it is not asked any more; 0 forever.
    """

    def __init__(self, lender: Lender, model: Served, candidate: Candidate, wait_seconds: float = 0.0) -> None:
        self._lender, self._model, self._candidate, self._wait_seconds = lender, model, candidate, wait_seconds

    @property
    def held_back_seconds(self) -> float:
        """For how long live requests have left one place, where that is longer than it is waited; else 0."""
        seconds = self._lender.held_back_seconds
        return seconds if 0 < self._wait_seconds <= seconds else 0.0

    def answer_all(self, prompts: Mapping[int, Prompt], hear: Callable[[int, Generation], None]) -> LentAnswers:
        """Have prompts answered; blocks until each is answered or known to get no answer.

        Args:
            prompts: By their number in the caller's call.
            hear: Called in this thread with each answer as it comes, in any order.

        Raises:
            OverlongError: A prompt is over the context.
            RequestError: A prompt is empty, or has both text and conversation, or impossible limits.
            TemplateError: The template cannot write a conversation.
        """
        return _Round(self, prompts, hear).work()

    def ask(self, request: TextRequest, tell: Callable[[StreamEvent | None], None]) -> Cancel | None:
        """Send one request; None where the connection has ended.

        Args:
            request: The prompt.
            tell: None says that the model is gone.
        """

        def decline() -> Cancel:
            tell(None)
            return lambda: None

        return self._lender.ask(self._model, request, tell, decline)

    def request(self, prompt: Prompt, number: int) -> TextRequest:
        """A prompt as the server takes it: written as the candidate was trained."""
        trained = {
            "trained_options": dict(self._candidate.template_options),
            "opted_turns": self._candidate.opted_turns,
        }
        return text_request(prompt, number).model_copy(update=trained)

    def overlong(self, prompt: Prompt, number: int, num_tokens: int) -> OverlongError | None:
        """The error of a prompt that does not fit together with its answer: an engine that streams cuts the answer."""
        most, together = self._candidate.context_length_tokens, num_tokens + prompt.max_new_tokens
        if together <= most:
            return None
        return OverlongError(
            f"prompt {number + 1} has {num_tokens} tokens and may add {prompt.max_new_tokens}: {together} together",
            expected=f"at most {most}, the context of the model",
            do="shorten the prompt, use fewer few-shot examples, or lower max_new_tokens",
            num_tokens=num_tokens,
            most_tokens=most,
        )


class _Round:
    """One call of `answer_all`."""

    def __init__(
        self, engine: LentEngine, prompts: Mapping[int, Prompt], hear: Callable[[int, Generation], None]
    ) -> None:
        self._engine, self._prompts, self._hear = engine, prompts, hear
        self._waiting = deque(prompts)
        self._open: dict[int, tuple[Cancel, StreamedAnswer]] = {}
        self._begun = set[int]()
        self._events: queue.SimpleQueue[tuple[int, StreamEvent | None]] = queue.SimpleQueue()
        self._ended = LentAnswers()

    def work(self) -> LentAnswers:
        try:
            while self._waiting or self._open:
                if not self._ended.held_back_seconds and (seconds := self._engine.held_back_seconds):
                    self._give_up(seconds)
                while self._waiting and len(self._open) < NUM_AT_ONCE:
                    self._ask(self._waiting.popleft())
                if self._open:
                    with suppress(queue.Empty):
                        self._take(*self._events.get(timeout=_LOOK_SECONDS))
        finally:
            # Also after an error or a signal: the server must not write for nobody.
            for cancel, _ in self._open.values():
                cancel()
        self._ended.left.sort()
        return self._ended

    def _ask(self, number: int) -> None:
        request = self._engine.request(self._prompts[number], number)
        cancel = self._engine.ask(request, partial(self._put, number))
        if cancel is None:
            self._ended.left.append(number)
        else:
            self._open[number] = cancel, StreamedAnswer()

    def _give_up(self, seconds: float) -> None:
        """Leave to the caller what has not begun; an answer that is being written is waited for."""
        self._ended.held_back_seconds = seconds
        for number in [one for one in self._open if one not in self._begun]:
            cancel, _ = self._open.pop(number)
            cancel()
            self._ended.left.append(number)
        self._ended.left += self._waiting
        self._waiting.clear()

    def _put(self, number: int, event: StreamEvent | None) -> None:
        self._events.put((number, event))

    def _take(self, number: int, event: StreamEvent | None) -> None:
        if number not in self._open:  # an event that came before it was cancelled
            return
        cancel, answer = self._open[number]
        if event is None or (isinstance(event, Failed) and event.is_of_engine):
            del self._open[number]
            # The others find that out by themselves; those that wait need not be sent.
            self._ended.left += [number, *self._waiting]
            self._waiting.clear()
            return
        if isinstance(event, Failed):
            del self._open[number]
            self._failed(number, error_from(event.error))
            return
        made = answer.hear(event)
        if isinstance(event, Started):
            self._begun.add(number)
            error = self._engine.overlong(self._prompts[number], number, event.num_prompt_tokens)
            if error is not None:
                del self._open[number]
                cancel()
                self._ended.overlong[number] = error
        elif made is not None:
            del self._open[number]
            self._hear(number, made)

    def _failed(self, number: int, error: LuthierError) -> None:
        if not isinstance(error, OverlongError):
            raise error
        # Others of the same call may fit: they are answered first.
        self._ended.overlong[number] = error
