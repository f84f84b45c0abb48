"""A worker with real processes: every job ends as if undisturbed, whatever happens in between.

Where it may matter, a test runs twice: with processes that are executed, and with processes that a fork server forks.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from sqlalchemy import text

from luthier.core.child_process import fork_client
from luthier.core.child_process.fork_client import ForkServer
from luthier.core.errors import UnreachableError
from luthier.core.system.clock_jump import elapsed
from luthier.platform.db.database import Database, OutdatedError
from luthier.platform.jobs import worker as worker_module
from luthier.platform.jobs.records import Job, Wish
from luthier.platform.jobs.store import JobStore
from luthier.platform.jobs.worker import Pace, Worker
from luthier.platform.processes.process import Attempt

CHILD = Path(__file__).with_name("child.py")
QUICK = Pace(look=0.05, ping=0.1, beat=0.2, grace=20.0, margin=2.0)


class House:
    """A home with a queue, and a worker on it."""

    def __init__(
        self, folder: Path, database: Database, lease_seconds: float = 30.0, *, is_forking: bool = False
    ) -> None:
        self.folder, self.queue, self.told = folder, JobStore(database, lease_seconds), list[str]()
        free = ("PYTEST_CURRENT_TEST",)
        self.fork_server = ForkServer((), tell=self.told.append, free_variables=free) if is_forking else None
        if self.fork_server is not None:
            self.fork_server.start()
        self.stop: str | None = None
        self.cancelled = list[Job]()

    def submit(self, mode: str = "plain", number: int = 1) -> str:
        job = Job(job_id=f"job-{number}", kind="train", document={"mode": mode}, run_id=f"run-{number}")
        return self.queue.submit(job).job_id

    def counter(self, job: Job) -> Path:
        return self.folder / f"{job.job_id}.count"

    def worker(self, name: str = "w", pace: Pace = QUICK) -> Worker:
        def command(job: Job, folder: Path) -> list[str]:
            program = [str(CHILD)] if self.fork_server is None else ["-m", "tests.platform.jobs.jobs.child"]
            return [sys.executable, *program, str(folder), str(self.counter(job)), job.document["mode"]]

        def step_of(job: Job) -> int:
            return int(self.counter(job).read_text()) if self.counter(job).exists() else 0

        return Worker(
            name,
            self.queue,
            command,
            step_of,
            self.folder / "jobs",
            tell=self.told.append,
            pace=pace,
            fork_server=self.fork_server,
            on_cancelled=self.cancelled.append,
        )

    def work(self, pace: Pace = QUICK) -> int:
        return self.worker(pace=pace).work(lambda: self.stop, until_idle=True)

    def in_background(self, pace: Pace = QUICK) -> threading.Thread:
        thread = threading.Thread(target=lambda: self.work(pace))
        thread.start()
        return thread

    def steps(self, job_id: str) -> int:
        path = self.folder / f"{job_id}.count"
        return int(path.read_text()) if path.exists() else 0

    def hang(self, process: subprocess.Popen[bytes]) -> None:
        """Stop a worker outside of a transaction: within one it would keep all others from writing."""

        def hangs() -> bool:
            process.send_signal(signal.SIGSTOP)
            self.wait_for(lambda: psutil.Process(process.pid).status() == psutil.STATUS_STOPPED)
            try:
                self.queue._database.check_write(within_seconds=1.0)
            except UnreachableError:
                process.send_signal(signal.SIGCONT)
                return False
            return True

        self.wait_for(hangs)

    def wait_for(self, seen: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not seen():
            assert time.monotonic() < deadline, self.told
            time.sleep(0.02)


both_ways = pytest.mark.parametrize("house", ["executed", "forked"], indirect=True)
forked = pytest.mark.parametrize("house", ["forked"], indirect=True)


@pytest.fixture
def house(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[House]:
    is_forking = getattr(request, "param", "executed") == "forked"
    if is_forking and not sys.platform.startswith("linux"):
        pytest.skip("fork servers are Linux's own")
    with Database.open(tmp_path / "luthier.db") as database:
        house = House(tmp_path, database, is_forking=is_forking)
        yield house
        if house.fork_server is not None:
            house.fork_server.close()
        assert not [line for line in house.told if "fork" in line], "all that was to be forked was forked"


def test_jobs_are_done_one_after_another(house: House) -> None:
    ids = [house.submit(number=n) for n in (1, 2)]
    assert house.work() == 2
    assert [house.queue.get(i).status for i in ids] == ["succeeded", "succeeded"]
    assert [house.steps(i) for i in ids] == [40, 40]


@both_ways
def test_a_crash_is_taken_up_where_it_was(house: House) -> None:
    job_id = house.submit("crash")
    assert house.work() == 2
    job = house.queue.get(job_id)
    assert (job.status, job.attempt, house.steps(job_id)) == ("succeeded", 2, 40)
    assert "out of luck" in (house.folder / "jobs" / job_id / "attempt-0001" / "log.txt").read_text()


def test_what_crashes_without_end_fails_with_its_last_words(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("luthier.platform.jobs.store.FIRST_REST_SECONDS", 0.05)
    monkeypatch.setattr("luthier.platform.jobs.store.LONGEST_REST_SECONDS", 0.1)
    job_id = house.submit("poison")
    while house.queue.get(job_id).status == "queued":
        house.work()
        time.sleep(0.05)
    job = house.queue.get(job_id)
    assert (job.status, job.attempt) == ("failed", 3)
    assert job.error is not None
    assert "SIGSEGV: out of luck" in job.error["came"]


def test_a_wrong_request_is_not_tried_again(house: House) -> None:
    job_id = house.submit("wrong")
    assert house.work() == 1
    job = house.queue.get(job_id)
    assert (job.status, job.error and job.error["came"]) == ("failed", "row 3 is empty")


@pytest.mark.parametrize(("wish", "status"), [("pause", "paused"), ("cancel", "cancelled")])
def test_a_wish_reaches_the_child(house: House, wish: str, status: str) -> None:
    job_id = house.submit("held")
    thread = house.in_background()
    house.wait_for(lambda: house.steps(job_id) > 2)
    house.queue.ask(job_id, wish)  # type: ignore[arg-type]
    thread.join(60)
    assert house.queue.get(job_id).status == status
    assert 2 < house.steps(job_id) < 40


def test_paused_and_resumed_it_comes_to_its_end(house: House) -> None:
    job_id = house.submit("held")
    thread = house.in_background()
    house.wait_for(lambda: house.steps(job_id) > 2)
    house.queue.ask(job_id, "pause")
    thread.join(60)
    house.queue.resume(job_id)
    house.work()
    assert (house.queue.get(job_id).status, house.steps(job_id)) == ("succeeded", 40)


@both_ways
def test_who_does_not_hear_is_killed_after_the_grace(house: House) -> None:
    job_id = house.submit("stubborn")
    thread = house.in_background(Pace(look=0.05, ping=0.1, beat=0.2, grace=0.3, margin=2.0))
    house.wait_for(lambda: house.steps(job_id) > 2)
    house.queue.ask(job_id, "cancel")
    thread.join(60)
    assert house.queue.get(job_id).status == "cancelled"
    assert house.steps(job_id) < 40
    # Nothing of its attempt was done when it was killed: whoever holds the rules of its kind removes what is left.
    assert [(job.job_id, job.status) for job in house.cancelled] == [(job_id, "cancelled")]


@pytest.mark.parametrize(("wish", "num_cleaned_up"), [("cancel", 1), ("pause", 0)])
def test_what_a_worker_that_is_gone_was_to_cancel_is_cleaned_up_by_the_next_one(
    house: House, wish: str, num_cleaned_up: int
) -> None:
    job_id, next_id = house.submit("held", 1), house.submit("plain", 2)
    held = house.queue.claim("w")
    assert held is not None
    assert held.job_id == job_id
    house.queue.ask(job_id, wish)  # type: ignore[arg-type]
    # Its process has died: one of the same name finds the job.
    assert house.work() == 1
    assert house.queue.get(job_id).status == {"cancel": "cancelled", "pause": "paused"}[wish]
    assert house.queue.get(next_id).status == "succeeded"
    assert [(job.job_id, job.status) for job in house.cancelled] == [(job_id, "cancelled")] * num_cleaned_up


@both_ways
def test_a_worker_that_is_stopped_gives_its_job_back(house: House) -> None:
    job_id = house.submit("held")
    thread = house.in_background()
    house.wait_for(lambda: house.steps(job_id) > 2)
    house.stop = "SIGTERM received"
    thread.join(60)
    job = house.queue.get(job_id)
    assert (job.status, job.num_crashes, job.worker) == ("queued", 0, None)
    house.stop = None
    house.work()
    assert (house.queue.get(job_id).status, house.queue.get(job_id).attempt) == ("succeeded", 2)


SUPERVISOR = """
import sys
from pathlib import Path
from types import SimpleNamespace
sys.path.insert(0, sys.argv[2])
from test_worker import House, QUICK
from luthier.platform.db.database import Database
folder = Path(sys.argv[1])
house = House(folder, Database.open(folder / "luthier.db"), float(sys.argv[3]), is_forking=sys.argv[5] == "True")
house.worker(sys.argv[4]).work(lambda: None, until_idle=True)
"""


@contextmanager
def supervisor(house: House, name: str, lease: float = 30.0) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-c", SUPERVISOR, str(house.folder), str(CHILD.parent), str(lease), name]
    command.append(str(house.fork_server is not None))
    with subprocess.Popen(command) as process:
        try:
            yield process
        finally:
            process.kill()


@both_ways
def test_a_worker_killed_and_started_again_takes_its_job_up_at_once(house: House) -> None:
    job_id = house.submit("held")
    with supervisor(house, "w") as first:
        house.wait_for(lambda: house.steps(job_id) > 2)
        pid = int((house.folder / "jobs" / job_id / "attempt-0001" / "pid").read_text())
        first.kill()
    house.wait_for(lambda: not _is_running(pid))
    at = house.steps(job_id)
    time.sleep(0.2)
    assert house.steps(job_id) == at, "the child died with its worker"
    house.work()
    job = house.queue.get(job_id)
    assert (job.status, job.attempt, house.steps(job_id)) == ("succeeded", 2, 40)


@both_ways
def test_a_worker_stopped_past_its_lease_loses_the_job_and_knows_it(house: House) -> None:
    house.queue.lease_seconds = 4.0
    job_id = house.submit("held")
    with supervisor(house, "a", lease=4.0) as first:
        house.wait_for(lambda: house.steps(job_id) > 2)
        pid = int((house.folder / "jobs" / job_id / "attempt-0001" / "pid").read_text())
        house.hang(first)
        house.wait_for(lambda: not _is_running(pid))  # its guard ends the child before the lease does
        at = house.steps(job_id)
        assert at < 40
        house.queue.lease_seconds = 30.0
        other = house.worker("b")
        house.wait_for(lambda: other.work(lambda: None, until_idle=True) > 0)
        job = house.queue.get(job_id)
        assert (job.status, job.attempt, house.steps(job_id)) == ("succeeded", 2, 40)
        first.send_signal(signal.SIGCONT)
        assert first.wait(60) == 0
    assert house.queue.get(job_id) == job, "who came back late changed nothing"


def test_a_database_that_is_read_but_not_written_renews_no_lease(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """The child ends before its lease does, though every read in between is answered."""
    job_id = house.submit("held")

    def no_write(*_: object) -> None:
        house.stop = "one attempt is enough"
        raise UnreachableError("the disk of the database hangs", expected="an answer", do="wait")

    monkeypatch.setattr(house.queue, "beat", no_write)
    monkeypatch.setattr(Attempt, "terminate", lambda attempt: None)
    house.work(Pace(look=0.05, ping=0.1, beat=0.2, grace=60.0, margin=house.queue.lease_seconds - 1.0))
    assert house.steps(job_id) < 40
    assert house.queue.get(job_id).status == "queued"


def test_a_worker_whose_renewals_fail_does_not_look_alive(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its guard ends the child by the deadline of the last renewal, and that is no crash of the job."""
    job_id, renewed, deadlines = house.submit("held"), list[float](), list[float]()
    beat, extend = house.queue.beat, Attempt.extend

    def once(*arguments: int) -> object:
        if renewed:
            house.stop = "one attempt is enough" if house.steps(job_id) > 2 else None
            raise UnreachableError("the disk of the database hangs", expected="an answer", do="wait")
        renewed.append(elapsed())
        return beat(*arguments)  # type: ignore[arg-type]

    def spied(attempt: Attempt, deadline: float) -> None:
        deadlines.append(deadline)
        extend(attempt, deadline)

    monkeypatch.setattr(house.queue, "beat", once)
    monkeypatch.setattr(Attempt, "extend", spied)
    monkeypatch.setattr(Attempt, "terminate", lambda attempt: None)
    margin = house.queue.lease_seconds - 4.0
    house.work(Pace(look=0.05, ping=0.1, beat=0.2, grace=60.0, margin=margin))
    assert len(deadlines) == 1, "one renewal, one deadline"
    assert deadlines[0] <= renewed[0] + 4.0
    assert (house.queue.get(job_id).num_crashes, house.steps(job_id) < 40) == (0, True)


def test_the_lease_counts_from_its_claim_and_not_from_the_start_of_the_child(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever lies between them, such as a machine that slept: the child must be dead before the lease ends."""
    job_id, began, claim = house.submit("held"), list[float](), house.queue.claim

    def claimed(*arguments: object) -> Job | None:
        began.append(elapsed())
        return claim(*arguments)  # type: ignore[arg-type]

    def slow_start(self: Attempt, command: object, folder: Path, deadline: float, *_: object) -> None:
        began.append(deadline)
        raise OSError(11, "no process left")

    monkeypatch.setattr(house.queue, "claim", claimed)
    monkeypatch.setattr(Attempt, "__init__", slow_start)
    worker = house.worker()
    command = worker.command
    worker.command = lambda job, folder: (time.sleep(0.5), command(job, folder))[1]
    assert worker.work(lambda: None, until_idle=True) == 1
    assert began[1] <= began[0] + house.queue.lease_seconds - QUICK.margin
    assert house.queue.get(job_id).status == "queued"


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


@forked
def test_a_job_outlives_the_fork_server_that_started_it(house: House) -> None:
    assert house.fork_server is not None
    job_id = house.submit("slow")
    thread = house.in_background()
    house.wait_for(lambda: house.steps(job_id) > 2)
    first = house.fork_server.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    thread.join(60)
    job = house.queue.get(job_id)
    assert (job.status, job.attempt, house.steps(job_id)) == ("succeeded", 1, 40)
    second = house.submit(number=2)
    house.work()
    assert house.queue.get(second).status == "succeeded"
    assert house.fork_server.pid not in (None, first)
    house.told = [line for line in house.told if "started again with the next program" not in line]


@forked
def test_a_fork_server_that_dies_over_a_start_costs_a_rest(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    assert house.fork_server is not None
    server, job_id = house.fork_server, house.submit()
    house.wait_for(lambda: server.pid is not None)
    received = fork_client.receive

    def dead(*arguments: Any) -> Any:
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)
        received(*arguments)  # the answer that was on its way is lost
        raise ConnectionResetError("the other side is gone")

    with monkeypatch.context() as patched:
        patched.setattr(fork_client, "receive", dead)
        assert house.work() == 1
    job = house.queue.get(job_id)
    assert (job.status, job.num_crashes) == ("queued", 0)
    with house.queue._database.write() as connection:
        connection.exec_driver_sql("UPDATE jobs SET not_before = 0")
    house.work()
    assert (house.queue.get(job_id).status, house.steps(job_id)) == ("succeeded", 40)
    house.told = [line for line in house.told if "started again with the next program" not in line]


@pytest.fixture
def loading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ForkServer]:
    """A fork server that is loading until it is closed."""
    (tmp_path / "endless_library.py").write_text("import time\nwhile True: time.sleep(0.01)\n")
    folders = filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(folders))
    with ForkServer(("endless_library",), tell=lambda _: None, patience_seconds=300) as server:
        yield server


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="fork servers are Linux's own")
def test_a_worker_that_waits_for_its_fork_server_hears_a_stop(house: House, loading: ForkServer) -> None:
    house.fork_server, job_id = loading, house.submit()
    worker = house.worker()
    assert worker.work(lambda: "enough" if loading.pid is not None else None) == 1
    job = house.queue.get(job_id)
    assert (job.status, job.num_crashes, house.steps(job_id)) == ("queued", 0, 0)
    assert house.told[-1] == "stopped: enough"


@pytest.mark.parametrize(("wish", "status"), [("cancel", "cancelled"), ("pause", "paused")])
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="fork servers are Linux's own")
def test_a_job_that_waits_for_the_fork_server_hears_what_is_asked_of_it(
    house: House, loading: ForkServer, wish: Wish, status: str
) -> None:
    house.fork_server, job_id = loading, house.submit()
    worker = house.worker()
    command = worker.command

    def asked(job: Job, folder: Path) -> Sequence[str]:
        house.queue.ask(job_id, wish)
        return command(job, folder)

    worker.command = asked
    assert worker.work(lambda: None, until_idle=True) == 1
    assert house.queue.get(job_id).status == status
    assert house.steps(job_id) == 0


@both_ways
def test_what_finds_no_room_waits_and_is_no_crash(house: House) -> None:
    job_id = house.submit("full")
    assert house.work() == 1
    job = house.queue.get(job_id)
    assert (job.status, job.num_crashes) == ("queued", 0)
    assert job.not_before > job.updated_at
    with house.queue._database.write() as connection:
        connection.exec_driver_sql("UPDATE jobs SET not_before = 0")
    house.work()
    assert house.queue.get(job_id).status == "succeeded"


def test_a_job_that_waits_for_something_elsewhere_lets_the_next_one_go_first(house: House) -> None:
    waiting, other = house.submit("waiting"), house.submit(number=2)
    assert house.work() == 2
    job = house.queue.get(waiting)
    assert (job.status, job.num_crashes, job.worker) == ("queued", 0, None)
    assert job.not_before == pytest.approx(job.updated_at + 30.0)
    assert house.queue.get(other).status == "succeeded"
    with house.queue._database.write() as connection:
        connection.exec_driver_sql("UPDATE jobs SET not_before = 0")
    house.work()
    assert house.queue.get(waiting).status == "succeeded"


def test_a_disk_without_room_for_an_attempt_is_waited_for(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id = house.submit()

    def no_room(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "mkdir", no_room)
    assert house.work() == 1
    job = house.queue.get(job_id)
    assert (job.status, job.num_crashes) == ("queued", 0)


def test_a_worker_whose_database_was_migrated_by_a_newer_version_ends_and_leaves_its_jobs(house: House) -> None:
    job_id = house.submit()
    with house.queue._database.write() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(OutdatedError, match="schema 9999"):
        house.work()
    assert (house.queue.get(job_id).status, house.steps(job_id)) == ("queued", 0)


def test_shorter_leases_are_renewed_more_often() -> None:
    assert Pace.for_lease(90.0) == Pace()
    short = Pace.for_lease(12.0)
    assert short.beat <= 2.0
    assert short.beat < 12.0 - short.margin


@both_ways
def test_the_end_of_a_job_is_waited_for_and_not_looked_for(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    def sleep(seconds: float) -> None:
        pytest.fail(f"{seconds:g} s are slept while a job may end")

    monkeypatch.setattr(worker_module, "time", SimpleNamespace(monotonic=time.monotonic, sleep=sleep))
    ids = [house.submit(number=n) for n in (1, 2)]
    assert house.work() == 2
    assert [house.queue.get(i).status for i in ids] == ["succeeded", "succeeded"]
