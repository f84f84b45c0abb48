"""The world of the fault drill: a home, its database, workers that are started again when they die, and the jobs."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luthier.core.recipe import Recipe
from luthier.features.training import jobs
from luthier.platform.home.context import Context
from luthier.platform.jobs.records import ENDED, Job
from luthier.testing.servers import PostgresqlServer
from luthier.testing.tiny import make_tiny_model

EPOCHS, NUM_STEPS = 16, 80
_ROLES = {
    "luthier.platform.processes.guard": "guard",
    "luthier.platform.jobs.child": "job_child",
    "luthier.server.home": "api",
    "worker": "worker",
    "up": "up",
}


def write_recipes(folder: Path, num_recipes: int) -> list[Recipe]:
    """Recipes that differ in seed, and the last in its method; all over the same rows and the same tiny model."""
    model = make_tiny_model(folder / "tiny")

    def row(number: int) -> str:
        words = (("user", f"What comes after {number}?"), ("assistant", f"After {number} comes {number + 1}."))
        return json.dumps({"messages": [{"role": role, "content": content} for role, content in words]})

    for name, numbers in (("train", range(40)), ("valid", range(100, 108))):
        (folder / f"{name}.jsonl").write_text("".join(row(n) + "\n" for n in numbers), encoding="utf-8")
    training = {
        "epochs": EPOCHS, "global_batch_size": 8, "learning_rate": 0.01, "precision": "float32", "num_threads": 1,
        "validate_every_steps": 7, "checkpoint_every_steps": 4, "early_stopping_patience": 0,
    }  # fmt: skip
    data = {"train": str(folder / "train.jsonl"), "validation": str(folder / "valid.jsonl")}
    recipes = []
    for number in range(num_recipes):
        is_last = number == num_recipes - 1 and number > 0
        method = {"name": "full"} if is_last else {"name": "lora", "rank": 4, "dropout": 0.1}
        seeded = training | {"seed": number, "learning_rate": 0.001 if is_last else 0.01}
        document = {"base_model": str(model), "data": data, "method": method, "training": seeded}
        recipes.append(Recipe.model_validate_json(json.dumps(document)))
    return recipes


@dataclass
class Process:
    """A process of this world, as the machine sees it. job_id: of a guard or child."""

    pid: int
    role: str
    job_id: str | None


@dataclass
class World:
    """Homes are told apart by their path, which stands in the command line of every process of theirs."""

    home: Path
    logs: Path
    draw: random.Random
    lease_seconds: float
    database: str | None = None
    server: PostgresqlServer | None = None
    workers: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    start_at: dict[str, float] = field(default_factory=dict)
    num_starts: int = 0

    def environment(self) -> dict[str, str]:
        """What every process of this world is told."""
        told = {
            "LUTHIER_LEASE_SECONDS": str(self.lease_seconds),
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("LUTHIER_")}
        return inherited | told | ({} if self.database is None else {"LUTHIER_DATABASE": self.database})

    @contextmanager
    def context(self) -> Iterator[Context]:
        """The home, opened by the drill itself; it waits as long as the outages it makes may take."""
        before, told = dict(os.environ), self.environment()
        os.environ.clear()
        os.environ.update(told)
        try:
            with Context.open(self.home, database_patience_seconds=60) as context:
                yield context
        finally:
            os.environ.clear()
            os.environ.update(before)

    def keep_workers(self, names: list[str]) -> None:
        """Start those that are missing, each a moment after its death, as a supervisor would."""
        for name in names:
            running = self.workers.get(name)
            if running is not None and running.poll() is None:
                continue
            now = time.monotonic()
            if now < self.start_at.setdefault(name, now if running is None else now + self.draw.uniform(0.2, 3.0)):
                continue
            del self.start_at[name]
            self.num_starts += 1
            with (self.logs / f"worker-{name}.txt").open("ab") as log:
                command = [sys.executable, "-m", "luthier", "worker", "--name", name, "--home", str(self.home)]
                self.workers[name] = subprocess.Popen(command, stdout=log, stderr=log, env=self.environment())

    def stop_workers(self) -> list[int]:
        """SIGTERM to all; returns the exit codes."""
        for process in self.workers.values():
            process.send_signal(signal.SIGTERM)
        codes = []
        for process in self.workers.values():
            try:
                codes.append(process.wait(90))
            except subprocess.TimeoutExpired:
                process.kill()
                codes.append(process.wait())
        return codes

    def processes(self) -> list[Process]:
        """Every living process that has this home in its command line or environment, but not the drill itself."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                words = (folder / "cmdline").read_bytes().decode("utf-8", "replace").split("\0")
                told = (folder / "environ").read_bytes().split(b"\0")
                state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            mine = [word for word in words if word == str(self.home) or word.startswith(f"{self.home}/")]
            if not mine and f"LUTHIER_HOME={self.home}".encode() not in told:
                continue
            if state == "Z" or int(folder.name) == os.getpid():
                continue
            role = next((role for word, role in _ROLES.items() if word in words), "other")
            job_id = Path(mine[-1]).parent.name if role in ("guard", "job_child") else None
            found.append(Process(int(folder.name), role, job_id))
        return found

    def submit(self, recipes: list[Recipe], num_jobs: int) -> dict[str, int]:
        """Queue the recipes in turn; the number of each job's recipe by its id."""
        with self.context() as context:
            numbers = [number % len(recipes) for number in range(num_jobs)]
            return {jobs.submit(context, recipes[n], base_dir=Path("/")).job_id: n for n in numbers}


def ended(found: list[Job]) -> bool:
    """Whether none of the jobs is under way any more."""
    return all(job.status in ENDED for job in found)


def undisturbed(
    world: World, recipes: list[Recipe], submit_more: Callable[[Context], dict[str, int]]
) -> dict[tuple[str, int], Job]:
    """Train each recipe and request once, with one worker and in peace; its job by kind and number."""
    with world.context() as context:
        asked = {job_id: ("recipe", number) for job_id, number in world.submit(recipes, len(recipes)).items()}
        asked |= {job_id: ("request", number) for job_id, number in submit_more(context).items()}
        while not ended(found := context.jobs.list()):
            world.keep_workers(["calm"])
            time.sleep(0.5)
    world.stop_workers()
    wrong = [f"{job.job_id}: {job.status} {job.error}" for job in found if job.status != "succeeded"]
    if wrong:
        raise RuntimeError(f"undisturbed jobs failed: {wrong}; logs in {world.logs}")
    return {asked[job.job_id]: job for job in found}


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[str | None]:
    """A file system of its own in the folder; yields why there is none, or None."""
    folder.mkdir(parents=True, exist_ok=True)
    if os.geteuid() != 0:
        yield "a file system of its own can be mounted by root alone"
        return
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "luthier-drill", str(folder)], capture_output=True, text=True
    )
    try:
        yield None if mounted.returncode == 0 else f"mount: {mounted.stderr.strip()}"
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", "-l", str(folder)], check=False)


def as_document(job: Job) -> dict[str, Any]:
    """A job for the drill's own report."""
    return job.model_dump(mode="json", include={"job_id", "status", "attempt", "num_crashes", "step", "error"})
