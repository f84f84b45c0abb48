"""The five steps of a project: from what is there, until its first verdict."""

from __future__ import annotations

import pytest
from tests.fixtures.statements import statements

from luthier.core.access import Caller, Scope
from luthier.core.ids import new_id
from luthier.features.datasets.service import create_dataset, keep_rows
from luthier.features.home_page.progress import Progress, Rail, progress_of
from luthier.platform.auth.members_store import Session
from luthier.platform.auth.service import create_project
from luthier.platform.home.context import Context
from luthier.platform.jobs.records import Job
from luthier.testing.records import add_run, make_evaluation


def at(progress: Progress | None) -> str:
    assert progress is not None
    return next(step.name for step in progress.steps if step.state == "next")


def test_each_step_follows_from_what_the_project_has(home: Context) -> None:
    first = progress_of(home, "default")
    assert first is not None
    assert (at(first), first.address) == ("data", "/datasets/new")
    assert [step.state for step in first.steps] == ["next", "later", "later", "later", "later"]
    create_dataset(home, Caller(), "Rows", keep_rows(home, Caller(), [b'{"text": "a"}\n'], "a.jsonl"))
    second = progress_of(home, "default")
    assert second is not None
    assert (at(second), second.address) == ("train", "/start")
    job = home.jobs.submit(Job(job_id=new_id("job"), kind="train", document={}, run_id=new_id("run")))
    waiting = progress_of(home, "default")
    assert waiting is not None
    assert (at(waiting), waiting.address, waiting.scope) == ("train", f"/runs/{job.run_id}", "read")
    home.jobs.ask(job.job_id, "cancel")
    run_id = add_run(home, "a")
    third = progress_of(home, "default")
    assert third is not None
    assert (at(third), third.address) == ("evaluate", f"/evaluations/new?model={run_id}")
    assert [step.state for step in third.steps] == ["done", "done", "next", "later", "later"]
    home.evaluations.save(make_evaluation(run_id=run_id))
    assert progress_of(home, "default") is None, "over with the first verdict"


@pytest.mark.parametrize(
    ("status", "words"), [("running", "in progress"), ("queued", "in progress"), ("paused", "paused")]
)
def test_a_run_is_followed_whatever_else_the_project_has_started_since(home: Context, status: str, words: str) -> None:
    create_dataset(home, Caller(), "Rows", keep_rows(home, Caller(), [b'{"text": "a"}\n'], "a.jsonl"))
    run = home.jobs.submit(Job(job_id=new_id("job"), kind="train", document={}, run_id=new_id("run")))
    home.jobs.submit(Job(job_id=new_id("job"), kind="import", document={}, run_id=""))
    with home.database.write() as connection:
        connection.exec_driver_sql("UPDATE jobs SET status = ?", (status,))
    found = progress_of(home, "default")
    assert found is not None
    assert (at(found), found.address) == ("train", f"/runs/{run.run_id}")
    assert words in found.next_step


def test_an_evaluation_that_is_under_way_is_not_ordered_again(home: Context) -> None:
    add_run(home, "a")
    job = home.jobs.submit(Job(job_id=new_id("job"), kind="evaluation", document={}, run_id=""))
    found = progress_of(home, "default")
    assert found is not None
    assert (at(found), found.address) == ("evaluate", f"/evaluations/orders/{job.job_id}")


def test_the_steps_take_two_statements_however_much_the_project_has(home: Context) -> None:
    for number in range(3):
        create_dataset(home, Caller(), f"Rows {number}", keep_rows(home, Caller(), [b'{"text": "a"}\n'], "a.jsonl"))
    job = home.jobs.submit(Job(job_id=new_id("job"), kind="train", document={}, run_id=new_id("run")))
    home.jobs.ask(job.job_id, "cancel")
    add_run(home, "a")
    progress_of(home, "default")
    with home.database.snapshot(), statements(home) as seen:
        assert at(progress_of(home, "default")) == "evaluate"
    assert len(seen) == 2


def test_projects_have_steps_of_their_own(home: Context) -> None:
    other = create_project(home, "other")
    home.evaluations.save(make_evaluation(run_id=add_run(home, "a")))
    assert progress_of(home, "default") is None
    assert at(progress_of(home, other.project_id)) == "data"


def test_the_rail_is_for_those_who_may_read_and_ends_for_good(home: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    def session(*scopes: Scope) -> Session:
        return Session(caller=Caller(scopes=scopes), project_name="default", how="key", created_at=0.0, expires_at=1.0)

    rail = Rail(home)
    assert rail.of(None) is None
    assert rail.of(session("infer")) is None
    assert at(rail.of(session("read"))) == "data"
    home.evaluations.save(make_evaluation(run_id=add_run(home, "a")))
    assert rail.of(session("read")) is None
    monkeypatch.setattr("luthier.features.home_page.progress.progress_of", lambda *_: pytest.fail("asked again"))
    assert rail.of(session("read")) is None
