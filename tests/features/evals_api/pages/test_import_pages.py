"""An eval of OpenAI's API becomes a suite of the project by the page; what a server does not run is refused whole."""

from __future__ import annotations

import json
from typing import Any

import yaml
from tests.features.evals_api.service.test_importer import EVAL, RUN
from tests.fixtures.pages import Browser, shown

from luthier.features.evaluation_orders.service import check_suite
from luthier.platform.files import service as files
from luthier.platform.files.store import StoredFile
from luthier.platform.home.context import Context
from luthier.platform.ui.work_progress import Stage
from luthier.testing.records import add_run

ADDRESS = "/evaluations/import"
PLAIN = EVAL | {"testing_criteria": EVAL["testing_criteria"][:3]}


def send(one: Any, *documents: Any, rows: str = "", prompt: str = "", token: str = "") -> Any:
    sent = {"file": ("eval.json", json.dumps(list(documents)))} | ({"data": ("rows.jsonl", rows)} if rows else {})
    return one.post(ADDRESS, files=sent, data={"prompt": prompt, "form_token": token})


def stored_files(home: Context) -> list[StoredFile]:
    return list(files.list_files(home, "default", limit=100)[0])


def stored(home: Context) -> dict[str, StoredFile]:
    return {one.filename: one for one in stored_files(home)}


def test_an_eval_becomes_a_suite_that_the_project_can_order(home: Context, browser: Browser) -> None:
    add_run(home, "a")  # the form of a new evaluation needs a model
    one = browser("read", "train")
    assert ADDRESS in one.get("/evaluations/new?kind=suite").text
    page = shown(one, send(one, PLAIN, RUN)).text
    assert "Support: Tone &amp; Facts" in page
    assert "vectors" in page
    made = stored(home)
    suite, rows = made["support_tone_facts.yaml"], made["support_tone_facts.jsonl"]
    assert f"/evaluations/new?kind=suite&amp;suite={suite.file_id}" in page
    keys = check_suite(home, "default", suite)
    assert [task["data"] for task in keys["tasks"]] == [rows.file_id]
    lines = files.local_path(home, rows).read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["item"]["a"] for line in lines] == ["So", "Me"]
    form = one.get(f"/evaluations/new?kind=suite&suite={suite.file_id}").text
    assert f'<option value="{suite.file_id}" selected>' in form


def test_rows_and_the_field_of_the_prompt_come_with_the_form(home: Context, browser: Browser) -> None:
    one = browser("read", "train")
    missing = send(one, PLAIN)
    assert missing.status_code == 422
    assert stored(home) == {}
    answer = send(one, PLAIN, rows='{"item": {"q": "Why?", "a": "So"}}\n', prompt="q")
    assert "<dt>Rows</dt><dd>1</dd>" in shown(one, answer).text
    [line] = files.local_path(home, stored(home)["support_tone_facts.jsonl"]).read_text().splitlines()
    assert json.loads(line)["prompt"] == "Why?"
    suite = files.local_path(home, stored(home)["support_tone_facts.yaml"]).read_text(encoding="utf-8")
    assert yaml.safe_load(suite)["name"] == "support_tone_facts"


def test_a_form_with_an_eval_that_is_sent_twice_makes_one_suite_and_another_file_another_one(
    home: Context, browser: Browser
) -> None:
    one = browser("read", "train")
    first, second = (send(one, PLAIN, RUN, token="a") for _ in range(2))
    assert "Support: Tone &amp; Facts" in shown(one, first).text
    assert second.status_code == 303
    assert len(stored_files(home)) == 2, "a suite and its rows"
    send(one, PLAIN | {"name": "Other"}, RUN, token="a")
    assert len(stored_files(home)) == 4, "the form was gone back to, and another file chosen"
    send(one, PLAIN, RUN, token="b")
    assert len(stored_files(home)) == 6, "a form of its own"


def test_an_eval_whose_graders_a_server_does_not_run_leaves_nothing_behind(home: Context, browser: Browser) -> None:
    refused = send(browser("read", "train"), PLAIN | {"id": "eval_2"}, EVAL, RUN, RUN | {"eval_id": "eval_2"})
    assert refused.status_code == 422
    assert "runs code, or uses a judge" in refused.text
    assert stored(home) == {}


def test_who_may_only_look_imports_no_eval(home: Context, browser: Browser) -> None:
    viewer = browser("read")
    assert viewer.get(ADDRESS).status_code == 403
    assert send(viewer, PLAIN, RUN).status_code == 403
    assert stored(home) == {}


def test_what_is_no_eval_is_refused_without_the_places_of_this_machine(home: Context, browser: Browser) -> None:
    one = browser("read", "train")
    for content in (b"\xff\xfe", b"no json", b"{}"):
        answer = one.post(ADDRESS, files={"file": ("eval.json", content)})
        assert answer.status_code == 422
        assert str(home.home) not in answer.text
    assert one.post(ADDRESS, files={"file": ("", b"")}).status_code == 400


def test_the_wait_counts_evals_rows_and_suites(browser: Browser, stages: list[Stage]) -> None:
    assert send(browser("read", "train"), PLAIN, RUN).status_code == 303
    assert [one.words for one in stages] == [
        "Importing evals: 1 of 1 eval",
        "Checking rows: 2 of 2 rows",
        "Writing rows: 2 of 2 rows",
        "Storing suites: 1 of 1 suite",
    ]
