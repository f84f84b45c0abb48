"""Choosing by likelihood, whole and for each byte."""

from __future__ import annotations

import numpy as np
import pytest

from luthier.core.conversation import Conversation, Message
from luthier.core.dataset import Example
from luthier.core.errors import DataError
from luthier.core.ports import Score
from luthier.core.results.suite import ChooseTask
from luthier.ml.evaluation.metrics.protocol import Observations
from luthier.ml.evaluation.tasks.choices import Choose, place_of
from luthier.ml.evaluation.tasks.protocol import Resources, TaskRow

TASK = ChooseTask(kind="choose", name="t", data="t.jsonl")


def row(number: int, **item: object) -> TaskRow:
    messages = (Message(role="user", content="Which?"), Message(role="assistant", content="x"))
    return TaskRow(Example(id=f"t.jsonl:{number}", conversation=Conversation(messages=messages)), item)


def observed(losses: list[list[float]], sizes: list[list[int]]) -> Observations:
    scores = [[Score(nll_nats=nats, num_tokens=1, num_correct=0) for nats in one] for one in losses]
    return Observations(option_scores=scores, option_bytes=sizes)


def test_whole_and_per_byte_disagree_where_options_differ_in_length(tmp_path) -> None:  # type: ignore[no-untyped-def]
    rows = [row(1, options=["no", "certainly not"], answer=1), row(2, options=["a", "b"], answer="A")]
    per_byte, whole = Choose().metrics(TASK, rows, Resources(folder=tmp_path))
    seen = observed([[2.0, 4.0], [1.0, 3.0]], [[2, 13], [1, 1]])
    assert [metric.name for metric in (per_byte, whole)] == ["choice_accuracy_per_byte", "choice_accuracy"]
    assert float(whole.aggregate(whole.statistics(seen).sum(axis=0))) == 0.5  # 2 nats beat 4
    assert float(per_byte.aggregate(per_byte.statistics(seen).sum(axis=0))) == 1.0  # 4 / 13 beats 2 / 2


def test_equally_likely_options_share_the_row(tmp_path) -> None:  # type: ignore[no-untyped-def]
    _, whole = Choose().metrics(TASK, [row(1, options=["a", "b", "c"], answer=0)], Resources(folder=tmp_path))
    np.testing.assert_allclose(whole.statistics(observed([[1.0, 1.0, 5.0]], [[1, 1, 1]])), [[0.5, 1.0]])


@pytest.mark.parametrize(
    ("answer", "place"),
    [
        (1, 1),
        ("maple", 1),
        ("B", 1),
        ("b)", 1),
        ("1", 1),
        (3, None),
        (-1, None),
        (True, None),
        ("oak", None),
        (None, None),
    ],
)
def test_the_right_option_goes_by_place_letter_or_text(answer: object, place: int | None) -> None:
    assert place_of(["spruce", "maple", "ebony"], answer) == place


def test_every_row_that_cannot_be_used_is_named() -> None:
    rows = [
        row(1, options=["a", "b"], answer=0),
        row(2, options=["a"], answer=0),
        row(3, options="a, b", answer=0),
        row(4, options=["a", " "], answer=0),
        row(5, options=["a", "a"], answer=0),
        row(6, options=["a", "b"], answer=2),
        row(7, options=["a", "b"]),
        TaskRow(Example(id="t.jsonl:8", text="plain"), {"options": ["a", "b"], "answer": 0}),
    ]
    with pytest.raises(DataError, match="7 rows cannot be evaluated") as error:
        Choose().check(TASK, rows)
    assert [problem.line for problem in error.value.problems] == [2, 3, 4, 5, 6, 7, 8]
    Choose().check(TASK, rows[:1])
