"""Rows side by side: what gain means, and in which order they come."""

from __future__ import annotations

from typing import Any

from luthier.core.evaluation import Evaluation, Metric, Sample, SystemResult
from luthier.ml.evaluation.result_views import Roles, SampleFilter, choose_rows, scored_metrics

TWO, ONE = Roles("tuned", "base"), Roles("tuned", None)


def evaluation(before: list[float | None], after: list[float | None], *, higher_is_better: bool = True) -> Evaluation:
    figure = Metric(value=1, low=1, high=1, unit="", higher_is_better=higher_is_better)

    def system(name: str, scores: list[float | None]) -> SystemResult:
        samples = tuple(
            Sample(
                row_id=f"r{n}",
                prompt="p",
                reference="r",
                output=name,
                num_new_tokens=1,
                finish_reason="stop",
                scores={} if score is None else {"m": score},
            )
            for n, score in enumerate(scores)
        )
        return SystemResult(
            name=name, model="x", num_samples=len(scores), metrics={"m": figure}, samples=samples, seconds=1
        )

    return Evaluation(
        evaluation_id="eval-1",
        created_at="2026-11-25T09:30:00+00:00",
        held_out_file="f",
        held_out_sha256="0",
        num_rows=len(after),
        systems=(system("base", before), system("tuned", after)),
        comparisons=(),
        seconds=1,
    )


def test_worst_first_is_by_the_gain_and_rows_without_one_come_last() -> None:
    found = choose_rows(evaluation([1, 1, None, 0], [1, 0, 1, 1]), TWO, SampleFilter(metric="m"))
    assert [(row.row_id, row.gain) for row in found] == [("r1", -1), ("r0", 0), ("r3", 1), ("r2", None)]


def test_where_lower_is_better_a_lower_score_is_a_gain() -> None:
    found = choose_rows(evaluation([5, 5], [9, 2], higher_is_better=False), TWO, SampleFilter(metric="m", order="best"))
    assert [(row.row_id, row.gain) for row in found] == [("r1", 3), ("r0", -4)]


def test_without_a_baseline_the_score_itself_ranks_and_nobody_is_better() -> None:
    judged = evaluation([0, 0], [3, 1])
    assert [row.gain for row in choose_rows(judged, ONE, SampleFilter(metric="m"))] == [1, 3]
    assert choose_rows(judged, ONE, SampleFilter(metric="m", better="candidate")) == []


def test_without_scores_rows_come_as_in_the_file() -> None:
    judged = evaluation([None, None], [None, None])
    assert scored_metrics(judged) == []
    assert [row.row_id for row in choose_rows(judged, TWO, SampleFilter())] == ["r0", "r1"]
    assert choose_rows(judged, TWO, SampleFilter(low=0.0)) == []


def test_an_answer_of_calls_alone_is_neither_empty_nor_the_same_as_another() -> None:
    judged = evaluation([None] * 3, [None] * 3)

    def call(name: str, arguments: str) -> tuple[dict[str, Any], ...]:
        return ({"id": "c1", "type": "function", "function": {"name": name, "arguments": arguments}},)

    written = [
        [("", call("look", '{"a": 1, "b": 2}')), ("", call("look", '{"a": 1}')), ("", ())],
        [("", call("look", '{"b":2,"a":1}')), ("", call("look", '{"a": 7}')), ("", ())],
    ]
    systems = tuple(
        system.model_copy(
            update={
                "samples": tuple(
                    sample.model_copy(update={"output": text, "tool_calls": calls})
                    for sample, (text, calls) in zip(system.samples, own, strict=True)
                )
            }
        )
        for system, own in zip(judged.systems, written, strict=True)
    )
    judged = judged.model_copy(update={"systems": systems})

    def rows(**asked: Any) -> list[str]:
        return [row.row_id for row in choose_rows(judged, TWO, SampleFilter(**asked))]

    assert (rows(kind="empty"), rows(kind="changed"), rows(kind="same")) == (["r2"], ["r1"], ["r0", "r2"])
    assert rows(words="7") == ["r1"]
    assert systems[1].samples[1].shown == '<tool_call>{"name": "look", "arguments": {"a": 7}}</tool_call>'
