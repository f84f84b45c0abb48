"""Recipes of a project whose files are named by id: checked, queued, trained, and asked by name at the end."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.fixtures.service import chat_row, write_rows

from luthier.core.access import Caller
from luthier.core.errors import NotFoundError, RecipeError, RequestError
from luthier.core.ports import SilentProgress
from luthier.features.runs import state as run_control
from luthier.features.serving import targets as served_targets
from luthier.features.training import jobs, recipe_job
from luthier.platform.files import service as files
from luthier.platform.home.context import Context
from luthier.platform.home.hardware_benchmark import hardware_of
from luthier.platform.jobs.records import Job
from luthier.platform.jobs.worker import Pace

OWN, OTHER = Caller(), Caller(project_id="other", key_id="key-1", name="else")
QUICK = Pace(look=0.05, ping=0.2, beat=0.5)


@pytest.fixture
def asked(context: Context, tiny_model: Path, tmp_path: Path) -> dict[str, Any]:
    """A recipe with ids of files, of a home that has pulled a model called `tiny`."""
    from luthier.ml.inference.models import sources

    sources.pull(str(tiny_model), context.home, SilentProgress())
    hardware_of(context)  # measured by this process already; that of the job would do so again

    def kept(name: str, numbers: range) -> str:
        path = write_rows(tmp_path / name, [chat_row(n) for n in numbers])
        return files.add_file(context, "default", path, filename=name, purpose="fine-tune").file_id

    return {
        "base_model": "tiny",
        "data": {"train": kept("train.jsonl", range(40)), "held_out": kept("test.jsonl", range(200, 206))},
        "method": {"name": "lora", "rank": 4},
        "training": {
            "epochs": 2,
            "global_batch_size": 8,
            "learning_rate": 0.01,
            "precision": "float32",
            "num_threads": 1,
            "checkpoint_every_steps": 2,
        },
        "evaluation": {"few_shot": 0, "max_new_tokens": 4, "max_samples": 2},
    }


def work(context: Context, stop: Callable[[], str | None] = lambda: None) -> None:
    jobs.work(context, "w", stop_requested=stop, tell=lambda _: None, until_idle=True, pace=QUICK)


def kill_once_it_trains(context: Context, job: Job) -> threading.Thread:
    """Kill the process that does the job, after its second step."""

    def kill() -> None:
        deadline = time.monotonic() + 120
        while not any(r.step >= 2 for r in context.runs.list()):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        for process in Path("/proc").glob("[0-9]*"):
            try:
                words = (process / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"luthier.platform.jobs.child" in words and any(job.job_id.encode() in word for word in words):
                os.kill(int(process.name), signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    return thread


@pytest.mark.drill
def test_it_is_checked_trained_killed_gone_on_with_and_asked_by_name(context: Context, asked: dict[str, Any]) -> None:
    job = recipe_job.start(context, OWN, asked)
    assert (job.lane, job.status, job.document["asked"]) == ("validate", "queued", asked)
    assert context.audit_log.newest(limit=1)[0].action == "job.created"
    assert run_control.job_of(context, OWN, job.run_id) == job
    killer = kill_once_it_trains(context, job)
    work(context)
    killer.join()
    job = context.jobs.get(job.job_id)
    assert (job.status, job.lane, job.error) == ("succeeded", "train", None)
    record = context.runs.get(job.run_id)
    assert record.status == "succeeded"
    assert record.report_path is not None
    assert Path(record.report_path).is_file()
    judged = context.evaluations.list(run_id=job.run_id, limit=1)[0]
    assert judged.verdict is not None
    name = job.document["found"]["fine_tuned_model"]
    assert name.startswith("ft:tiny:default::")
    assert context.runs.project_of(job.run_id) == "default"
    by_name, by_run = (served_targets.served_target(context, OWN, target) for target in (name, job.run_id))
    assert by_name == by_run
    with pytest.raises(NotFoundError):
        served_targets.served_target(context, OTHER, name)


def test_its_files_are_its_own_and_it_pauses_and_resumes(context: Context, asked: dict[str, Any]) -> None:
    asked["data"] = {"train": asked["data"]["train"]}
    job = recipe_job.start(context, OWN, asked)
    looked_at = context.jobs.claim("looks", ("validate",))
    assert looked_at is not None
    context.jobs.give_back(job.job_id, looked_at.attempt)
    work(context, lambda: "enough" if context.jobs.get(job.job_id).lane == "train" else None)
    files.delete_file(context, "default", asked["data"]["train"])
    run_control.pause(context, OWN, job.run_id)
    work(context)
    assert context.jobs.get(job.job_id).status == "paused"
    run_control.resume(context, OWN, job.run_id)
    work(context)
    assert context.jobs.get(job.job_id).status == "succeeded"


def test_what_is_wrong_with_the_rows_ends_the_job_and_names_the_file_by_its_id(
    context: Context, asked: dict[str, Any], tmp_path: Path
) -> None:
    path = write_rows(tmp_path / "bad.jsonl", [{"messages": "none"}] * 3)
    bad = files.add_file(context, "default", path, filename="bad.jsonl", purpose="fine-tune").file_id
    job = recipe_job.start(context, OWN, asked | {"data": {"train": bad}})
    work(context)
    job = context.jobs.get(job.job_id)
    assert job.status == "failed"
    assert job.error is not None
    told = " ".join(map(str, job.error.values()))
    assert bad in told
    assert str(context.home) not in told


def test_what_can_be_told_without_reading_is_told_at_once(context: Context, asked: dict[str, Any]) -> None:
    def start(caller: Caller = OWN, **sections: Any) -> Job:
        return recipe_job.start(context, caller, asked | sections)

    with pytest.raises(RecipeError, match=r"training.learning_rat: unknown key; nearest known: training.learning_rate"):
        start(training={"learning_rat": 1e-4})
    with pytest.raises(RecipeError, match="data: is missing"):
        recipe_job.start(context, OWN, {"base_model": "tiny"})
    for data in ({"train": "/etc/passwd"}, {"train": 0.5}, {"train": asked["data"]["train"], "held_out": "../x"}):
        with pytest.raises(RequestError, match="data"):
            start(data=data)
    for model in ("/etc", "no-such-model", 5, None):
        with pytest.raises(RequestError, match="base_model"):
            start(base_model=model)
    with pytest.raises(RequestError, match=r"data\.train"):
        start(OTHER)
    assert context.jobs.list() == []


def test_what_is_left_open_is_not_kept(context: Context, asked: dict[str, Any]) -> None:
    job = recipe_job.start(context, OWN, asked | {"budget": None, "method": {"name": "lora", "rank": None}})
    assert job.document["asked"] == asked | {"method": {"name": "lora"}}


def test_a_client_does_not_say_where_the_server_reports_to(context: Context, asked: dict[str, Any]) -> None:
    for location in ("http://169.254.169.254", "/etc"):
        tracking = [{"name": "tensorboard", "location": location}]
        with pytest.raises(RequestError, match="with location"):
            recipe_job.start(context, OWN, asked | {"tracking": tracking})
    assert context.jobs.list(limit=10) == []
    job = recipe_job.start(context, OWN, asked | {"tracking": ["tensorboard"]})
    assert job.document[recipe_job.ASKED]["tracking"] == ["tensorboard"]


def test_the_audit_log_names_several_sources_by_their_ids(context: Context, asked: dict[str, Any]) -> None:
    ids = [asked["data"]["train"], asked["data"]["held_out"]]
    sources = [{"path": file_id, "weight": 1.5} for file_id in ids]
    recipe_job.start(context, OWN, asked | {"data": {"train": sources}})
    assert json.loads(context.audit_log.newest(limit=1)[0].document)["train"] == ", ".join(ids)
