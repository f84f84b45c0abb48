"""Studies on both databases: one project's alone, and no other's ids told."""

from __future__ import annotations

import pytest

from luthier.core.errors import NotFoundError
from luthier.core.recipe import Recipe
from luthier.core.workflows.study import Parameter, Space, Study, StudySpec, Trial
from luthier.features.studies.store import StudyStore
from luthier.platform.db.database import Database

RECIPE = Recipe.model_validate({"base_model": "tiny", "data": {"train": "/t", "validation": 0.1}})
RATE = Parameter(name="training.learning_rate", kind="float", low=1e-4, high=1e-2, log=True)


@pytest.fixture
def store(database: Database) -> StudyStore:
    return StudyStore(database)


def study(number: int) -> Study:
    spec = StudySpec(recipe=RECIPE, space=Space(parameters=(RATE,)), hours=1.0, most_trials=4, rungs=(1.0,))
    return Study(
        study_id=f"study-20261127-12000{number}-aaaaaa", created_at="2026-11-27T12:00:00+00:00",
        status="searching", spec=spec,
    )  # fmt: skip


def test_a_study_is_kept_with_its_trials(store: StudyStore) -> None:
    store.create(study(1), "default")
    trial = Trial(number=0, values={}, run_id="run-1")
    store.put_trial(study(1).study_id, trial)
    changed = trial.model_copy(update={"hours": 0.5})
    store.put_trial(study(1).study_id, changed)
    assert store.get(study(1).study_id, "default") == study(1)
    assert store.trials(study(1).study_id) == [changed]
    store.remove(study(1).study_id)
    assert store.trials(study(1).study_id) == []


def test_the_trials_of_several_studies(store: StudyStore) -> None:
    ids = [study(number).study_id for number in (1, 2, 3)]
    for number in (1, 2, 3):
        store.create(study(number), "default")
    trials = [Trial(number=number, values={}, run_id=f"run-{number}") for number in range(3)]
    for study_id, its in zip(ids, ([trials[2], trials[0]], [trials[1]], []), strict=True):
        for one in its:
            store.put_trial(study_id, one)
    assert store.trials_of(ids[:1]) == {ids[0]: [trials[0], trials[2]]}
    assert store.trials_of(ids[1:]) == {ids[1]: [trials[1]], ids[2]: []}
    assert store.trials_of([]) == {}


def test_another_projects_is_not_there_and_not_named(store: StudyStore) -> None:
    store.create(study(1), "default")
    store.create(study(2), "default")
    assert [one.study_id for one in store.list("default")] == [study(2).study_id, study(1).study_id]
    assert store.list("other") == []
    with pytest.raises(NotFoundError, match="there are none yet"):
        store.get(study(1).study_id, "other")
    with pytest.raises(NotFoundError, match=f"nearest: .*{study(1).study_id}"):
        store.get("study-20261127-120003-aaaaaa")
