"""The guided run: answers in the address, two plans, one start; and the whole form with the same recipe."""

from __future__ import annotations

import json
import re
import threading
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml
from fastapi.testclient import TestClient
from tests.fixtures.pages import Browser

from luthier.core.access import Caller
from luthier.core.errors import RequestError
from luthier.core.ports import Progress, SilentProgress
from luthier.features.datasets import service as dataset_versions
from luthier.features.planning.drafts import DraftPlanner, Planned
from luthier.platform.auth.service import create_project
from luthier.platform.home.context import Context
from luthier.platform.ui import page_work
from luthier.testing.servers import wait_for

HTMX = {"HX-Request": "true"}
ANSWER = Path(__file__).parents[2] / "run_drafts" / "pages" / "planned.json"
HOSTILE = '"><img src=x onerror=alert(1)>'


@pytest.fixture
def model(home: Context, tiny_model: Path) -> None:
    """The home has pulled a model that is called `tiny`."""
    from luthier.ml.inference.models import sources

    sources.pull(str(tiny_model), home.home, SilentProgress())


@pytest.fixture
def dataset(home: Context, model: None) -> str:
    """A dataset of questions with answers."""
    return add_dataset(
        home, "Client questions", [{"prompt": f"And {n}?", "completion": f"Then {n}."} for n in range(24)]
    )


def add_dataset(home: Context, name: str, rows: list[dict[str, Any]]) -> str:
    file = dataset_versions.keep_rows(home, Caller(), [f"{json.dumps(row)}\n".encode() for row in rows], "rows.jsonl")
    return dataset_versions.create_dataset(home, Caller(), name, file)[0].dataset_id


class Plans:
    """What the planner is asked, and what it answers: nothing is planned, in truth."""

    def __init__(self) -> None:
        self.recipes: list[dict[str, Any]] = []
        self.answer: Planned | None = Planned(json.loads(ANSWER.read_text(encoding="utf-8")))

    def plan(self, _: DraftPlanner, project_id: str, draft: str, recipe: dict[str, Any], **__: Any) -> Planned | None:
        self.recipes.append(dict(recipe))
        return self.answer


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> Plans:
    made = Plans()
    monkeypatch.setattr(DraftPlanner, "plan", lambda *a, **k: made.plan(*a, **k))
    return made


def sent(page: str) -> dict[str, str]:
    """What the form of the page sends, as a browser does."""
    form = page[page.index('<form id="guide"') : page.index("</form>", page.index('<form id="guide"'))]
    found = dict(re.findall(r'<input type="hidden" name="([^"]+)" value="([^"]*)"', form))
    found |= dict(re.findall(r'<input type="radio" name="([^"]+)" id="[^"]+" value="([^"]*)" checked>', form))
    return {name: unescape(value) for name, value in found.items()}


def recipe_links(page: str) -> list[dict[str, Any]]:
    links = [unescape(link) for link in re.findall(r'href="(/runs/new\?recipe=[^"]+)"', page)]
    return [yaml.safe_load(parse_qs(urlsplit(link).query)["recipe"][0]) for link in links]


def test_without_data_the_page_leads_to_it(browser: Browser) -> None:
    page = browser("train").get("/start")
    assert page.status_code == 200
    assert 'href="/datasets/new"' in page.text
    assert "<form id" not in page.text


def test_rows_suggest_the_purpose_and_both_sizes_are_planned(browser: Browser, dataset: str, plans: Plans) -> None:
    page = browser("train").get(f"/start?dataset={dataset}").text
    assert sent(page) | {"draft": ""} == {"draft": "", "goal": "answers", "dataset": dataset, "size": "quick"}
    quick, better = recipe_links(page)
    assert quick["base_model"] == better["base_model"] == "tiny", "the only one on this server"
    assert (quick["training"], better["training"]) == ({"epochs": 1}, {"epochs": 3})
    assert quick["data"]["held_out"] == 0.1, "so that it ends with a verdict"
    assert quick["evaluation"] == {"max_samples": 50}
    assert "Peak memory" in page
    assert 'hx-get="/start/plans' not in page, "both are planned"
    assert re.search(r"will be called “Client questions · tiny · \d+ [A-Z][a-z]{2}”", page)
    assert {json.dumps(one, sort_keys=True) for one in plans.recipes} == {
        json.dumps(one, sort_keys=True) for one in (quick, better)
    }


@pytest.mark.parametrize(
    ("goal", "keys"),
    [
        ("labels", {"objective": {"name": "classify"}, "evaluation": {"max_samples": 50}}),
        ("fields", {"evaluation": {"metrics": ["exact_match", "token_f1"], "max_samples": 50}}),
        ("style", {"evaluation": {"max_samples": 50}}),
    ],
)
def test_the_purpose_decides_what_is_learned(
    browser: Browser, dataset: str, plans: Plans, goal: str, keys: dict[str, Any]
) -> None:
    quick, _ = recipe_links(browser("train").get(f"/start?dataset={dataset}&goal={goal}").text)
    assert {name: quick[name] for name in ("objective", "evaluation") if name in quick} == keys


def test_preferences_are_learned_from_pairs(home: Context, browser: Browser, model: None, plans: Plans) -> None:
    pairs = add_dataset(home, "Pairs", [{"prompt": f"{n}?", "chosen": "yes", "rejected": "no"} for n in range(9)])
    page = browser("train").get(f"/start?dataset={pairs}").text
    assert sent(page)["goal"] == "preferences"
    assert recipe_links(page)[0]["objective"] == {"name": "dpo"}


def test_purpose_and_data_that_do_not_go_together_are_named(browser: Browser, dataset: str, plans: Plans) -> None:
    page = browser("train").get(f"/start?dataset={dataset}&goal=preferences").text
    assert "each row of “Client questions” holds a question and an answer" in page
    assert "Answer questions, Sort texts into categories" in page, "what these rows are good for"
    assert plans.recipes == []
    assert "/start/run" not in page


def test_until_both_are_planned_the_page_asks_again(browser: Browser, dataset: str, plans: Plans) -> None:
    plans.answer = None
    one = browser("train")
    page = one.get(f"/start?dataset={dataset}").text
    assert '<meta http-equiv="refresh" content="3">' in page, "without scripts"
    again = re.search(r'hx-get="(/start/plans\?[^"]+)"', page)
    assert again
    piece = one.get(unescape(again[1]), headers=HTMX).text
    assert "plan 1 of 2" in piece
    assert "<html" not in piece
    plans.answer = Planned(json.loads(ANSWER.read_text(encoding="utf-8")))
    piece = one.get(unescape(again[1]), headers=HTMX).text
    assert "hx-get" not in piece
    assert "Peak memory" in piece


def test_it_starts_once(home: Context, browser: Browser, dataset: str, plans: Plans) -> None:
    one = browser("train", "read")
    form = sent(one.get(f"/start?dataset={dataset}").text) | {"size": "better"}
    first, second = one.post("/start/run", data=form), one.post("/start/run", data=form)
    (job,) = home.jobs.list()
    assert first.headers["location"] == second.headers["location"] == f"/runs/{job.run_id}"
    assert job.document["asked"]["training"] == {"epochs": 3}
    assert "“Client questions · tiny · " in unescape(one.get("/").text), "the notice has its name"


@pytest.mark.parametrize(("status", "num_jobs"), [("running", 1), ("paused", 1), ("failed", 2), ("cancelled", 2)])
def test_a_page_that_one_comes_back_to_starts_again_once_its_run_has_ended(
    home: Context, browser: Browser, dataset: str, plans: Plans, status: str, num_jobs: int
) -> None:
    """The page of the browser's back button has the draft of the run that it has started."""
    one = browser("train", "read")
    form = sent(one.get(f"/start?dataset={dataset}").text)
    one.post("/start/run", data=form)
    (first,) = home.jobs.list()
    with home.database.write() as connection:
        connection.exec_driver_sql("UPDATE jobs SET status = ?", (status,))
    again = one.post("/start/run", data=form).headers["location"]
    assert len(home.jobs.list()) == num_jobs
    assert (again == f"/runs/{first.run_id}") == (num_jobs == 1)
    notice = unescape(one.get("/").text)
    assert ("This run was started already." in notice) == (num_jobs == 1)
    assert ("is queued" in notice) == (num_jobs == 2)


def test_it_does_not_start_before_it_is_planned_or_against_the_plan(
    home: Context, browser: Browser, dataset: str, plans: Plans
) -> None:
    one = browser("train")
    form = sent(one.get(f"/start?dataset={dataset}").text)
    plans.answer = None
    answer = one.post("/start/run", data=form)
    assert answer.headers["location"].startswith("/start?goal=answers&dataset=")
    assert "The plan is not ready yet" in one.get(answer.headers["location"]).text
    plans.answer = Planned(error=RequestError("a row is too long", expected="shorter rows", do="cut them"))
    assert one.post("/start/run", data=form).status_code == 422
    assert one.post("/start/run", data={"size": "quick"}).headers["location"].startswith("/start?")
    assert home.jobs.list() == []


def test_all_settings_have_the_same_recipe(browser: Browser, dataset: str, plans: Plans) -> None:
    one = browser("train")
    page = one.get(f"/start?dataset={dataset}&goal=labels").text
    link = re.search(r'href="(/runs/new\?recipe=[^"]+)"', page)
    assert link
    form = one.get(unescape(link[1])).text
    text = re.search(r'<textarea id="f-text"[^>]*>(.*?)</textarea>', form, re.S)
    assert text
    assert yaml.safe_load(unescape(text[1])) == recipe_links(page)[0]
    assert '<option value="classify" selected>' in form
    assert one.get("/runs/new", params={"recipe": f"base_model: {HOSTILE}"}).text.count("<img src=x") == 0


def test_a_version_and_a_base_model_can_be_named(home: Context, browser: Browser, dataset: str, plans: Plans) -> None:
    one = browser("train")
    page = one.get(f"/start?dataset={dataset}&version=1&base_model=tiny").text
    assert sent(page)["dataset"] == f"{dataset}:1"
    assert sent(page)["base_model"] == "tiny"
    assert one.get(f"/start?dataset={dataset}&version=2").status_code == 404
    assert one.get(f"/start?dataset={dataset}&base_model=no-such").status_code == 422


def test_a_server_without_a_model_offers_to_fetch_one(
    home: Context, browser: Browser, plans: Plans, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = add_dataset(home, "Client questions", [{"prompt": "a?", "completion": "b."}] * 3)
    one = browser("train")
    page = one.get(f"/start?dataset={rows}").text
    assert "SmolLM2 135M Instruct is not on this server yet" in page
    assert plans.recipes == []
    fetched: list[str] = []

    class Fetched:
        title = "SmolLM2"

    def pull(_: Context, name: str, **_given: object) -> type[Fetched]:
        fetched.append(name)
        return Fetched

    monkeypatch.setattr("luthier.features.guided_runs.pages.pull_model", pull)
    back = unescape(re.search(r'name="back" value="([^"]+)"', page)[1])  # type: ignore[index]
    answer = one.post("/start/model", data={"name": "smollm2-135m-instruct", "back": back})
    assert (answer.headers["location"], fetched) == (back, ["smollm2-135m-instruct"])
    for back in ("/models?show=base", "/models/smollm2-135m-instruct"):
        answer = one.post("/start/model", data={"name": "smollm2-135m-instruct", "back": back})
        assert answer.headers["location"] == back
    for elsewhere in ("//elsewhere.example/", "https://elsewhere.example/start?", "/settings/keys"):
        away = one.post("/start/model", data={"name": "smollm2-135m-instruct", "back": elsewhere})
        assert away.headers["location"] == "/start"
    assert one.post("/start/model", data={"name": "/etc"}).status_code == 422


def test_a_download_is_cancelled_by_its_page(browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = threading.Event()

    def pull(_: Context, name: str, *, progress: Progress) -> None:
        with progress.task(f"Downloading {name}", 10, "bytes") as task:
            begun.set()
            wait_for(lambda: task.advance(0))  # type: ignore[func-returns-value]

    monkeypatch.setattr("luthier.features.guided_runs.pages.pull_model", pull)
    monkeypatch.setattr(page_work, "WAIT_SECONDS", 0.0)
    one = browser("train")
    page = one.post("/start/model", data={"name": "smollm2-135m-instruct"}).headers["location"]
    assert begun.wait(60)
    assert f'action="{page}/cancel"' in one.get(page).text
    assert one.post(f"{page}/cancel").headers["location"] == page
    wait_for(lambda: one.get(page).status_code == 409)
    assert "the download of SmolLM2 135M Instruct was cancelled" in one.get(page).text


def test_who_may_not_train_and_other_projects(home: Context, browser: Browser, dataset: str, plans: Plans) -> None:
    reader = browser("read", "infer")
    for method, path in (("GET", ""), ("GET", "/plans"), ("POST", "/run"), ("POST", "/model")):
        assert reader.request(method, f"/start{path}", data={"name": "tiny"}).status_code == 403
    assert "/start" not in reader.get("/").text
    create_project(home, "b")
    other: TestClient = browser("train", project="b")
    assert other.get(f"/start?dataset={dataset}").status_code == 404
    assert other.get(f"/start/plans?dataset={dataset}").status_code == 404
    assert other.post("/start/run", data={"dataset": dataset, "goal": "answers"}).status_code == 404
    assert "Client questions" not in other.get("/start").text
    assert home.jobs.list() == []


def test_names_of_datasets_are_escaped(home: Context, browser: Browser, model: None, plans: Plans) -> None:
    found = add_dataset(home, HOSTILE, [{"prompt": "a?", "completion": "b."}] * 3)
    assert "<img src=x" not in browser("train").get(f"/start?dataset={found}").text


def test_a_run_that_cannot_be_planned_leads_back_to_its_answers(browser: Browser, dataset: str, plans: Plans) -> None:
    plans.answer = Planned(error=RequestError("no room for it", expected="a smaller model", do="choose another one"))
    one = browser("train", "read")
    answers = {"goal": "style", "dataset": dataset, "size": "better", "draft": "abc"}
    answer = one.post("/start/run", data=answers)
    assert (answer.status_code, "no room for it" in answer.text) == (422, True)
    back = unescape(answer.text.partition('<a class="button primary" href="')[2].partition('"')[0])
    asked = parse_qs(urlsplit(back).query)
    assert {name: asked[name] for name in answers} == {name: [value] for name, value in answers.items()}
    assert sent(one.get(back).text)["size"] == "better"
