"""Rewards: parts, weights, and what a single answer is worth by each figure."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from luthier.core.graders import Reward
from luthier.core.ports import Rollout
from luthier.ml.evaluation.metrics.registry import BUILT_IN, REWARD_NAMES, load_metrics
from luthier.ml.evaluation.rewards import Rewards, names

ITEMS = {"row:1": {"reference": "the front is made of spruce"}, "row:2": {"reference": "maple"}}


def worth(output: str, *rewards: Any, row: str = "row:1", num_new_tokens: int = 5) -> Any:
    graded = Rewards([Reward.model_validate(r) for r in rewards], ITEMS)
    return graded([Rollout(row, output, num_new_tokens, True)])[0]


@pytest.mark.parametrize("metric", [name for name in REWARD_NAMES if name != "meteor"])  # see its own tests
def test_the_reference_itself_is_worth_one_and_nothing_is_worth_nothing(metric: str) -> None:
    assert worth(ITEMS["row:1"]["reference"], metric).reward == pytest.approx(1.0)
    assert worth("", metric).reward == pytest.approx(0.0)


def test_rewards_are_the_metrics_of_texts_but_for_those_that_need_all_rows() -> None:
    of_texts = {metric.name for metric in load_metrics(list(BUILT_IN)) if metric.needs == "text"}
    assert set(REWARD_NAMES) == of_texts - {"nmae"}
    with pytest.raises(ValidationError, match="not a metric of single answers"):
        Reward.model_validate("perplexity")


def test_figures_are_those_of_their_libraries() -> None:
    import sacrebleu

    output, reference = "the front was made of pine", ITEMS["row:1"]["reference"]
    assert worth(output, "chrf").reward == pytest.approx(sacrebleu.sentence_chrf(output, [reference]).score / 100)
    assert worth(output, "bleu").reward == pytest.approx(sacrebleu.sentence_bleu(output, [reference]).score / 100)
    # front, was, made, of, pine against front, is, made, of, spruce: three shared of five each
    assert worth(output, "token_f1").reward == pytest.approx(0.6)


def test_a_label_is_the_first_line_and_exact_match_is_exact() -> None:
    assert worth("Maple\nand more", "label_accuracy", row="row:2").reward == 1.0
    assert worth("Maple", "exact_match", row="row:2").reward == 0.0
    assert worth("Maple", "exact_match_ignoring_case", row="row:2").reward == 1.0


def test_parts_are_weighted_and_added_up() -> None:
    right = {"metric": "exact_match", "weight": 2.0}
    short = {"length": {"free_tokens": 4, "max_tokens": 8}, "weight": 0.5}
    found = worth("maple", right, short, row="row:2", num_new_tokens=6)
    assert found.parts == {"exact_match": 1.0, "length": -0.5}
    assert found.reward == 1.75


@pytest.mark.parametrize(("num", "wanted"), [(1, 0.0), (4, 0.0), (5, -0.25), (8, -1.0), (100, -1.0)])
def test_a_length_costs_nothing_at_first_and_one_at_most(num: int, wanted: float) -> None:
    assert worth("x", {"length": {"free_tokens": 4, "max_tokens": 8}}, num_new_tokens=num).reward == wanted


def test_parts_of_one_name_are_told_apart() -> None:
    found = names([Reward.model_validate(name) for name in ("bleu", "chrf", "bleu", "bleu")])
    assert found == ["bleu", "chrf", "bleu_2", "bleu_3"]


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"metric": "bleu", "length": {"free_tokens": 1, "max_tokens": 2}},
        "perplexity",
        {"length": {"free_tokens": 3, "max_tokens": 3}},
        {"metric": "bleu", "weight": float("nan")},
    ],
)
def test_a_part_is_one_known_thing(wrong: Any) -> None:
    with pytest.raises(ValidationError):
        Reward.model_validate(wrong)


CALL = {"id": "c1", "type": "function", "function": {"name": "saw", "arguments": '{"wood": "maple"}'}}


@pytest.mark.parametrize(
    ("field", "calls", "reference"),
    [
        ("output_text", (CALL,), "I cut."),
        ("output_tools[0].function.name", (CALL,), "saw"),
        ("output_tools[0].function.name", (), ""),
        ("output_tools[1].function.name", (CALL,), ""),
        ("output_tools", (), "[]"),
    ],
)
def test_graders_read_the_calls_of_an_answer(field: str, calls: Any, reference: str) -> None:
    grader = {"type": "string_check", "input": f"{{{{sample.{field}}}}}", "reference": reference, "operation": "eq"}
    graded = Rewards([Reward.model_validate({"grader": grader})], ITEMS)
    assert graded([Rollout("row:2", "I cut.", 5, True, tool_calls=calls)])[0].reward == 1.0


@pytest.mark.parametrize(
    ("text", "field", "reference"),
    [
        ('{"city": "Graz", "rooms": [{"beds": 2}]}', "output_json.city", "Graz"),
        ('{"city": "Graz", "rooms": [{"beds": 2}]}', "output_json.rooms[0].beds", "2"),
        ('{"city": "Graz"}', "output_json.street", ""),
        ("It is in Graz.", "output_json.city", ""),
        ("[1, 2]", "output_json.city", ""),
        ("", "output_json", ""),
    ],
)
def test_graders_read_the_fields_of_an_answer_that_is_json(text: str, field: str, reference: str) -> None:
    grader = {"type": "string_check", "input": f"{{{{sample.{field}}}}}", "reference": reference, "operation": "eq"}
    graded = Rewards([Reward.model_validate({"grader": grader})], ITEMS)
    assert graded([Rollout("row:2", text, 5, True)])[0].reward == 1.0
    opposite = Rewards([Reward.model_validate({"grader": grader | {"operation": "ne"}})], ITEMS)
    assert opposite([Rollout("row:2", text, 5, True)])[0].reward == 0.0
