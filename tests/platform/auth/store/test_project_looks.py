"""What the overview of a project asks of the stores: few rows, of that project, on both databases."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from luthier.core.plan import Plan
from luthier.core.run import RunRecord, TrainResult
from luthier.features.evaluations.store import EvaluationStore
from luthier.features.runs.store import RunStore
from luthier.platform.auth.store import AccessStore
from luthier.platform.db.database import Database
from luthier.platform.files.artifacts import ArtifactStore
from luthier.platform.jobs.records import Job
from luthier.platform.jobs.store import JobStore
from luthier.testing.records import make_evaluation

RUN, OTHER, THIRD = (f"run-20261125-093000-{letter * 6}" for letter in "abc")


def own(database: Database, run_id: str, project_id: str) -> None:
    """Have a run be made by a job of a project."""
    AccessStore(database).add_project(project_id, project_id)
    JobStore(database).submit(Job(job_id="job-1", kind="train", document={}, run_id=run_id, project_id=project_id))


def test_runs_by_their_ids_status_and_last_change(
    database: Database, runs: RunStore, record: Callable[..., RunRecord], plan: Plan, result: TrainResult
) -> None:
    early, late = "2026-10-31T23:59:59+00:00", "2026-11-01T00:00:00+00:00"
    runs.create(record(RUN, status="succeeded", result=result).model_copy(update={"updated_at": late}), plan)
    runs.create(record(OTHER, status="succeeded", result=result).model_copy(update={"updated_at": late}), plan)
    runs.create(record(THIRD, status="running").model_copy(update={"updated_at": late}), plan)
    own(database, OTHER, "proj-2")
    assert runs.some([RUN, "run-none", THIRD]) == {RUN: runs.get(RUN), THIRD: runs.get(THIRD)}
    assert runs.some([]) == {}
    assert [one.run_id for one in runs.of_project("default", limit=9, status="running")] == [THIRD]
    assert [one.run_id for one in runs.of_project("default", limit=9)] == [THIRD, RUN]
    (third, first) = runs.changed_since("default", late, limit=9)
    assert third == (THIRD, "running", None)
    assert first[:2] == (RUN, "succeeded")
    assert TrainResult.model_validate_json(first[2] or "") == result
    assert [one[0] for one in runs.changed_since("proj-2", early, limit=9)] == [OTHER]
    assert [one[0] for one in runs.changed_since("default", early, limit=1)] == [THIRD]
    assert runs.changed_since("default", early, limit=0) == []
    assert runs.changed_since("default", "2026-11-01T00:00:01+00:00", limit=9) == []


def test_the_newest_evaluations_of_a_project(
    database: Database, runs: RunStore, record: Callable[..., RunRecord], plan: Plan
) -> None:
    store = EvaluationStore(database)
    for run_id in (RUN, OTHER):
        runs.create(record(run_id), plan)
    own(database, OTHER, "proj-2")
    ids = [f"eval-20261125-09300{number}-aaaaaa" for number in range(4)]
    for evaluation_id, run_id in zip(ids, (RUN, OTHER, None, RUN), strict=True):
        store.save(make_evaluation(evaluation_id, run_id=run_id))
    assert store.newest_of("default", limit=9) == [ids[3], ids[2], ids[0]]
    assert store.newest_of("default", limit=1) == [ids[3]]
    assert store.newest_of("proj-2", limit=9) == [ids[1]]


def test_what_all_artifacts_hold(database: Database, tmp_path: Path) -> None:
    store = ArtifactStore(database, tmp_path / "artifacts")
    assert store.num_bytes() == 0
    for name, content in (("a", b"12345"), ("b", b"123"), ("again", b"123")):
        (tmp_path / name).write_bytes(content)
        store.put_file(tmp_path / name, "dataset")
    assert store.num_bytes() == 8
