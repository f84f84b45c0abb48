"""Rewards: parts, weights, and what a single answer is worth by each figure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from pydantic import ValidationError

from luthier.core.errors import RequestError
from luthier.core.graders import Reward, as_reward
from luthier.core.ports import Generation, Progress, Prompt, Rollout, SilentProgress
from luthier.ml.evaluation.metrics.registry import BUILT_IN, REWARD_NAMES, load_metrics
from luthier.ml.evaluation.rewards import Rewards, RewardTools, names

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


class Opinion:
    """Answers each question by a function of its text; counts the calls."""

    name = "opinion"

    def __init__(self, reply: Callable[[str], str]) -> None:
        self.reply, self.asked = reply, list[list[Prompt]]()

    def generate(self, prompts: Sequence[Prompt], progress: Progress) -> list[Generation]:
        self.asked.append(list(prompts))
        said = [self.reply(one.conversation.messages[-1].content or "") for one in prompts if one.conversation]
        return [Generation(text=text, num_prompt_tokens=1, num_new_tokens=1, finish_reason="stop") for text in said]

    def score(self, examples: Any, progress: Progress) -> Any:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


SCORE = {"type": "score_model", "name": "s", "model": "m", "range": [-2, 2]}
SCORE |= {"input": [{"role": "user", "content": "{{sample.output_text}} / {{item.reference}}"}]}
LABEL = SCORE | {"type": "label_model", "name": "l", "labels": ["good", "bad"], "passing_labels": ["good"]}
del LABEL["range"]


def judged(judge: Opinion, *rewards: Any) -> Rewards:
    tools = RewardTools(lambda name: {"m": judge}[name], no_code, SilentProgress(), lambda _: None)
    return Rewards([Reward.model_validate(one) for one in rewards], ITEMS, tools)


def no_code(*_: Any) -> Any:
    raise AssertionError("there is no code")


def test_a_model_is_asked_about_all_answers_of_a_step_at_once_and_what_it_does_not_say_counts_the_lowest() -> None:
    judge = Opinion(lambda text: {"a": "2", "b": "0.5", "c": "no idea"}[text[0]])
    rewards = judged(judge, {"grader": SCORE, "weight": 2.0}, "exact_match")
    found = rewards([Rollout("row:2", text, 1, True) for text in ("a", "b", "c")])
    assert [one.reward for one in found] == [4.0, 1.0, -4.0]
    assert [one.parts for one in found] == [{"s": score, "exact_match": 0.0} for score in (2.0, 0.5, -2.0)]
    assert [one.is_ungraded for one in found] == [False, False, True]
    first, again = judge.asked
    assert [one.conversation.messages[0].content for one in first if one.conversation] == [
        "a / maple", "b / maple", "c / maple"
    ]  # fmt: skip
    # Asked once more, in another way, since a greedy reply would only repeat itself.
    assert [(len(again), again[0].temperature > 0, first[0].temperature)] == [(1, True, 0.0)]


def test_labels_and_formulas_over_what_models_say() -> None:
    judge = Opinion(lambda text: "Good" if text.startswith("a") else "maybe")
    check = {"type": "string_check", "input": "{{sample.output_text}}", "reference": "x", "operation": "ne"}
    multi = {"type": "multi", "graders": {"l": LABEL, "c": check}, "calculate_output": "c - 3 * l"}
    found = judged(judge, {"grader": multi})([Rollout("row:1", text, 1, True) for text in ("a", "b")])
    # The formula makes "good" the worse one: what cannot be read is worth no more than that.
    assert [(one.reward, one.is_ungraded) for one in found] == [(-2.0, False), (-2.0, True)]


@pytest.mark.parametrize(
    ("reward", "worst"),
    [
        ({"grader": SCORE, "weight": -2.0}, -4.0),
        ({"grader": LABEL, "weight": -2.0}, -2.0),
        ({"grader": {"type": "multi", "graders": {"s": SCORE, "l": LABEL}, "calculate_output": "s - 3 * l"}}, -5.0),
        ({"grader": {"type": "multi", "graders": {"s": SCORE}, "calculate_output": "1 / (2 - s)"}}, 0.25),
        ({"grader": {"type": "multi", "graders": {"s": SCORE}, "calculate_output": "s"}, "weight": -1.0}, -2.0),
    ],
)
def test_no_answer_is_worth_more_for_a_reply_that_cannot_be_read(reward: dict[str, Any], worst: float) -> None:
    (found,) = judged(Opinion(lambda _: "no idea"), reward)([Rollout("row:2", "a", 1, True)])
    assert (found.reward, found.is_ungraded) == (pytest.approx(worst), True)


def test_sampling_of_a_grader_is_that_of_its_questions() -> None:
    judge = Opinion(lambda _: "1")
    sampling = {"max_completions_tokens": 7, "temperature": 0.5, "seed": 9}
    judged(judge, {"grader": SCORE | {"sampling_params": sampling}})([Rollout("row:1", "a", 1, True)])
    ((asked,),) = judge.asked
    assert (asked.max_new_tokens, asked.max_thinking_tokens, asked.temperature, asked.seed) == (7, 0, 0.5, 9)


def test_a_model_that_never_gives_a_score_is_found_before_anything_is_graded() -> None:
    with pytest.raises(RequestError, match=r"no reply of m to 2 rows can be read as a score, such as '3' \(prose\)"):
        judged(Opinion(lambda _: "3"), {"grader": SCORE}).try_graders()
    with pytest.raises(RequestError) as caught:
        judged(Opinion(lambda _: "3"), {"grader": LABEL}).try_graders()
    assert caught.value.expected == "one of good, bad in its replies"
    judged(Opinion(lambda text: "1" if "maple" in text else "?"), {"grader": SCORE}, "exact_match").try_graders()


@pytest.mark.parametrize(
    ("grader", "words"),
    [
        (SCORE | {"range": [2, 2]}, "'s': range 2 to 2"),
        (LABEL | {"passing_labels": ["fine"]}, "'l': passing_labels has fine"),
        (LABEL | {"labels": ["good", "Good "]}, "'l': labels with"),
        ({"type": "multi", "graders": {"s": SCORE}, "calculate_output": "t"}, "calculate_output 't'"),
    ],
)
def test_graders_that_decide_nothing_are_refused(grader: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError) as caught:
        judged(Opinion(str), {"grader": grader})
    assert words in caught.value.came


def test_messages_are_read_in_all_forms_of_openai_s_api() -> None:
    part = {"type": "input_text", "text": "b"}
    turns = [{"type": "message", "role": "user", "content": form} for form in ("a", part, ["a", part])]
    usual = {"top_p": 1, "reasoning_effort": None, "seed": 3}
    found = as_reward(SCORE | {"input": turns, "sampling_params": usual, "pass_threshold": 1, "range": None})
    assert [turn["content"] for turn in found["input"]] == ["a", "b", "a\nb"]
    assert (found["sampling_params"], "range" in found) == ({"seed": 3}, False)
    Reward.model_validate({"grader": found})
    image = SCORE | {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}
    with pytest.raises(ValidationError):
        Reward.model_validate({"grader": as_reward(image)})
