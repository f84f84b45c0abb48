"""A model that thinks is evaluated by its answers, with a budget for its thoughts, wherever answers are evaluated."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from luthier.features.evaluations import service as evaluations
from luthier.features.planning.service import prepare
from luthier.features.recipes.service import recipe_from
from luthier.ml.inference.models.templates.chat_template import ChatTemplate
from luthier.platform.home.context import Context
from luthier.testing.tiny import ANSWER, OPENING_TEMPLATE, THINKING_TEMPLATE, THOUGHT


@pytest.fixture(scope="module", params=[THINKING_TEMPLATE, OPENING_TEMPLATE], ids=["writes", "opens"])
def thinker(request: pytest.FixtureRequest, tiny_thinker: Callable[..., Path]) -> Path:
    return tiny_thinker(request.param)


def rows_file(folder: Path, answer: str = ANSWER, num: int = 4) -> Path:
    rows = [
        {"messages": [{"role": "user", "content": f"Which wood, of {n}?"}, {"role": "assistant", "content": answer}]}
        for n in range(num)
    ]
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def test_a_base_model_is_judged_by_its_answers(thinker: Path, tmp_path: Path, context: Context) -> None:
    found = evaluations.evaluate(context, [str(thinker)], data=rows_file(tmp_path), metrics=("exact_match",))
    (system,) = found.systems
    assert system.metrics["exact_match"].value == pytest.approx(1.0)
    assert system.thinking is not None
    assert (system.thinking.num_thoughts, system.thinking.num_cut_off) == (4, 0)
    assert [sample.output for sample in system.samples] == [ANSWER] * 4
    assert [sample.reasoning for sample in system.samples] == [THOUGHT] * 4


def test_thoughts_that_are_cut_off_are_counted(thinker: Path, tmp_path: Path, context: Context) -> None:
    found = evaluations.evaluate(
        context, [str(thinker)], data=rows_file(tmp_path), metrics=("exact_match",), max_thinking_tokens=7
    )
    (system,) = found.systems
    assert system.metrics["exact_match"].value == pytest.approx(0.0)
    assert system.thinking is not None
    assert (system.thinking.num_cut_off, system.num_cut_off, system.num_empty) == (4, 4, 4)


def test_a_thought_in_the_rows_is_no_part_of_their_answers(thinker: Path, tmp_path: Path, context: Context) -> None:
    data = rows_file(tmp_path, f"<think>\nBecause it is.\n</think>\n\n{ANSWER}")
    found = evaluations.evaluate(context, [str(thinker)], data=data, metrics=("exact_match",))
    assert found.systems[0].metrics["exact_match"].value == pytest.approx(1.0)


def recipe(folder: Path, model: Path, **evaluation: object) -> dict[str, object]:
    return {
        "base_model": str(model),
        "data": {"train": "train.jsonl", "held_out": "rows.jsonl"},
        "evaluation": {"few_shot": 0, **evaluation},
    }


def planned(context: Context, folder: Path, model: Path, answer: str, **evaluation: object):  # type: ignore[no-untyped-def]
    rows_file(folder, answer)
    turns = [{"role": "user", "content": "Which glue?"}, {"role": "assistant", "content": answer}]
    (folder / "train.jsonl").write_text(json.dumps({"messages": turns}) + "\n", encoding="utf-8")
    asked = recipe_from(recipe(folder, model, **evaluation), base_dir=folder)
    return prepare(context, asked, base_dir=folder).plan


def test_the_budgets_of_a_plan_follow_from_rows_and_model(
    thinker: Path, tiny_model: Path, tmp_path: Path, context: Context
) -> None:
    short = planned(context, tmp_path, tiny_model, "Spruce.")
    assert (short.evaluation.max_new_tokens, short.evaluation.max_thinking_tokens) == (128, 0)
    assert short.sources["evaluation.max_new_tokens"].source == "default"
    long_answer = "It is spruce. " * 40
    long = planned(context, tmp_path, tiny_model, long_answer)
    longest = len(ChatTemplate.load(tiny_model).ids(long_answer)) + 1
    assert longest * 1.25 <= long.evaluation.max_new_tokens < longest * 1.25 + 32
    assert long.sources["evaluation.max_new_tokens"].source == "derived"
    thinks = planned(context, tmp_path, thinker, "Spruce.")
    # what the context of 512 tokens leaves behind the longest row and its answer
    assert thinks.data.held_out is not None
    assert thinks.evaluation.max_thinking_tokens == 512 - thinks.data.held_out.max_tokens - 128
    assert thinks.sources["evaluation.max_thinking_tokens"].source == "derived"
    asked = planned(context, tmp_path, thinker, "Spruce.", max_thinking_tokens=0, max_new_tokens=9)
    assert (asked.evaluation.max_new_tokens, asked.evaluation.max_thinking_tokens) == (9, 0)
    assert asked.sources["evaluation.max_thinking_tokens"].source == "asked"


def test_rows_with_thoughts_give_a_model_a_budget_that_knows_of_none(
    tiny_model: Path, tmp_path: Path, context: Context
) -> None:
    found = planned(context, tmp_path, tiny_model, f"<think>{'It is so. ' * 10}</think>Spruce.")
    longest = len(ChatTemplate.load(tiny_model).ids(("It is so. " * 10).strip()))
    assert longest * 1.5 <= found.evaluation.max_thinking_tokens <= longest * 1.5 + 48
    assert found.evaluation.max_new_tokens == 128


def test_a_plan_without_thoughts_keeps_its_hash(tiny_model: Path, tmp_path: Path, context: Context) -> None:
    plan = planned(context, tmp_path, tiny_model, "Spruce.")
    other = plan.model_copy(update={"evaluation": plan.evaluation.model_copy(update={"max_thinking_tokens": 5})})
    assert plan.hash != other.hash
    document = json.loads(plan.model_dump_json())
    del document["evaluation"]["max_thinking_tokens"]
    assert type(plan).model_validate(document).hash == plan.hash
