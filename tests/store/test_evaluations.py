"""What the store promises about evaluations."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from luthier.core.errors import ConflictError, NotFoundError
from luthier.core.evaluation import Comparison, Evaluation, Metric, Sample, SystemResult, Verdict
from luthier.core.plan import Plan
from luthier.core.run import RunRecord
from luthier.store.database import Database
from luthier.store.evaluations import EvaluationStore
from luthier.store.runs import RunStore

RUN = "run-20261125-093000-aaaaaa"


def evaluation(evaluation_id: str = "eval-20261125-093000-aaaaaa", run_id: str | None = None) -> Evaluation:
    sample = Sample(
        row_id="t.jsonl:1",
        prompt="p",
        reference="r",
        output="o",
        num_new_tokens=1,
        finish_reason="stop",
        scores={"x": 1},
    )
    metric = Metric(value=0.5, low=0.25, high=0.75, unit="fraction", higher_is_better=True)
    system = SystemResult(
        name="base", model="tiny", num_samples=1, metrics={"exact_match": metric}, samples=(sample,), seconds=1.0
    )
    comparison = Comparison(
        baseline="base",
        candidate="tuned",
        metric="exact_match",
        difference=0.1,
        low=-0.1,
        high=0.3,
        p_value=0.2,
        verdict="not distinguishable",
        rows_needed=400,
    )
    return Evaluation(
        evaluation_id=evaluation_id,
        created_at="2026-11-25T09:30:00+00:00",
        run_id=run_id,
        held_out_file="t.jsonl",
        held_out_sha256="0" * 64,
        num_rows=1,
        systems=(system,),
        comparisons=(comparison,),
        verdict=Verdict(word="not distinguishable", metric="exact_match", headline="Cannot tell."),
        seconds=2.0,
    )


@pytest.fixture
def store(database: Database) -> EvaluationStore:
    return EvaluationStore(database)


def test_what_goes_in_comes_out(store: EvaluationStore) -> None:
    store.save(evaluation())
    assert store.get(evaluation().evaluation_id) == evaluation()


def test_listed_newest_first_and_by_run(
    store: EvaluationStore, runs: RunStore, record: Callable[..., RunRecord], plan: Plan
) -> None:
    runs.create(record(), plan)
    first, second, third = evaluation("eval-1"), evaluation("eval-2", RUN), evaluation("eval-3", RUN)
    for one in (first, second, third):
        store.save(one)
    assert store.list() == [third, second, first]
    assert store.list(run_id=RUN) == [third, second]
    assert store.list(run_id=RUN, limit=1) == [third]
    runs.delete(RUN)
    assert store.list() == [first]


def test_refusals_say_why(store: EvaluationStore) -> None:
    store.save(evaluation())
    with pytest.raises(ConflictError, match="exists already"):
        store.save(evaluation())
    with pytest.raises(NotFoundError, match="which is not there"):
        store.save(evaluation("eval-2", run_id=RUN))
    with pytest.raises(NotFoundError, match="nearest: eval-20261125-093000-aaaaaa"):
        store.get("eval-20261125-093000-aaaaab")
