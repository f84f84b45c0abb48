"""Searching documents: what is searched among what, which order scores give, and figures against formulas by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from tests.vacuous import nonempty

from luthier.core.conversation import Conversation, Message
from luthier.core.dataset import Example
from luthier.core.errors import DivergedError, RequestError
from luthier.ml.evaluation import retrieval
from luthier.ml.evaluation.metrics.protocol import Observations
from luthier.ml.evaluation.metrics.ranking import Ranked, recall_at
from luthier.ml.evaluation.metrics.registry import load_metrics
from luthier.ml.evaluation.retrieval import SearchTask, ranked, reranking_task, retrieval_task, search_row

NAMES = ("ndcg_at_10", "recall_at_1", "recall_at_5", "recall_at_10", "mrr")


def pair(query: str, positive: str, negative: str | None = None, name: str = "rows.jsonl:1") -> Example:
    def turns(answer: str) -> Conversation:
        return Conversation(messages=(Message(role="user", content=query), Message(role="assistant", content=answer)))

    return Example(id=name, conversation=turns(positive), rejected=None if negative is None else turns(negative))


def test_each_query_is_searched_among_all_documents_and_those_of_training_rows() -> None:
    held_out = [pair("q1", "a", name="h:1"), pair("q2", "b", name="h:2"), pair("q1", "c", name="h:3")]
    train = [pair("q3", "d"), pair("q2", "e"), pair("q4", "a"), pair("q5", "f", "g")]
    task = retrieval_task(held_out, train)
    assert task.queries == ("q1", "q2")
    assert task.row_ids == ("h:1", "h:2")
    # e answers q2 in a training row: it may be right, and nothing says so
    assert set(task.documents) == {"a", "b", "c", "d", "f", "g"}
    right = [{task.documents[place] for place in places} for places in task.right]
    assert right == [{"a", "c"}, {"b"}]
    assert list(task.of(0)) == list(range(6))
    assert task.notes == (
        "2 queries are searched among 3 documents of held-out rows.",
        "3 documents of training rows, of 3, can be found by mistake.",
    )


def test_a_document_that_is_the_query_itself_is_no_candidate_of_it() -> None:
    """Pairs of similar questions: each is a query in one row and a document in another."""
    held_out = [pair("q1", "q2", name="h:1"), pair("q2", "q3", name="h:2"), pair("q4", "a", name="h:3")]
    task = retrieval_task(held_out, [pair("t", "q4"), pair("u", "d")])
    assert set(task.documents) == {"q2", "q3", "q4", "a", "d"}
    named = [{task.documents[place] for place in task.of(number)} for number in range(3)]
    assert named == [set(task.documents), {"q3", "q4", "a", "d"}, {"q2", "q3", "a", "d"}]
    assert task.notes[-1] == "2 queries are also the text of a document, which is then no candidate."
    # Scores of a model that knows texts alone: the same text first, then the right document.
    scores = [
        np.array([2.0 * (task.documents[place] == query) + (place in right) for place in task.of(number)])
        for number, (query, right) in enumerate(zip(task.queries, task.right, strict=True))
    ]
    assert [recall_at(one, 1) for one in ranked(task, scores, name="one")] == [1.0, 1.0, 1.0]


def test_a_right_document_with_the_text_of_the_query_stays() -> None:
    task = retrieval_task([pair("q1", "q1"), pair("q2", "a")], [])
    assert list(task.of(0)) == [0, 1]
    assert not task.left_out


def test_many_training_documents_are_sampled_and_the_note_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "MAX_DISTRACTORS", 2)
    train = [pair(f"t{n}", f"d{n}") for n in range(5)]
    tasks = [retrieval_task([pair("q", "a")], rows) for rows in (train, train[::-1])]
    assert tasks[0].documents == tasks[1].documents
    assert len(tasks[0].documents) == 3
    assert "2 documents of training rows, of 5, can be found by mistake." in tasks[0].notes


def test_a_reranker_orders_the_documents_of_its_own_rows() -> None:
    task = reranking_task([pair("q1", "a", "x"), pair("q2", "b", "y"), pair("q1", "a", "z")])
    named = [{task.documents[place] for place in task.of(number)} for number in range(2)]
    assert named == [{"a", "x", "z"}, {"b", "y"}]


def test_rows_that_name_nothing_wrong_cannot_be_reranked() -> None:
    with pytest.raises(RequestError, match="has no rejected document"):
        reranking_task([pair("q1", "a", "x"), pair("q2", "b")])


def test_one_document_is_no_search() -> None:
    with pytest.raises(RequestError, match="1 document"):
        retrieval_task([pair("q", "a")], [])


@pytest.mark.parametrize(
    "example",
    [
        Example(id="r:1", text="plain"),
        pair("", "a"),
        pair("q", " "),
        Example(
            id="r:1",
            conversation=Conversation(
                messages=(
                    Message(role="system", content="s"),
                    Message(role="user", content="q"),
                    Message(role="assistant", content="a"),
                )
            ),
        ),
    ],
)
def test_rows_of_another_form_are_refused(example: Example) -> None:
    assert search_row(example) is None
    with pytest.raises(RequestError, match="is not a query with a document"):
        retrieval_task([example, pair("q", "a")], [])


def _task(num: int, right: set[int]) -> SearchTask:
    return SearchTask(("h:1",), ("q",), tuple(f"d{n}" for n in range(num)), (frozenset(right),))


def test_documents_come_by_falling_scores_and_equal_ones_in_their_order() -> None:
    found = ranked(_task(4, {0}), [np.array([0.5, 0.9, 0.5, 0.1])], name="one")[0]
    assert list(found.order) == ["d1", "d0", "d2", "d3"]
    assert found.relevant == {"d0"}


def test_an_order_reaches_as_far_as_the_first_right_document() -> None:
    found = ranked(_task(40, {25, 30}), [-np.arange(40.0)], name="one")[0]
    assert list(found.order) == [f"d{n}" for n in range(26)]


def test_scores_that_are_not_numbers_are_an_error() -> None:
    with pytest.raises(DivergedError, match="tuned scores documents with nan"):
        ranked(_task(2, {0}), [np.array([0.1, math.nan])], name="tuned")


def test_figures_are_those_of_the_formulas() -> None:
    rankings = [
        Ranked([f"d{n}" for n in range(20)], frozenset({"d2", "d7"})),
        Ranked([f"d{n}" for n in range(20)], frozenset({"d15"})),
    ]
    figures = {}
    for metric in nonempty(load_metrics(NAMES)):
        sums = metric.statistics(Observations(rankings=rankings)).sum(axis=0)
        figures[metric.name] = float(metric.aggregate(sums))
    best = 1 + 1 / math.log2(3)
    gain = 1 / math.log2(4) + 1 / math.log2(9)
    assert figures == pytest.approx(
        {
            "ndcg_at_10": gain / best / 2,
            "recall_at_1": 0.0,
            "recall_at_5": 0.25,
            "recall_at_10": 0.5,
            "mrr": (1 / 3 + 1 / 16) / 2,
        }
    )


def test_recall_without_a_right_item_is_nothing() -> None:
    assert recall_at(Ranked(["a"], frozenset()), 1) == 0.0
