"""A run that is watched while it trains: its curves grow, over a restart of the server, to its end."""

from __future__ import annotations

import re
from collections.abc import Callable
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Page, expect

from luthier.core.events import MachineSampled, RunEnded, ValidationDone
from luthier.platform.auth.service import create_key
from luthier.platform.home.context import Context
from luthier.platform.jobs.records import Job
from luthier.testing.records import (
    RUN_ID,
    add_run,
    events_of,
    make_evaluation,
    make_plan,
    make_record,
    make_result,
    tell,
)
from luthier.testing.servers import home_server, running_server
from tests.browser.conftest import PHONE, look_often, sign_in, violations, wait_until
from tests.fixtures.forked_children import SessionForkServer

LAST_POINT = """() => {
  const canvas = document.querySelector('#run-charts .canvas');
  const series = canvas === null ? [] : echarts.getInstanceByDom(canvas).getOption().series;
  return Object.fromEntries(series.map((one) => [one.name, one.data.length ? one.data[one.data.length - 1][0] : null]));
}"""
_SHOWN = """() => {
  const canvas = document.querySelector('#run-charts .line-legend').closest('figure').querySelector('.canvas');
  const { series, legend } = echarts.getInstanceByDom(canvas).getOption();
  return series.map((one) => one.name).filter((name) => legend[0].selected[name] !== false);
}"""
"""The lines of the chart with a search that are drawn."""
BEGAN = 1_795_599_000.0
"""2026-11-25T09:30:00+00:00, when the run was made."""
LOST = ("net::ERR_CONNECTION_REFUSED", "net::ERR_CONNECTION_RESET", "net::ERR_CONTENT_LENGTH_MISMATCH")
"""What Chromium writes of a server that was killed: before, or during a request."""
LOST_BY_HTMX = "htmx:sendError, "
"""How a line of htmx begins where one of its own requests was due while there was no server."""


def sample_at(step: int, at: float) -> MachineSampled:
    return MachineSampled(step=step, at=at, run_cores=1.0, machine_cores=1.5, num_cores=2, run_memory_bytes=1 << 30,
                          machine_memory_bytes=2 << 30, memory_bytes=4 << 30)  # fmt: skip


@pytest.fixture
def job(home: Context) -> Job:
    """A job that a worker holds, of a run that has done 40 of 100 steps."""
    made = Job(job_id="job-20261125-093000-aaaaaa", kind="train", document={"recipe": {}}, run_id=RUN_ID)
    home.jobs.submit(made)
    home.runs.create(make_record().model_copy(update={"num_steps": 100}), make_plan())
    tell(home, RUN_ID, events_of(1, 40, 100, validate_every_steps=10))
    claimed = home.jobs.claim("w")
    assert claimed is not None
    return claimed


def test_curves_grow_over_a_restart_of_the_server_to_the_end(
    home: Context, job: Job, make_page: Callable[..., Page], fork_server: SessionForkServer
) -> None:
    key, page = create_key(home, "Ada", scopes=("read", "train"))[1], look_often(make_page())
    with running_server(home.home, num_workers=0, popen=fork_server.popen_text) as server:
        port = urlsplit(server.url).port
        sign_in(page, server.url, key)
        page.goto(f"{server.url}/runs/{RUN_ID}")
        wait_until(page, lambda: page.evaluate(LAST_POINT) == {"training": 40, "validation": 40}, "the first curves")
        tell(home, RUN_ID, events_of(41, 55, 100, validate_every_steps=10))
        wait_until(page, lambda: page.evaluate(LAST_POINT) == {"training": 55, "validation": 50}, "new points")
        expect(page.locator("[data-live=step]")).to_have_text("step 55 of 100")
        assert violations(page) == []
        server.process.kill()
        server.process.wait()
    wait_until(page, lambda: "does not answer" in page.locator("[data-contact]").inner_text(), "the quiet word")
    tell(home, RUN_ID, events_of(56, 70, 100, validate_every_steps=10))
    assert port is not None
    with running_server(home.home, num_workers=0, port=port, popen=fork_server.popen_text):
        wait_until(page, lambda: page.evaluate(LAST_POINT) == {"training": 70, "validation": 70}, "what was missed")
        expect(page.locator("[data-contact]")).to_have_text("")
        tell(home, RUN_ID, events_of(71, 100, 100, validate_every_steps=10))
        home.evaluations.save(make_evaluation(run_id=RUN_ID))
        home.runs.append(RUN_ID, RunEnded(step=100, status="succeeded", reason="all 100 steps done"))
        home.runs.update(RUN_ID, status="succeeded", result=make_result())
        home.jobs.finish(job.job_id, job.attempt, "succeeded")
        page.get_by_text("Cannot tell.").wait_for()
        wait_until(page, lambda: page.evaluate(LAST_POINT).get("training") == 100, "the last step")
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))

        def is_quiet() -> bool:
            asked.clear()
            page.wait_for_timeout(700)  # two looks and a half, at the pace of `look_often`
            return asked == []

        assert any(is_quiet() for _ in range(5)), "once all has come, nobody asks any more"
    errors = make_page.errors  # type: ignore[attr-defined]
    assert errors, "Chromium itself writes of a connection that is lost"
    others = [error for error in errors if not error.endswith(LOST) and not error.startswith(LOST_BY_HTMX)]
    assert others == [], "and nothing else was written"
    errors.clear()


LOSE_EVENTS = """() => {
  window.numLost = 0;
  document.addEventListener("luthier:changed", (event) => {
    if (window.numLost < 4) { window.numLost += 1; event.stopImmediatePropagation(); }
  }, { capture: true });
}"""
"""More events are lost than the run has changes, as for a part of the page that is just being replaced."""


def test_the_end_is_shown_although_events_are_lost(home: Context, job: Job, make_page: Callable[..., Page]) -> None:
    key, page = create_key(home, "Ada", scopes=("read", "train"))[1], look_often(make_page())
    with home_server(home.home) as server:
        sign_in(page, server.url, key, f"/runs/{RUN_ID}")
        wait_until(page, lambda: page.evaluate(LAST_POINT) == {"training": 40, "validation": 40}, "the first curves")
        page.evaluate(LOSE_EVENTS)
        home.evaluations.save(make_evaluation(run_id=RUN_ID))
        home.runs.update(RUN_ID, status="succeeded", result=make_result())
        home.jobs.finish(job.job_id, job.attempt, "succeeded")
        page.get_by_text("Cannot tell.").wait_for()
        assert page.evaluate("window.numLost") == 4


def test_rows_that_are_made_again_stay_where_they_were_scrolled_and_focused(
    home: Context, job: Job, make_page: Callable[..., Page]
) -> None:
    key, page = create_key(home, "Ada", scopes=("read", "train"))[1], look_often(make_page(viewport=PHONE))
    with home_server(home.home) as server:
        sign_in(page, server.url, key, "/runs")
        region = page.locator("#run-rows .scroll")
        page.locator("#run-rows th[scope=row] a").evaluate("one => one.focus({ preventScroll: true })")
        region.evaluate("one => { one.dataset.first = 'yes'; one.scrollLeft = 60; }")
        home.runs.update(job.run_id, step=77)
        page.wait_for_selector("#run-rows progress[value='77']")
        wait_until(page, lambda: region.evaluate("one => one.scrollLeft") == 60, "the place that was scrolled to")
        assert region.get_attribute("data-first") is None, "it was made again"
        focused = "document.activeElement.getAttribute('href')"
        wait_until(page, lambda: page.evaluate(focused) == f"/runs/{RUN_ID}", "the focus")
        page.close()


def test_too_many_runs_to_compare_are_said_before_they_are_sent(home: Context, make_page: Callable[..., Page]) -> None:
    for digit in "123456789":
        add_run(home, digit)
    key, page = create_key(home, "Ada", scopes=("read",))[1], make_page()
    with home_server(home.home) as server:
        sign_in(page, server.url, key, "/runs")
        boxes, button = page.locator("#run-rows input[name=run]"), page.locator("#compare-button")
        expect(boxes).to_have_count(9)
        every = page.locator("[data-choose-all]")
        every.check()
        expect(page.locator("#compare-words")).to_have_text("9 chosen: at most 8 can be compared")
        every.uncheck()
        expect(page.locator("#compare-words")).to_have_text("Choose two to 8.")
        for number in range(9):
            boxes.nth(number).check()
        expect(page.locator("#compare-words")).to_have_text("9 chosen: at most 8 can be compared")
        expect(every).to_be_checked()
        expect(button).to_be_disabled()
        boxes.first.uncheck()
        expect(every).not_to_be_checked()
        expect(page.locator("#compare-words")).to_have_text("8 chosen")
        button.click()
        page.get_by_text("8 runs side by side").wait_for()


def test_a_run_that_begins_while_its_page_is_open_gets_its_charts(
    home: Context, make_page: Callable[..., Page]
) -> None:
    key, page = create_key(home, "Ada", scopes=("read",))[1], look_often(make_page())
    made = Job(job_id="job-20261125-093000-aaaaaa", kind="train", document={"recipe": {}}, run_id=RUN_ID)
    home.jobs.submit(made)
    with home_server(home.home) as server:
        sign_in(page, server.url, key)
        page.goto(f"{server.url}/runs/{RUN_ID}")
        page.get_by_text("next in the queue").wait_for()
        home.jobs.claim("w")
        home.runs.create(make_record().model_copy(update={"num_steps": 100}), make_plan())
        tell(home, RUN_ID, events_of(1, 7, 100))
        wait_until(page, lambda: page.locator("#run-charts .canvas").count() == 5, "the charts")
        assert page.evaluate(LAST_POINT) == {"training": 7}
        page.get_by_text("step 7 of 100").wait_for()
        event = ValidationDone(step=7, loss=1.5, num_trained_tokens=1, is_best=True, seconds=1.0)
        home.runs.append(RUN_ID, event)
        wait_until(page, lambda: page.evaluate(LAST_POINT).get("validation") == 7, "the first validation")
        page.close()  # before the server: it would go on asking


def test_tags_that_are_being_typed_outlive_the_start_of_the_run_and_the_session(
    home: Context, make_page: Callable[..., Page]
) -> None:
    key, page = create_key(home, "Ada", scopes=("read", "train"))[1], look_often(make_page())
    made = Job(job_id="job-20261125-093000-aaaaaa", kind="train", document={"recipe": {}}, run_id=RUN_ID)
    home.jobs.submit(made)
    tags = page.locator("#run-tags")
    with home_server(home.home) as server:
        sign_in(page, server.url, key, f"/runs/{RUN_ID}")
        page.get_by_text("next in the queue").wait_for()
        page.locator(".run-edit summary").click()
        tags.fill("first try")
        home.jobs.claim("w")
        home.runs.create(make_record().model_copy(update={"num_steps": 100}), make_plan())
        tell(home, RUN_ID, events_of(1, 7, 100))
        wait_until(page, lambda: page.locator("#run-charts .canvas").count() == 5, "the page of the run that has begun")
        expect(tags).to_have_value("first try")
        expect(tags).to_be_visible()
        page.context.clear_cookies()
        page.wait_for_url(re.compile("/sign-in"))
        make_page.errors.clear()  # type: ignore[attr-defined] # the browser itself notes the status 401
        page.fill("#key", key)
        page.press("#key", "Enter")
        page.wait_for_url(f"{server.url}/runs/{RUN_ID}")
        expect(tags).to_have_value("first try")
        page.locator(".run-edit form").first.get_by_role("button", name="Save").click()
        expect(page.locator(".run-marks a")).to_have_text(["first", "try"])
        page.close()


def test_a_hidden_tab_asks_for_nothing(home: Context, job: Job, make_page: Callable[..., Page]) -> None:
    key, page = create_key(home, "Ada", scopes=("read",))[1], look_often(make_page())
    asked: list[str] = []
    page.add_init_script("Object.defineProperty(document, 'hidden', {get: () => window.isAway === true})")
    with home_server(home.home) as server:
        sign_in(page, server.url, key)
        page.goto(f"{server.url}/runs/{RUN_ID}")
        wait_until(page, lambda: page.evaluate(LAST_POINT).get("training") == 40, "the first curves")
        turn = "(isAway) => { window.isAway = isAway; document.dispatchEvent(new Event('visibilitychange')); }"
        page.evaluate(turn, True)
        page.wait_for_timeout(500)
        page.on("request", lambda request: asked.append(request.url))
        tell(home, RUN_ID, events_of(41, 45, 100))
        page.wait_for_timeout(1000)  # four looks
        assert asked == []
        page.evaluate(turn, False)
        wait_until(page, lambda: page.evaluate(LAST_POINT).get("training") == 45, "what came meanwhile")
        page.close()


LOSS_X = """() => {
  const canvas = document.querySelector('#run-charts .canvas');
  const series = canvas === null ? [] : echarts.getInstanceByDom(canvas).getOption().series;
  return series.length ? series[0].data[series[0].data.length - 1][0] : null;
}"""


def test_a_chart_is_shown_over_epochs_and_time_zoomed_and_saved(
    home: Context, job: Job, make_page: Callable[..., Page]
) -> None:
    key, page = create_key(home, "Ada", scopes=("read", "train"))[1], look_often(make_page())
    for step, seconds in ((1, 60), (21, 1260), (40, 2400)):
        home.runs.append(RUN_ID, sample_at(step, BEGAN + seconds))
    with home_server(home.home) as server:
        sign_in(page, server.url, key)
        page.goto(f"{server.url}/runs/{RUN_ID}")
        wait_until(page, lambda: page.evaluate(LAST_POINT).get("training") == 40, "the first curves")
        wait_until(page, lambda: page.locator("#run-charts .canvas").count() == 7, "with two of the machine")
        axis = page.get_by_label("Horizontal axis")
        axis.select_option("epoch")
        wait_until(page, lambda: page.evaluate(LOSS_X) == 8, "40 steps of 5 an epoch")
        wait_until(page, lambda: not axis.locator("option[value=time]").is_disabled(), "the clock")
        axis.select_option("time")
        wait_until(page, lambda: page.evaluate(LOSS_X) == 40, "2,400 s in minutes")
        reset = page.get_by_role("button", name="Reset zoom: Loss")
        expect(reset).to_be_hidden()
        page.get_by_role("button", name="Zoom in: Loss").press("Enter")
        expect(reset).to_be_visible()
        assert violations(page) == []
        reset.click()
        expect(reset).to_be_hidden()
        with page.expect_download() as saved:
            page.get_by_role("button", name="CSV of Loss").click()
        assert saved.value.suggested_filename == f"{RUN_ID}-loss.csv"
        lines = saved.value.path().read_text(encoding="utf-8").splitlines()
        assert lines[0] == "step,epoch,seconds,training,validation"
        assert lines[20].split(",")[:3] == ["20", "4", "1200"]
        with page.expect_download() as saved:
            page.get_by_role("button", name="PNG of Loss").click()
        assert saved.value.path().read_bytes()[:4] == b"\x89PNG"
        page.reload()
        wait_until(page, lambda: page.evaluate(LOSS_X) == 40, "the axis stays chosen")
        page.get_by_text("Edit", exact=True).click()
        page.get_by_label("Name", exact=True).fill("Client mails")
        page.get_by_role("button", name="Save", exact=True).click()
        page.get_by_role("heading", name="Client mails").wait_for()
        page.goto(f"{server.url}/runs")
        page.get_by_label("Filter").fill('name~"client" lr<1')
        page.get_by_label("Filter").press("Enter")
        page.get_by_role("link", name="Client mails").wait_for()
        page.locator("summary", has_text="Columns").click()
        page.get_by_label("Learning rate").check()
        page.get_by_role("button", name="Show", exact=True).click()
        page.get_by_role("columnheader", name="Learning rate").wait_for()
        assert violations(page) == []
        page.close()
        german = look_often(make_page(locale="de-DE"))
        sign_in(german, server.url, key)
        german.goto(f"{server.url}/runs/{RUN_ID}")
        german.locator("html[lang=de]").wait_for()
        wait_until(german, lambda: german.evaluate(LAST_POINT).get("training") == 40, "the first curves")
        german.locator("[data-chart-axis]").select_option("epoch")
        wait_until(german, lambda: german.evaluate(LOSS_X) == 8, "the axis changes in German, too")
        with german.expect_download() as saved:
            german.locator("#run-charts .chart-actions button", has_text="CSV").first.click()
        assert saved.value.path().read_text(encoding="utf-8").startswith("step,epoch,seconds,training,")
        german.close()


def test_a_select_with_many_choices_is_searched(home: Context, make_page: Callable[..., Page]) -> None:
    for letter in "abcdef0123":
        add_run(home, letter)
    key, page = create_key(home, "Ada", scopes=("read", "train", "infer"))[1], make_page()
    with home_server(home.home) as server:
        sign_in(page, server.url, key)
        page.goto(f"{server.url}/evaluations/new")
        choice = page.locator("#candidate")
        page.get_by_role("searchbox", name="Search: Model to evaluate").fill("bbbb")
        wait_until(page, lambda: choice.locator("option").count() == 1, "what is left")
        assert choice.input_value().endswith("bbbbbb")
        page.get_by_role("searchbox", name="Search: Model to evaluate").fill("")
        wait_until(page, lambda: choice.locator("option").count() == 10, "all again")
        assert choice.input_value().endswith("bbbbbb"), "and the choice stays"
        assert violations(page) == []
        page.close()


def test_the_tools_of_a_chart_and_what_stays_chosen(home: Context, job: Job, make_page: Callable[..., Page]) -> None:
    run_id = add_run(home, "b")
    key = create_key(home, "Ada", scopes=("read", "train"))[1]
    page, phone = look_often(make_page()), make_page(viewport=PHONE)
    with home_server(home.home) as server:
        sign_in(page, server.url, key)
        page.goto(f"{server.url}/runs/{RUN_ID}")
        page.get_by_label("smooth the lines of Loss").fill("0.6")
        count = "echarts.getInstanceByDom(document.querySelector('#run-charts .canvas')).getOption().series.length"
        wait_until(page, lambda: page.evaluate(count) == 3, "a faint line, a smooth one, few validations")
        page.get_by_label("log scale for Loss").click()
        page.reload()
        wait_until(page, lambda: page.locator("#run-charts .tools").count() > 0, "the tools")
        assert page.get_by_label("smooth the lines of Loss").input_value() == "0.6"
        assert page.get_by_label("log scale for Loss").get_attribute("aria-pressed") == "true"
        names = [f"shop {number:02}" for number in range(12)]
        losses = {name: 1.0 + number for number, name in enumerate(names)}
        validation = ValidationDone(step=40, loss=1.0, num_trained_tokens=9, seconds=0.1, is_best=False)
        home.runs.append(RUN_ID, validation.model_copy(update={"loss_by_source": losses}))
        page.get_by_label("Find a line of Loss by source").fill("shop 1")
        legend = page.get_by_role("group", name="Lines of Loss by source")
        assert legend.get_by_role("checkbox").count() == 2, "the found ones"
        legend.get_by_role("button", name="Only these").click()
        expect(legend.get_by_role("status")).to_have_text("2 of 12 lines")
        assert page.evaluate(_SHOWN) == ["shop 10", "shop 11"]
        legend.get_by_label("shop 11").press("Space")
        assert page.evaluate(_SHOWN) == ["shop 10"]
        assert violations(page) == []
        legend.get_by_role("button", name="All lines").click()
        assert page.evaluate(_SHOWN) == names
        page.goto(f"{server.url}/runs")
        page.locator(f"#pick-{run_id}").check()
        page.locator(f"#pick-{RUN_ID}").check()
        tell(home, RUN_ID, events_of(41, 44, 100))
        page.get_by_text("44 of 100 steps").wait_for()
        assert page.locator(f"#pick-{run_id}").is_checked(), "over a refresh of the rows"
        page.get_by_text("Change the chosen").click()
        page.get_by_label("Tag or group").fill("sweep")
        page.get_by_label("Tag or group").press("Enter")  # presses no button: the next line finds the list as it was
        assert violations(page) == []
        assert page.get_by_label("Tag or group").input_value() == "sweep"
        page.get_by_role("button", name="Compare the chosen").click()
        page.get_by_role("heading", name="2 runs side by side").wait_for()
        assert violations(page) == []
        sign_in(phone, server.url, key)
        for path in ("/runs", f"/runs/{RUN_ID}", f"/runs/compare?run={RUN_ID}&run={run_id}"):
            phone.goto(f"{server.url}{path}")
            assert phone.evaluate("document.documentElement.scrollWidth <= innerWidth"), path
            assert violations(phone) == [], path
        page.close()
        phone.close()
