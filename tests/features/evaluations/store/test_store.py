"""What the store promises about evaluations."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from luthier.core.errors import ConflictError, NotFoundError
from luthier.core.evaluation import Evaluation
from luthier.core.plan import Plan
from luthier.core.run import RunRecord
from luthier.features.evaluations.store import EvaluationStore
from luthier.features.runs.store import RunStore
from luthier.platform.db.database import Database
from luthier.testing.records import make_evaluation

RUN = "run-20261125-093000-aaaaaa"


def evaluation(evaluation_id: str = "eval-20261125-093000-aaaaaa", run_id: str | None = None) -> Evaluation:
    return make_evaluation(evaluation_id, run_id=run_id)


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
    with pytest.raises(NotFoundError, match="which does not exist"):
        store.save(evaluation("eval-2", run_id=RUN))
    with pytest.raises(NotFoundError, match="nearest: eval-20261125-093000-aaaaaa"):
        store.get("eval-20261125-093000-aaaaab")


def test_an_evaluation_without_a_run_is_of_the_project_whose_workflow_made_it(
    store: EvaluationStore, runs: RunStore, record: Callable[..., RunRecord], plan: Plan
) -> None:
    runs.create(record(), plan)
    store.save(evaluation("eval-1"))
    store.save(evaluation("eval-2"), project_id="proj-a")
    store.save(evaluation("eval-3", RUN), project_id="proj-a")
    owners = [store.project_of(f"eval-{number}") for number in range(1, 5)]
    assert owners == ["default", "proj-a", "default", None]
    assert [one.evaluation_id for one in store.overviews("default", limit=9)] == ["eval-3", "eval-1"]
    assert store.newest_of("proj-a", limit=9) == ["eval-2"]


def test_overviews_are_of_one_project_and_go_with_their_run(
    store: EvaluationStore, runs: RunStore, record: Callable[..., RunRecord], plan: Plan
) -> None:
    runs.create(record(), plan)
    for one in (evaluation("eval-1"), evaluation("eval-2", RUN), evaluation("eval-3")):
        store.save(one)
    found = store.overviews("default", limit=2)
    assert [one.evaluation_id for one in found] == ["eval-3", "eval-2"]
    assert (found[1].run_id, found[1].systems, found[1].word) == (RUN, ("base", "tuned"), "not distinguishable")
    assert [one.evaluation_id for one in store.overviews("default", limit=2, after="eval-2")] == ["eval-1"]
    assert store.overviews("another", limit=9) == []
    assert store.read("eval-2") is store.read("eval-2"), "held in memory"
    runs.delete(RUN)
    assert [one.evaluation_id for one in store.overviews("default", limit=9)] == ["eval-3", "eval-1"]
    with pytest.raises(NotFoundError):
        store.read("eval-2")


def test_the_newest_of_several_runs_without_samples(
    store: EvaluationStore, runs: RunStore, record: Callable[..., RunRecord], plan: Plan
) -> None:
    other, silent = "run-20261125-093000-bbbbbb", "run-20261125-093000-cccccc"
    for run_id in (RUN, other, silent):
        runs.create(record(run_id), plan)
    saved = [evaluation("eval-1", RUN), evaluation("eval-2", other), evaluation("eval-3", RUN)]
    for one in saved:
        store.save(one)
    for _ in range(2):  # read, and from the cache
        found = store.newest_of_runs([RUN, other, silent])
        assert {run_id: one.evaluation_id for run_id, one in found.items()} == {RUN: "eval-3", other: "eval-2"}
        assert any(system.samples for system in saved[2].systems)
        assert [system.samples for system in found[RUN].systems] == [()] * len(saved[2].systems)
        assert found[RUN].verdict == saved[2].verdict
    runs.delete(RUN)
    assert set(store.newest_of_runs([RUN, other])) == {other}, "a deleted one does not stay in the cache"
    assert store.newest_of_runs([]) == {}


def test_the_runs_of_a_project_on_the_same_held_out_rows_are_counted_once(
    store: EvaluationStore, runs: RunStore, record: Callable[..., RunRecord], plan: Plan
) -> None:
    others = [f"run-20261125-093000-{letter * 6}" for letter in "bcd"]
    for run_id in (RUN, *others):
        runs.create(record(run_id), plan)
    on_others = make_evaluation("eval-9", run_id=others[2], held_out_sha256="1" * 64)
    for one in (evaluation("eval-1", RUN), evaluation("eval-2", others[0]), evaluation("eval-3", others[0])):
        store.save(one)
    for one in (evaluation("eval-4", others[1]), evaluation("eval-5"), on_others):
        store.save(one)
    assert store.num_runs_on("0" * 64, project_id="default", other_than=RUN) == 2
    assert store.num_runs_on("0" * 64, project_id="default", other_than=others[0]) == 2
    assert store.num_runs_on("1" * 64, project_id="default", other_than=RUN) == 1
    assert store.num_runs_on("0" * 64, project_id="another", other_than=RUN) == 0
