"""Orders of documents without a language model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from luthier.core.conversation import Conversation, Message
from luthier.core.dataset import Example
from luthier.core.ports import Prompt, SilentProgress
from luthier.ml.baselines.search import POPULAR, RANDOM, WORDS, search_baselines
from luthier.ml.evaluation.compare import judge
from luthier.ml.evaluation.retrieval import SearchTask, ranked, retrieval_task
from luthier.ml.evaluation.systems import SystemUnderTest
from luthier.testing.fake_engine import FakeEngine

NAMES = ("ndcg_at_10", "recall_at_1", "mrr")


def pair(query: str, positive: str, name: str = "rows.jsonl:1") -> Example:
    turns = (Message(role="user", content=query), Message(role="assistant", content=positive))
    return Example(id=name, conversation=Conversation(messages=turns))


def model_on(task: SearchTask) -> SystemUnderTest:
    return SystemUnderTest(
        name="tuned",
        model="tiny",
        adapter="adapter",
        num_few_shot=0,
        engine=FakeEngine({}),
        prompts=tuple(Prompt(text=query, max_new_tokens=1) for query in task.queries),
        references=tuple(task.documents[min(right)] for right in task.right),
        row_ids=task.row_ids,
        prompt_texts=task.queries,
        tokenised=(),
        num_bytes=(),
        kind="head",
    )


def animals() -> SearchTask:
    rows = [("where do otters sleep", "otters sleep in water"), ("what do owls eat", "owls eat mice at night")]
    return retrieval_task([pair(*texts, name=f"h:{n}") for n, texts in enumerate(rows)], [pair("x", "nothing at all")])


def test_words_find_documents_that_share_them() -> None:
    task = animals()
    found, left_out = search_baselines(task, [], model_on(task))
    assert left_out == []
    words = next(system for system in found if system.name == WORDS)
    assert words.kind == "nearest"
    assert words.rank is not None
    firsts = [orders.order[0] for orders in words.rank(SilentProgress())]
    assert firsts == ["otters sleep in water", "owls eat mice at night"]


def test_documents_that_rows_name_often_come_first() -> None:
    task = animals()
    train = [pair(f"q{n}", "owls eat mice at night") for n in range(3)] + [pair("q", "otters sleep in water")]
    found, _ = search_baselines(task, train, model_on(task))
    popular = next(system for system in found if system.name == POPULAR)
    assert popular.rank is not None
    assert [list(orders.order)[:2] for orders in popular.rank(SilentProgress())] == [
        ["owls eat mice at night", "otters sleep in water"]
    ] * 2


def test_where_no_row_names_a_document_the_order_is_random() -> None:
    task = animals()
    found, _ = search_baselines(task, [], model_on(task))
    assert [(system.name, system.kind) for system in found] == [(RANDOM, "popularity"), (WORDS, "nearest")]


def test_documents_without_words_leave_that_baseline_out() -> None:
    task = retrieval_task([pair("?", "!"), pair("??", "!!")], [])
    found, left_out = search_baselines(task, [], model_on(task))
    assert [system.name for system in found] == [RANDOM]
    assert left_out == ["BM25: the texts hold no words"]


def test_baselines_and_a_model_are_judged_side_by_side() -> None:
    task = animals()
    baselines, _ = search_baselines(task, [], model_on(task))
    perfect = [[float(place in task.right[query]) for place in task.of(query)] for query in range(len(task.queries))]
    orders = ranked(task, [np.array(one) for one in perfect], name="tuned")
    model = replace(model_on(task), rank=lambda progress: orders)
    results, comparisons = judge([*baselines, model], metrics=NAMES, seed=0, progress=SilentProgress())
    assert [result.name for result in results] == [RANDOM, WORDS, "tuned"]
    assert results[-1].metrics["ndcg_at_10"].value == 1.0
    assert [sample.output for sample in results[-1].samples] == [sample.reference for sample in results[-1].samples]
    assert {(one.baseline, one.candidate) for one in comparisons} == {(RANDOM, "tuned"), (WORDS, "tuned")}
