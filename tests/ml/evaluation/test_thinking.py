"""Evaluations compare answers without thoughts, and say how long the thoughts were and how many were cut off."""

from __future__ import annotations

import pytest

from luthier.core.conversation import Conversation, Message
from luthier.core.dataset import Example
from luthier.core.ports import Generation, SilentProgress
from luthier.ml.charts.judged_rows import thinking_sentence
from luthier.ml.evaluation.compare import SystemUnderTest, judge, thinking_figures
from luthier.ml.evaluation.few_shot import with_shots


def example(number: int, answer: str, reasoning: str | None = None) -> Example:
    turns = (Message(role="user", content=f"{number}?"), Message(role="assistant", content=answer, reasoning=reasoning))
    return Example(id=f"rows:{number}", conversation=Conversation(messages=turns))


def made(text: str, thinking: int | None = 0, *, ends_in_thought: bool = False) -> Generation:
    return Generation(
        text=text,
        num_prompt_tokens=3,
        num_new_tokens=20,
        finish_reason="length" if ends_in_thought else "stop",
        reasoning="so" if thinking or thinking is None else None,
        num_thinking_tokens=thinking,
        ends_in_thought=ends_in_thought,
    )


class Scripted:
    """Gives back what it was made with."""

    name = "scripted"

    def __init__(self, generations: list[Generation]) -> None:
        self._generations = generations

    def generate(self, prompts, progress):  # type: ignore[no-untyped-def]
        return self._generations[: len(prompts)]


def judged(generations: list[Generation]):  # type: ignore[no-untyped-def]
    examples = [example(number, str(number)) for number in range(len(generations))]
    system = SystemUnderTest(
        name="base", model="m", adapter=None, num_few_shot=0, engine=Scripted(generations),
        prompts=tuple(one.prompt for one in examples), references=tuple(one.reference or "" for one in examples),
        row_ids=tuple(one.id for one in examples), prompt_texts=("",) * len(examples), tokenised=(), num_bytes=(),
    )  # fmt: skip
    (found,), _ = judge([system], metrics=["exact_match"], seed=0, progress=SilentProgress())
    return found


def test_a_system_that_does_not_think_has_no_figures_of_it() -> None:
    found = judged([made("0"), made("1")])
    assert found.thinking is None
    assert thinking_sentence(found) is None


def test_thoughts_are_counted_and_kept_beside_the_answers() -> None:
    found = judged([made("0", 10), made("1", 30), made("", 50, ends_in_thought=True), made("3")])
    assert found.metrics["exact_match"].value == pytest.approx(0.75)
    thinking = found.thinking
    assert thinking is not None
    assert (thinking.num_thoughts, thinking.num_cut_off) == (3, 1)
    assert (thinking.mean_tokens, thinking.least_tokens, thinking.most_tokens) == (30, 10, 50)
    assert [one.reasoning for one in found.samples] == ["so", "so", "so", None]
    assert [one.num_thinking_tokens for one in found.samples] == [10, 30, 50, 0]
    words = thinking_sentence(found)
    assert words is not None
    assert "3 of 4 answers, 30 tokens on average (10 to 50); 1 thought was cut off" in words


def test_lengths_that_a_server_does_not_tell_are_not_guessed() -> None:
    found = thinking_figures([made("0", None), made("1", 30)])
    assert found is not None
    assert (found.num_thoughts, found.mean_tokens, found.most_tokens) == (2, None, None)


@pytest.mark.parametrize(
    "shot", [example(1, "one", "a long thought"), example(1, "<think>\na long thought\n</think>\n\none")]
)
def test_examples_in_a_prompt_have_no_thoughts(shot: Example) -> None:
    shown = with_shots(example(2, "two"), [shot]).conversation
    assert shown is not None
    assert [message.content for message in shown.messages] == ["1?", "one", "2?", "two"]
    assert all(message.reasoning is None for message in shown.messages)


def test_a_reference_has_no_thought() -> None:
    assert example(1, "<think>so</think>\none").reference == "one"
    assert example(1, "<think>so</think>\none").thought == "so"
    assert example(1, "one", "so").thought == "so"
    assert example(1, "one <think>so</think>").reference == "one <think>so</think>"
    assert example(1, "one").thought is None
