"""Runs and jobs that wait, in one list: in order, by status and text, a page at a time, of one project."""

from __future__ import annotations

import pytest

from luthier.core.evaluation import Evaluation
from luthier.core.run import RunStatus
from luthier.features.evaluations.store import EvaluationStore
from luthier.features.runs.entries_store import RunEntryStore
from luthier.features.runs.store import RunStore
from luthier.platform.auth.store import AccessStore
from luthier.platform.db.database import Database
from luthier.platform.jobs.records import Job
from luthier.platform.jobs.store import JobStore
from luthier.testing.records import make_evaluation, make_plan, make_record


class World:
    """A database with runs and jobs whose ids tell them apart by one letter."""

    def __init__(self, database: Database) -> None:
        self.runs, self.jobs, self.entries = RunStore(database), JobStore(database), RunEntryStore(database)
        self.database = database

    def run(self, letter: str, status: RunStatus = "succeeded", **changed: str) -> str:
        record = make_record(f"run-20261125-093000-{letter * 6}", status=status).model_copy(update=changed)
        self.runs.create(record, make_plan())
        return record.run_id

    def job(self, letter: str, number: int = 1, project_id: str = "default", model: str = "tiny") -> Job:
        document = {"recipe": {"base_model": model}}
        run_id = f"run-20261125-093000-{letter * 6}"
        job_id = f"job-20261125-093000-{letter * 5}{number}"
        return self.jobs.submit(
            Job(job_id=job_id, kind="train", document=document, run_id=run_id, project_id=project_id)
        )

    def letters(self, **asked: object) -> str:
        asked = {"limit": 100, "project_id": "default"} | asked
        return "".join(entry.run_id[-1] for entry in self.entries.page(asked.pop("project_id"), **asked).entries)  # type: ignore[arg-type]


@pytest.fixture
def world(database: Database) -> World:
    return World(database)


def test_runs_and_waiting_jobs_stand_in_one_list(world: World) -> None:
    world.run("a")
    world.job("b")
    world.run("c", "running")
    world.job("c")
    found = world.entries.page("default", limit=10).entries
    assert [(e.run_id[-1], e.record is not None, e.job is not None) for e in found] == [
        ("c", True, True), ("b", False, True), ("a", True, False)
    ]  # fmt: skip


def test_the_newest_job_of_a_run_counts_and_the_run_stands_there_once(world: World) -> None:
    world.run("a", "paused")
    first = world.job("a")
    world.jobs.ask(first.job_id, "cancel")
    again = world.job("a", 2)
    world.jobs.ask(world.job("b").job_id, "cancel")
    world.job("b", 2)
    found = world.entries.page("default", limit=10).entries
    assert [entry.run_id[-1] for entry in found] == ["b", "a"]
    assert found[1].job is not None
    assert found[1].job.job_id == again.job_id
    assert world.letters(status="queued") == "ba"
    assert world.letters(status="cancelled") == ""


def test_pages_follow_each_other_without_gap(world: World) -> None:
    for letter in "abcdef":
        world.run(letter) if letter in "ace" else world.job(letter)
    first = world.letters(limit=4)
    rest = world.letters(limit=4, before="run-20261125-093000-cccccc")
    assert (first, rest) == ("fedc", "ba")


def test_other_projects_are_not_there(world: World) -> None:
    AccessStore(world.database).add_project("other", "Other")
    world.job("a", project_id="other")
    world.run("b", "running")
    world.job("b", project_id="other")
    world.run("c")
    assert world.letters() == "c"
    assert world.letters(project_id="other") == "ba"


def test_status_and_text_sift(world: World) -> None:
    world.run("a", "failed", base_model="Qwen 100%", method="dora")
    world.run("b", "planned")
    world.job("c", model="Llama_3")
    world.job("d", model="Llama-3")
    assert world.letters(status="failed") == "a"
    assert world.letters(status="running") == "b", "what is planned is about to run"
    assert world.letters(text="LLAMA") == "dc"
    assert world.letters(text="llama_3") == "c", "no wildcard"
    assert world.letters(text="100%") == "a"
    assert world.letters(text="dora") == "a"
    assert world.letters(text="bbbb") == "b"
    assert world.letters(text="llama", status="failed") == ""


def test_the_place_in_the_queue(world: World) -> None:
    jobs = [world.job(letter) for letter in "abc"]
    ids = [job.job_id for job in jobs]
    assert world.entries.num_ahead(ids) == dict(zip(ids, (0, 1, 2), strict=True))
    world.jobs.claim("w")
    assert world.entries.num_ahead(ids[1:]) == dict(zip(ids[1:], (1, 2), strict=True))
    world.jobs.ask(ids[1], "cancel")
    assert world.entries.num_ahead([ids[2], "job-of-nobody"]) == {ids[2]: 1}
    assert world.entries.num_ahead([]) == {}


def test_plans_and_newest_evaluations(world: World) -> None:
    runs = [world.run("a"), world.run("b")]
    evaluations = EvaluationStore(world.database)
    for letter in "cd":
        made: Evaluation = make_evaluation(f"eval-20261125-093000-{letter * 6}", run_id=runs[0])
        evaluations.save(made)
    assert world.entries.evaluation_ids(runs) == {runs[0]: "eval-20261125-093000-dddddd"}
    assert set(world.entries.plan_documents(runs)) == set(runs)
    assert world.entries.evaluation_ids([]) == {}
