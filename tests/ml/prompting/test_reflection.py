"""Instructions that a reflection model writes: what is kept, what it may spend, and how it ends."""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from tests.vacuous import nonempty

from luthier.core.conversation import Conversation
from luthier.core.dataset import TokenisedExample
from luthier.core.errors import UnreachableError
from luthier.core.ports import Generation, Progress, Prompt, Score, SilentProgress
from luthier.ml.evaluation.metrics.classification import LabelAccuracy
from luthier.ml.evaluation.systems import SystemUnderTest
from luthier.ml.prompting.reflection import (
    MAX_INSTRUCTION_CHARACTERS,
    MAX_INSTRUCTION_TOKENS,
    Case,
    Instructed,
    Reflected,
    Reflector,
    pareto_weights,
    reflect,
    reflection_text,
    written_instruction,
)

READ, NEW, MOST_NEW = 9, 3, 8
WRITER_READ, WRITER_NEW = 40, 5


class Engine:
    """Answers a row rightly where the instruction holds the word for rows of its kind."""

    name = "made"

    def __init__(self) -> None:
        self.asked: list[str] = []

    def generate(self, prompts: Sequence[Prompt], progress: Progress) -> list[Generation]:
        self.asked += [str(prompt.text) for prompt in prompts]
        return [
            Generation(text=self.answer(str(prompt.text)), num_prompt_tokens=READ, num_new_tokens=NEW,
                       finish_reason="stop")
            for prompt in prompts
        ]  # fmt: skip

    def answer(self, text: str) -> str:
        instruction, _, row = text.rpartition("#")
        return "right" if ("odd" if int(row) % 2 else "even") in instruction else "wrong"

    def score(self, examples: Sequence[TokenisedExample], progress: Progress) -> list[Score]:
        return []

    def close(self) -> None:
        return


class Writer:
    """Writes an instruction with one more word, for the first row that was answered wrongly."""

    def __init__(self, write: Callable[[str], str] | None = None) -> None:
        self.texts: list[str] = []
        self.prompts: list[Prompt] = []
        self._write = write or self.with_one_more_word

    @staticmethod
    def with_one_more_word(text: str) -> str:
        so_far = re.search(r"The instruction so far:\n(.*)", text)
        row = re.search(r"Input:\nrow (\d+)\nAnswer of the model:\nwrong", text)
        assert row is not None, "a reflection model is only asked about mistakes"
        word = "odd" if int(row[1]) % 2 else "even"
        return f"<instruction>{so_far[1] if so_far else ''} {word}</instruction>"

    def __call__(self, prompts: Sequence[Prompt]) -> list[Generation | None]:
        self.prompts += prompts
        found: list[Generation | None] = []
        for prompt in prompts:
            assert prompt.conversation is not None
            self.texts.append(prompt.conversation.messages[-1].content or "")
            found.append(
                Generation(text=self._write(self.texts[-1]), num_prompt_tokens=WRITER_READ, num_new_tokens=WRITER_NEW,
                           finish_reason="stop")
            )  # fmt: skip
        return found


def system(engine: Engine, instruction: str, rows: Sequence[int]) -> SystemUnderTest:
    tokens = TokenisedExample("r", array("i", range(READ + 2)), bytes([0] * READ + [1, 1]), 0)
    made: dict[str, Any] = {
        "name": "prompt", "model": "m", "adapter": None, "num_few_shot": 0, "engine": engine,
        "prompts": tuple(Prompt(text=f"{instruction}#{row}", max_new_tokens=MOST_NEW) for row in rows),
        "references": ("right",) * len(rows),
        "row_ids": tuple(map(str, rows)),
        "prompt_texts": tuple(f"row {row}" for row in rows),
        "tokenised": (tokens,) * len(rows),
        "num_bytes": (5,) * len(rows),
    }  # fmt: skip
    return SystemUnderTest(**made)


FEEDBACK, VALIDATION = range(100, 116), range(16)


def run(writer: Writer, budget: int = 100_000, **options: Any) -> tuple[Reflected, Engine]:
    engine = Engine()

    def build(instruction: str) -> Instructed | None:
        return Instructed(instruction, system(engine, instruction, FEEDBACK), system(engine, instruction, VALIDATION))

    start = build("")
    assert start is not None
    reflector = Reflector("writer", writer, options.pop("count", lambda _: WRITER_READ), options.pop("context", None))
    found = reflect(
        start,
        options.pop("build", build),
        reflector,
        LabelAccuracy(),
        budget_tokens=budget,
        progress=SilentProgress(),
        **options,
    )
    return found, engine


def test_what_is_learned_from_mistakes_adds_up() -> None:
    found, _ = run(Writer())
    assert sorted(found.instruction.split()) == ["even", "odd"]
    assert (found.figure, found.num_rows, found.stopped) == (1.0, len(VALIDATION), "")
    assert found.num_written >= found.num_kept >= 2


def test_the_reflection_model_reads_training_rows_alone_and_each_question_has_a_seed_of_its_own() -> None:
    writer = Writer()
    run(writer, seed=5)
    rows = {int(one) for text in nonempty(writer.texts) for one in re.findall(r"row (\d+)", text)}
    assert rows <= set(FEEDBACK)
    assert len({prompt.seed for prompt in writer.prompts}) == len(writer.prompts)
    assert {(prompt.max_new_tokens, prompt.max_thinking_tokens) for prompt in writer.prompts} == {
        (MAX_INSTRUCTION_TOKENS, 0)
    }


def test_equal_seeds_give_equal_searches() -> None:
    first, second = (run(Writer(), seed=3) for _ in range(2))
    assert first[0] == second[0]
    assert first[1].asked == second[1].asked


@pytest.mark.parametrize("budget", [200, 1_000, 2_500, 5_000, 20_000])
def test_the_budget_holds_for_both_models_together(budget: int) -> None:
    writer = Writer()
    found, engine = run(writer, budget)
    spent = len(engine.asked) * (READ + NEW) + len(writer.prompts) * (WRITER_READ + WRITER_NEW)
    assert found.num_tokens == spent <= budget
    assert found.num_writer_tokens == len(writer.prompts) * (WRITER_READ + WRITER_NEW)


def test_answers_that_are_known_are_not_asked_again() -> None:
    known = ["wrong"] * 12
    _, engine = run(Writer(), known=known)
    assert not {f"#{row}" for row in range(12)} & set(engine.asked)
    assert {f"#{row}" for row in range(12, 16)} <= set(engine.asked)


def test_an_instruction_that_does_no_better_is_not_kept() -> None:
    numbers = iter(range(1_000))
    found, _ = run(Writer(lambda _: f"<instruction>nothing new {next(numbers)}</instruction>"))
    assert (found.instruction, found.num_kept) == ("", 0)
    assert found.num_written > 0


def test_rounds_without_anything_new_end_it() -> None:
    writer = Writer(lambda _: "<instruction>the same</instruction>")
    found, _ = run(writer)
    assert (found.num_written, found.num_kept) == (1, 0)
    assert len(writer.prompts) <= 4 * 3  # the first round, and three without a new one


def test_nothing_is_asked_of_the_reflection_model_where_all_answers_are_right() -> None:
    writer = Writer()
    engine = Engine()
    whole = Instructed("odd even", system(engine, "odd even", FEEDBACK), system(engine, "odd even", VALIDATION))
    found = reflect(
        whole, lambda _: None, Reflector("writer", writer, lambda _: WRITER_READ), LabelAccuracy(),
        budget_tokens=100_000, progress=SilentProgress(),
    )  # fmt: skip
    assert (writer.prompts, found.instruction, found.figure) == ([], "odd even", 1.0)


def test_a_prompt_that_does_not_fit_into_the_context_of_the_base_is_dropped() -> None:
    found, _ = run(Writer(), build=lambda _: None)
    assert (found.instruction, found.num_written) == ("", 0)


def test_cases_are_left_out_until_the_question_fits_into_the_context_of_the_reflection_model() -> None:
    def count(asked: Conversation) -> int:
        return 100 * (asked.messages[-1].content or "").count("Case ")

    writer = Writer()
    run(writer, count=count, context=MAX_INSTRUCTION_TOKENS + 200)
    assert {text.count("Case ") for text in nonempty(writer.texts)} == {2}
    too_small = Writer()
    run(too_small, count=count, context=MAX_INSTRUCTION_TOKENS + 99)
    assert too_small.prompts == []


def test_a_reflection_model_that_fails_ends_it_with_what_was_found_or_is_an_error_where_it_is_required() -> None:
    def failing(text: str) -> str:
        if len(writer.texts) > 3:
            raise UnreachableError("no answer from the server", expected="an answer", do="try again")
        return Writer.with_one_more_word(text)

    writer = Writer(failing)
    found, _ = run(writer)
    assert found.stopped == "no answer from the server"
    assert found.num_written > 0
    writer = Writer(failing)
    with pytest.raises(UnreachableError):
        run(writer, is_required=True)


def test_an_answer_without_a_usable_instruction_is_dropped() -> None:
    assert written_instruction("Sure!\n<instruction>\nSay a colour.\n</instruction> Good luck") == "Say a colour."
    assert written_instruction("<instruction>Say a colour.") == "Say a colour."  # cut off at the limit
    assert written_instruction("  Say a colour. ") == "Say a colour."
    assert written_instruction(" \n") == ""
    assert written_instruction("a" * (MAX_INSTRUCTION_CHARACTERS + 1)) == ""


def test_the_question_shows_mistakes_with_what_was_expected_and_cuts_long_rows() -> None:
    text = reflection_text("Say it.", [Case("x" * 5_000, "", "red", False), Case("y", "blue", "blue", True)])
    assert "Say it." in text
    assert "(nothing)" in text
    assert "Expected answer:\nred" in text
    assert "Expected answer:\nblue" not in text
    assert len(text) < 3_000
    assert "no instruction" in reflection_text("", [Case("x", "", "red", False)])


def test_the_front_holds_what_is_best_on_some_row_and_nothing_that_others_cover() -> None:
    scores = np.array(
        [
            [1.0, 0.0, 0.0, 0.0],  # the only one right on the first row
            [0.0, 1.0, 1.0, 0.0],
            [0.0, 1.0, 0.0, 0.0],  # covered by the one before
            [0.0, 0.0, 0.0, 0.0],
        ]
    )
    weights = pareto_weights(scores)
    assert weights[0] > 0
    assert weights[1] > weights[0]
    assert weights[2:] == [0, 0]
    assert pareto_weights(np.zeros((1, 3))) == [3]
    assert sum(weight > 0 for weight in pareto_weights(np.ones((3, 2)))) == 1, "of equal ones one is enough"
