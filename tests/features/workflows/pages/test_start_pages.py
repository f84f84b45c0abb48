"""/pipelines/new/NAME and /pipelines/jobs/JOB: forms with their command, start_pages, and who may start what."""

from __future__ import annotations

import html
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from fastapi.testclient import TestClient
from tests.fixtures.pages import shown
from tests.fixtures.service import write_rows
from tests.homes import RETRAIN_ID, add_retrain
from tests.vacuous import nonempty

from luthier.core.access import Caller
from luthier.core.errors import RequestError
from luthier.features.files.references import FileReferences
from luthier.features.models.service import pull_model
from luthier.features.run_drafts.choices import Fork
from luthier.features.workflows import orders, start_pages
from luthier.features.workflows.declared_forms import FORMS
from luthier.features.workflows.forms import fields_of, read_form
from luthier.features.workflows.job import Work, _study_recipe, _values
from luthier.platform.auth.service import create_project
from luthier.platform.files import service as files
from luthier.platform.home.context import Context
from luthier.platform.home.model_names import local_base_models

Browser = Callable[..., TestClient]
PIECE = {"HX-Request": "true"}
ME = Caller()


@pytest.fixture
def model(home: Context, tiny_model: Path) -> str:
    pull_model(home, str(tiny_model))
    return local_base_models(home)[0]


@pytest.fixture
def rows(home: Context, tmp_path: Path) -> str:
    path = write_rows(tmp_path / "rows.jsonl", [{"prompt": f"say {n}", "completion": "it"} for n in range(40)])
    return files.add_file(home, "default", path, filename="client <b>.jsonl", purpose="fine-tune").file_id


def study(model: str, rows: str) -> dict[str, Any]:
    return {"base_model": model, "train": rows, "validation": "0.1", "budget_hours": "2", "form_token": "t"}


def test_every_form_shows_its_fields_with_help_and_the_command(browser: Browser, model: str, rows: str) -> None:
    one = browser("train", "read")
    studies = one.get("/studies").text
    for name in nonempty(FORMS):
        assert f'href="/pipelines/new/{name}"' in studies
        page = one.get(f"/pipelines/new/{name}").text
        assert f"luthier {name}" in page
        for field in nonempty(fields_of(name)):
            is_there = f'name="{field.entry.name}' in page or "This project has no panel" in page
            assert is_there, (name, field.entry.name)
            # A help text that only repeats the label is shown once, as the label.
            said = field.entry.label if field.help.rstrip(".") == field.entry.label else field.help
            for part in nonempty(said.split("`")):
                assert str(html.escape(part)).replace("&#x27;", "&#39;") in page
        assert "client &lt;b&gt;.jsonl" in page or name == "retrain"
        assert "<b>.jsonl" not in page


def test_a_study_is_started_and_its_page_follows_the_job(
    home: Context, browser: Browser, model: str, rows: str
) -> None:
    one = browser("train", "read")
    answer = one.post("/pipelines/new/tune", data=study(model, rows))
    (job,) = home.jobs.list()
    assert (answer.status_code, answer.headers["location"]) == (303, f"/pipelines/jobs/{job.job_id}")
    assert (job.kind, job.project_id) == ("workflow", "default")
    page = one.get(f"/pipelines/jobs/{job.job_id}").text
    assert "Waiting for a worker of this server" in page
    assert "New study" in one.get("/studies").text
    mark = page.partition("?after=")[2].partition('"')[0]
    place = f"/pipelines/jobs/{job.job_id}"
    assert one.get(f"{place}?after={mark}", headers=PIECE).status_code == 204
    assert one.post(f"{place}/pause").headers["location"] == place
    assert "It is paused before its first stage" in one.get(place).text
    assert one.post(f"{place}/pause").status_code == 409
    one.post(f"{place}/resume")
    one.post(f"{place}/cancel")
    page = one.get(place).text
    assert ("cancelled before its first stage" in page, "/pause" in page) == (True, False)


def test_a_workflow_with_a_record_has_its_buttons_on_its_own_page(home: Context, browser: Browser) -> None:
    made = add_retrain(home, {"status": "paused", "reason": "paused"})
    order = orders.WorkflowOrder(form="retrain", workflow_id=RETRAIN_ID, values={"model": "support"}, caller=ME)
    job = orders.Job(
        job_id="job-20261129-200000-abcdef",
        kind="workflow",
        document={orders.ASKED: order.model_dump(mode="json")},
        run_id="",
        workflow_id=RETRAIN_ID,
    )
    home.jobs.submit(job)
    home.jobs.ask(job.job_id, "pause")
    one, reader = browser("train", "read"), browser("read")
    assert one.get(f"/pipelines/jobs/{job.job_id}").headers["location"] == f"/pipelines/{RETRAIN_ID}"
    page = one.get(f"/pipelines/{made.pipeline_id}").text
    assert f'action="/pipelines/jobs/{job.job_id}/resume"' in page
    assert "Resume on the machine" not in page
    assert "/resume" not in reader.get(f"/pipelines/{RETRAIN_ID}").text
    answer = one.post(f"/pipelines/jobs/{job.job_id}/resume")
    assert answer.headers["location"] == f"/pipelines/{RETRAIN_ID}"
    page = one.get(f"/pipelines/{RETRAIN_ID}").text
    assert "Waiting for a worker of this server" in page
    assert 'hx-trigger="every 3s"' in page


def test_wrong_fields_keep_what_was_written(home: Context, browser: Browser, model: str, rows: str) -> None:
    one = browser("train", "read")
    sent = study(model, rows) | {"budget_hours": "soon", "train": "", "recipe": "a: <i>"}
    answer = one.post("/pipelines/new/tune", data=sent)
    assert answer.status_code == 422
    for words in ("Rows to train on is missing", "&#39;soon&#39; is not a number", "2 fields need a correction"):
        assert words in answer.text
    assert 'value="soon"' in answer.text
    assert "a: &lt;i&gt;</textarea>" in answer.text
    assert answer.text.count('aria-invalid="true"') == 2
    stranger = study(model, "file-20261126-101500-1f2e3d")
    answer = one.post("/pipelines/new/tune", data=stranger)
    assert (answer.status_code, "the id of a file of this project" in answer.text) == (422, True)
    assert home.jobs.list() == []


def test_an_estimate_is_shown_on_the_form_and_starts_nothing(
    home: Context, browser: Browser, model: str, rows: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = browser("train", "read")
    monkeypatch.setattr(start_pages, "estimate", lambda *_given: ["One whole training takes 3 min."])
    page = shown(one, one.post("/pipelines/new/tune", data=study(model, rows) | {"action": "estimate"})).text
    assert "One whole training takes 3 min." in page
    assert f'<option value="{rows}" selected>' in page

    def refuse(*_given: Any) -> list[str]:
        raise RequestError("no rows", expected="rows", do="add some")

    monkeypatch.setattr(start_pages, "estimate", refuse)
    again = study(model, rows) | {"action": "estimate", "form_token": "of the next form"}
    answer = shown(one, one.post("/pipelines/new/tune", data=again))
    assert (answer.status_code, "no rows" in answer.text, "selected" in answer.text) == (422, True, True)
    assert home.jobs.list() == []


def estimated(home: Context, name: str, values: dict[str, Any]) -> list[str]:
    """An estimate, with plain blanks and without seconds."""
    return [one.replace("\xa0", " ").replace(" 00 s", "") for one in start_pages.estimate(home, ME, name, values)]


def test_estimates_follow_from_plans(home: Context, model: str, rows: str, monkeypatch: pytest.MonkeyPatch) -> None:
    predicted = {"hours": 0.5, "hours_low": 0.4, "hours_high": 0.7, "usd_per_device_hour": 2.0}
    asked: list[Any] = []

    def planned(_context: Context, project_id: str, recipe: dict[str, Any]) -> dict[str, Any]:
        asked.append((project_id, recipe))
        return {"predicted": predicted}

    monkeypatch.setattr(start_pages, "plan_of", planned)
    values = {"base_model": model, "train": rows, "validation": 0.1, "budget_hours": 5.6}
    lines = estimated(home, "tune", values)
    assert lines[0] == "One whole training takes 30 min (24 min to 42 min)."
    assert "room for 10 whole trainings" in lines[1]
    assert "$11.20" in lines[2]
    assert asked[0] == ("default", {"base_model": model, "data": {"train": rows, "validation": 0.1}})
    lines = estimated(home, "tune", values | {"budget_hours": 1.0})
    assert "is too small: one trial and the final run take 1 h 06 min" in lines[1]
    given = {"models": [model], "data": rows, "budget_hours": 1.0, "mapping": {"prompt": "question"}}
    lines = estimated(home, "compare-models", given)
    assert lines[0].startswith(f"{model}: one training on all rows takes 30 min")
    assert asked[-1][1]["data"] == {"train": rows, "map": {"prompt": "question"}}
    assert any("A third of the budget" in line for line in estimated(home, "automl", given))
    lines = estimated(home, "distill", {"student": model, "data": rows, "held_out": 0.2})
    assert lines[0].startswith("Two trainings of the student, each 30 min")


def test_the_command_follows_the_form(browser: Browser, model: str, rows: str) -> None:
    one = browser("train", "read")
    sent = study(model, rows) | {"trials": "7", "budget_hours": "oops"}
    piece = one.post("/pipelines/new/tune/command", data=sent, headers=PIECE).text
    assert "luthier tune recipe.yaml --trials 7" in piece
    assert "train: client &lt;b&gt;.jsonl" in piece
    assert "<html" not in piece


def test_numbers_are_read_in_the_language_of_the_page(browser: Browser, model: str, rows: str) -> None:
    one = browser("train", "read")
    for language, thousand, half, mark in (("en", "1,000", "0.125", "."), ("de", "1.000", "0,125", ",")):
        headers = PIECE | {"Accept-Language": language}
        sent = study(model, rows) | {"trials": "7", "budget_hours": thousand, "validation": half}
        piece = one.post("/pipelines/new/tune/command", data=sent, headers=headers).text
        assert "--budget-hours 1000" in piece.replace("1000.0", "1000"), language
        assert "validation: 0.125" in piece, language
        field = one.get("/pipelines/new/tune", headers={"Accept-Language": language}).text
        assert f'value="0{mark}1"' in field, "what a field begins with is in the language, too"
        assert one.post("/pipelines/new/tune", data=sent | {"trials": "-1"}, headers=headers).status_code == 422


def test_who_may_not_train_starts_nothing_and_projects_are_kept_apart(
    home: Context, browser: Browser, model: str, rows: str
) -> None:
    reader = browser("read")
    assert reader.get("/pipelines/new/tune").status_code == 403
    assert reader.post("/pipelines/new/tune", data=study(model, rows)).status_code == 403
    assert "/pipelines/new/tune" not in reader.get("/studies").text
    create_project(home, "support")
    order = orders.start(home, ME, "tune", {"base_model": model, "train": rows, "validation": 0.1, "budget_hours": 1.0})
    stranger = browser("train", "read", project="support")
    place = f"/pipelines/jobs/{order.job.job_id}"
    assert stranger.get(place).status_code == 404
    assert [stranger.post(f"{place}/{verb}").status_code for verb in ("pause", "resume", "cancel")] == [404] * 3
    assert stranger.post("/pipelines/new/tune", data=study(model, rows)).status_code == 422
    assert reader.post(f"{place}/cancel").status_code == 403
    assert browser().get("/pipelines/new/tune").headers["location"].startswith("/sign-in")
    assert reader.get("/pipelines/new/fly").status_code == 403
    assert browser("train").get("/pipelines/new/fly").status_code == 404


def test_the_api_starts_follows_and_cancels(
    home: Context, visitor: Callable[..., TestClient], model: str, rows: str
) -> None:
    one = visitor("train", "read")
    values = {"base_model": model, "train": rows, "validation": 0.1, "budget_hours": 1}
    body = {"workflow": "tune", "values": values}
    made, same = (one.post("/api/v1/workflows", json=body, headers={"Idempotency-Key": "k"}) for _ in range(2))
    assert made.status_code == 201, made.text
    assert (same.status_code, same.json()) == (201, made.json()), "a request that is sent again starts nothing more"
    document = made.json()
    assert (document["workflow"], document["status"], document["workflow_id"]) == ("tune", "queued", None)
    place = f"/api/v1/workflows/{document['job_id']}"
    assert one.get(place).json()["page"] == f"/pipelines/jobs/{document['job_id']}"
    assert one.post(f"{place}/pause").json()["status"] == "paused"
    assert one.post(f"{place}/resume").json()["status"] == "queued"
    assert one.post(f"{place}/cancel").json()["status"] == "cancelled"
    assert one.post(f"{place}/cancel").status_code == 409
    wrong = one.post("/api/v1/workflows", json={"workflow": "tune", "values": values | {"budget_hours": "x"}})
    assert (wrong.status_code, "is not a number" in wrong.text) == (400, True)
    assert visitor("read").post("/api/v1/workflows", json={"workflow": "tune", "values": values}).status_code == 403
    create_project(home, "support")
    assert visitor("train", "read", project="support").get(place).status_code == 404


def test_a_study_from_a_run_of_several_sources_keeps_them_in_its_recipe(
    home: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = [{"path": "file-a", "weight": 1.0}, {"path": "file-b", "weight": 2.0}]
    forked = Fork({"base_model": "tiny", "data": {"train": sources, "validation": 0.2}})
    monkeypatch.setattr("luthier.features.run_drafts.choices.fork", lambda *_: forked)
    found = start_pages._beginning(home, ME, FORMS["tune"], "run-1", "", "")
    assert (found["base_model"], found["validation"], found["train"]) == (["tiny"], ["0.2"], ["sources"])
    assert yaml.safe_load(found["recipe"][0]) == {"data": {"train": sources}}


def test_a_study_starts_from_a_run_of_several_sources(
    home: Context, browser: Browser, model: str, rows: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = write_rows(tmp_path / "more.jsonl", [{"prompt": f"ask {n}", "completion": "so"} for n in range(20)])
    other = files.add_file(home, "default", more, filename="more.jsonl", purpose="fine-tune").file_id
    sources = [{"path": rows, "weight": 1.0}, {"path": other, "weight": 2.0}]
    forked = Fork({"base_model": model, "data": {"train": sources, "validation": [{"path": other}], "held_out": rows}})
    monkeypatch.setattr("luthier.features.run_drafts.choices.fork", lambda *_: forked)
    one = browser("train", "read")
    page = one.get("/pipelines/new/tune?from=run-20261125-093000-aaaaaa").text
    assert '<option value="sources" selected>2 sources of the recipe</option>' in page
    assert "path: more.jsonl" in page, "the recipe of the command names files as people know them"
    share = page.partition('id="field-validation"')[2].partition(">")[0]
    assert (" required" in share, 'placeholder="as the recipe says"' in share) == (False, True)
    text = html.unescape(page.partition('id="field-recipe"')[2].partition(">")[2].partition("</textarea>")[0])
    form = study(model, "sources") | {"validation": "", "recipe": text}
    refused = one.post("/pipelines/new/tune", data=form | {"recipe": text.replace(other, "file-none")})
    assert (refused.status_code, home.jobs.list()) == (422, [])
    answer = one.post("/pipelines/new/tune", data=form)
    (job,) = home.jobs.list()
    assert answer.headers["location"] == f"/pipelines/jobs/{job.job_id}"
    order = orders.order_of(job)
    work = Work(home, job, order, _values(home, job, order, FileReferences(home, "default")), lambda *_: None)
    recipe = _study_recipe(work)["data"]
    assert [(source["name"], source["weight"]) for source in recipe["train"]] == [("client -b", 1.0), ("more", 2.0)]
    assert [Path(source["path"]).read_bytes() for source in recipe["train"]] == [
        (tmp_path / "rows.jsonl").read_bytes(),
        more.read_bytes(),
    ]
    assert Path(recipe["held_out"]).is_file()


def test_a_study_uses_the_columns_that_were_chosen_for_its_rows(home: Context, model: str, rows: str) -> None:
    from luthier.features.datasets.service import adopt_file

    version = adopt_file(home, ME, "Clients", rows)
    home.datasets.choose_columns(version.dataset_id, 1, {"prompt": "completion", "completion": "prompt"})
    values, problems = read_form("tune", {name: [value] for name, value in study(model, rows).items()})
    assert problems == {}
    order = orders.start(home, ME, "tune", values)
    work = Work(
        home, order.job, order.order, _values(home, order.job, order.order, FileReferences(home, "default")), print
    )
    recipe = _study_recipe(work)["data"]
    assert recipe["columns"] == {"prompt": "completion", "completion": "prompt"}
    assert Path(recipe["train"]).is_file()
