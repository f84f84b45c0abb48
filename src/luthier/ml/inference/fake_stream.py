"""A `StreamEngine` that writes scripted answers, a word a step: for tests of everything built on such engines."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass

from luthier.core.errors import OverlongError, RequestError
from luthier.core.ports import KeyedEvent
from luthier.core.stream import Ended, Piece, Started, TextRequest
from luthier.ml.inference.text_stream import StopTexts


@dataclass(slots=True)
class _Answer:
    key: Hashable
    choice: int
    words: list[str]
    limit: int
    stops: StopTexts
    num_emitted: int = 0


class FakeStreamEngine:
    """Answers from a function of the request, the number of the choice and the path of the adapter; a word is a token.

    Args:
        most_answers: written at once.
        context_words: a longer prompt is refused. wait_seconds are not waited.
    """

    def __init__(
        self,
        answer: Callable[[TextRequest, int, str | None], str],
        *,
        most_answers: int = 8,
        context_words: int = 1000,
    ) -> None:
        self._answer, self._most_answers, self._context_words = answer, most_answers, context_words
        self._adapters: dict[str, str] = {}
        self._answers: list[_Answer] = []
        self._events: list[KeyedEvent] = []
        self._is_open = True

    @property
    def keys(self) -> set[Hashable]:
        """The requests whose answers are being written."""
        return {answer.key for answer in self._answers}

    @property
    def num_bytes(self) -> int:
        """A kilobyte, and one an adapter."""
        return 1024 * (1 + len(self._adapters))

    def load_adapter(self, name: str, path: str) -> None:
        """Remember the path."""
        self._adapters[name] = path

    def unload_adapter(self, name: str) -> None:
        """Forget it."""
        self._adapters.pop(name, None)

    def ask(self, key: Hashable, request: TextRequest, adapter: str | None) -> bool:
        """Begin to write.

        Raises:
            RequestError: a closed engine, or an adapter that is not loaded.
            OverlongError: a prompt of more words than the context.
        """
        self._check_open()
        if adapter is not None and adapter not in self._adapters:
            raise RequestError(f"adapter {adapter!r}", expected="one that is loaded", do="load it")
        if (num_words := _num_words(request)) > self._context_words:
            raise OverlongError(
                f"{num_words} words", expected=f"at most {self._context_words}", do="shorten the prompt"
            )
        if self._answers and len(self._answers) + request.num_choices > self._most_answers:
            return False
        self._events.append((key, Started(num_prompt_tokens=num_words)))
        path = None if adapter is None else self._adapters[adapter]
        for choice in range(request.num_choices):
            words = self._answer(request, choice, path).split(" ")
            self._answers.append(_Answer(key, choice, words, request.max_new_tokens, StopTexts(request.stop)))
        return True

    def cancel(self, key: Hashable) -> None:
        """Write no more of it."""
        self._answers = [answer for answer in self._answers if answer.key != key]
        self._events = [event for event in self._events if event[0] != key]

    def poll(self, wait_seconds: float) -> list[KeyedEvent]:  # noqa: ARG002
        """One word of every answer."""
        self._check_open()
        events, self._events = self._events, []
        for answer in list(self._answers):
            events += [(answer.key, event) for event in self._step(answer)]
        return events

    def close(self) -> None:
        """Refuse further work."""
        self._is_open, self._answers = False, []

    def _step(self, answer: _Answer) -> list[Piece | Ended]:
        word = answer.words[answer.num_emitted]
        text = answer.stops.add(word if answer.num_emitted == 0 else f" {word}")
        answer.num_emitted += 1
        is_complete = answer.num_emitted == len(answer.words)
        has_ended = answer.stops.found or is_complete or answer.num_emitted == answer.limit
        if has_ended:
            text += answer.stops.end()
            self._answers.remove(answer)
        events: list[Piece | Ended] = []
        if text:
            events.append(Piece(choice=answer.choice, text=text, num_new_tokens=answer.num_emitted))
        if has_ended:
            reason = "stop" if answer.stops.found or is_complete else "length"
            events.append(Ended(choice=answer.choice, reason=reason, num_new_tokens=answer.num_emitted))
        return events

    def _check_open(self) -> None:
        if not self._is_open:
            raise RequestError("a closed engine", expected="an open one", do="make a new engine")


def _num_words(request: TextRequest) -> int:
    if request.conversation is not None:
        return sum(len((message.content or "").split()) for message in request.conversation.messages)
    return len((request.text or "").split()) if request.token_ids is None else len(request.token_ids)
