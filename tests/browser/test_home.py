"""The home page where scripts run: what begins shows without a reload, is said aloud, and rests while nobody looks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import Page, expect

from luthier.core.ids import new_id
from luthier.platform.auth.service import create_key
from luthier.platform.home.context import Context
from luthier.platform.jobs.records import Job
from luthier.testing.records import add_run, make_evaluation, make_plan, make_record
from luthier.testing.servers import home_server
from tests.browser.conftest import look_often, sign_in, violations


def test_home(tmp_path: Path, make_page: Callable[..., Page]) -> None:
    home = tmp_path / "home"
    with Context.open(home) as context:
        key = create_key(context, "me", scopes=("admin",))[1]
        with home_server(home) as server:
            page = look_often(make_page())
            sign_in(page, server.url, key, "/")
            page.wait_for_selector("text=A language model that knows your work")
            assert violations(page) == []
            context.evaluations.save(make_evaluation(run_id=add_run(context, "a")))
            page.reload()
            page.wait_for_selector("text=Nothing is running right now.")
            assert violations(page) == []
            job = context.jobs.submit(
                Job(job_id=new_id("job"), kind="train", document={"base_model": "tiny"}, run_id=new_id("run"))
            )
            context.jobs.claim("w")
            record = make_record(job.run_id, status="running")
            context.runs.create(record.model_copy(update={"step": 5}), make_plan())
            page.wait_for_selector("#now progress[value='5']")
            page.wait_for_selector(f"#rest a[href='/runs/{job.run_id}']")
            expect(page.locator("#changes")).to_have_text("1 running, 0 waiting")
            assert violations(page) == []
            _rests_while_hidden(page)
            page.close()  # before the server ends, which it would ask in vain


def test_a_part_that_is_looked_at_again_outlasts_a_server_that_cannot_answer(
    tmp_path: Path, make_page: Callable[..., Page]
) -> None:
    home = tmp_path / "home"
    with Context.open(home) as context:
        key = create_key(context, "me", scopes=("admin",))[1]
        add_run(context, "a")
        with home_server(home) as server:
            page = look_often(make_page())
            sign_in(page, server.url, key)
            page.route("**/home/now", lambda route: route.fulfill(status=503, body="<p>no answer now</p>"))
            with page.expect_response("**/home/now") as answered:
                page.goto(f"{server.url}/")
            assert answered.value.status == 503
            page.wait_for_timeout(500)
            expect(page.get_by_text("no answer now")).to_have_count(0)
            page.unroute("**/home/now")
            job = context.jobs.submit(
                Job(job_id=new_id("job"), kind="train", document={"base_model": "tiny"}, run_id=new_id("run"))
            )
            context.jobs.claim("w")
            record = make_record(job.run_id, status="running")
            context.runs.create(record.model_copy(update={"step": 5}), make_plan())
            page.wait_for_selector("#now progress[value='5']")
            page.close()
    errors = make_page.errors  # type: ignore[attr-defined]
    assert errors, "Chromium itself writes of an answer that is an error"
    assert [error for error in errors if "503" not in error] == []
    errors.clear()


def _rests_while_hidden(page: Page) -> None:
    asked: list[str] = []
    page.evaluate("Object.defineProperty(document, 'hidden', {value: true, configurable: true})")
    # From here on: a look that began before may be on its way.
    page.on("request", lambda request: asked.append(request.url))
    page.wait_for_timeout(1500)  # three looks, at the pace of `look_often`
    assert [url for url in asked if url.endswith("/home/now")] == []
    with page.expect_request("**/home/now"):
        page.evaluate(
            "Object.defineProperty(document, 'hidden', {value: false, configurable: true});"
            "document.dispatchEvent(new Event('visibilitychange'))"
        )
