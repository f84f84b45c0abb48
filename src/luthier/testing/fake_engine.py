"""An engine with scripted answers, for tests of everything built on engines."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from luthier.core.dataset import TokenisedExample
from luthier.core.errors import NotFoundError, RequestError
from luthier.core.ports import Generation, Progress, Prompt, Score


class FakeEngine:
    """Text answers from a function or a table; scores with a fixed loss per token.

    Args:
        answers: called with the prompt, or looked up by the content of its last message (or its text). A word is a
            token.
        nll_nats_a_token: loss of each learned token in nats, or a function of the example.
        name: of the engine.
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
