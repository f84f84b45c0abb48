"""The engine of a candidate that writes for a job: the server's where it has the model in memory, else its own.

The own engine is opened when it is first needed: for likelihoods, for fewer answers than the setting
`share_engine_from`, and for what the server has not answered, since it has ended or live requests kept it busy. Once it
writes it writes everything, since the second copy of the model is in memory then. One that has only scored is closed
before the server writes: answers take longer than opening it again, and two copies may not fit beside live requests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from luthier.core.dataset import TokenisedExample
from luthier.core.ports import Engine, Generation, Progress, Prompt, Score
from luthier.features.models.resolve import Candidate
from luthier.platform.cli.figures import duration
from luthier.platform.home.context import Context

if TYPE_CHECKING:
    from luthier.features.serving.shared_engines import LentAnswers, LentEngine
    from luthier.ml.inference.engine_wrappers import Keep
    from luthier.ml.inference.models.templates.chat_template import ChatTemplate
    from luthier.ml.inference.stored_answers import StoredAnswers, StoredCall


class SharedEngine:
    """An engine that needs no memory as long as the server's answers in its place.

    Args:
        context: The home.
        candidate: A base model or a run that gives text.
        open_own: Opens its own engine.
        num_expected: Answers that the whole work needs, where it asks for them in several calls.
        stored_answers: Stores the server's answers as they come; None stores none. `open_own` sees to its own.
        keep: Called with each answer of the server as it comes, too.
        own: Its own engine, where it is open already.
    """

    def __init__(
        self,
        context: Context,
        candidate: Candidate,
        open_own: Callable[[], Engine],
        *,
        num_expected: int = 0,
        stored_answers: StoredAnswers | None = None,
        keep: Keep = lambda *_: None,
        own: Engine | None = None,
    ) -> None:
        self._context, self._candidate, self._open_own = context, candidate, open_own
        self._num_expected, self._stored_answers, self._keep = num_expected, stored_answers, keep
        self._own = own
        self._has_written = False
        self._notes: dict[str, None] = {}
        self._template: ChatTemplate | None = None
        self.num_shared = 0
        """Answers that the server's engine has written."""

    @property
    def name(self) -> str:
        """`transformers`, the name in the table of engines, whoever runs it."""
        return "transformers"

    @property
    def template(self) -> ChatTemplate:
        """How the model writes conversations."""
        if self._template is None:
            self._template = getattr(self._own, "template", None) or self._candidate.chat_template()
        return self._template

    def generate(self, prompts: Sequence[Prompt], progress: Progress) -> list[Generation]:
        """One generation a prompt, in order.

        Raises:
            OverlongError: A prompt is over the context; all others are answered, and their answers kept, before that.
            RequestError: A prompt is empty, or has both text and conversation, or impossible limits.
            TemplateError: The template cannot write a conversation.
            DivergedError: The model's logits are NaN.
            StoppedError: The stop check returned a reason.
        """
        kept = self._stored_answers
        call = None if kept is None else kept("text", prompts)
        # Answers that an earlier attempt has stored count, whichever engine wrote them and whichever is there now: a
        # kill often ends the server as well.
        if call is not None and call.known:
            return self._shared(self._lent(prompts), call, prompts, progress)
        lent = None if kept is not None and kept("tokens", prompts).known else self._lent(prompts)
        return self._write(prompts, progress) if lent is None else self._shared(lent, call, prompts, progress)

    def score(self, examples: Sequence[TokenisedExample], progress: Progress) -> list[Score]:
        """One score an example, in order, by the own engine: the server's gives no likelihoods of given texts."""
        return self.own().score(examples, progress)

    @property
    def notes(self) -> tuple[str, ...]:
        """What its own engines have to say of how they worked."""
        return (*self._notes, *(one for one in getattr(self._own, "notes", ()) if one not in self._notes))

    def own(self) -> Engine:
        """The own engine, opened at the first call."""
        if self._own is None:
            self._own = self._open_own()
        return self._own

    def take_own(self) -> Engine | None:
        """The own engine, which is the caller's to close from then on; None where it is not open."""
        own = self._own
        if own is not None:
            self._notes |= dict.fromkeys(self.notes)
            self._own, self._has_written = None, False
        return own

    def close(self) -> None:
        """Release the own engine, where it was opened."""
        if (own := self.take_own()) is not None:
            own.close()

    def _write(self, prompts: Sequence[Prompt], progress: Progress) -> list[Generation]:
        own, self._has_written = self.own(), True
        return own.generate(prompts, progress)

    def _lent(self, prompts: Sequence[Prompt]) -> LentEngine | None:
        if self._has_written or any(one.conversation is not None and one.conversation.tools for one in prompts):
            # The server draws ids of calls, which an engine of one's own derives from prompt and answer.
            return None
        lent = self._context.shared_engines.of(self._candidate, max(len(prompts), self._num_expected))
        if lent is not None:
            self.close()
        return lent

    def _shared(
        self, lent: LentEngine | None, call: StoredCall | None, prompts: Sequence[Prompt], progress: Progress
    ) -> list[Generation]:
        """Answers that are stored, those of the server, and those of the own engine for what is left."""
        known: dict[int, Any] = {} if call is None else dict(call.known)
        found = {number: Generation.model_validate(one) for number, one in known.items()}
        rest = [number for number in range(len(prompts)) if number not in found]
        if lent is not None:
            ended = self._ask(lent, call, prompts, found, progress)
            rest = ended.left
            if rest and ended.held_back_seconds:
                busy = f"Live requests have kept the server's engine busy for {duration(ended.held_back_seconds)}"
                with progress.task(f"{busy}: an engine of this work's own writes the rest", None, ""):
                    pass
        if rest:
            # The server is not there or has ended, has made room for another model, or is busy with live requests.
            made = self._write([prompts[number] for number in rest], progress)
            for number, one in zip(rest, made, strict=True):
                self._keep(prompts[number], one)
                found[number] = one
        return [found[number] for number in range(len(prompts))]

    def _ask(
        self,
        lent: LentEngine,
        call: StoredCall | None,
        prompts: Sequence[Prompt],
        found: dict[int, Generation],
        progress: Progress,
    ) -> LentAnswers:
        """Have the server answer what is not found, and add it; returns what it has not answered."""
        title = "Writing answers with the server's engine"
        with progress.task(title, len(prompts), "answers", done=len(found)) as task:

            def hear(number: int, made: Generation) -> None:
                # Stored before it is counted: a crash after this line loses no answer.
                if call is not None:
                    call.keep({number: made.model_dump(mode="json")})
                self._keep(prompts[number], made)
                found[number] = made
                self.num_shared += 1
                task.advance()

            left = {number: one for number, one in enumerate(prompts) if number not in found}
            ended = lent.answer_all(left, hear)
        if ended.overlong:
            raise ended.overlong[min(ended.overlong)]
        return ended
