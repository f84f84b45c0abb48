"""Engines with scripted answers, complete or streamed word by word, for tests of everything built on engines."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

from luthier.core.dataset import TokenisedExample
from luthier.core.errors import NotFoundError, OverlongError, RequestError
from luthier.core.ports import Generation, KeyedEvent, Progress, Prompt, Score
from luthier.core.stream import Ended, Piece, Started, TextRequest
from luthier.ml.inference.thoughts import StopTexts


class FakeEngine:
    """Text answers from a function or a table; scores with a fixed loss per token.

    Args:
        answers: called with the prompt, or looked up by the content of its last message (or its text). A word is a
            token.
        nll_nats_a_token: loss of each learned token in nats, or a function of the example.
    """

    def __init__(
        self,
        answers: Callable[[Prompt], str] | Mapping[str, str],
        *,
        nll_nats_a_token: float | Callable[[TokenisedExample], float] = 1.0,
        name: str = "fake",
    ) -> None:
        self._answers = answers
        self._nll = nll_nats_a_token
        self._name = name
        self._closed = False

    @property
    def name(self) -> str:
        """`fake`, or the given name."""
        return self._name

    def generate(self, prompts: Sequence[Prompt], progress: Progress) -> list[Generation]:
        """One generation per prompt, cut after `max_new_tokens` words.

        Raises:
            NotFoundError: the table has no answer for a prompt.
            RequestError: the engine is closed.
        """
        self._check_open()
        with progress.task("Writing answers", len(prompts), "answers") as task:
            found = []
            for prompt in prompts:
                found.append(self._generation(prompt))
                task.advance()
        return found

    def score(self, examples: Sequence[TokenisedExample], progress: Progress) -> list[Score]:
        """One score per example; a token counts as correct if its loss is below ln 2.

        Raises:
            RequestError: the engine is closed.
        """
        self._check_open()
        with progress.task("Scoring", len(examples), "rows") as task:
            task.advance(len(examples))
        return [self._score(example) for example in examples]

    def close(self) -> None:
        """Reject further work, as a real engine would."""
        self._closed = True

    def _generation(self, prompt: Prompt) -> Generation:
        asked = _question(prompt)
        if callable(self._answers):
            answer = self._answers(prompt)
        elif asked in self._answers:
            answer = self._answers[asked]
        else:
            raise NotFoundError(
                f"no answer for {asked!r}", expected=f"one of {len(self._answers)} known questions", do="add an answer"
            )
        words = answer.split(" ")
        kept = words[: prompt.max_new_tokens]
        return Generation(
            text=" ".join(kept),
            num_prompt_tokens=len(asked.split()),
            num_new_tokens=len(kept),
            finish_reason="stop" if len(kept) == len(words) else "length",
        )

    def _score(self, example: TokenisedExample) -> Score:
        nats = self._nll(example) if callable(self._nll) else self._nll
        num_tokens = example.num_trained_tokens
        return Score(nll_nats=nats * num_tokens, num_tokens=num_tokens, num_correct=num_tokens if nats < 0.6931 else 0)

    def _check_open(self) -> None:
        if self._closed:
            raise RequestError("a closed engine", expected="an open one", do="make a new engine")


def _question(prompt: Prompt) -> str:
    if prompt.conversation is not None:
        return prompt.conversation.messages[-1].content or ""
    return prompt.text or ""


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
        most_answers: maximum concurrent answers.
        context_words: a longer prompt is rejected. wait_seconds are ignored.
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
        """The keys of the requests in progress."""
        return {answer.key for answer in self._answers}

    @property
    def num_bytes(self) -> int:
        """A kilobyte, plus one per adapter."""
        return 1024 * (1 + len(self._adapters))

    def load_adapter(self, name: str, path: str) -> None:
        """Remember the path."""
        self._adapters[name] = path

    def unload_adapter(self, name: str) -> None:
        """Forget it."""
        self._adapters.pop(name, None)

    def ask(self, key: Hashable, request: TextRequest, adapter: str | None) -> bool:
        """Start generating.

        Raises:
            RequestError: the engine is closed, or the adapter is not loaded.
            OverlongError: the prompt has more words than the context.
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
        """Cancel the request."""
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
