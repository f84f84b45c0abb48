"""Queued recipes, trained by a worker with real processes: what comes out is what `luthier train` would have made."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
from tests.clock import wait_until
from tests.fixtures.forked_children import SessionForkServer
from tests.fixtures.held import HELD

from luthier.core.errors import ConflictError, RequestError, UnreachableError
from luthier.features.recipes.service import load_recipe
from luthier.features.training import jobs
from luthier.features.training.service import train
from luthier.platform.home.context import Context
from luthier.platform.home.hardware_benchmark import hardware_of
from luthier.platform.jobs.records import Job, JobKind, Lane
from luthier.platform.jobs.worker import Pace, Worker

MakeRecipe = Callable[..., Path]
QUICK = Pace(look=0.05, ping=0.2, beat=0.5)
ERROR: dict[str, Any] = {"type": "WorkError", "came": "no rows", "expected": "rows", "do": "add some"}


def submit(context: Context, recipe: Path) -> Job:
    return jobs.submit(context, load_recipe(recipe), base_dir=recipe.parent)


def work(context: Context, stop: Callable[[], str | None] = lambda: None) -> list[str]:
    told: list[str] = []
    jobs.work(context, "w", stop_requested=stop, tell=told.append, until_idle=True, pace=QUICK)
    return told


def digest(context: Context, run_id: str) -> str:
    result = context.runs.get(run_id).result
    assert result is not None
    assert result.adapter_sha256 is not None
    return result.adapter_sha256


def test_disturbed_in_every_way_it_ends_as_if_undisturbed(
    context: Context, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe(evaluation={"few_shot": 0, "max_new_tokens": 4, "max_samples": 2})
    plain = train(context, load_recipe(recipe), base_dir=recipe.parent).as_json()
    job = submit(context, recipe)
    assert context.jobs.get(job.job_id).status == "queued"

    def step() -> int:
        found = [record.step for record in context.runs.list() if record.run_id == job.run_id]
        return found[0] if found else 0

    def child() -> int:
        """The process that trains: the one whose command begins with the child itself, not its guard."""
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                words = (folder / "cmdline").read_bytes().decode().split("\0")
            except OSError:
                continue
            if words[1:3] == ["-m", "luthier.platform.jobs.child"] and job.job_id in words[4]:
                return int(folder.name)
        raise AssertionError("no process trains this job")

    # 1. its process is killed in the middle of training
    monkeypatch.setenv(HELD, json.dumps(["3", "4"]))
    worker = threading.Thread(target=work, args=(context,))
    worker.start()
    wait_until(lambda: step() >= 3)
    os.kill(child(), signal.SIGKILL)
    # 2. the second attempt is paused as soon as it trains
    wait_until(lambda: context.jobs.get(job.job_id).attempt == 2 and step() >= 4)
    jobs.ask(context, job.job_id, "pause")
    worker.join(120)
    assert context.jobs.get(job.job_id).status == "paused"
    # 3. resumed, it comes to its end
    jobs.resume(context, job.job_id)
    work(context)
    assert context.jobs.get(job.job_id).status == "succeeded"
    assert digest(context, job.run_id) == plain["adapter_sha256"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="fork servers are Linux's own")
def test_forked_or_executed_a_job_trains_the_same_bytes(
    context: Context, make_recipe: MakeRecipe, fork_server: SessionForkServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, why_not = make_recipe(evaluation={"few_shot": 0, "max_new_tokens": 4, "max_samples": 2}), list[str]()
    monkeypatch.setattr(fork_server, "_tell", why_not.append)
    with (context.home / "stderr").open("wb") as stderr:
        command = [sys.executable, "-m", "tests.core.child_process.program", "exit", "0"]
        loaded = fork_server.start_program(command, stderr=stderr, wait_seconds=300)
    assert loaded is not None, why_not
    with loaded.stdin, loaded.stdout:  # type: ignore[union-attr]
        assert loaded.wait() == 0
    hardware_of(context)  # this process knows it; one that is executed would measure it
    seen: dict[str, tuple[str, int]] = {}
    for name, server in (("executed", None), ("forked", fork_server)):
        monkeypatch.setattr(jobs, "_fork_server", lambda *_, server=server, **__: contextlib.nullcontext(server))
        job = submit(context, recipe)
        told = work(context)
        assert context.jobs.get(job.job_id).status == "succeeded", told
        seen[name] = digest(context, job.run_id), len(told)
    assert seen["forked"] == seen["executed"]
    # Nothing stood against it: the libraries started no thread, opened no device, and nothing differed.
    assert why_not == []


def test_what_is_wrong_with_the_rows_is_the_jobs_error(context: Context, make_recipe: MakeRecipe) -> None:
    recipe = make_recipe()
    (recipe.parent / "train.jsonl").write_text('{"messages": []}\n')
    job = submit(context, recipe)
    work(context)
    failed = context.jobs.get(job.job_id)
    assert (failed.status, failed.attempt) == ("failed", 1)
    assert failed.error is not None
    assert failed.error["type"] == "DataError"
    assert "train.jsonl:1" in str(failed.error)


def test_a_job_whose_run_had_ended_before_its_last_word_is_done(context: Context, make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(evaluation={"few_shot": 0, "max_new_tokens": 4, "max_samples": 2})
    job = submit(context, recipe)
    train(context, load_recipe(recipe), base_dir=recipe.parent, run_id=job.run_id)
    before = digest(context, job.run_id)
    work(context)
    assert context.jobs.get(job.job_id).status == "succeeded"
    assert digest(context, job.run_id) == before


def test_one_name_one_process_and_no_name_that_is_a_path(context: Context) -> None:
    inside, release = threading.Event(), threading.Event()

    def stop() -> str | None:
        inside.set()
        return "asked to" if release.is_set() else None

    def hold() -> None:
        jobs.work(context, "w", stop_requested=stop, tell=lambda _: None, pace=QUICK)

    holder = threading.Thread(target=hold)
    holder.start()
    inside.wait(60)
    with pytest.raises(ConflictError, match="the worker name w is in use"):
        work(context)
    release.set()
    holder.join(60)
    with pytest.raises(RequestError, match="letters, digits"):
        jobs.work(context, "../w", stop_requested=lambda: None, tell=lambda _: None)


def test_jobs_that_wait_for_slow_hosts_hold_up_neither_the_next_hosts_nor_local_models(context: Context) -> None:
    submitted = [("remote", 1), ("remote", 2), ("remote", 3), ("remote", 4), ("infer", 5)]
    for lane, number in submitted:
        job = Job(job_id=f"job-{number}", kind="synthesis", document={"synthesis": {}}, run_id="", lane=lane)  # type: ignore[arg-type]
        context.jobs.submit(job)
    taken = {suffix: context.jobs.claim(f"w:{suffix}", (lane,)) for suffix, lane in jobs._BESIDE.items()}
    assert {suffix: job and job.job_id for suffix, job in taken.items()} == {
        "validate": None,
        "infer": "job-5",
        "remote": "job-1",
        "remote-2": "job-2",
        "remote-3": "job-3",
    }


def test_a_worker_until_idle_waits_for_what_crashed_and_for_a_database_that_does_not_answer(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("luthier.platform.jobs.store.FIRST_REST_SECONDS", 0.2)
    for number, lane in enumerate(("train", "infer", "train")):
        job = Job(job_id=f"job-{number}", kind="synthesis", document={"synthesis": {}}, run_id="", lane=lane)  # type: ignore[arg-type]
        context.jobs.submit(job)
    claim, refused = context.jobs.claim, list[str]()

    def attempt(worker: Worker, job: Job, *_: object) -> None:
        if job.job_id == "job-0" and job.attempt < 3:
            worker.store.crash(job.job_id, job.attempt, "out of memory")
        else:
            ending = ("failed", ERROR) if job.job_id == "job-2" else ("succeeded", None)
            worker.store.finish(job.job_id, job.attempt, *ending)

    def absent_once(worker: str, lanes: tuple[Lane, ...], *note_lost: Callable[[Job], object]) -> Job | None:
        if worker not in refused:
            refused.append(worker)
            raise UnreachableError("the database does not answer", expected="an answer", do="wait")
        return claim(worker, lanes, *note_lost)

    monkeypatch.setattr(Worker, "_run", attempt)
    monkeypatch.setattr(context.jobs, "claim", absent_once)
    done = jobs.work(context, "w", stop_requested=lambda: None, tell=lambda _: None, until_idle=True, pace=QUICK)
    ended = [(job.job_id, job.status, job.attempt) for job in context.jobs.list()]
    assert ended == [("job-2", "failed", 1), ("job-1", "succeeded", 1), ("job-0", "succeeded", 3)]
    assert (done.num_attempts, [job.job_id for job in done.failed], done.waiting) == (5, ["job-2"], ())


@pytest.mark.parametrize("kind", get_args(JobKind))
def test_the_kinds_of_jobs_that_go_on_where_they_were_can_pause(context: Context, kind: JobKind) -> None:
    job = context.jobs.submit(Job(job_id="job-1", kind=kind, document={kind: {}}, run_id=""))
    if kind in ("train", "workflow", "synthesis"):
        assert jobs.ask(context, job.job_id, "pause").status == "paused"
        assert jobs.resume(context, job.job_id).status == "queued"
    else:
        with pytest.raises(
            ConflictError, match="expected: a job that trains, writes questions or carries out a workflow"
        ):
            jobs.ask(context, job.job_id, "pause")
    assert jobs.ask(context, job.job_id, "cancel").status == "cancelled"


def test_no_job_waits_longer_than_half_a_second_for_a_worker_that_is_free(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = dict[Lane, float]()

    class Idle(Worker):
        def work(self, stop_requested: Callable[[], str | None], *, until_idle: bool = False) -> int:
            looks[self.lanes[0]] = self.pace.look
            return 0

    monkeypatch.setattr("luthier.platform.jobs.worker.Worker", Idle)
    jobs.work(context, "w", stop_requested=lambda: "the test", tell=lambda _: None)
    assert set(looks) == set(get_args(Lane))
    assert max(looks.values()) <= 0.5
