"""What the fault drill does to a world. Each fault says what it hit, or None where nothing could be hit just then."""

from __future__ import annotations

import heapq
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from drill_world import NUM_STEPS, Process, World

from luthier.core.errors import LuthierError
from luthier.platform.home.context import Context
from luthier.platform.jobs.records import Job
from luthier.platform.jobs.store import MOST_CRASHES

_FILLER = ".drill-filler"
_MOST_HITS = 4
_BETWEEN_OUTAGES_SECONDS = 20.0


@dataclass
class Faults:
    """Deals the faults in a random order in which none is left out for long, and undoes those that last."""

    world: World
    context: Context
    skipped: dict[str, str]
    is_submitting: Callable[[], bool]
    counts: Counter[str] = field(default_factory=Counter)
    told: list[str] = field(default_factory=list)
    _deck: list[str] = field(default_factory=list)
    _later: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _hit: set[tuple[str, int]] = field(default_factory=set)
    _held: dict[int, list[Job]] = field(default_factory=dict)
    _outage_until: float = 0.0
    _began: float = field(default_factory=time.monotonic)

    def kinds(self) -> dict[str, Callable[[], str | None]]:
        """The faults by name."""
        return {
            "kill -9 worker": lambda: self._kill("worker"),
            "kill -9 child": lambda: self._kill("job_child"),
            "kill -9 guard": lambda: self._kill("guard"),
            "kill -9 API": lambda: self._kill_server("api"),
            "kill -9 luthier up": lambda: self._kill_server("up"),
            "SIGSTOP worker past its lease": self._stop_worker,
            "database restart": self._restart_database,
            "disk full": self._fill_disk,
        }

    def one(self) -> None:
        """Deal one fault, if it can be dealt now; if not, another gets its turn first."""
        kinds = self.kinds()
        if not self._deck:
            self._deck = [kind for kind in kinds if kind not in self.skipped]
            self.world.draw.shuffle(self._deck)
        rest = [kind for kind in kinds if kind not in self.skipped and kind not in self._deck]
        self.world.draw.shuffle(rest)
        for kind in [*self._deck, *rest]:
            try:
                said = kinds[kind]()
            except (ProcessLookupError, LuthierError):
                said = None
            if said is not None:
                if kind in self._deck:
                    self._deck.remove(kind)
                self.counts[kind] += 1
                self.told.append(f"{time.monotonic() - self._began:7.1f} s  {kind}: {said}")
                return

    def undo(self, *, all_of_it: bool = False) -> None:
        """Undo what has lasted long enough, or all."""
        while self._later and (all_of_it or self._later[0][0] <= time.monotonic()):
            heapq.heappop(self._later)[2]()

    def _in(self, seconds: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._later, (time.monotonic() + seconds, len(self.told), action))

    def _victims(self, role: str) -> list[tuple[Process, Job]]:
        """Processes of a role whose job may crash once more: a third crash without progress is meant to fail a job."""
        running = {job.job_id: job for job in self.context.jobs.list(status="running")}
        by_worker: dict[str, list[Job]] = {}  # a worker has two lanes: what it holds in both is hit
        for job in running.values():
            by_worker.setdefault((job.worker or "").partition(":")[0], []).append(job)
        pids = {process.pid: name for name, process in self.world.workers.items()}
        found = []
        for process in self.world.processes():
            if process.role != role:
                continue
            if role == "worker":
                held = by_worker.get(pids.get(process.pid, ""), [])
            else:
                held = [job for job in [running.get(process.job_id or "")] if job is not None]
            if held and not any(self._is_spared(job) for job in held):
                found.append((process, held[0]))
                self._held[process.pid] = held
        return found

    def _is_spared(self, job: Job) -> bool:
        """Whether it must not be hit now: it was, in this attempt, or often enough, or it would fail as poison."""
        num_hits = sum(hit == job.job_id for hit, _ in self._hit)
        return job.num_crashes >= MOST_CRASHES - 1 or (job.job_id, job.attempt) in self._hit or num_hits >= _MOST_HITS

    def _pick(self, role: str) -> tuple[Process, Job, str] | None:
        """A victim, and where its run was: at once, or after some steps of it."""
        found = self._victims(role)
        if not found:
            return None
        process, job = self.world.draw.choice(found)
        target = self.world.draw.choice((0, self.world.draw.randrange(NUM_STEPS), self.world.draw.randrange(NUM_STEPS)))
        give_up_at = time.monotonic() + 10
        while (step := self._step(job)) < target and time.monotonic() < give_up_at:
            time.sleep(0.02)
            self.undo()
        now = self.context.jobs.get(job.job_id)
        if now.status != "running" or now.attempt != job.attempt:
            return None
        if any(self._is_spared(self.context.jobs.get(one.job_id)) for one in self._held[process.pid]):
            return None  # while it was waited for, something else happened to it
        self._hit |= {(one.job_id, one.attempt) for one in self._held[process.pid]}
        return process, job, f"{job.job_id} attempt {job.attempt} at step {step}"

    def _step(self, job: Job) -> int:
        try:
            return self.context.runs.get(job.run_id).step
        except LuthierError:
            return 0

    def _kill(self, role: str) -> str | None:
        if (picked := self._pick(role)) is None:
            return None
        process, _, where = picked
        os.kill(process.pid, signal.SIGKILL)
        return where

    def _kill_server(self, role: str) -> str | None:
        found = [process.pid for process in self.world.processes() if process.role == role]
        if not found or not self.is_submitting():
            return None
        os.kill(found[0], signal.SIGKILL)
        return "while jobs are handed in"

    def _stop_worker(self) -> str | None:
        if (picked := self._pick("worker")) is None:
            return None
        process, _, where = picked
        os.kill(process.pid, signal.SIGSTOP)
        self._in(self.world.lease_seconds + self.world.draw.uniform(1, 4), lambda: _go_on(process.pid))
        return where

    def _restart_database(self) -> str | None:
        if time.monotonic() < self._outage_until or self.world.server is None:
            return None
        seconds = self.world.draw.uniform(1, 6)
        mode = self.world.draw.choice(("immediate", "fast"))
        self._outage_until = time.monotonic() + seconds + _BETWEEN_OUTAGES_SECONDS
        self.world.server.stop(mode)
        self._in(seconds, self.world.server.start)
        time.sleep(seconds)
        self.undo()
        return f"{mode}, {seconds:.1f} s"

    def _fill_disk(self) -> str | None:
        if time.monotonic() < self._outage_until or not self._victims("job_child"):
            return None
        seconds = self.world.draw.uniform(3, 12)
        self._outage_until = time.monotonic() + seconds + _BETWEEN_OUTAGES_SECONDS
        filler = self.world.home / _FILLER
        try:
            with filler.open("wb", buffering=0) as file:
                while file.write(bytes(1 << 16)):
                    pass
        except OSError:
            pass
        self._in(seconds, lambda: filler.unlink(missing_ok=True))
        return f"{seconds:.1f} s"


def _go_on(pid: int) -> None:
    with suppress(ProcessLookupError):  # killed while it was stopped
        os.kill(pid, signal.SIGCONT)
