"""What rows can be judged by is asked before anything is trained."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.fixtures.service import chat_row, write_rows

from luthier.core.conversation import Conversation, Message
from luthier.core.dataset import Example, TokenisedExample
from luthier.core.errors import OverlongError, RequestError
from luthier.features.planning.service import make_plan
from luthier.features.recipes import checks as judgeable
from luthier.features.recipes.service import load_recipe
from luthier.platform.home.context import Context

MakeRecipe = Callable[..., Path]
CALL = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Cremona"}'}}


def conversation(number: int, *, answer: Message | None = None) -> Example:
    answer = answer or Message(role="assistant", content=f"So {number}.")
    turns = (Message(role="user", content=f"Why {number}?"), answer)
    return Example(id=f"t.jsonl:{number}", conversation=Conversation(messages=turns))


ANSWERED = [conversation(n) for n in range(3)]
PLAIN = [Example(id="t.jsonl:1", text="A violin has four strings.")]
CALLING = [*ANSWERED, conversation(7, answer=Message(role="assistant", tool_calls=(CALL,)))]


def test_rows_without_answers_in_words_are_judged_by_likelihood() -> None:
    assert judgeable.usual_metrics(ANSWERED) == ("perplexity", "rouge", "bleu", "exact_match")
    assert judgeable.usual_metrics(PLAIN) == ("perplexity", "bits_per_byte")
    assert judgeable.usual_metrics(CALLING) == ("perplexity", "bits_per_byte")


def test_metrics_of_text_need_text() -> None:
    judgeable.check_metrics(["rouge", "perplexity"], ANSWERED)
    judgeable.check_metrics(["perplexity", "bits_per_byte"], CALLING)
    with pytest.raises(RequestError, match=r"bleu, rouge asked for, but t.jsonl:1 is plain text"):
        judgeable.check_metrics(["rouge", "bleu", "perplexity"], PLAIN)
    with pytest.raises(RequestError, match=r"t.jsonl:7 is a row whose answer is only tool calls"):
        judgeable.check_metrics(["rouge"], CALLING)


def test_few_shot_needs_prompts_and_a_pool() -> None:
    judgeable.check_few_shot(3, ANSWERED, [conversation(9)])
    judgeable.check_few_shot(0, [], PLAIN)
    with pytest.raises(RequestError, match="plain text"):
        judgeable.check_few_shot(1, ANSWERED, PLAIN)
    with pytest.raises(RequestError, match="3 few-shot examples asked, 2 of 3"):
        judgeable.check_few_shot(3, ANSWERED, [conversation(0)])


def test_rows_over_the_context_are_named() -> None:
    rows = [TokenisedExample(f"t.jsonl:{n}", array("i", range(n)), bytes(n)) for n in (8, 9, 10)]
    judgeable.check_lengths(rows, 10, model="tiny")
    with pytest.raises(OverlongError, match=r"2 of 3 held-out rows[\s\S]*t.jsonl:9 has 9 tokens") as caught:
        judgeable.check_lengths(rows, 8, model="tiny")
    assert [problem.line for problem in caught.value.problems] == [9, 10]


def plan(context: Context, recipe: Path) -> Any:
    return make_plan(context, load_recipe(recipe), base_dir=recipe.parent)


def test_a_plan_shows_as_many_examples_as_there_are(context: Context, make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(evaluation={})
    write_rows(recipe.parent / "train.jsonl", [chat_row(n) for n in range(3)])
    made = plan(context, recipe)
    assert made.evaluation.few_shot == 3
    assert made.sources["evaluation.few_shot"].source == "derived"
    with pytest.raises(RequestError, match="4 few-shot examples asked, 3 of 3"):
        plan(context, make_recipe_with(recipe, "evaluation: {few_shot: 4}"))


def make_recipe_with(recipe: Path, section: str) -> Path:
    text = recipe.read_text(encoding="utf-8")
    recipe.write_text(text.replace("evaluation: {}", section), encoding="utf-8")
    return recipe


def test_answers_that_are_only_tool_calls_are_judged_by_likelihood(context: Context, make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(evaluation={})
    row = {"messages": [{"role": "user", "content": "Weather?"}, {"role": "assistant", "tool_calls": [CALL]}]}
    write_rows(recipe.parent / "test.jsonl", [row])
    made = plan(context, recipe)
    assert made.evaluation.metrics == ("perplexity", "bits_per_byte")
    with pytest.raises(RequestError, match="rouge asked for"):
        plan(context, make_recipe_with(recipe, "evaluation: {metrics: [rouge]}"))


def test_plain_text_with_few_shot_examples_is_refused_before_training(
    context: Context, make_recipe: MakeRecipe
) -> None:
    recipe = make_recipe(evaluation={"few_shot": 2})
    for name, start in (("train", 0), ("valid", 100), ("test", 200)):
        rows = [{"text": f"{n} and {n + 1} are neighbours."} for n in range(start, start + 8)]
        write_rows(recipe.parent / f"{name}.jsonl", rows)
    with pytest.raises(RequestError, match="plain text"):
        plan(context, recipe)
