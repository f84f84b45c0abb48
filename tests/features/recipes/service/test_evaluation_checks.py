"""What rows can be evaluated by is asked before anything is trained."""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.fixtures.service import chat_row, write_rows

from luthier.core.conversation import Conversation, Message
from luthier.core.dataset import Example, TokenisedExample
from luthier.core.errors import OverlongError, RecipeError, RequestError
from luthier.core.evaluation_plan import Bar, GoodEnoughRecipe
from luthier.core.plan import Plan
from luthier.features.planning.service import make_plan
from luthier.features.recipes import checks as judgeable
from luthier.features.recipes.service import load_recipe
from luthier.ml.data.rows.formats import load_file
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


def in_russian(number: int) -> Example:
    return conversation(number, answer=Message(role="assistant", content=f"Потому что ель лёгкая и прочная, {number}."))


def test_answers_that_rouge_does_not_see_are_compared_by_characters() -> None:
    russian = [in_russian(n) for n in range(3)]
    assert judgeable.usual_metrics(russian) == ("perplexity", "chrf", "bleu", "exact_match")
    assert judgeable.usual_metrics([*ANSWERED * 20, russian[0]]) == ("perplexity", "rouge", "bleu", "exact_match")


def test_metrics_of_text_need_text() -> None:
    judgeable.check_metrics(["rouge", "perplexity"], ANSWERED)
    judgeable.check_metrics(["perplexity", "bits_per_byte"], CALLING)
    with pytest.raises(RequestError, match=r"bleu, rouge requested, but t.jsonl:1 is plain text"):
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


def test_a_plan_takes_metrics_that_see_the_held_out_answers(context: Context, make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(evaluation={})
    answers = [f"Потому что ель лёгкая и прочная, {n}." for n in range(6)]
    rows = [
        {"messages": [*chat_row(n)["messages"][:1], {"role": "assistant", "content": answers[n]}]} for n in range(6)
    ]
    write_rows(recipe.parent / "test.jsonl", rows)
    made = plan(context, recipe)
    assert made.evaluation.metrics == ("perplexity", "chrf", "bleu", "exact_match")
    assert made.sources["evaluation.metrics"].source == "derived"
    assert "ROUGE sees no others" in made.sources["evaluation.metrics"].why
    named = plan(context, make_recipe_with(recipe, "evaluation: {metrics: [rouge]}"))
    assert named.evaluation.metrics == ("rouge",)


def test_answers_that_are_only_tool_calls_are_judged_by_likelihood(context: Context, make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(evaluation={})
    row = {"messages": [{"role": "user", "content": "Weather?"}, {"role": "assistant", "tool_calls": [CALL]}]}
    write_rows(recipe.parent / "test.jsonl", [row])
    made = plan(context, recipe)
    assert made.evaluation.metrics == ("perplexity", "bits_per_byte")
    with pytest.raises(RequestError, match="rouge requested"):
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


def labelled(number: int, label: str) -> Example:
    return conversation(number, answer=Message(role="assistant", content=label))


LABELLED = [labelled(n, "great" if n % 3 else "bad") for n in range(30)]
METRICS = ("perplexity", "rouge", "bleu", "exact_match")


@pytest.mark.parametrize(
    ("asked", "bar"),
    [
        ({"value": 0.9}, ("exact_match", 0.9)),
        ({"metric": "rouge_l", "value": 1}, ("rouge_l", 1.0)),
        ({"metric": "macro_f1", "value": 0.8}, ("macro_f1", 0.8)),
        ({"metric": "perplexity", "value": 4}, ("perplexity", 4.0)),
        ({"metric": "bleu", "value": 90}, ("bleu", 90.0)),
    ],
)
def test_good_enough_is_by_the_verdicts_metric_or_another_that_is_measured(
    asked: dict[str, Any], bar: tuple[str, float]
) -> None:
    found = judgeable.resolve_bar(GoodEnoughRecipe(**asked), METRICS, LABELLED, [])
    assert found == Bar(metric=bar[0], value=bar[1])


@pytest.mark.parametrize(
    ("asked", "examples", "message"),
    [
        ({"metric": "label_accuracy", "value": 0.9}, LABELLED, r"label_accuracy, which is not measured here.*rouge_l"),
        ({"metric": "sonority", "value": 0.9}, LABELLED, r"sonority, which is not measured.*macro_f1"),
        ({"metric": "macro_f1", "value": 0.9}, ANSWERED, r"measured where all answers are labels"),
        ({"metric": "rouge", "value": 0.9}, LABELLED, r"by rouge, which is not measured.*rouge_1, rouge_2, rouge_l"),
        ({"value": 90}, LABELLED, r"90 by exact_match.*0 to 1.*write 0.9 for 90%"),
        ({"value": -0.1}, LABELLED, r"-0.1 by exact_match.*0 to 1.*correct the value"),
        ({"metric": "bleu", "value": 101}, LABELLED, r"101 by bleu.*0 to 100.*correct the value"),
        ({"metric": "perplexity", "value": 0.5}, LABELLED, r"0.5 by perplexity.*1 to inf"),
    ],
)
def test_a_bar_that_cannot_be_held_is_refused(asked: dict[str, Any], examples: list[Example], message: str) -> None:
    with pytest.raises(RequestError) as caught:
        judgeable.resolve_bar(GoodEnoughRecipe(**asked), METRICS, examples, [])
    error = caught.value
    assert re.search(message, f"{error.came} {error.expected} {error.do}")


def test_good_enough_is_in_the_plan_and_in_its_hash_where_it_is_asked(
    context: Context, make_recipe: MakeRecipe
) -> None:
    recipe = make_recipe(evaluation={"metrics": ["exact_match"], "few_shot": 0})
    plain = plan(context, recipe)
    assert plain.evaluation.good_enough is None
    document = plain.model_dump(mode="json")
    del document["evaluation"]["good_enough"]
    assert Plan.model_validate(document).hash == plain.hash, "a plan of before there was a bar"
    asked = make_plan(context, load_recipe(recipe, ["evaluation.good_enough=0.9"]), base_dir=recipe.parent)
    assert asked.evaluation.good_enough == Bar(metric="exact_match", value=0.9)
    assert asked.sources["evaluation.good_enough"].source == "asked"
    row = next(row for row in asked.shown_values() if row["name"] == "evaluation.good_enough")
    assert row["value"] == {"metric": "exact_match", "value": 0.9}
    assert asked.hash != plain.hash
    with pytest.raises(RequestError, match=r"write 0\.9 for 90%"):
        make_plan(context, load_recipe(recipe, ["evaluation.good_enough=90"]), base_dir=recipe.parent)
    with pytest.raises(RecipeError, match="names no held-out rows"):
        make_plan(
            context, load_recipe(recipe, ["evaluation.good_enough=0.9", "data.held_out="]), base_dir=recipe.parent
        )


@pytest.mark.parametrize("value", ["true", "much", "{metric: bleu}", ".nan", "[0.9]", "{value: 0.9, agreement: other}"])
def test_a_bar_that_is_no_number_is_refused(make_recipe: MakeRecipe, value: str) -> None:
    with pytest.raises(RecipeError, match="good_enough"):
        load_recipe(make_recipe(evaluation={}), [f"evaluation.good_enough={value}"])
    with pytest.raises(RequestError, match="good_enough="):
        judgeable.good_enough_of({"metric": "bleu"})


def test_two_people_agree_where_the_answers_of_a_model_would_be_equal(tmp_path: Path) -> None:
    ripe = [{"prompt": f"Ripe {n}?", "completion": "true", "second": n != 1} for n in range(3)]
    write_rows(tmp_path / "ripe.jsonl", ripe)
    examples = load_file(tmp_path / "ripe.jsonl").examples
    agreed = judgeable.agreed_rows("exact_match", "second", examples, tmp_path / "ripe.jsonl")
    assert list(agreed.values()) == [True, False, True]
    others = ("sour, sweet", "sour")
    taste = [{"prompt": f"Taste {n}?", "completion": "sweet, sour", "second": others[n]} for n in (0, 1)]
    write_rows(tmp_path / "taste.jsonl", taste)
    examples, file = load_file(tmp_path / "taste.jsonl").examples, tmp_path / "taste.jsonl"

    def as_set(answer: str) -> str:
        return ", ".join(sorted(answer.split(", ")))

    found = [judgeable.agreed_rows("exact_match", "second", examples, file, form) for form in (None, as_set)]
    assert [list(one.values()) for one in found] == [[False, False], [True, False]]
