"""The queue on both databases: nothing lost, nothing given out twice, every wish heard."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from importlib import import_module
from typing import Final

import pytest
from sqlalchemy import Connection, insert, text, update

from luthier.core.access import Caller
from luthier.core.errors import ConflictError, NotFoundError
from luthier.platform.db import server_version
from luthier.platform.db.database import Database, OutdatedError
from luthier.platform.db.monitor_state import WatchStore
from luthier.platform.db.tables import SCHEMA_VERSION
from luthier.platform.db.tables import jobs as table
from luthier.platform.jobs.records import Job, Lane, with_caller
from luthier.platform.jobs.store import (
    LONGEST_REST_SECONDS,
    MOST_CRASHES,
    MOST_LOSSES,
    JobStore,
    LeaseLostError,
)

Age = Callable[..., None]
HOUR = 3600.0
LANES: Final[tuple[Lane, ...]] = ("validate", "train")


@pytest.fixture
def pass_time(database: Database) -> Age:
    """Let a lease or a rest run out, as if the clock of the database had gone on."""

    def age(job_id: str, **columns: float) -> None:
        with database.write() as connection:
            connection.execute(update(table).where(table.c.job_id == job_id).values(**columns))

    return age


def a_job(number: int) -> Job:
    return Job(job_id=f"job-{number}", kind="train", document={"recipe": {"n": number}}, run_id=f"run-{number}")


def submit(queue: JobStore, *numbers: int) -> None:
    for number in numbers:
        queue.submit(a_job(number))


def claimed(queue: JobStore, worker: str = "w") -> Job:
    job = queue.claim(worker)
    assert job is not None
    return job


def test_what_goes_in_comes_out(queue: JobStore) -> None:
    made = queue.submit(a_job(1))
    assert made == queue.get("job-1")
    assert (made.document, made.status, made.attempt) == ({"recipe": {"n": 1}}, "queued", 0)
    assert made.created_at == pytest.approx(made.updated_at)
    assert made.created_at > 1.7e9
    with pytest.raises(ConflictError, match="exists already"):
        queue.submit(a_job(1))


def test_oldest_first_and_each_once(queue: JobStore) -> None:
    submit(queue, 1, 2, 3)
    assert [claimed(queue, f"w{i}").job_id for i in range(3)] == ["job-1", "job-2", "job-3"]
    assert queue.claim("w4") is None
    assert [job.job_id for job in queue.list()] == ["job-3", "job-2", "job-1"]
    assert [job.job_id for job in queue.list(status="running", limit=1)] == ["job-3"]


def test_a_worker_of_an_older_version_takes_no_job_of_a_migrated_database(queue: JobStore, database: Database) -> None:
    assert queue.claim("w") is None
    submit(queue, 1)
    put = text("UPDATE alembic_version SET version_num = :version")
    with database.write() as connection:
        connection.execute(put, {"version": "9999"})
    with pytest.raises(OutdatedError, match=f"schema 9999 by now, and this process is of schema {SCHEMA_VERSION}"):
        queue.claim("w")
    assert (queue.get("job-1").status, queue.get("job-1").attempt) == ("queued", 0)
    with database.write() as connection:
        connection.execute(put, {"version": SCHEMA_VERSION})
    assert claimed(queue).job_id == "job-1"


def test_a_worker_of_an_older_version_takes_no_job_of_a_newer_server(
    queue: JobStore, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit(queue, 1)
    with monkeypatch.context() as patched:
        patched.setattr(server_version, "own_version", lambda: "9999.1")
        server_version.record_server_version(WatchStore(database))
        assert claimed(queue).job_id == "job-1", "the server's own worker"
    submit(queue, 2)
    with pytest.raises(OutdatedError, match=r"is of version 9999.1, and this process is of") as refused:
        queue.claim("w2")
    assert refused.value.do == "stop it, install version 9999.1, and start it again"
    assert (queue.get("job-2").status, queue.get("job-2").attempt) == ("queued", 0)


def test_who_finds_nothing_takes_no_turn_to_write(
    queue: JobStore, database: Database, monkeypatch: pytest.MonkeyPatch, pass_time: Age
) -> None:
    """Each lane of an idle worker asks several times a second, beside all that others write."""
    begun: list[bool] = []
    begin = Database._begin

    def counted(self: Database, stack: ExitStack, *, is_write: bool) -> Connection:
        begun.append(is_write)
        return begin(self, stack, is_write=is_write)

    def asked(worker: str, *lanes: Lane) -> tuple[str | None, bool]:
        begun.clear()
        found = queue.claim(worker, lanes)
        assert begun
        return None if found is None else found.job_id, any(begun)

    monkeypatch.setattr(Database, "_begin", counted)
    assert asked("a", "train") == (None, False)
    submit(queue, 1)
    assert asked("a", "validate") == (None, False)
    assert asked("a", "train") == ("job-1", True)
    assert asked("b", "train") == (None, False)
    assert asked("a", "train") == ("job-1", True), "what it held when it died"
    pass_time("job-1", lease_until=0.0)
    assert asked("b", "train") == ("job-1", True)
    submit(queue, 2)
    pass_time("job-2", not_before=2e9)
    assert asked("c", "train") == ("job-2", True), "no rest is so long: the clock was set back"
    queue.give_back("job-2", queue.get("job-2").attempt, rest_seconds=60.0)
    assert asked("c", "train") == (None, False), "it rests"


def of_workflow(number: int, workflow_id: str, project_id: str = "default") -> Job:
    document = {"workflow": {"form": "tune", "workflow_id": workflow_id}}
    names = {"workflow_id": workflow_id, "project_id": project_id}
    return Job(job_id=f"job-{number}", kind="workflow", document=document, run_id="", **names)


def test_the_newest_job_of_a_workflow_is_found_whatever_its_age(queue: JobStore, database: Database) -> None:
    for number, workflow_id in enumerate(("study-1", "study-2", "study-1")):
        queue.submit(of_workflow(number, workflow_id))
    queue.submit(of_workflow(3, "study-1", "other"))
    with database.write() as connection:
        # More jobs than lists show, all of them newer.
        values = a_job(0).model_dump(include={"kind", "run_id", "status"}) | {"document": "{}", "crash_step": -1}
        values |= dict.fromkeys(("attempt", "num_crashes", "step", "not_before", "created_at", "updated_at"), 0)
        rows = [{"job_id": f"job-{number}", "project_id": "default", **values} for number in range(4, 304)]
        connection.execute(insert(table), rows)
    assert [found.job_id for name in ("study-1", "study-2") if (found := queue.of_workflow(name, "default"))] == [
        "job-2", "job-1",
    ]  # fmt: skip
    assert (found := queue.of_workflow("study-1", "other")) is not None
    assert found.job_id == "job-3"
    assert queue.of_workflow("study-2", "other") is None
    assert queue.of_workflow("study-3", "default") is None
    kinds: Final = ("workflow",)
    assert [job.job_id for job in queue.list(project_id="default", kinds=kinds)] == ["job-2", "job-1", "job-0"]
    assert [job.job_id for job in queue.list(kinds=("workflow", "train"), status=("queued", "paused"), limit=1)] == [
        "job-303"
    ]
    assert queue.list(kinds=kinds, status="failed") == []
    with database.read() as connection:
        if connection.dialect.name == "sqlite":
            plan = "EXPLAIN QUERY PLAN SELECT * FROM jobs WHERE workflow_id = 'x' ORDER BY number DESC LIMIT 1"
            assert "ix_jobs_workflow_id" in str(connection.execute(text(plan)).all())


def test_the_workflows_of_older_jobs_are_filled_in(queue: JobStore, database: Database) -> None:
    for number, workflow_id in enumerate(("study-1", "")):
        queue.submit(of_workflow(number, workflow_id).model_copy(update={"workflow_id": ""}))
    submit(queue, 2)
    assert queue.of_workflow("study-1", "default") is None
    with database.write() as connection:
        import_module("luthier.platform.db.migrations.versions.v0020_job_workflows")._fill(connection)
    assert (found := queue.of_workflow("study-1", "default")) is not None
    assert (found.job_id, found.workflow_id) == ("job-0", "study-1")
    assert [queue.get(f"job-{number}").workflow_id for number in (1, 2)] == ["", ""]


def test_many_workers_never_get_the_same(queue: JobStore) -> None:
    submit(queue, *range(24))
    with ThreadPoolExecutor(6) as pool:
        got = list(pool.map(lambda i: claimed(queue, f"w{i}").job_id, range(24)))
    assert len(set(got)) == 24


def test_a_beat_renews_the_lease_and_tells_how_far_it_is(queue: JobStore, pass_time: Age) -> None:
    submit(queue, 1)
    job = claimed(queue)
    assert job.lease_until == pytest.approx(job.updated_at + 90, abs=1)
    pass_time("job-1", lease_until=1.0)
    assert queue.beat("job-1", job.attempt, 7) is None
    after = queue.get("job-1")
    assert after.lease_until is not None
    assert after.lease_until > job.updated_at + 80
    assert after.step == 7
    queue.beat("job-1", job.attempt, 3)
    assert queue.get("job-1").step == 7, "how far it was never goes back"


def test_a_lost_job_goes_to_another_and_the_old_holder_is_turned_away(queue: JobStore, pass_time: Age) -> None:
    submit(queue, 1, 2)
    first = claimed(queue, "a")
    pass_time("job-1", lease_until=1.0)
    second = claimed(queue, "b")
    assert (second.job_id, second.attempt, second.worker) == ("job-1", 2, "b"), "what was lost comes before the queue"
    for late in (
        lambda: queue.beat("job-1", first.attempt),
        lambda: queue.finish("job-1", first.attempt, "succeeded"),
        lambda: queue.crash("job-1", first.attempt, "late"),
        lambda: queue.give_back("job-1", first.attempt),
    ):
        with pytest.raises(LeaseLostError, match="attempt 1 of job job-1"):
            late()
    assert queue.finish("job-1", second.attempt, "succeeded").status == "succeeded"


def test_a_worker_that_comes_back_takes_up_its_own_at_once(queue: JobStore) -> None:
    submit(queue, 1, 2)
    claimed(queue, "a")
    assert queue.claim("b").job_id == "job-2"  # type: ignore[union-attr]
    again = claimed(queue, "a")
    assert (again.job_id, again.attempt, again.num_crashes) == ("job-1", 2, 0)


def test_a_crash_rests_longer_each_time_and_fails_in_the_end(queue: JobStore, pass_time: Age) -> None:
    submit(queue, 1)
    rests = []
    for _ in range(MOST_CRASHES - 1):
        job = claimed(queue)
        queue.beat("job-1", job.attempt, 4)
        job = queue.crash("job-1", job.attempt, "SIGSEGV")
        rests.append(job.not_before - job.updated_at)
        pass_time("job-1", not_before=1.0)
    assert rests[0] == 0, "it had got further: that crash may be bad luck"
    assert rests[1] >= 5
    job = claimed(queue)
    job = queue.crash("job-1", job.attempt, "SIGSEGV")
    assert job.status == "failed"
    assert job.error is not None
    assert "crashed 3 times at step 4 (SIGSEGV)" in job.error["came"]
    assert queue.claim("w") is None


def test_lost_workers_are_no_crashes_but_end_a_job_at_last(queue: JobStore, pass_time: Age) -> None:
    submit(queue, 1)
    for _ in range(MOST_LOSSES - 1):
        job = claimed(queue)
        assert queue.crash("job-1", job.attempt, "its worker is gone", is_lost=True).status == "queued"
        pass_time("job-1", not_before=1.0)
    job = queue.crash("job-1", claimed(queue).attempt, "SIGSEGV")
    assert (job.status, job.num_crashes) == ("queued", 1)
    pass_time("job-1", not_before=1.0)
    job = queue.crash("job-1", claimed(queue).attempt, "its worker is gone", is_lost=True)
    assert job.status == "failed"
    assert job.error is not None
    assert f"lost its worker {MOST_LOSSES} times at step 0" in job.error["came"]


def test_a_resting_job_is_not_given_out(queue: JobStore) -> None:
    submit(queue, 1)
    for _ in range(2):
        job = claimed(queue)
        queue.crash("job-1", job.attempt, "x")
    assert queue.claim("w") is None


def test_crashes_that_lie_apart_do_not_add_up(queue: JobStore, pass_time: Age) -> None:
    submit(queue, 1)
    for step in range(1, 8):
        job = claimed(queue)
        queue.beat("job-1", job.attempt, step)
        job = queue.crash("job-1", job.attempt, "x")
        assert (job.status, job.num_crashes) == ("queued", 1)
        pass_time("job-1", not_before=1.0)


def test_given_back_in_good_order_is_no_crash(queue: JobStore) -> None:
    submit(queue, 1)
    job = queue.give_back("job-1", claimed(queue).attempt)
    assert (job.status, job.num_crashes, job.worker) == ("queued", 0, None)
    assert claimed(queue).attempt == 2


def test_a_job_that_waits_rests_within_bounds_and_does_what_it_is_asked_meanwhile(queue: JobStore) -> None:
    submit(queue, 1, 2)
    job = queue.give_back("job-1", claimed(queue).attempt, rest_seconds=1e6, is_waiting=True)
    assert (job.status, job.not_before) == ("queued", pytest.approx(job.updated_at + LONGEST_REST_SECONDS))
    second = claimed(queue)
    assert second.job_id == "job-2"
    assert queue.ask("job-1", "pause").status == "paused"
    queue.ask("job-2", "cancel")
    assert queue.give_back("job-2", second.attempt, rest_seconds=30.0, is_waiting=True).status == "cancelled"


def test_crashes_between_waits_do_not_add_up(queue: JobStore, pass_time: Age) -> None:
    submit(queue, 1)
    for _ in range(2 * MOST_CRASHES):
        assert queue.crash("job-1", claimed(queue).attempt, "SIGKILL").status == "queued"
        job = queue.give_back("job-1", claimed(queue).attempt, is_waiting=True)
        assert (job.status, job.num_crashes) == ("queued", 0)
    for _ in range(MOST_CRASHES):
        job = queue.crash("job-1", claimed(queue).attempt, "SIGKILL")
        pass_time("job-1", not_before=1.0)
    assert job.status == "failed"


def test_a_queued_job_pauses_resumes_and_is_cancelled_at_once(queue: JobStore) -> None:
    submit(queue, 1)
    assert queue.ask("job-1", "pause").status == "paused"
    assert queue.claim("w") is None
    assert queue.resume("job-1").status == "queued"
    assert queue.ask("job-1", "cancel").status == "cancelled"
    assert queue.get("job-1").finished_at is not None
    for refused in (lambda: queue.ask("job-1", "pause"), lambda: queue.resume("job-1")):
        with pytest.raises(ConflictError, match="is cancelled"):
            refused()


def test_a_running_job_hears_the_wish_at_its_next_beat(queue: JobStore) -> None:
    submit(queue, 1)
    job = claimed(queue)
    assert queue.ask("job-1", "pause").shown_status == "pausing"
    with pytest.raises(ConflictError, match="is pausing") as caught:
        queue.resume("job-1")
    assert "wait until it has paused" in caught.value.do
    assert queue.beat("job-1", job.attempt) == "pause"
    assert queue.ask("job-1", "cancel").shown_status == "cancelling", "who paused may still cancel"
    assert queue.beat("job-1", job.attempt) == "cancel"
    with pytest.raises(ConflictError, match="is cancelling"):
        queue.ask("job-1", "pause")
    assert queue.finish("job-1", job.attempt, "cancelled").wish is None


def test_a_cancellation_that_comes_while_the_job_pauses_is_not_lost(queue: JobStore) -> None:
    submit(queue, 1, 2)
    job, other = claimed(queue, "a"), claimed(queue, "b")
    queue.ask("job-1", "pause")
    assert queue.beat("job-1", job.attempt) == "pause"
    # Its training writes the checkpoint now, and the worker does not look again before it has ended.
    queue.ask("job-1", "cancel")
    ended = queue.finish("job-1", job.attempt, "paused")
    assert (ended.status, ended.wish, ended.finished_at is None) == ("cancelled", None, False)
    queue.ask("job-2", "pause")
    assert queue.finish("job-2", other.attempt, "paused").status == "paused"


@pytest.mark.parametrize(("wish", "status"), [("pause", "paused"), ("cancel", "cancelled")])
def test_a_worker_that_dies_with_a_wish_unheard_has_granted_it(
    queue: JobStore, pass_time: Age, wish: str, status: str
) -> None:
    submit(queue, 1)
    claimed(queue, "a")
    queue.ask("job-1", wish)  # type: ignore[arg-type]
    pass_time("job-1", lease_until=1.0)
    assert queue.claim("b") is None
    assert queue.get("job-1").status == status


def test_a_failed_job_may_be_tried_again_with_a_clean_slate(queue: JobStore) -> None:
    submit(queue, 1)
    queue.finish("job-1", claimed(queue).attempt, "failed", {"came": "no room"})
    assert queue.get("job-1").error == {"came": "no room"}
    again = queue.resume("job-1")
    assert (again.status, again.error, again.num_crashes, again.finished_at) == ("queued", None, 0, None)


def test_no_such_job_names_the_nearest(queue: JobStore) -> None:
    submit(queue, 1)
    for ask in (lambda: queue.get("job-11"), lambda: queue.ask("job-11", "pause"), lambda: queue.beat("job-11", 1)):
        with pytest.raises(NotFoundError, match="job-1"):
            ask()


@pytest.fixture
def world(database: Database) -> tuple[JobStore, list[float]]:
    """A queue as one process sees it, and that process's own clock, which nobody sets."""
    passed = [0.0]
    return JobStore(database, clock=lambda: passed[0]), passed


def test_a_clock_that_is_set_back_keeps_no_job_waiting(queue: JobStore, set_clock: Callable[[float], None]) -> None:
    submit(queue, 1, 2)
    for _ in range(2):  # the second time it has got no further, and rests
        job = claimed(queue)
        queue.crash(job.job_id, job.attempt, "by itself")
    set_clock(-3 * HOUR)
    assert [claimed(queue, worker).job_id for worker in ("a", "b")] == ["job-1", "job-2"]


def test_a_rest_is_a_rest_also_where_the_clock_is_right(queue: JobStore) -> None:
    submit(queue, 1)
    for _ in range(2):
        job = claimed(queue)
        queue.crash(job.job_id, job.attempt, "by itself")
    assert queue.claim("w") is None


def test_after_a_clock_was_set_back_a_dead_worker_is_noticed_and_a_living_one_left_alone(
    world: tuple[JobStore, list[float]], set_clock: Callable[[float], None]
) -> None:
    queue, passed = world
    submit(queue, 1, 2)
    dead, living = claimed(queue, "dead"), claimed(queue, "living")
    set_clock(-3 * HOUR)
    assert queue.claim("other") is None, "nobody has had the time to renew"
    for _ in range(18):
        passed[0] += 5
        queue.beat(living.job_id, living.attempt)
        if passed[0] < queue.lease_seconds:
            assert queue.claim("other") is None
    taken = claimed(queue, "other")
    assert (taken.job_id, taken.attempt) == (dead.job_id, 2)
    assert queue.claim("other") is None or queue.get(living.job_id).worker == "living"
    assert queue.beat(living.job_id, living.attempt) is None


def test_after_a_clock_was_set_back_workers_of_two_lanes_notice_a_dead_one_each_of_its_own(
    world: tuple[JobStore, list[float]], set_clock: Callable[[float], None]
) -> None:
    queue, passed = world
    for number, lane in enumerate(LANES, 1):
        queue.submit(a_job(number).model_copy(update={"lane": lane}))
    dead = {lane: queue.claim(f"dead-{lane}", (lane,)) for lane in LANES}
    set_clock(-3 * HOUR)
    for _ in range(18):
        assert [queue.claim("other", (lane,)) for lane in LANES] == [None, None]
        passed[0] += 5
    taken = {lane: queue.claim("other", (lane,)) for lane in LANES}
    assert {lane: job and (job.job_id, job.attempt) for lane, job in taken.items()} == {
        lane: job and (job.job_id, 2) for lane, job in dead.items()
    }
    assert None not in taken.values()


def test_after_a_clock_was_set_forward_a_living_worker_keeps_its_job_and_a_dead_one_is_noticed(
    world: tuple[JobStore, list[float]], set_clock: Callable[[float], None]
) -> None:
    queue, passed = world
    submit(queue, 1, 2)
    dead, living = claimed(queue, "dead"), claimed(queue, "living")
    assert queue.claim("other") is None
    passed[0] += 1
    set_clock(3 * HOUR)
    assert queue.claim("other") is None, "both leases look as if they had run out"
    assert queue.beat(living.job_id, living.attempt) is None
    passed[0] += queue.lease_seconds - 1
    assert queue.claim("other") is None
    queue.beat(living.job_id, living.attempt)
    passed[0] += 1
    taken = claimed(queue, "other")
    assert (taken.job_id, taken.attempt) == (dead.job_id, 2)
    assert queue.get(living.job_id).worker == "living"


def test_a_document_names_who_resumes_the_job_in_place_of_who_started_it() -> None:
    ada = Caller(project_id="proj-a", member_id="member-1", name="Ada", scopes=("read", "train"))
    batch = {"batch_id": "batch-1", "caller": {"key_id": "key-1", "member_id": None, "name": "ci"}}
    assert with_caller(batch, ada) == {"caller": {"key_id": None, "member_id": "member-1", "name": "Ada"}}
    workflow = {"workflow": {"form": "tune", "caller": {"key_id": "key-1", "project_id": "proj-a"}}}
    changed = with_caller(workflow, ada)["workflow"]
    assert (changed["form"], Caller.model_validate(changed["caller"])) == ("tune", ada)
    assert with_caller({"asked": {"data": {"train": "file-1"}}, "base_model": "tiny"}, ada) == {}
