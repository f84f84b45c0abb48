"""A base model is checked and removed from its page, and stays where a deployment or a run needs it."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.fixtures.pages import Browser, shown

from luthier.core.access import Caller
from luthier.core.errors import StoppedError
from luthier.features.deployments import service as deployments
from luthier.features.model_browser import base_pages
from luthier.features.model_checks.service import Check, ModelCheck
from luthier.features.model_checks.stored import stored_check
from luthier.features.models.service import list_models, pull_model
from luthier.platform.auth.service import create_project
from luthier.platform.home.context import Context
from luthier.platform.jobs.records import Job
from luthier.platform.ui import page_work
from luthier.platform.ui.work_progress import Stage
from luthier.testing.records import make_plan, make_record, make_result
from luthier.testing.servers import wait_for

REMOVAL = "/models/removal"
FORM = {"name": "tiny"}


def is_here(home: Context) -> bool:
    return any(model.path is not None for model in list_models(home))


def add_adapter_run(home: Context, base: str, sha256: str, *, status: str = "succeeded", project: str = "") -> str:
    """A run that has made an adapter over a base model on this machine."""
    run_id = "run-20261125-093000-abcabc"
    folder = home.settings.run_folder(run_id) / "adapter"
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}), encoding="utf-8")
    plan = make_plan(model_sha256=sha256)
    plan = plan.model_copy(update={"base_model": plan.base_model.model_copy(update={"name": base, "path": base})})
    result = make_result().model_copy(update={"adapter_path": str(folder)}) if status == "succeeded" else None
    record = make_record(run_id, status=status, result=result)  # type: ignore[arg-type]
    home.runs.create(record.model_copy(update={"base_model": base}), plan, project or None)
    return run_id


def test_a_base_model_that_nothing_needs_is_removed_and_logged(
    home: Context, browser: Browser, tiny_model: Path
) -> None:
    pull_model(home, str(tiny_model))
    one = browser("admin")
    assert f'href="{REMOVAL}?name=tiny"' in one.get("/models/tiny").text
    page = one.get(f"{REMOVAL}?name=tiny").text
    assert '<button class="danger">Remove tiny</button>' in page
    assert str(tiny_model.parent) not in page
    answer = one.post(REMOVAL, data=FORM)
    assert answer.headers["location"] == "/models?show=base"
    assert "Its folder stays as it is." in shown(one, answer).text
    assert not is_here(home)
    assert (tiny_model / "config.json").is_file()
    entry = home.audit_log.newest(limit=1)[0]
    assert (entry.action, entry.subject, entry.project_id) == ("base_model.removed", "tiny", "default")
    assert one.post(REMOVAL, data=FORM).status_code == 404
    assert one.get(f"{REMOVAL}?name=gemma3-270m").status_code == 404


def test_a_base_model_that_answers_stays_and_its_deployments_are_shown(
    home: Context, browser: Browser, tiny_model: Path
) -> None:
    pull_model(home, str(tiny_model))
    deployments.deploy(home, Caller(), "front-desk", "tiny")
    one = browser("admin")
    page = one.get(f"{REMOVAL}?name=tiny").text
    assert '<a href="/deployments/front-desk">front-desk</a>' in page
    assert 'class="danger"' not in page
    answer = one.post(REMOVAL, data=FORM)
    assert answer.status_code == 409
    assert "is needed by the deployments front-desk (default)" in answer.text
    assert is_here(home)
    deployments.remove(home, Caller(), "front-desk")
    assert one.post(REMOVAL, data=FORM).status_code == 303
    assert not is_here(home)


def test_an_adapter_that_another_project_deploys_keeps_its_base_model(
    home: Context, browser: Browser, tiny_model: Path
) -> None:
    sha256 = pull_model(home, str(tiny_model)).sha256
    other = create_project(home, "friends").project_id
    run_id = add_adapter_run(home, str(tiny_model), str(sha256), project=other)
    one = browser("admin")
    page = one.get(f"{REMOVAL}?name=tiny").text
    assert "<dt>Finished runs</dt><dd>1</dd>" in page
    assert 'class="danger"' in page
    deployments.deploy(home, Caller(project_id=other), "helper", run_id)
    page = one.get(f"{REMOVAL}?name=tiny").text
    assert "helper" in page
    assert "in the project friends" in page
    assert "/deployments/helper" not in page
    assert one.post(REMOVAL, data=FORM).status_code == 409
    assert is_here(home)


@pytest.mark.parametrize("status", ["planned", "running", "paused"])
def test_a_run_that_has_not_ended_keeps_its_base_model(
    home: Context, browser: Browser, tiny_model: Path, status: str
) -> None:
    sha256 = pull_model(home, str(tiny_model)).sha256
    run_id = add_adapter_run(home, str(tiny_model), str(sha256), status=status)
    one = browser("admin")
    assert f'href="/runs/{run_id}"' in one.get(f"{REMOVAL}?name=tiny").text
    answer = one.post(REMOVAL, data=FORM)
    assert answer.status_code == 409
    assert "runs that have not ended" in answer.text
    assert is_here(home)
    home.runs.update(run_id, status="failed")
    assert one.post(REMOVAL, data=FORM).status_code == 303


def test_a_job_that_waits_keeps_its_base_model_until_it_is_cancelled(
    home: Context, browser: Browser, tiny_model: Path
) -> None:
    sha256 = pull_model(home, str(tiny_model)).sha256
    run_id = "run-20261125-093000-abcabc"
    document = {"asked": {"base_model": "tiny"}, "base_model": str(tiny_model)}
    home.jobs.submit(Job(job_id="job-1", kind="train", document=document, run_id=run_id))
    one = browser("admin")
    assert f'href="/runs/{run_id}"' in one.get(f"{REMOVAL}?name=tiny").text
    assert one.post(REMOVAL, data=FORM).status_code == 409
    add_adapter_run(home, str(tiny_model), str(sha256), status="paused")
    assert one.post(REMOVAL, data=FORM).status_code == 409
    home.jobs.ask("job-1", "cancel")
    assert one.post(REMOVAL, data=FORM).status_code == 303
    assert not is_here(home)


def test_only_admins_of_the_first_project_remove_what_all_projects_share(
    home: Context, browser: Browser, tiny_model: Path
) -> None:
    pull_model(home, str(tiny_model))
    other = create_project(home, "friends").project_id
    for one in (browser("read"), browser("train", "read"), browser("admin", project=other)):
        assert REMOVAL not in one.get("/models/tiny").text
        assert one.get(f"{REMOVAL}?name=tiny").status_code == 403
        assert one.post(REMOVAL, data=FORM).status_code == 403
    assert is_here(home)


def found_check(folder: Path, status: str) -> ModelCheck:
    why = "" if status == "works" else f"{folder}/config.json names no layer"
    checks = (Check(name="loss", status="works", path="eager attention"), Check(name="step", status=status, reason=why))
    return ModelCheck(
        model=str(folder), path=str(folder), architecture="LlamaForCausalLM", num_parameters=9,
        context_length_tokens=8, layers="all", checks=checks,
    )  # fmt: skip


def test_a_check_of_a_model_is_shown_on_its_page_until_the_next_one(
    home: Context, browser: Browser, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sha256 = str(pull_model(home, str(tiny_model)).sha256)
    asked: list[str] = []

    def check(_: Context, name: str, **_given: object) -> ModelCheck:
        asked.append(name)
        return found_check(tiny_model, "wrong" if len(asked) == 1 else "works")

    monkeypatch.setattr(base_pages, "check_model", check)
    trainer, viewer = browser("read", "train"), browser("read")
    assert "Not checked yet" in viewer.get("/models/tiny").text
    assert 'action="/models/check"' not in viewer.get("/models/tiny").text
    assert viewer.post("/models/check", data=FORM).status_code == 403
    assert stored_check(home, sha256) is None
    assert trainer.post("/models/check", data=FORM).headers["location"] == "/models/tiny#check"
    assert asked == [str(tiny_model)]
    page = viewer.get("/models/tiny").text
    assert "not every part works" in page
    assert "<td>config.json names no layer" in page
    assert str(tiny_model.parent) not in page
    trainer.post("/models/check", data=FORM)
    page = viewer.get("/models/tiny").text
    assert "not every part works" not in page
    assert "every part works" in page


def test_one_model_is_checked_at_a_time(
    home: Context, browser: Browser, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pull_model(home, str(tiny_model))
    monkeypatch.setattr(base_pages, "check_model", lambda *_, **_given: pytest.fail("a second check has begun"))
    with base_pages._checking:
        answer = browser("train").post("/models/check", data=FORM)
    assert answer.status_code == 429
    assert "another model is being checked" in answer.text
    assert browser("train").post("/models/check", data={"name": "gemma3-270m"}).status_code == 404
    assert browser("train").post("/models/check", data={"name": "nothing"}).status_code == 404


def test_a_check_is_cancelled_by_its_page(
    home: Context, browser: Browser, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sha256 = str(pull_model(home, str(tiny_model)).sha256)
    looks = threading.Event()

    def check(_: Context, name: str, *, stop_requested: Callable[[], str | None]) -> ModelCheck:
        assert name == str(tiny_model)
        looks.set()
        wait_for(lambda: stop_requested() is not None)
        raise StoppedError(str(stop_requested()))

    monkeypatch.setattr(base_pages, "check_model", check)
    monkeypatch.setattr(page_work, "WAIT_SECONDS", 0.0)
    one = browser("read", "train")
    page = one.post("/models/check", data=FORM).headers["location"]
    assert looks.wait(60)
    assert f'action="{page}/cancel"' in one.get(page).text
    assert one.post(f"{page}/cancel").headers["location"] == page
    wait_for(lambda: one.get(page).status_code == 409)
    assert "the check of &#39;tiny&#39; was cancelled" in one.get(page).text
    assert stored_check(home, sha256) is None
    assert not base_pages._checking.locked(), "the next one may begin"


def test_the_wait_for_a_removal_counts_projects_and_files(
    home: Context, browser: Browser, tiny_model: Path, stages: list[Stage]
) -> None:
    pull_model(home, str(tiny_model))
    create_project(home, "other")
    assert browser("admin").post(REMOVAL, data=FORM).status_code == 303
    searched, deleted = stages
    assert searched.words == "Searching the deployments of projects: 2 of 2 projects"
    assert re.fullmatch(r"Deleting files: ([1-9]\d*) of \1 files", deleted.words)
