"""A home that 0.1.0 made goes on: its members come in, its models answer, and what was under way comes to its end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from luthier.features.deployments import service as deployments
from luthier.features.studies import service as studies
from luthier.features.training.jobs import resume as resume_job
from luthier.features.training.service import resume
from luthier.features.workflows.retraining import workflow as retraining
from luthier.platform.auth import members
from luthier.platform.auth.service import caller_of
from luthier.platform.files import service as files
from luthier.platform.home.context import Context
from luthier.server.api import create_app
from tests.fixtures.at_work import work
from tests.fixtures.homes.make import KEY_FILE, ME, PASSWORD
from tests.fixtures.homes.restore import copy_to_postgresql, unpack


@pytest.fixture(params=["sqlite", "postgresql"])
def home(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home of release 0.1.0, on each kind of database."""
    place = unpack(tmp_path / "root")
    if request.param == "postgresql":
        url = request.getfixturevalue("postgresql").new_database()
        copy_to_postgresql(place / "luthier.db", url)
        monkeypatch.setenv("LUTHIER_DATABASE", url)
    return place


@pytest.fixture
def context(home: Path) -> Iterator[Context]:
    with Context.open(home) as opened:
        yield opened


def test_people_come_in_and_the_deployed_model_answers(context: Context) -> None:
    assert [one.name for one in members.list_members(context, ME)] == ["ada", "ben"]
    ben = members.member_by_password(context, "ben", PASSWORD)
    assert ben is not None
    assert ben.role == "trainer"
    key = (context.home.parent / KEY_FILE).read_text(encoding="utf-8")
    caller = caller_of(context, key)
    assert caller is not None
    assert caller.scopes == ("read", "infer")
    deployment = context.deployments.get("default", "support")
    assert deployments.show_deployment(context, ME, "support").deployment == deployment
    with TestClient(create_app(context)) as client:
        client.headers["Authorization"] = f"Bearer {key}"
        # drawn with a seed: this model knows nothing, and without one an answer may be its end token alone
        question = {"role": "user", "content": "What comes after 3?"}
        body = {"model": "support", "messages": [question], "max_tokens": 4, "seed": 0}
        answer = client.post("/v1/chat/completions", json=body)
        assert answer.status_code == 200, answer.text
        assert answer.json()["usage"]["completion_tokens"] > 0
        assert {one["id"] for one in client.get("/v1/models").json()["data"]} >= {"support", "ft:tiny:default::1"}


def test_a_run_a_study_and_a_pipeline_come_to_their_ends(context: Context) -> None:
    jobs = {job.run_id for job in context.jobs.list()}
    trials = {
        trial.run_id for study in context.studies.list("default") for trial in context.studies.trials(study.study_id)
    }
    (half,) = [one for one in context.runs.list() if one.status == "paused" and one.run_id not in jobs | trials]
    assert 0 < half.step < half.num_steps
    assert resume(context, half.run_id).record.status == "succeeded"
    assert [event.step for event in context.runs.of_kinds(half.run_id, ["step"])] == list(range(half.num_steps, 0, -1))

    (study,) = context.studies.list("default")
    before = context.studies.trials(study.study_id)
    assert study.status != "done"
    assert studies.go_on(context, study.study_id).status == "done"
    assert [one.run_id for one in context.studies.trials(study.study_id)][: len(before)] == [
        one.run_id for one in before
    ]

    (pipeline,) = context.pipelines.list("default")
    assert pipeline.next_stage is not None
    assert pipeline.next_stage.name == "train"
    num_runs = len(context.runs.list())
    done = retraining.go_on(context, ME, pipeline.pipeline_id)
    assert {stage.status for stage in done.stages} == {"done"}, [stage.reason for stage in done.stages]
    assert len(context.runs.list()) == num_runs, "its run is not trained again"


@pytest.mark.parametrize("home", ["sqlite"], indirect=True)
def test_jobs_that_waited_are_done(context: Context) -> None:
    found = {job.status: job for job in context.jobs.list()}
    assert set(found) == {"queued", "running", "paused", "cancelled"}
    resume_job(context, found["paused"].job_id)
    # the machine of this one has not come back: by the clock its lease has run out long ago
    work(context)
    assert {job.status for job in context.jobs.list()} == {"succeeded", "cancelled"}


def test_all_else_is_found_by_those_who_look_for_it(context: Context) -> None:
    file = files.list_files(context, "default", order="asc")[0][0]
    assert b"".join(files.read_file(context, file)) == (context.home.parent / "rows" / "train.jsonl").read_bytes()
    questions = context.datasets.find("default", "questions")
    assert questions is not None
    assert [one.decision for one in context.datasets.decisions(questions.dataset_id, 1)] == ["reject"]
    (panel,) = context.rating_panels.list("default")
    assert (panel.num_raters, panel.num_ratings) == (1, 1)
    assert [one.model for one in context.alerts.list("default")] == ["support"]
    assert len(context.feedback.list("default")) == 1
    assert len(context.review_items.ids("default", status="accepted")) == 30
    assert [one.url for one in context.webhooks.of_project("default")] == ["https://example.org/hook"]
    assert [one.status for one in context.webhooks.deliveries("wh-1", "default", 5)] == ["pending"]
    assert context.watches.get("default", "standing", "support") == '{"seen": 1}'
    assert context.generations.find(["a" * 64])["a" * 64].text == "Hi"
    assert context.traffic.list("default")[0].num_by_hour == {"support": {"2026-11-27T00": 1}}
    assert context.usage.num_requests("default", ["support"]) == {("support", "t"): 1}
    assert context.idempotency.begin("default", "a-key", "0" * 64).kind == "work"  # what it did then is over
    lab = context.access.project("lab")
    assert [one.model_id for one in context.tuned_models.permitted(lab.project_id)] == ["ft:tiny:default::1"]
    assert context.access.keys(lab.project_id)[0].revoked_at is not None
    assert [one.source for one in context.exports.list("default")] == [
        context.deployments.list("default")[0].revision.shares[0].target
    ]
    assert len(context.evaluations.list()) >= 1
    entries = context.audit_log.after(0, limit=1000)
    assert [one.hash for one in entries] == [one.hash_of_it() for one in entries]
