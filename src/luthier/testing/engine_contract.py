"""The contract of every engine, as tests that an engine's author inherits.

    class TestMyEngine(EngineContract):
        @pytest.fixture
        def engine(self) -> Engine:
            return MyEngine(...)

        @pytest.fixture
        def examples(self) -> list[TokenisedExample]:
            return [...]  # at least three, of different lengths, tokenised for the engine

An engine that cannot give likelihoods inherits `GenerationContract` alone.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence

import pytest

from luthier.core.conversation import Conversation, Message
from luthier.core.dataset import TokenisedExample
from luthier.core.defaults import NEW_TOKENS
from luthier.core.ports import Engine, Prompt, SilentProgress, SilentTask

QUESTIONS = (
    "Which wood is used for the front?",
    "And for the back?",
    "Why?",
    "The customer asked whether the repair was worth its price. What did the luthier answer, and was it honest?",
    "Name three instruments.",
)
SILENT = SilentProgress()


def ask(question: str, *, max_new_tokens: int = NEW_TOKENS, temperature: float = 0.0, seed: int = 0) -> Prompt:
    """A prompt with one user turn."""
    conversation = Conversation(messages=(Message(role="user", content=question),))
    return Prompt(conversation=conversation, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)


class CountingProgress(SilentTask):
    """Counts the units that were reported as done, over all tasks."""

    def __init__(self) -> None:
        self.total = 0.0
        self.done = 0.0

    def task(self, title: str, total: float | None, unit: str, done: float = 0) -> CountingProgress:
        """Start a task; it is this object again."""
        del title, unit
        self.total += total or 0
        self.done += done
        return self

    def advance(self, amount: float = 1) -> None:
        """Count."""
        self.done += amount


class GenerationContract:
    """Text out: order, determinism, limits."""

    def test_it_has_a_name_and_is_an_engine(self, engine: Engine) -> None:
        """The name is what reports call it."""
        assert engine.name
        assert isinstance(engine, Engine)

    def test_no_prompts_give_no_text(self, engine: Engine) -> None:
        """An empty list is a right request."""
        assert engine.generate([], SILENT) == []

    def test_greedy_text_does_not_depend_on_order_or_company(self, engine: Engine) -> None:
        """Each prompt gets its own answer, at its own place, alone or among others."""
        prompts = [ask(question, max_new_tokens=6) for question in QUESTIONS]
        together = engine.generate(prompts, SILENT)
        backwards = engine.generate(prompts[::-1], SILENT)[::-1]
        alone = [engine.generate([prompt], SILENT)[0] for prompt in prompts]
        # Padding and batch composition must not reach the text: exact equality, since greedy ids are discrete.
        assert together == backwards == alone

    def test_max_new_tokens_limits_each_prompt(self, engine: Engine) -> None:
        """`length` is said exactly where the limit cut the text."""
        limits = [1, 7, 3, 2, 5]
        prompts = [ask(question, max_new_tokens=n) for question, n in zip(QUESTIONS, limits, strict=True)]
        for limit, written in zip(limits, engine.generate(prompts, SILENT), strict=True):
            assert 0 <= written.num_new_tokens <= limit
            if written.finish_reason == "length":
                assert written.num_new_tokens == limit
            assert written.num_prompt_tokens > 0

    def test_a_seed_repeats_what_was_drawn(self, engine: Engine) -> None:
        """Sampling is reproducible, in any company."""
        prompts = [ask(q, max_new_tokens=6, temperature=1.0, seed=number) for number, q in enumerate(QUESTIONS)]
        first = engine.generate(prompts, SILENT)
        assert engine.generate(prompts[::-1], SILENT)[::-1] == first
        assert engine.generate(prompts[2:3], SILENT) == first[2:3]

    def test_progress_counts_every_prompt(self, engine: Engine) -> None:
        """A bar ends at its end."""
        progress = CountingProgress()
        engine.generate([ask(question, max_new_tokens=2) for question in QUESTIONS], progress)
        assert progress.done == progress.total == len(QUESTIONS)


class EngineContract(GenerationContract):
    """Text out, likelihoods out."""

    def test_no_examples_give_no_scores(self, engine: Engine) -> None:
        """An empty list is a right request."""
        assert engine.score([], SILENT) == []

    def test_scores_are_positive_and_count_the_learned_tokens(
        self, engine: Engine, examples: Sequence[TokenisedExample]
    ) -> None:
        """Nats are finite and not negative; the counts come from the loss mask."""
        for example, score in zip(examples, engine.score(examples, SILENT), strict=True):
            assert score.num_tokens == example.num_trained_tokens
            assert 0 <= score.num_correct <= score.num_tokens
            assert math.isfinite(score.nll_nats)
            assert score.nll_nats > 0

    def test_a_score_does_not_depend_on_order_or_company(
        self, engine: Engine, examples: Sequence[TokenisedExample]
    ) -> None:
        """Each example gets its own score, at its own place, alone or among others."""
        together = engine.score(examples, SILENT)
        backwards = engine.score(examples[::-1], SILENT)[::-1]
        alone = [engine.score([example], SILENT)[0] for example in examples]
        for one, other, third in zip(together, backwards, alone, strict=True):
            # Sums in another order differ in the last bits, so scores are compared with a tolerance.
            assert one.nll_nats == pytest.approx(other.nll_nats, rel=1e-4)
            assert one.nll_nats == pytest.approx(third.nll_nats, rel=1e-4)

    def test_scores_add_up_over_a_divided_mask(self, engine: Engine, examples: Sequence[TokenisedExample]) -> None:
        """The score of all learned tokens is the sum over any two halves of them."""
        for example in examples:
            # Likelihoods factorise over tokens, so scores under two disjoint masks add up.
            learned = [place for place, bit in enumerate(example.loss_mask) if bit]
            halves = [
                _with_mask(example, learned[: len(learned) // 2]),
                _with_mask(example, learned[len(learned) // 2 :]),
            ]
            first, second, whole = engine.score([*halves, example], SILENT)
            assert first.nll_nats + second.nll_nats == pytest.approx(whole.nll_nats, rel=1e-4)
            assert first.num_tokens + second.num_tokens == whole.num_tokens
            assert first.num_correct + second.num_correct == whole.num_correct

    def test_progress_counts_every_example(self, engine: Engine, examples: Sequence[TokenisedExample]) -> None:
        """A bar ends at its end."""
        progress = CountingProgress()
        engine.score(examples, progress)
        assert progress.done == progress.total == len(examples)


def _with_mask(example: TokenisedExample, learned: Sequence[int]) -> TokenisedExample:
    mask = bytearray(example.num_tokens)
    for place in learned:
        mask[place] = 1
    return TokenisedExample(id=example.id, input_ids=array("i", example.input_ids), loss_mask=bytes(mask))
