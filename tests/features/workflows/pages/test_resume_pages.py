"""Studies and workflows of commands, resumed by a button or the API: a worker continues them, others may not."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
from fastapi.testclient import TestClient
from tests.fixtures.pages import shown
from tests.homes import AUTO_ID, SHOWDOWN_ID, STUDY_ID, add_auto, add_model_comparison, add_study

from luthier.core.access import Caller
from luthier.core.errors import ConflictError
from luthier.core.ids import new_id
from luthier.core.system.files import file_lock
from luthier.core.workflows.study import Study
from luthier.features.studies import service as studies
from luthier.features.studies.views import view_study
from luthier.features.workflows import orders
from luthier.features.workflows import resume as resuming
from luthier.features.workflows.job import carry_out
from luthier.platform.audit_log.service import newest_entries
from luthier.platform.auth.service import create_project
from luthier.platform.home.context import Context
from luthier.platform.jobs.records import Job
from luthier.platform.processes.process import Outcome

Browser = Callable[..., TestClient]
PLACE = f"/studies/{STUDY_ID}"


def carried_out(home: Context) -> Outcome:
    """The newest job, in this process."""
    quiet, owner = home.progress, home.owner_project_id
    try:
        return carry_out(home, home.jobs.list()[0])
    finally:
        home.progress, home.owner_project_id = quiet, owner


def test_an_interrupted_study_of_a_command_is_resumed_by_a_button(home: Context, browser: Browser) -> None:
    add_study(home)
    one = browser("read", "train")
    page = one.get(PLACE).text
    assert f'action="{PLACE}/resume"' in page
    assert page.count('class="primary"') == 1
    assert 'name="budget_hours"' not in page, "it has budget left"
    answer = one.post(f"{PLACE}/resume")
    assert (answer.status_code, answer.headers["location"]) == (303, PLACE)
    (job,) = home.jobs.list()
    order = orders.order_of(job)
    assert (job.kind, order.form, order.workflow_id, order.values) == ("workflow", "tune", STUDY_ID, {})
    assert newest_entries(home, limit=1)[0].action == "workflow.resumed"
    page = one.get(PLACE).text
    assert "Waiting for a worker of this server" in page
    assert f'action="{PLACE}/resume"' not in page
    again = one.post(f"{PLACE}/resume")
    assert len(home.jobs.list()) == 1, "it is queued already"
    assert "needs no resuming" in shown(one, again).text


def test_the_button_is_german_on_a_german_page(home: Context, browser: Browser) -> None:
    add_study(home, {"needs_hours": 3.5, "status": "paused", "hours": 2.0})
    page = browser("read", "train").get(PLACE, headers={"Accept-Language": "de"}).text
    assert "Ein Worker dieses Servers kann sie fortsetzen" in page
    assert "Budget in Stunden, ab dem Anfang" in page


def test_a_paused_job_is_queued_again_in_place_of_another_one(home: Context, browser: Browser) -> None:
    add_study(home, {"status": "paused"})
    one = browser("read", "train")
    one.post(f"{PLACE}/resume")
    (job,) = home.jobs.list()
    home.jobs.ask(job.job_id, "pause")
    one.post(f"{PLACE}/resume")
    assert [(one.job_id, one.status) for one in home.jobs.list()] == [(job.job_id, "queued")]
    home.jobs.ask(job.job_id, "cancel")
    assert "It was cancelled" in one.get(PLACE).text
    one.post(f"{PLACE}/resume")
    assert len(home.jobs.list()) == 1, "somebody has cancelled it"


def test_two_requests_at_the_same_time_queue_one_job(home: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    add_study(home)
    both = Barrier(2, timeout=60)

    def viewed(*given: Any) -> Any:
        found = view_study(*given)
        both.wait()  # both have seen that nothing works on it
        return found

    def asked(_number: int) -> str:
        try:
            return resuming.resume_workflow(home, Caller(), STUDY_ID).job.status
        except ConflictError as error:
            return error.do

    monkeypatch.setattr(resuming, "view_study", viewed)
    with ThreadPoolExecutor(2) as pool:
        outcomes = sorted(pool.map(asked, range(2)))
    assert outcomes == ["check it: it needs no resuming", "queued"]
    assert len(home.jobs.list()) == 1


@pytest.mark.parametrize("changed", [{"status": "done"}, {"status": "failed"}])
def test_what_has_ended_is_not_resumed(home: Context, browser: Browser, changed: dict[str, str]) -> None:
    add_study(home, changed)
    one = browser("read", "train")
    assert f'action="{PLACE}/resume"' not in one.get(PLACE).text
    assert f"{STUDY_ID} is {changed['status']}" in shown(one, one.post(f"{PLACE}/resume")).text
    assert home.jobs.list() == []


def test_what_a_process_works_on_is_not_resumed(home: Context, browser: Browser) -> None:
    add_study(home)
    one = browser("read", "train")
    with file_lock(home.home / "studies" / STUDY_ID / "lock", what="it", timeout_seconds=1):
        assert f'action="{PLACE}/resume"' not in one.get(PLACE).text
        one.post(f"{PLACE}/resume")
    assert home.jobs.list() == []


def test_a_used_up_budget_is_made_larger_on_the_page(
    home: Context, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_study(home, {"status": "paused", "hours": 2.0, "needs_hours": 3.4567})
    one = browser("read", "train")
    page = one.get(PLACE).text
    assert 'name="budget_hours"' in page
    assert 'value="3.46"' in page, "rounded up: less would not be enough"
    for sent in ({}, {"budget_hours": "1.5"}, {"budget_hours": "nan"}):
        assert one.post(f"{PLACE}/resume", data=sent).status_code == 422
    assert home.jobs.list() == []
    one.post(f"{PLACE}/resume", data={"budget_hours": "4"})
    given: list[object] = []

    def go_on(context: Context, study_id: str, *, hours: float | None, tell: object) -> Study:
        given.append((study_id, hours))
        return context.studies.get(study_id).model_copy(update={"status": "done"})

    monkeypatch.setattr(studies, "go_on", go_on)
    assert carried_out(home).status == "succeeded"
    assert given == [(STUDY_ID, 4.0)]


def test_the_job_that_began_a_study_keeps_the_larger_budget_of_a_command(
    home: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = add_study(home, {"status": "final", "hours": 2.1, "needs_hours": 3.0})
    home.studies.save(study.model_copy(update={"spec": study.spec.model_copy(update={"hours": 5.0})}))
    values = {"budget_hours": 2.0, "recipe": {"base_model": "smollm2-135m-instruct"}}
    order = orders.WorkflowOrder(form="tune", workflow_id=STUDY_ID, values=values, caller=Caller())
    document = {orders.ASKED: order.model_dump(mode="json")}
    home.jobs.submit(Job(job_id=new_id("job"), kind="workflow", document=document, run_id="", project_id="default"))
    given: list[float | None] = []

    def go_on(context: Context, study_id: str, *, hours: float | None, tell: object) -> Study:
        given.append(hours)
        return context.studies.get(study_id).model_copy(update={"status": "done"})

    monkeypatch.setattr(studies, "go_on", go_on)
    assert carried_out(home).status == "succeeded"
    assert given == [5.0]


def test_the_error_of_a_resumed_study_names_no_folder_of_this_machine(
    home: Context, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = add_study(home)
    rows = study.spec.recipe.data.files()["train"]

    def go_on(*_given: object, **_named: object) -> Study:
        raise ConflictError(f"{rows} has changed", expected="the rows of its beginning", do="start another study")

    monkeypatch.setattr(studies, "go_on", go_on)
    browser("read", "train").post(f"{PLACE}/resume")
    outcome = carried_out(home)
    assert (outcome.status, (outcome.error or {})["came"]) == ("failed", "train.jsonl has changed")


def test_a_workflow_of_a_command_is_resumed_but_not_one_of_its_stages(home: Context, browser: Browser) -> None:
    add_model_comparison(home)
    add_auto(home, {"status": "paused", "reason": "paused: SIGTERM received"})
    one = browser("read", "train")
    assert f'action="/pipelines/{AUTO_ID}/resume"' in one.get(f"/pipelines/{AUTO_ID}").text
    one.post(f"/pipelines/{SHOWDOWN_ID}/resume")
    assert home.jobs.list() == [], "a stage of an automl run goes on with it"
    answer = one.post(f"/pipelines/{AUTO_ID}/resume")
    assert (answer.status_code, answer.headers["location"]) == (303, f"/pipelines/{AUTO_ID}")
    (job,) = home.jobs.list()
    assert orders.order_of(job).workflow_id == AUTO_ID
    page = one.get(f"/pipelines/{AUTO_ID}").text
    assert "Waiting for a worker of this server" in page
    assert f'action="/pipelines/{AUTO_ID}/resume"' not in page


@pytest.mark.parametrize("place", [PLACE, f"/pipelines/{AUTO_ID}"])
def test_others_may_not_resume_it(home: Context, browser: Browser, place: str) -> None:
    add_study(home)
    add_auto(home, {"status": "paused"})
    reader, other = browser("read"), create_project(home, "other")
    assert "/resume" not in reader.get(place).text
    assert reader.post(f"{place}/resume").status_code == 403
    assert browser("read", "train", project=other.project_id).post(f"{place}/resume").status_code == 404
    assert home.jobs.list() == []


def test_the_api_resumes_by_the_id_of_the_workflow(home: Context, visitor: Callable[..., TestClient]) -> None:
    add_study(home, {"status": "paused", "hours": 2.0, "needs_hours": 3.5})
    one, place = visitor("train", "read"), f"/api/v1/workflows/{STUDY_ID}/resume"
    assert one.post(place).status_code == 400
    assert one.post(place, json={"budget_hours": -1}).status_code == 400
    made = one.post(place, json={"budget_hours": 4})
    assert (made.status_code, made.json()["workflow_id"], made.json()["status"]) == (200, STUDY_ID, "queued")
    assert one.post(place, json={"budget_hours": 5}).status_code == 409
    assert visitor("read").post(place).status_code == 403
    create_project(home, "support")
    assert visitor("train", "read", project="support").post(place).status_code == 404


@pytest.mark.parametrize("workflow_id", [STUDY_ID, AUTO_ID])
def test_a_budget_that_would_not_be_used_is_refused(
    home: Context, visitor: Callable[..., TestClient], workflow_id: str
) -> None:
    add_study(home, {"status": "paused"})
    add_auto(home, {"status": "paused"})
    one, place = visitor("train", "read"), "/api/v1/workflows/{}/resume"
    answer = one.post(place.format(workflow_id), json={"budget_hours": 9})
    assert (answer.status_code, "leave the budget out" in answer.text) == (400, True)
    assert home.jobs.list() == []
    job_id = one.post(place.format(workflow_id)).json()["job_id"]
    home.jobs.ask(job_id, "pause")
    assert one.post(place.format(job_id), json={"budget_hours": 9}).status_code == 400
    assert home.jobs.get(job_id).status == "paused"
    assert one.post(place.format(job_id)).json()["status"] == "queued"
