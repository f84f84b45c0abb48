"""/datasets/import: a preview with its columns, the import with its progress, the version's source, once again."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from html import unescape
from typing import Any

import pytest
from fastapi.testclient import TestClient
from tests.features.datasets.conftest import jsonl, qa, work_once
from tests.fixtures.pages import shown
from tests.fixtures.questions import answers_in_this_process
from tests.hub_server import COMMIT, Hub

from luthier.features.datasets.imports import work_folder
from luthier.features.datasets.remote_import_job import _Report
from luthier.platform.auth.service import create_project
from luthier.platform.home.context import Context

Browser = Callable[..., TestClient]
TRAIN = ("read", "train")
PLACE = "/datasets/import"
SCRIPT = "<script>alert(1)</script>"


def words(answer: Any) -> str:
    assert answer.status_code in (200, 400, 404, 409, 422, 503), answer.text[:500]
    return " ".join(unescape(re.sub("<[^>]*>", " ", answer.text)).split())


@pytest.fixture(autouse=True)
def _questions() -> Iterator[None]:
    with answers_in_this_process():
        yield


def test_from_a_preview_to_a_version_with_its_source(home: Context, browser: Browser, qa_hub: Hub) -> None:
    qa_hub.files["train.jsonl"] = jsonl(qa(1) | {"note": SCRIPT}, qa(2) | {"note": ""})
    one = browser(*TRAIN)
    assert f'href="{PLACE}"' in one.get("/datasets").text
    assert f'href="{PLACE}"' in one.get("/datasets/new").text
    form = {"address": "org/qa", "name": "Questions", "action": "preview"}
    preview = shown(one, one.post(PLACE, data=form))
    text = words(preview)
    assert "Preview of hub:org/qa" in text
    assert f"Revision {COMMIT}" in text
    assert "Licence cc-by-4.0" in text
    assert "It is 1." in text
    assert 'value="Questions"' in preview.text, "what was filled in stays"
    assert SCRIPT not in preview.text
    assert re.findall(r'name="keep" value="(\w+)" checked', preview.text) == ["question", "answer", "source", "note"]
    kept = {"keep": ["question", "answer"], "num_columns": "4"}
    started = one.post(PLACE, data=form | kept | {"action": "import"})
    (job,) = home.jobs.list()
    assert started.headers["location"] == f"/datasets/jobs/{job.job_id}"
    waiting = words(shown(one, started))
    assert "Import hub:org/qa" in waiting
    assert "Waiting for a worker" in waiting
    assert "Import hub:org/qa" in words(one.get("/datasets"))
    work_once(home)
    done = one.get(f"/datasets/jobs/{job.job_id}")
    assert "All rows are imported." in words(done)
    assert f"Revision {COMMIT}" in words(done)
    (pair,) = home.datasets.list("default")
    page = one.get(f"/datasets/{pair[0].dataset_id}")
    text = words(page)
    assert "Imported from" in text
    assert "Columns question , answer" in text
    assert f"imported from hub:org/qa @ {COMMIT[:12]}" in text
    german = one.get(f"/datasets/{pair[0].dataset_id}", headers={"accept-language": "de"})
    assert f"importiert von hub:org/qa @ {COMMIT[:12]}" in words(german)
    assert "/datasets/org/qa" in page.text, "the page of the dataset on the hub"
    assert "import-again" not in browser("read").get(f"/datasets/{pair[0].dataset_id}").text
    again = one.post(f"/datasets/{pair[0].dataset_id}/import-again", data={"version": "1"})
    work_once(home)
    assert "Nothing has changed since version 1: no version was made." in words(shown(one, again))
    filled = one.get(f"{PLACE}?dataset={pair[0].dataset_id}&version=1").text
    assert 'value="hub:org/qa"' in filled
    assert f'value="{pair[0].dataset_id}" selected' in filled
    assert re.findall(r'name="keep" value="(\w+)" checked', filled) == ["question", "answer"], "as the version has them"


def test_progress_is_shown_in_bytes_rows_and_seconds(home: Context, browser: Browser) -> None:
    one = browser(*TRAIN)
    one.post(PLACE, data={"address": "org/qa", "action": "import"})
    job = home.jobs.claim("w", ("remote",))
    assert job is not None
    page = f"/datasets/jobs/{job.job_id}"
    work_folder(home, job).mkdir(parents=True)
    report = _Report(home, job)
    report.downloaded(3e6, 12e6, 90.0)
    text = words(one.get(page))
    assert "3 MB of 12 MB" in text
    assert "left" in text
    report._reported_at = 0.0
    report.read(1_234)
    assert "1,234 rows read" in words(one.get(page))
    assert f'action="{page}/cancel"' in one.get(page).text
    assert f'action="{page}/pause"' not in one.get(page).text


def test_what_is_wrong_is_shown_on_the_form_with_what_was_filled_in(browser: Browser, qa_hub: Hub) -> None:
    one = browser(*TRAIN)
    missing = shown(one, one.post(PLACE, data={"address": "org/qa", "split": "dev", "action": "preview"}))
    assert missing.status_code == 404
    assert "has no split 'dev' expected one of: test, train" in words(missing)
    assert 'name="split" maxlength="200" value="dev"' in missing.text
    for form, message in (
        ({"address": "file:///etc/passwd"}, "is not an address of rows"),
        ({"address": "http://10.0.0.1/a.csv"}, "not encrypted"),
        ({"address": "s3://bucket/a.csv"}, "does not import from s3://bucket/a.csv"),
        ({"address": "org/qa", "max_rows": "many"}, "'many' rows"),
        ({"address": "org/qa", "percent": "0"}, "'0' percent of the rows"),
        ({"address": "org/qa", "max_rows": "5", "percent": "5"}, "a number of rows or a share"),
        ({"address": "org/qa", "num_columns": "3"}, "no column is chosen"),
        ({"address": "org/qa", "dataset": "data-20261125-093000-1f2e3d"}, "no dataset"),
    ):
        refused = one.post(PLACE, data={"action": "import"} | form)
        assert refused.status_code in (400, 404, 422), form
        assert message in words(refused)
        assert str(form["address"]) in unescape(refused.text)
    private = shown(one, one.post(PLACE, data={"address": "https://127.0.0.1:9/a.csv", "action": "preview"}))
    assert "not on the public internet" in words(private)


def test_the_choice_of_columns_stays_where_something_else_is_wrong(browser: Browser, qa_hub: Hub) -> None:
    """Else the columns that were unticked would be imported with the next try."""
    columns = {"column": ["question", "answer", "source"], "num_columns": "3"}
    form = {"address": "org/qa", "action": "import", "max_rows": "many"}
    refused = browser(*TRAIN).post(PLACE, data=form | columns | {"keep": ["question", "answer"]})
    assert re.findall(r'name="keep" value="(\w+)"( checked)?', refused.text) == [
        ("question", " checked"), ("answer", " checked"), ("source", ""),
    ]  # fmt: skip
    assert re.findall(r'name="column" value="(\w+)"', refused.text) == columns["column"]
    assert 'name="num_columns" value="3"' in refused.text
    none = browser(*TRAIN).post(PLACE, data={"address": "org/qa", "column": ["question"]})
    assert "no column is chosen" in words(none)


def test_a_gated_dataset_and_one_that_is_a_program_say_so_on_the_page_of_the_job(
    home: Context, browser: Browser, qa_hub: Hub
) -> None:
    one = browser(*TRAIN)
    qa_hub.gated_for = set()
    page = one.post(PLACE, data={"address": "org/qa"}).headers["location"]
    work_once(home)
    text = words(one.get(page))
    assert "is gated" in text
    assert "accept the terms" in text
    qa_hub.gated_for, qa_hub.files = None, {"qa.py": b"raise SystemExit"}
    page = one.post(PLACE, data={"address": "org/qa"}).headers["location"]
    work_once(home)
    assert "code of a repository is not run on this machine" in words(one.get(page))


def test_rows_that_cannot_be_read_are_shown_with_the_import_and_the_version(
    home: Context, browser: Browser, qa_hub: Hub
) -> None:
    qa_hub.files["train.jsonl"] = jsonl(qa(1)) + b"no row\n" + jsonl(qa(2))
    one = browser(*TRAIN)
    page = one.post(PLACE, data={"address": "org/qa"}).headers["location"]
    work_once(home)
    (pair,) = home.datasets.list("default")
    for text in (words(one.get(page)), words(one.get(f"/datasets/{pair[0].dataset_id}"))):
        assert "Not readable 1 row " in text
        assert "1 row cannot be read, the first: line 2" in text
        assert "All rows are imported." not in text


def test_importing_needs_the_scope_and_the_project(home: Context, browser: Browser, qa_hub: Hub) -> None:
    one, reader = browser(*TRAIN), browser("read")
    one.post(PLACE, data={"address": "org/qa"})
    work_once(home)
    (pair,) = home.datasets.list("default")
    assert reader.get(PLACE).status_code == 403
    assert reader.post(PLACE, data={"address": "org/qa"}).status_code == 403
    create_project(home, "support")
    other = browser(*TRAIN, project="support")
    again = f"/datasets/{pair[0].dataset_id}/import-again"
    assert other.post(again, data={"version": "1"}).status_code == 404
    assert one.post(again, data={"version": "7"}).status_code == 404
    assert other.get(f"{PLACE}?dataset={pair[0].dataset_id}&version=1").status_code == 404
    assert [job.project_id for job in home.jobs.list()] == ["default"]


def test_an_uploaded_version_is_not_imported_again(home: Context, browser: Browser, qa_hub: Hub) -> None:
    from tests.features.datasets.conftest import add

    one = browser(*TRAIN)
    version = add(home, {"a.csv": b"question,answer\na,b\n"}).version
    assert version is not None
    refused = one.post(f"/datasets/{version.dataset_id}/import-again", data={"version": "1"})
    assert (refused.status_code, "was not imported from an address" in words(refused)) == (409, True)
