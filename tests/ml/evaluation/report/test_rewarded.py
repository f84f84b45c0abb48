"""The part of the page that tells of drawn answers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest
from tests.ml.evaluation.report.conftest import VERSIONS, make_plan, make_record

from luthier.core.events import Event, StepDone, ValidationDone
from luthier.core.graders import LengthPenalty, Reward
from luthier.core.plan import ObjectivePlan, Plan
from luthier.ml.evaluation.report import ReportData, render_report
from luthier.ml.evaluation.report.facts import key_figures, model_facts
from luthier.ml.evaluation.report.rewarded import best_validation, rewarded

OBJECTIVE = ObjectivePlan(
    name="grpo",
    rewards=(
        Reward(metric="token_f1"),
        Reward(length=LengthPenalty(free_tokens=2, max_tokens=4), weight=0.2),
    ),
    num_samples=3,
    temperature=1.0,
    max_new_tokens=16,
    kl_weight=0.1,
    divide_by_spread=True,
    loss_weighting="token",
)


@pytest.fixture
def plan() -> Plan:
    return make_plan().model_copy(update={"objective": OBJECTIVE})


def step(number: int, reward: float, **more: float) -> StepDone:
    measures = {
        "reward": reward,
        "reward_spread": 0.1,
        "no_signal_fraction": 0.5 / number,
        "completion_tokens": 8.0,
        "truncated_fraction": 0.25,
    } | more
    return StepDone(
        step=number,
        epoch=number / 10,
        loss=0.01,
        learning_rate=1e-4,
        gradient_norm=1.0,
        num_tokens=500,
        num_trained_tokens=90,
        seconds=2.0,
        measures=measures,
    )


def check(number: int, reward: float) -> ValidationDone:
    return ValidationDone(
        step=number, loss=-reward, num_trained_tokens=50, is_best=True, seconds=1.0, measures={"reward": reward}
    )


EVENTS: tuple[Event, ...] = (*(step(n, n / 20, kl=0.01 * n) for n in range(1, 11)), check(5, 0.4), check(10, 0.3))


def line(number: int, output: str, reward: float, **more: Any) -> dict[str, Any]:
    return {
        "step": number,
        "row_id": "train.jsonl:7",
        "prompt": "Which wood?",
        "output": output,
        "reward": reward,
        "parts": {},
        "advantage": reward - 0.5,
        "num_new_tokens": 4,
        "finish_reason": "stop",
    } | more


DRAWN = [line(1, "pine", 0.1), line(1, "<b>spruce</b>", 0.9), line(1, "oak", 0.4, finish_reason="length")]


def test_a_run_that_draws_nothing_has_no_such_part() -> None:
    assert rewarded(make_plan(), EVENTS, DRAWN) is None


def test_the_best_and_the_worst_of_a_group_are_shown(plan: Plan) -> None:
    found = rewarded(plan, EVENTS, [*DRAWN, line(9, "ash", 0.5), line(9, "elm", 0.5)])
    assert found is not None
    first, second = found.moments
    assert (first.title, first.prompt) == ("Step 1, train.jsonl:7", "Which wood?")
    assert [(a.title, a.reward, a.text) for a in first.answers] == [
        ("Worth most", "0.9", "<b>spruce</b>"),
        ("Worth least", "0.1", "pine"),
    ]
    assert first.answers[0].note == "Ended by itself after 4 tokens; advantage +0.40."
    assert [a.title for a in second.answers] == ["All were worth the same; the first one"]


def test_charts_say_how_the_reward_went(plan: Plan) -> None:
    found = rewarded(plan, EVENTS, ())
    assert found is not None
    assert [chart.title for chart in found.charts] == [
        "Reward, mean",
        "Groups that teach nothing, answers cut off",
        "Tokens of an answer, mean",
        "Distance from the start, nats a token",
    ]
    assert found.charts[0].caption == (
        "Mean reward went from 0.05 to 0.5 in 10 steps. On validation rows the likeliest answers went from 0.4 to 0.3, "
        "at best 0.4. Band: mean spread between the answers to one prompt."
    )
    for chart in found.charts:
        assert ElementTree.fromstring(str(chart.svg)).tag.endswith("svg")
    assert rewarded(plan, (), ()).charts == ()  # type: ignore[union-attr]
    events = [step(n, 0.5, clipped_fraction=0.01 * n) for n in range(1, 4)]
    of_several = rewarded(plan, events, ())
    assert of_several is not None
    assert [chart.title for chart in of_several.charts][3:] == ["Tokens whose loss was clipped"]
    assert of_several.charts[3].caption == "Clipped tokens from 1\u202f% to 3\u202f%, mean 2\u202f%."


def test_facts_speak_of_the_reward(plan: Plan) -> None:
    assert best_validation(EVENTS) == (0.4, 5)
    facts = {fact.name: (fact.value, fact.note) for fact in key_figures(make_record(), plan, EVENTS)}
    assert facts["Best validation reward"] == ("0.400", "at step 5, the likeliest answers")
    assert "Best validation loss" not in facts
    about = {fact.name: (fact.value, fact.note) for fact in model_facts(make_record(), plan, "Apache-2.0")}
    assert about["Objective"] == ("GRPO", "3 answers a prompt, up to 16 tokens, worth token_f1 x 1, length x 0.2")
    judge: Any = SimpleNamespace(name="tiny-judge")
    judged = plan.model_copy(update={"objective": plan.objective.model_copy(update={"judges": (judge,)})})
    about = {fact.name: fact.note for fact in model_facts(make_record(), judged, "Apache-2.0")}
    assert about["Objective"].endswith("length x 0.2; graded by tiny-judge")


def test_the_page_escapes_what_a_model_wrote_and_keeps_all_in_the_document(plan: Plan) -> None:
    data = ReportData(record=make_record(), plan=plan, events=EVENTS, evaluation=None, versions=VERSIONS, drawn=DRAWN)
    page, document = render_report(data)
    assert "What was rewarded" in page
    assert "&lt;b&gt;spruce&lt;/b&gt;" in page
    assert "<b>spruce" not in page
    assert "nats a learned token" not in page
    assert document["drawn"] == DRAWN


def test_calls_of_tools_are_shown_with_the_text_of_an_answer(plan: Plan) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    found = rewarded(plan, EVENTS, [line(1, "", 0.5, tool_calls=[call])])
    assert found is not None
    ((shown,),) = (moment.answers for moment in found.moments)
    assert shown.text == '<tool_call>{"name": "look", "arguments": {}}</tool_call>'
