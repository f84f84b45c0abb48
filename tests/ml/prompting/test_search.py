"""The search over prompts: what it finds, what it may spend, and what it refuses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from luthier.core.dataset import TokenisedExample
from luthier.core.errors import RequestError
from luthier.core.ports import Generation, Progress, Prompt, Score, SilentProgress
from luthier.ml.evaluation.metrics.classification import LabelAccuracy
from luthier.ml.evaluation.systems import SystemUnderTest
from luthier.ml.prompting.search import search_prompts

READ, NEW = 9, 3


class Engine:
    """Answers `good` where the prompt's number says so; each answer takes three tokens."""

    name = "made"

    def __init__(self) -> None:
        self.asked: list[str] = []

    def generate(self, prompts: Sequence[Prompt], progress: Progress) -> list[Generation]:
        self.asked += [str(prompt.text) for prompt in prompts]
        return [
            Generation(
                text="good" if str(prompt.text).endswith("right") else "bad",
                num_prompt_tokens=READ,
                num_new_tokens=NEW,
                finish_reason="stop",
            )
            for prompt in prompts
        ]

    def score(self, examples: Sequence[TokenisedExample], progress: Progress) -> list[Score]:
        return []

    def close(self) -> None:
        return


def tokenised(num_prompt: int) -> TokenisedExample:
    from array import array

    return TokenisedExample("r", array("i", range(num_prompt + 2)), bytes([0] * num_prompt + [1, 1]), 0)


def prompts(shares: Sequence[float], num_rows: int = 32, read: Sequence[int] | None = None) -> list[SystemUnderTest]:
    """A prompt for each share of rows that it gets right, spread over the rows."""
    engine, found = Engine(), []
    for number, share in enumerate(shares):
        right = [int((row + 1) * share) > int(row * share) for row in range(num_rows)]
        system: dict[str, Any] = {
            "name": f"prompt {number}", "model": "m", "adapter": None, "num_few_shot": 0, "engine": engine,
            "prompts": tuple(
                Prompt(text=f"{number}:{row} {'right' if ok else 'wrong'}", max_new_tokens=8)
                for row, ok in enumerate(right)
            ),
            "references": ("good",) * num_rows,
            "row_ids": tuple(map(str, range(num_rows))),
            "prompt_texts": ("q",) * num_rows,
            "tokenised": (tokenised(READ if read is None else read[number]),) * num_rows,
            "num_bytes": (4,) * num_rows,
        }  # fmt: skip
        found.append(SystemUnderTest(**system))
    return found


def search(systems: Sequence[SystemUnderTest], budget: int = 100_000) -> Any:
    return search_prompts(systems, LabelAccuracy(), budget_tokens=budget, progress=SilentProgress())


def test_the_best_prompt_is_found_on_all_rows() -> None:
    found = search(prompts([0.25, 0.5, 0.25, 1.0, 0.5]))
    assert (found.place, found.figure, found.num_rows, found.num_tried) == (3, 1.0, 32, 5)


def test_answers_are_compared_in_the_one_form_that_a_system_has() -> None:
    """As sets of labels, which rows and models write in any order: as texts no prompt would be right."""
    same = {"fine": "good"}
    systems = [
        replace(one, references=("fine",) * 32, canonical=lambda text: same.get(text, text))
        for one in prompts([0.25, 1.0, 0.5])
    ]
    found = search(systems)
    assert (found.place, found.figure) == (1, 1.0)


def test_no_row_is_asked_twice_and_the_worse_half_is_dropped() -> None:
    systems = prompts([0.25, 0.5, 0.25, 1.0])
    found = search(systems)
    asked = systems[0].engine.asked  # type: ignore[attr-defined]
    assert len(asked) == len(set(asked))
    assert len(asked) < 4 * 32
    assert found.num_tokens == len(asked) * (READ + NEW)


@pytest.mark.parametrize("budget", [300, 500, 900, 2_000])
def test_the_budget_holds_even_if_answers_were_as_long_as_they_may_be(budget: int) -> None:
    systems = prompts([0.5, 0.25, 1.0, 0.5, 0.25, 0.5])
    found = search(systems, budget)
    assert 0 < found.num_tokens <= budget
    assert found.num_rows >= 4


def test_what_the_budget_does_not_hold_is_left_out_from_the_end() -> None:
    found = search(prompts([0.5] * 6), 300)
    assert found.num_tried < 6


def test_of_equal_prompts_the_shorter_is_taken_and_then_the_first() -> None:
    assert search(prompts([0.5, 0.5, 0.5], read=[9, 5, 5])).place == 1


def test_too_small_a_budget_and_too_few_prompts_are_refused() -> None:
    with pytest.raises(RequestError, match="a budget of 100 tokens") as caught:
        search(prompts([0.5, 0.5]), 100)
    assert "at least 136" in caught.value.expected
    with pytest.raises(RequestError, match="1 prompt to choose from"):
        search(prompts([0.5]))


def test_fewer_rows_than_a_round_are_all_asked() -> None:
    found = search(prompts([0.0, 1.0], num_rows=3))
    assert (found.place, found.num_rows) == (1, 3)


def test_a_prompt_that_is_better_by_chance_does_not_replace_a_likelier_one() -> None:
    """One row of 32 more is less than a standard error: 0.03 against 0.06 or so."""
    assert search(prompts([0.5, 0.54], num_rows=32)).place == 0
    assert search(prompts([0.5, 0.9], num_rows=32)).place == 1


def test_the_likelier_prompt_stays_in_the_search_until_it_is_clearly_worse() -> None:
    """Fourteen others are right on one row of 32 more; by their figures alone the first would be dropped at once."""
    found = search(prompts([0.5, *[0.54] * 14], num_rows=32))
    assert found.place == 0
    assert found.num_rows == 32


def test_with_a_budget_for_it_no_prompt_is_dropped_before_it_has_answered_twelve_rows() -> None:
    systems = prompts([0.5] * 7 + [1.0], num_rows=32)
    search(systems)
    assert min(sum(name.startswith(f"{number}:") for name in systems[0].engine.asked) for number in range(8)) == 12  # type: ignore[attr-defined]
