"""Work of forms that may take long: nobody waits for it, and what it leads to comes when it is done."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from luthier.core.access import Caller
from luthier.core.errors import BusyError, ConflictError
from luthier.features.datasets import annotations as annotation_queue
from luthier.features.datasets import derived_versions as dataset_repairs
from luthier.features.datasets import service as dataset_versions
from luthier.features.exports import pages as exports_page
from luthier.features.exports import requests as server_exports
from luthier.features.feedback import review as review_queue
from luthier.features.traffic import pages as traffic_page
from luthier.platform.home.context import Context
from luthier.platform.ui import page_work
from luthier.platform.ui.work_progress import Stage, ThreadProgress, WorkProgress, reporting_to
from luthier.testing.servers import wait_for

Browser = Callable[..., TestClient]


@pytest.fixture
def dataset(home: Context) -> str:
    file = dataset_versions.keep_rows(home, Caller(), [b'{"prompt": "a", "completion": "b"}\n'] * 3, "rows.jsonl")
    return dataset_versions.create_dataset(home, Caller(), "faq", file)[0].dataset_id


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """What slow work waits for; a request waits for no work at all."""
    monkeypatch.setattr(page_work, "WAIT_SECONDS", 0.0)
    opened = threading.Event()
    yield opened
    opened.set()


@pytest.mark.parametrize(
    ("path", "form", "module", "name"),
    [
        ("/datasets/{d}/repair/keep", {"version": "1", "action": "x"}, dataset_repairs, "keep_repair"),
        ("/datasets/{d}/annotate/version", {"version": "1"}, annotation_queue, "make_version"),
        ("/exports/export-1/verify", {}, server_exports, "verify"),
        ("/settings/traffic/forget", {"user": "u"}, traffic_page, "forget_user"),
        ("/review/queue", {"model": "m", "what": "sample"}, review_queue, "queue_sample"),
    ],
)
def test_no_form_waits_for_what_is_slow(
    browser: Browser,
    dataset: str,
    gate: threading.Event,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    form: dict[str, str],
    module: Any,
    name: str,
) -> None:
    begun = threading.Event()

    def slow(*_: object, **__: object) -> None:
        begun.set()
        assert gate.wait(60)
        raise ConflictError("it was not to be", expected="another day", do="list them: GET /api/v1/runs")

    monkeypatch.setattr(module, name, slow)
    monkeypatch.setattr(exports_page, "export_page", lambda *_: pytest.fail("nothing is wrong yet"))
    one, other = browser("read", "train", "admin"), browser("read", "train", "admin")
    led = one.post(path.format(d=dataset), data=form)
    assert led.headers["location"].startswith("/working/"), "answered while the work goes on"
    assert begun.wait(60)
    assert "data-look-again" in one.get(led.headers["location"]).text
    assert other.get(led.headers["location"]).status_code == 404, "it is nobody else's"
    gate.set()
    wait_for(lambda: one.get(led.headers["location"]).status_code == 409)
    page = one.get(led.headers["location"]).text
    assert "it was not to be" in page
    assert "data-look-again" not in page
    assert "GET /api" not in page


def test_work_that_is_done_leads_on(
    home: Context, browser: Browser, dataset: str, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_version = annotation_queue.make_version

    def slow(*arguments: Any, **named: Any) -> Any:
        assert gate.wait(60)
        return make_version(*arguments, **named)

    monkeypatch.setattr(annotation_queue, "make_version", slow)
    one = browser("read", "train")
    desk = f"/datasets/{dataset}/annotate"
    one.post(f"{desk}/decide", data={"version": "1", "row": "2", "decision": "reject"})
    led = one.post(f"{desk}/version", data={"version": "1"}).headers["location"]
    gate.set()
    wait_for(lambda: one.get(led).status_code == 303)
    assert one.get(led).headers["location"] == f"/datasets/{dataset}?version=2"
    assert "1 row left out" in one.get(f"/datasets/{dataset}?version=2").text
    assert dataset_versions.get_version(home, Caller(), dataset).num_rows == 2


def test_a_wait_shows_stage_count_and_seconds(
    home: Context, browser: Browser, dataset: str, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_rows, begun = dataset_versions.keep_rows, threading.Event()

    def slow(context: Context, caller: Caller, blocks: Iterator[bytes], *rest: Any, **named: Any) -> Any:
        kept = [next(blocks), next(blocks)]
        begun.set()
        assert gate.wait(60)
        return keep_rows(context, caller, [*kept, *blocks], *rest, **named)

    monkeypatch.setattr(dataset_versions, "keep_rows", slow)
    one = browser("read", "train")
    desk = f"/datasets/{dataset}/annotate"
    one.post(f"{desk}/decide", data={"version": "1", "row": "3", "decision": "reject"})
    led = one.post(f"{desk}/version", data={"version": "1"}).headers["location"]
    assert begun.wait(60)
    page = one.get(led).text
    assert "Writing rows: 2 of 3 rows" in page
    assert '<progress max="3" value="2" aria-label="Writing rows">' in page
    assert re.search(r'Writing rows: 2 of 3 rows · <span class="number">\d[\d.]*\u00a0s</span>', page)
    assert re.search(r'Time so far: <span class="number">\d[\d.]*\u00a0s</span>', page)
    german = one.get(led, headers={"accept-language": "de"}).text
    assert "Zeilen werden geschrieben: 2 von 3 Zeilen" in german
    gate.set()
    wait_for(lambda: one.get(led).status_code == 303)
    assert dataset_versions.get_version(home, Caller(), dataset).num_rows == 2


def test_stages_are_those_of_the_work_that_the_thread_carries_out() -> None:
    own, other = WorkProgress(), WorkProgress()
    progress = ThreadProgress(other)
    with reporting_to(own), progress.task("reading", 2000, "row") as outer, progress.task("copying", None, "bytes"):
        outer.advance()
        assert [one.words for one in own.stages()] == ["Reading: 1 of 2,000 rows", "Copying"]
        assert [one.is_bytes for one in own.stages()] == [False, True]
        assert other.stages() == ()
    with progress.task("searching", None, "batch") as task:
        task.advance(3)
        assert [one.words for one in other.stages()] == ["Searching: 3 batches"]
    assert own.stages() == other.stages() == ()


def test_more_than_was_expected_is_shown_as_the_total() -> None:
    stage = Stage("Reading", 2, "files", 3)
    assert (stage.words, stage.shown_total) == ("Reading: 3 of 3 files", 3)
    assert Stage("Reading", 1, "files").words == "Reading: 0 of 1 file"


def test_short_work_is_answered_at_once(browser: Browser, dataset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_work, "WAIT_SECONDS", 60.0)
    one = browser("read", "train")
    assert one.post(f"/datasets/{dataset}/annotate/version", data={"version": "1"}).status_code == 422
    monkeypatch.setattr(page_work, "_MAX_RUNNING", 0)
    refused = one.post("/review/queue", data={"model": "m", "what": "liked"})
    assert (refused.status_code, "already running" in refused.text) == (429, True)


def test_work_that_could_not_be_started_takes_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    monkeypatch.setattr(page_work, "_MAX_RUNNING", 1)
    request: Any = type("R", (), {"cookies": {}})()
    works = page_work.PageWork()
    for _ in range(2):
        with pytest.raises(BusyError, match="no more threads"):
            works.answer(request, "Doing", lambda: pytest.fail("it was not started"), back="/")


def test_work_that_cannot_be_cancelled_has_no_button_and_says_so(
    browser: Browser, dataset: str, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(*_: object, **__: object) -> None:
        assert gate.wait(60)
        raise ConflictError("it was not to be", expected="another day", do="try then")

    monkeypatch.setattr(review_queue, "queue_sample", slow)
    one = browser("read", "train", "admin")
    page = one.post("/review/queue", data={"model": "m", "what": "sample"}).headers["location"]
    assert "/cancel" not in one.get(page).text
    refused = one.post(f"{page}/cancel")
    assert (refused.status_code, "cannot be cancelled" in refused.text) == (409, True)
