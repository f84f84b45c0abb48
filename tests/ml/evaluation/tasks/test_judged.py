import json
from pathlib import Path

import numpy as np
import pytest

from luthier.core.conversation import Conversation, Message
from luthier.core.dataset import Example
from luthier.core.errors import DataError, RequestError, WorkError
from luthier.core.records.bounds import UNIT
from luthier.core.records.calibration import target_of
from luthier.core.results.suite import PairwiseTask, RubricTask
from luthier.ml.evaluation.metrics.protocol import Observations
from luthier.ml.evaluation.statistics import bootstrap_interval, paired_bootstrap
from luthier.ml.evaluation.tasks.protocol import Resources, TaskRow, task_kind
from luthier.testing.fake_engine import FakeEngine

NUM = 20
PAIRWISE = PairwiseTask(kind="pairwise", name="style", data="rows.jsonl")
RUBRIC = RubricTask(kind="rubric", name="quality", data="rows.jsonl")


def row(number, *, prompt="Why?"):
    messages = [Message(role="assistant", content="So.")]
    if prompt is not None:
        messages.insert(0, Message(role="user", content=prompt))
    found = Example(id=f"rows.jsonl:{number + 1}", conversation=Conversation(messages=tuple(messages)))
    return TaskRow(found if prompt is not None else found.model_copy(update={"conversation": None, "text": "x"}), {})


ROWS = [row(number) for number in range(NUM)]


def made(task, answer, name="a judge"):
    kind = task_kind(task.kind)
    judge = FakeEngine(answer if callable(answer) else lambda prompt: answer)
    return kind, kind.metrics(task, ROWS, Resources(folder=Path(), judge=judge, judge_name=name))


def observed(outputs, firsts=None):
    prompts = [f"question {number}" for number in range(len(outputs))]
    return Observations(outputs=outputs, first_outputs=firsts or outputs, prompts=prompts)


def prefers(word):
    """Prefers the answer with a word in it, wherever it is shown."""

    def answer(prompt):
        text = prompt.conversation.messages[0].content
        return json.dumps({"better": "A" if word in text.split("[end of answer A")[0] else "B"})

    return answer


FIRSTS = [f"plain {number}" for number in range(NUM)]
BETTER = [f"lovely {number}" for number in range(NUM)]


@pytest.mark.parametrize("task", [PAIRWISE, RUBRIC], ids=lambda task: task.kind)
def test_without_a_judge_the_message_says_how_to_name_one(task):
    with pytest.raises(RequestError, match="add --judge MODEL"):
        task_kind(task.kind).metrics(task, ROWS, Resources(folder=Path()))


@pytest.mark.parametrize("task", [PAIRWISE, RUBRIC], ids=lambda task: task.kind)
def test_rows_without_a_prompt_are_named(task):
    kind = task_kind(task.kind)
    kind.check(task, ROWS)
    with pytest.raises(DataError, match=r"rows\.jsonl:2") as caught:
        kind.check(task, [ROWS[0], row(1, prompt=None)])
    assert [problem.line for problem in caught.value.problems] == [2]


def test_the_win_rate_is_against_the_first_system_and_ties_count_half():
    kind, (metric,) = made(PAIRWISE, prefers("lovely"))
    assert (metric.name, metric.judge_name, metric.needs) == ("win_rate", "a judge", "text")
    first = metric.statistics(observed(FIRSTS))
    assert metric.aggregate(first.sum(axis=0)) == 0.5
    mixed = metric.statistics(observed([*BETTER[:10], *FIRSTS[10:]], FIRSTS))
    assert metric.aggregate(mixed.sum(axis=0)) == 0.75
    assert metric.aggregate(mixed).tolist() == [1.0] * 10 + [0.5] * 10
    assert any("luthier judge calibrate" in one for one in kind.cautions(PAIRWISE))


def test_a_win_rate_by_another_criterion_has_another_name():
    _, (metric,) = made(PAIRWISE.model_copy(update={"criterion": "accuracy"}), prefers("lovely"))
    assert (metric.name, target_of(metric.name)) == ("win_rate_accuracy", None)
    assert target_of("win_rate") == "preference"
    assert [target_of(metric.name) for metric in made(RUBRIC, "")[1]] == ["relevance", "coherence", "accuracy"]


def test_a_judge_that_takes_the_first_shown_is_found_out():
    kind, (metric,) = made(PAIRWISE, '{"better": "A"}')
    stats = metric.statistics(observed(BETTER, FIRSTS))
    assert metric.aggregate(stats.sum(axis=0)) == 0.5
    words = " ".join(kind.cautions(PAIRWISE))
    assert "shown first, an answer won 100% [" in words
    assert "of 40 showings with a winner (50% is fair); it leans to the first" in words
    assert "In 20 of 20 pairs (100%) a judge preferred another answer when the order was turned around" in words


def silent_on(numbers, answer, kind="prose"):
    said = {"prose": "Hard to say.", "refusal": "I cannot judge that.", "empty": "", "range": '{"better": "Z"}'}[kind]

    def reply(prompt):
        text = prompt.conversation.messages[0].content
        return said if any(f"question {number}\n" in text for number in numbers) else answer(prompt)

    return reply


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("prose", "words without a verdict"),
        ("refusal", "a refusal"),
        ("empty", "nothing"),
        ("range", "a verdict that was not to choose"),
    ],
)
def test_what_is_no_verdict_is_left_out_and_told(kind, words):
    task_kind_made, (metric,) = made(PAIRWISE, silent_on([1], prefers("lovely"), kind))
    stats = metric.statistics(observed(BETTER, FIRSTS))
    assert metric.aggregate(stats.sum(axis=0)) == 1.0
    assert np.isnan(metric.aggregate(stats)[1])
    told = task_kind_made.cautions(PAIRWISE)[-1]
    assert f"a judge gave no verdict on 1 of 20 pairs (5%), asked twice: {words} (1)." in told
    assert "too many" not in told


def test_above_a_tenth_the_caution_says_so_and_above_a_half_there_is_no_figure():
    kind, (metric,) = made(PAIRWISE, silent_on(range(5), prefers("lovely")))
    metric.statistics(observed(BETTER, FIRSTS))
    assert "too many to call the rest a fair sample" in kind.cautions(PAIRWISE)[-1]
    _, (metric,) = made(PAIRWISE, silent_on(range(11), prefers("lovely")))
    with pytest.raises(WorkError, match="no verdict on 11 of 20 pairs"):
        metric.statistics(observed(BETTER, FIRSTS))


def test_an_answer_without_a_verdict_makes_the_others_no_surer():
    """19 of 19 pairs won, and one without a verdict: Wilson's interval of 19 of 19 begins at 0.832."""
    _, (metric,) = made(PAIRWISE, silent_on([1], prefers("lovely")))
    first, stats = metric.statistics(observed(FIRSTS)), metric.statistics(observed(BETTER, FIRSTS))
    found = bootstrap_interval(stats, metric.aggregate, bounds=UNIT, seed=0)
    assert (found.low, found.high) == (pytest.approx(0.832, abs=1e-3), 1.0)
    gain = paired_bootstrap(stats, first, metric.aggregate, bounds=UNIT, seed=0)
    assert gain.low == pytest.approx(0.5 * 0.832, abs=1e-3)
    assert gain.difference < gain.high <= 1.0


def test_intervals_are_numbers_where_many_verdicts_are_missing():
    _, (metric,) = made(PAIRWISE, silent_on([1], prefers("lovely")))
    stats = metric.statistics(observed(BETTER[:2], FIRSTS[:2]))
    assert np.isfinite(bootstrap_interval(stats, metric.aggregate, bounds=UNIT, seed=0)).all()


def test_a_rubric_asks_once_for_all_criteria():
    asked = []

    def answer(prompt):
        asked.append(prompt)
        text = prompt.conversation.messages[0].content
        return json.dumps({"relevance": 5 if "lovely" in text else 2, "coherence": 3, "accuracy": 1})

    kind, metrics = made(RUBRIC, answer)
    assert [metric.name for metric in metrics] == ["judge_relevance", "judge_coherence", "judge_accuracy"]
    values = {}
    for outputs in (FIRSTS, BETTER):
        for metric in metrics:
            stats = metric.statistics(observed(outputs))
            values.setdefault(metric.name, []).append(float(metric.aggregate(stats.sum(axis=0))))
    assert values == {"judge_relevance": [2, 5], "judge_coherence": [3, 3], "judge_accuracy": [1, 1]}
    assert len(asked) == 2 * NUM
    assert len(kind.cautions(RUBRIC)) == 1


def test_a_rubric_counts_each_answer_once():
    def answer(prompt):
        text = prompt.conversation.messages[0].content
        return json.dumps({"relevance": 9 if "question 3\n" in text else 4, "coherence": 3, "accuracy": 1})

    kind, metrics = made(RUBRIC, answer)
    for metric in metrics:
        metric.statistics(observed(BETTER))
    assert "no verdict on 1 of 20 answers (5%)" in kind.cautions(RUBRIC)[-1]


def test_the_bias_of_several_systems_is_told_together():
    kind, (metric,) = made(PAIRWISE, '{"better": "A"}')
    metric.statistics(observed(FIRSTS))
    metric.statistics(observed(BETTER, FIRSTS))
    metric.statistics(observed([f"dull {number}" for number in range(NUM)], FIRSTS))
    assert "In 40 of 40 pairs" in " ".join(kind.cautions(PAIRWISE))


def calls_of(*names, **arguments):
    functions = [{"name": name, "arguments": json.dumps(arguments)} for name in names]
    return tuple({"id": f"c{n}", "type": "function", "function": one} for n, one in enumerate(functions))


def test_a_judge_sees_the_calls_of_an_answer_that_has_no_text():
    """As people in panels do, with whom it is compared."""
    seen = []

    def answer(prompt):
        text = prompt.conversation.messages[0].content
        seen.append(text)
        return prefers("lovely_wood")(prompt)

    _, (metric,) = made(PAIRWISE, answer)
    own, first = calls_of("lovely_wood", b=1, a=2), calls_of("look")
    given = Observations(
        outputs=["", "same"], first_outputs=["", "same"], prompts=["q1", "q2"], tool_calls=[own, ()],
        first_tool_calls=[first, ()],
    )  # fmt: skip
    assert metric.aggregate(metric.statistics(given)).tolist() == [1.0, 0.5]
    assert len(seen) == 2, "equal answers are not asked about"
    for text in seen:
        assert '<tool_call>{"name": "lovely_wood", "arguments": {"a": 2, "b": 1}}</tool_call>' in text
        assert "(there is no text)" not in text


def test_calls_that_differ_in_the_order_of_their_arguments_alone_are_a_tie():
    _, (metric,) = made(PAIRWISE, lambda prompt: pytest.fail("equal answers are not asked about"))
    given = Observations(
        outputs=["So."], first_outputs=["So."], prompts=["q"], tool_calls=[calls_of("look", a=1, b=2)],
        first_tool_calls=[calls_of("look", b=2, a=1)],
    )  # fmt: skip
    assert metric.aggregate(metric.statistics(given)).tolist() == [0.5]


def test_scores_are_of_the_text_with_its_calls():
    said = '{"relevance": 4, "coherence": 4, "accuracy": 4}'
    _, metrics = made(RUBRIC, lambda prompt: said if "look" in prompt.conversation.messages[0].content else "")
    given = Observations(outputs=["", "I look."], prompts=["q1", "q2"], tool_calls=[calls_of("look"), ()])
    assert metrics[0].aggregate(metrics[0].statistics(given)).tolist() == [4.0, 4.0]
