"""The form of a new run: text and fields in step, the plan where it belongs, and the start."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from tests.homes import STUDY_ID, add_study
from tests.vacuous import nonempty

from luthier.core.access import Caller
from luthier.core.errors import RequestError
from luthier.core.ports import SilentProgress
from luthier.features.datasets import service as dataset_versions
from luthier.features.datasets.derived_versions import MadeSplit, SplitWishes, split_dataset
from luthier.features.planning.drafts import DraftPlanner, Planned
from luthier.platform.auth.service import create_project
from luthier.platform.home.context import Context
from luthier.platform.jobs.records import Job
from luthier.testing.records import RUN_ID, make_plan, make_record

Browser = Callable[..., TestClient]
HTMX = {"HX-Request": "true"}
HOSTILE = '"><img src=x onerror=alert(1)><script>alert(1)</script>\u202etxt'
ANSWER = Path(__file__).with_name("planned.json")


@pytest.fixture
def dataset(home: Context, tiny_model: Path) -> tuple[str, str]:
    """A dataset of chats, and the id of its file; the home has pulled a model that is called `tiny`."""
    from luthier.ml.inference.models import sources

    sources.pull(str(tiny_model), home.home, SilentProgress())
    rows = [
        {"messages": [{"role": "user", "content": f"And {n}?"}, {"role": "assistant", "content": f"Then {n + 1}."}]}
        for n in range(24)
    ]
    return add_dataset(home, "Support", rows)


def add_dataset(home: Context, name: str, rows: list[dict[str, Any]]) -> tuple[str, str]:
    file = dataset_versions.keep_rows(home, Caller(), [f"{json.dumps(row)}\n".encode() for row in rows], "rows.jsonl")
    made, version = dataset_versions.create_dataset(home, Caller(), name, file)
    return made.dataset_id, version.file_id


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The recipes that were planned: none is, in truth; each gets the same answer."""
    found: list[dict[str, Any]] = []

    def plan(_: DraftPlanner, project_id: str, draft: str, recipe: dict[str, Any], **__: Any) -> Planned:
        found.append(dict(recipe))
        if recipe.get("training", {}).get("epochs") == 99:
            return Planned(error=RequestError("training.epochs 99 is a lot", expected="fewer", do="take 9"))
        return Planned(json.loads(ANSWER.read_text(encoding="utf-8")))

    monkeypatch.setattr(DraftPlanner, "plan", plan)
    monkeypatch.setattr(DraftPlanner, "wake", lambda _: None)
    return found


def text_of(page: str) -> str:
    found = re.search(r'<textarea id="f-text"[^>]*>\n?(.*?)</textarea>', page, re.S)
    assert found, "the text of the recipe is shown"
    return unescape(found[1])


def post(one: TestClient, what: str = "plan", **form: str) -> Any:
    return one.post(f"/runs/new/{what}", data=form, headers=HTMX)


def test_without_rows_the_page_teaches_the_next_step(browser: Browser) -> None:
    page = browser("train").get("/runs/new")
    assert page.status_code == 200
    assert 'href="/datasets/new"' in page.text
    assert "<textarea" not in page.text


def test_it_begins_with_the_rows_of_a_dataset(browser: Browser, dataset: tuple[str, str]) -> None:
    one = browser("train")
    page = one.get(f"/runs/new?dataset={dataset[0]}&version=1").text
    assert text_of(page) == (
        f"base_model: tiny\ndata:\n  train: {dataset[1]}  # Support, version 1, 24 rows\n  held_out: 0.1\n"
    )
    assert f'value="{dataset[1]}" selected' in page
    assert one.get(f"/runs/new?dataset={dataset[0]}&version=2").status_code == 404
    assert one.get("/runs/new?dataset=data-20260101-000000-abcdef").status_code == 404


def test_readers_may_not_and_other_projects_see_nothing(
    home: Context, browser: Browser, dataset: tuple[str, str]
) -> None:
    reader = browser("read")
    for method, way in (("GET", ""), ("POST", "/plan"), ("POST", "/start")):
        assert reader.request(method, f"/runs/new{way}", data={}).status_code == 403
    create_project(home, "b")
    other = browser("train", project="b")
    assert other.get(f"/runs/new?dataset={dataset[0]}").status_code == 404
    assert dataset[1] not in other.get("/runs/new").text
    text = f"base_model: tiny\ndata: {{train: {dataset[1]}}}"
    answer = post(other, "start", text=text, side="text")
    assert "the id of a file of this project" in answer.text
    assert home.jobs.list() == []


def test_fields_change_the_text_and_keep_what_they_do_not_have(
    browser: Browser, dataset: tuple[str, str], asked: list[dict[str, Any]]
) -> None:
    one = browser("train")
    text = f"base_model: tiny\ndata: {{train: {dataset[1]}}}\nevaluation: {{few_shot: 2}}\ntraining: {{epochs: 2}}"
    form = {"base_model": "tiny", "data.train": dataset[1], "data.held_out": "share", "data.held_out-percent": "12.5"}
    form |= {"training.epochs": "", "training.learning_rate": "0.0003", "method.name": "", "method.rank": "8"}
    answer = post(one, text=text, side="fields", **form)
    assert asked[-1] == {
        "base_model": "tiny",
        "data": {"train": dataset[1], "held_out": 0.125},
        "evaluation": {"few_shot": 2},
        "training": {"learning_rate": 0.0003},
        "method": {"name": "lora", "rank": 8},
    }
    shown = text_of(answer.text)
    assert "held_out: 0.125" in shown
    assert "epochs" not in shown
    assert 'id="recipe-text"' in answer.text
    assert 'id="fields"' not in answer.text, "the side that was changed is left alone"
    assert re.search(r'id="why-training-epochs" hx-swap-oob="true"[^>]*>\s*<b>2</b> decided: two passes', answer.text)


def test_several_sources_stay_as_they_are_until_a_file_is_chosen(
    browser: Browser, dataset: tuple[str, str], asked: list[dict[str, Any]]
) -> None:
    one, sources = browser("train"), [{"path": dataset[1], "weight": 2}, {"path": dataset[1], "weight": 1, "rows": 9}]
    text = f"base_model: tiny\ndata: {{train: {json.dumps(sources)}}}\n"
    page = one.post("/runs/new/plan", data={"text": text, "side": "text"}).text
    assert '<option value="sources" selected>2 sources of the recipe</option>' in page
    for rows, words in ((sources[:1], "1 source of the recipe"), (sources[0], None)):
        asks = f"base_model: tiny\ndata: {{train: {json.dumps(rows)}}}\n"
        answer = one.post("/runs/new/plan", data={"text": asks, "side": "text"}).text
        assert (words is not None) == ('<option value="sources"' in answer), "a mapping alone is no list"
        assert words is None or words in answer
    post(one, text=text, side="fields", **{"data.train": "sources", "training.epochs": "3"})
    assert asked[-1]["data"] == {"train": sources}
    assert asked[-1]["training"] == {"epochs": 3}
    post(one, text=text, side="fields", **{"data.train": dataset[1]})
    assert asked[-1]["data"] == {"train": dataset[1]}
    judged = [{"path": dataset[1]}, {"path": dataset[1], "name": "other"}]
    text = f"base_model: tiny\ndata: {{train: {dataset[1]}, held_out: {json.dumps(judged)}}}\n"
    post(one, text=text, side="fields", **{"data.train": dataset[1], "data.held_out": "sources"})
    assert asked[-1]["data"] == {"train": dataset[1], "held_out": judged}


def test_rows_optimizer_machine_and_evaluation_have_fields(
    browser: Browser, dataset: tuple[str, str], asked: list[dict[str, Any]]
) -> None:
    one, text = browser("train"), f"base_model: tiny\ndata: {{train: {dataset[1]}}}\n"
    form = {"data.group_by": "customer", "data.replay.file": dataset[1], "data.replay.held_out": "share"}
    form |= {"objective.loss_weighting": "sample", "training.optimizer.name": "muon", "training.max_grad_norm": "2"}
    form |= {"training.micro_batch_workers": "auto", "training.packing": "false", "evaluation.few_shot_nearest": "auto"}
    form |= {"evaluation.good_enough.value": "0.9", "evaluation.metrics": "rouge, exact_match"}
    page = post(one, text=text, side="fields", **form)
    assert asked[-1] == {
        "base_model": "tiny",
        "data": {"train": dataset[1], "group_by": "customer", "replay": {"file": dataset[1], "held_out": 0.1}},
        "objective": {"name": "sft", "loss_weighting": "sample"},
        "training": {
            "optimizer": {"name": "muon"},
            "max_grad_norm": 2,
            "micro_batch_workers": "auto",
            "packing": False,
        },
        "evaluation": {
            "metrics": ["rouge", "exact_match"],
            "few_shot_nearest": "auto",
            "good_enough": {"value": 0.9},
        },
    }
    shown = post(one, text=text_of(page.text), side="text").text
    for name, value in form.items():
        assert value_of(shown, name) == value, name
    assert "24 keys have no field" in post(one, text=text, side="fields").text


def test_the_text_changes_the_fields(browser: Browser, dataset: tuple[str, str], asked: list[dict[str, Any]]) -> None:
    text = f"# mine\nbase_model: tiny\ndata: {{train: {dataset[1]}}}\nmethod: {{name: adalora, target_rank: 4}}\n"
    answer = post(browser("train"), text=text, side="text", **{"method.name": "lora", "training.epochs": "7"})
    assert asked[-1]["method"] == {"name": "adalora", "target_rank": 4}
    assert "training" not in asked[-1]
    assert "<textarea" not in answer.text, "what somebody writes is left alone"
    assert 'id="fields"' in answer.text
    assert re.search(r'name="method.target_rank"[^>]*value="4"', answer.text)


def test_what_is_wrong_is_shown_where_it_belongs(
    browser: Browser, dataset: tuple[str, str], asked: list[dict[str, Any]]
) -> None:
    one, rows = browser("train"), f"base_model: tiny\ndata: {{train: {dataset[1]}}}\n"
    unknown = post(one, text=f"{rows}training: {{learning_rat: 1}}", side="text").text
    assert "nearest known: training.learning_rate" in unescape(unknown)
    assert asked == []
    broken = post(one, text="a: b: c", side="text").text
    assert "not valid YAML" in broken
    field = post(one, text=rows, side="fields", **{"training.epochs": "-2"}).text
    assert re.search(r'id="why-training-epochs"[^>]*>[^<]*expected a number greater than 0', unescape(field))
    refused = post(one, text=rows, side="fields", **{"training.epochs": "99"}).text
    assert re.search(r'id="why-training-epochs"[^>]*>training.epochs 99 is a lot', refused)
    assert re.search(r"disabled>Start the run", refused)
    whole = one.post("/runs/new/plan", data={"text": rows, "side": "fields", "training.epochs": "99"}).text
    assert re.search(r'name="training.epochs"[^>]*aria-invalid="true"', whole)
    for text in (rows + "x: &a [*a]", "x" * 70_000, "- a", "a: \U0001f600", "\x00"):
        assert post(one, text=text, side="text").status_code == 200


@pytest.mark.parametrize(
    ("wrong", "place"),
    [
        ("base_model: [tiny]", "base_model"),
        ("base_model: {name: tiny}", "base_model"),
        ("base_model: tiny\nmethod: {name: [lora]}", "method.name"),
        ("base_model: tiny\nobjective: {name: {a: b}}", "objective.name"),
    ],
)
def test_a_name_that_is_no_text_is_one_of_the_problems(
    browser: Browser, dataset: tuple[str, str], asked: list[dict[str, Any]], wrong: str, place: str
) -> None:
    one, text = browser("train"), f"{wrong}\ndata: {{train: {dataset[1]}}}\n"
    for headers in (HTMX, {}):
        answer = one.post("/runs/new/plan", data={"text": text, "side": "text"}, headers=headers)
        assert answer.status_code == 200
        assert place in answer.text
    assert asked == []


def test_another_method_or_objective_drops_what_it_would_refuse(
    browser: Browser, dataset: tuple[str, str], asked: list[dict[str, Any]]
) -> None:
    one = browser("train")
    text = f"base_model: tiny\ndata: {{train: {dataset[1]}}}\nmethod: {{name: lora, rank: 8, dropout: 0.2}}\n"
    form = {"method.name": "full", "method.rank": "8", "method.dropout": "0.2", "shown-settings": "lora/"}
    answer = post(one, text=text, **form).text
    assert asked[-1]["method"] == {"name": "full"}
    assert 'id="settings"' in answer
    post(one, text=text, **{"objective.name": "grpo"})
    assert asked[-1]["objective"]["rewards"] == [{"metric": "token_f1", "weight": 1.0}]
    post(one, text=text + "objective: {name: grpo, rewards: [bleu], num_generations: 4}", **{"objective.name": "dpo"})
    assert asked[-1]["objective"] == {"name": "dpo"}
    labels = "objective: {name: classify, multi_label: true, class_weights: balanced, label_smoothing: 0.1}"
    post(one, text=text + labels, **{"objective.name": "sft", "objective.label_smoothing": "0.1"})
    assert asked[-1]["objective"] == {"name": "sft", "label_smoothing": 0.1}
    post(one, text=text, apply="--set method.name=full --set training.epochs=1")
    assert asked[-1]["method"] == {"name": "full"}
    assert asked[-1]["training"] == {"epochs": 1}


def value_of(page: str, name: str) -> str:
    """What the element of a field holds."""
    found = re.search(rf'<(select|textarea|input) [^>]*name="{name}"(.*?)(?:</\1>|>\s*<p)', page, re.S)
    assert found, name
    if found[1] == "select":
        chosen = re.search(r'<option value="([^"]*)" selected', found[2])
        return unescape(chosen[1]) if chosen else ""
    if found[1] == "textarea":
        return unescape(found[2].partition(">")[2]).removeprefix("\n")
    held = re.search(r'value="([^"]*)"', found[2])
    assert held, name
    return unescape(held[1])


def test_the_fields_of_a_head_say_what_the_recipe_says(
    browser: Browser, dataset: tuple[str, str], asked: list[dict[str, Any]]
) -> None:
    one = browser("train")
    rows = f"base_model: tiny\ndata: {{train: {dataset[1]}}}\n"
    form = {"objective.name": "classify", "objective.multi_label": "true", "objective.class_weights": "balanced"}
    post(one, text=rows, **form)
    assert asked[-1]["objective"] == {"name": "classify", "multi_label": True, "class_weights": "balanced"}
    post(one, text=rows, **form | {"objective.multi_label": "false", "objective.class_weights": "none"})
    assert asked[-1]["objective"] == {"name": "classify", "multi_label": False, "class_weights": "none"}
    form = {"objective.name": "embed", "objective.dimensions": "[64 32]", "objective.pooling": "last"}
    form |= {"objective.query_prompt": "Find:\r\nquery: ", "objective.document_prompt": "12"}
    answer = post(one, text=rows, **form, **{"shown-settings": "/"}).text
    expected = {"name": "embed", "dimensions": [64, 32], "pooling": "last"}
    assert asked[-1]["objective"] == expected | {"query_prompt": "Find:\nquery: ", "document_prompt": "12"}
    assert value_of(answer, "objective.query_prompt") == "Find:\nquery: "
    post(one, text=text_of(answer), **form | {"objective.dimensions": "", "objective.query_prompt": ""})
    assert asked[-1]["objective"] == {"name": "embed", "pooling": "last", "document_prompt": "12"}


def test_what_the_fields_of_a_head_show_comes_back_as_it_was(
    browser: Browser, dataset: tuple[str, str], asked: list[dict[str, Any]]
) -> None:
    one = browser("train")
    prompt = "\n <b>query</b> \u200b:\t \n"
    objective = {"name": "embed", "dimensions": [64, 32], "pooling": "mean", "query_prompt": prompt, "temperature": 0.1}
    text = f"base_model: tiny\ndata: {{train: {dataset[1]}}}\nobjective: {json.dumps(objective)}\n"
    page = post(one, text=text, side="text").text
    assert asked[-1]["objective"] == objective
    names = [f"objective.{name}" for name in ("name", "dimensions", "pooling", "query_prompt", "temperature")]
    # Browsers send CRLF.
    form = {name: value_of(page, name).replace("\n", "\r\n") for name in names}
    post(one, text=text, **form)
    assert asked[-1]["objective"] == objective


def test_a_wrong_value_of_a_head_is_shown_where_it_belongs(browser: Browser, dataset: tuple[str, str]) -> None:
    one = browser("train")
    text = f"base_model: tiny\ndata: {{train: {dataset[1]}}}\n"
    for name, wrong in (("dimensions", "64, many"), ("pooling", "first"), ("multi_label", "perhaps")):
        kind = "classify" if name == "multi_label" else "embed"
        form = {"objective.name": kind, f"objective.{name}": wrong, "shown-settings": "/"}
        page = post(one, text=text, **form).text
        assert re.search(rf'id="why-objective-{name}">[^<]*expected', unescape(page)), name
        assert re.search(rf'name="objective.{name}"[^>]*aria-invalid="true"', page), name


def test_objectives_that_do_not_fit_the_rows_cannot_be_chosen(
    home: Context, browser: Browser, dataset: tuple[str, str]
) -> None:
    pairs, _ = add_dataset(home, "Pairs", [{"prompt": "a", "chosen": "b", "rejected": "c"}] * 3)
    one = browser("train")
    chats, preferences = (one.get(f"/runs/new?dataset={which}").text for which in (dataset[0], pairs))
    assert re.search(r'<option value="dpo" disabled>', chats)
    assert re.search(r'<option value="sft">', chats)
    assert re.search(r'<option value="dpo">', preferences)
    assert re.search(r'<option value="sft" disabled>', preferences)


def test_the_plan_is_shown_with_intervals_advice_and_reasons(
    browser: Browser, dataset: tuple[str, str], asked: list[dict[str, Any]]
) -> None:
    text = f"base_model: tiny\ndata: {{train: {dataset[1]}}}"
    page = browser("train").post("/runs/new/plan", data={"text": text, "side": "text"}).text
    for words in ("Peak memory", "Advice: ", "On other machines", "Every value, and why", "H100", "no held-out rows"):
        assert words in page, words
    assert re.search(r"<rect class=\"part part-weights\"[^>]*><title>base model", page)
    assert "style=" not in page
    assert asked


def test_a_model_that_is_not_there_is_fetched_only_when_asked(
    browser: Browser, dataset: tuple[str, str], asked: list[dict[str, Any]]
) -> None:
    text, one = f"base_model: smollm2-135m-instruct\ndata: {{train: {dataset[1]}}}", browser("train")
    answer = post(one, text=text, side="text").text
    assert asked == []
    assert "Fetch and plan" in answer
    post(one, text=text, side="text", fetch="1")
    assert asked


def test_a_slow_plan_is_asked_for_again(
    home: Context, browser: Browser, dataset: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DraftPlanner, "plan", lambda *_, **__: None)
    text, one = f"base_model: tiny\ndata: {{train: {dataset[1]}}}", browser("train")
    answer = post(one, text=text, side="text").text
    assert 'hx-trigger="load delay:250ms"' in answer
    assert "Planning: rows are read" in answer
    started = post(one, "start", text=text, side="text")
    assert (started.status_code, "Then the run starts" in started.text) == (200, True), "it starts once it is planned"
    assert home.jobs.list() == []


def test_started_once_and_led_to_its_run(
    home: Context, browser: Browser, dataset: tuple[str, str], asked: list[dict[str, Any]]
) -> None:
    one, text = browser("train"), f"base_model: tiny\ndata: {{train: {dataset[1]}}}\n"
    form = {"text": text, "side": "text", "draft": "d1"}
    answer = one.post("/runs/new/start", data=form)
    job = home.jobs.list()[0]
    assert (answer.status_code, answer.headers["location"]) == (303, f"/runs/{job.run_id}")
    assert job.document["asked"] == {"base_model": "tiny", "data": {"train": dataset[1]}}
    again = one.post("/runs/new/start", data=form, headers=HTMX)
    assert (again.status_code, again.headers["hx-redirect"]) == (204, f"/runs/{job.run_id}")
    assert len(home.jobs.list()) == 1, "a second click starts no second run"
    one.post("/runs/new/start", data=form | {"draft": "d2"})
    assert len(home.jobs.list()) == 2
    wrong = post(one, "start", text=text + "training: {epochs: 99}", side="text")
    assert (wrong.status_code, len(home.jobs.list())) == (422, 2)
    assert "is a lot" in wrong.text


def test_a_run_is_forked(home: Context, browser: Browser, dataset: tuple[str, str]) -> None:
    one = browser("train")
    recipe = {"base_model": "tiny", "data": {"train": dataset[1]}, "method": {"name": "lora", "rank": 4}}
    job = Job(job_id="job-1", kind="train", document={"asked": recipe}, run_id="run-20260101-000000-abcdef")
    home.jobs.submit(job)
    page = one.get(f"/runs/new?from={job.run_id}").text
    assert "rank: 4" in text_of(page)
    assert dataset[1] in text_of(page)
    home.runs.create(make_record(), make_plan())
    page = one.get(f"/runs/new?from={RUN_ID}").text
    assert "Left out: " in page
    assert str(home.home) not in page
    create_project(home, "b")
    assert browser("train", project="b").get(f"/runs/new?from={RUN_ID}").status_code == 404
    assert one.get("/runs/new?from=run-20260101-000000-aaaaaa").status_code == 404


def test_the_recipe_of_a_study_opens_in_the_form(home: Context, browser: Browser, dataset: tuple[str, str]) -> None:
    one = browser("train")
    add_study(home, {"status": "done"})
    address = f"/runs/new?study={STUDY_ID}"
    assert one.get(address).status_code == 409, "no winner is named"
    study = home.studies.get(STUDY_ID)
    home.studies.save(study.model_copy(update={"winner": 1}))
    home.runs.create(make_record(home.studies.trials(STUDY_ID)[1].run_id), make_plan())
    page = one.get(address).text
    assert "rank: 4" in text_of(page)
    assert "learning_rate: 0.0003" in text_of(page)
    assert f'href="/studies/{STUDY_ID}"' in page
    assert "Left out: " in page
    assert str(home.home) not in page
    create_project(home, "b")
    assert browser("train", project="b").get(address).status_code == 404


def test_hostile_names_and_texts_show_as_text(
    home: Context, browser: Browser, dataset: tuple[str, str], asked: list[dict[str, Any]]
) -> None:
    from luthier.platform.db.tables import datasets

    with home.database.write() as connection:
        connection.execute(datasets.update().values(name=HOSTILE))
    one = browser("train")
    pages = [one.get(f"/runs/new?dataset={dataset[0]}").text, one.get("/runs/new", params={"base_model": HOSTILE}).text]
    pages.append(post(one, text=f"base_model: '{HOSTILE}'\ndata: {{train: '{HOSTILE}'}}", side="text").text)
    pages.append(post(one, text=HOSTILE, side="text").text)
    pages.append(post(one, text=f"'{HOSTILE}': 1", side="fields", **{"training.epochs": HOSTILE}).text)
    for page in pages:
        assert "<img" not in page.replace('<img src="/assets', "")
        assert "<script>alert" not in page
        assert "\u202e" not in page
    assert "&lt;script&gt;" in "".join(pages)


def split(home: Context, dataset_id: str) -> MadeSplit:
    version = dataset_versions.get_version(home, Caller(), dataset_id)
    return split_dataset(home, Caller(), version, SplitWishes(0.2, 0.2))


def words(page: str) -> str:
    return " ".join(unescape(re.sub("<[^>]*>", " ", page)).split())


def test_the_sides_of_a_proved_split_judge_what_its_train_side_learns(
    home: Context, browser: Browser, dataset: tuple[str, str]
) -> None:
    made, one = split(home, dataset[0]), browser("train", "read")
    link = re.search(r'href="(/runs/new[^"]*)"[^>]*>New run', one.get(f"/datasets/{dataset[0]}/split").text)
    assert link
    page = one.get(unescape(link[1])).text
    sides = {name: version.file_id for name, (_, version) in made.sides.items()}
    for name in ("train", "validation", "held_out"):
        assert f"{name}: {sides[name]}" in text_of(page)
    assert "Proved split of Support" in words(page)
    assert "0 near-duplicates" in words(page)


@pytest.mark.parametrize("way", ["/datasets/{side}", "/datasets/{side}/annotate"])
def test_every_way_from_a_side_of_a_split_keeps_the_split(
    home: Context, browser: Browser, dataset: tuple[str, str], way: str
) -> None:
    made, one = split(home, dataset[0]), browser("train", "read")
    page = one.get(way.format(side=made.sides["train"][0].dataset_id)).text
    links = [unescape(link) for link in re.findall(r'href="(/start[?][^"]*)"', page)]
    assert links
    for link in links:
        whole = [unescape(to) for to in re.findall(r'href="(/runs/new[?]recipe=[^"]*)"', one.get(link).text)]
        for to in nonempty(whole):
            assert f"held_out: {made.sides['held_out'][1].file_id}" in text_of(one.get(to).text)


def test_rows_that_were_changed_since_are_judged_by_the_side_and_said_to_be_unproved(
    home: Context, browser: Browser, dataset: tuple[str, str]
) -> None:
    made, one = split(home, dataset[0]), browser("train")
    train, version = made.sides["train"]
    file = dataset_versions.keep_rows(home, Caller(), [b'{"prompt": "a", "completion": "b"}\n'], "rows.jsonl")
    dataset_versions.add_version(home, Caller(), train.dataset_id, file, origin="repair", parent=version.number)
    page = one.get(f"/runs/new?dataset={train.dataset_id}").text
    assert f"held_out: {made.sides['held_out'][1].file_id}" in text_of(page)
    assert "The proof does not cover the training rows as they are now" in words(page)
    assert f"version={version.number}" in page, "the proved rows are one link away"


def test_a_side_that_judges_and_rows_that_have_a_split_lead_to_the_train_side(
    home: Context, browser: Browser, dataset: tuple[str, str]
) -> None:
    made, one = split(home, dataset[0]), browser("train")
    way = f"/runs/new?dataset={made.sides['train'][0].dataset_id}&amp;version=1"
    judging = one.get(f"/runs/new?dataset={made.sides['held_out'][0].dataset_id}").text
    assert "These rows are the held-out side of a split" in words(judging)
    assert way in judging
    whole = one.get(f"/runs/new?dataset={dataset[0]}").text
    assert "This version has a proved split" in words(whole)
    assert way in whole


def test_without_its_held_out_side_the_form_says_what_judges_instead(
    home: Context, browser: Browser, dataset: tuple[str, str]
) -> None:
    made, one = split(home, dataset[0]), browser("train")
    dataset_versions.remove_dataset(home, Caller(), made.sides["held_out"][0].dataset_id)
    page = one.get(f"/runs/new?dataset={made.sides['train'][0].dataset_id}").text
    assert "held_out: 0.1" in text_of(page)
    assert "The proof does not cover the held-out rows" in words(page)


@pytest.mark.parametrize("is_proved", [True, False])
def test_the_plan_says_whether_a_proof_covers_the_rows_that_judge(
    browser: Browser, dataset: tuple[str, str], monkeypatch: pytest.MonkeyPatch, is_proved: bool
) -> None:
    planned = json.loads(ANSWER.read_text(encoding="utf-8"))
    data = planned["plan"]["data"]
    data["held_out"] = data["train"] | {"split": "held_out", "sha256": "b" * 64}
    proof = {"rows_sha256": "c" * 64, "num_rows": 30, "seed": 0, "near_threshold": 0.8, "near_duplicate": 0}
    data["split"] = {"covers": ["held_out"], **proof} if is_proved else None
    monkeypatch.setattr(DraftPlanner, "plan", lambda *_, **__: Planned(planned))
    said = words(post(browser("train"), text=f"base_model: tiny\ndata: {{train: {dataset[1]}}}", side="text").text)
    assert ("The held-out rows are a side of a proved split: 0 texts, 0 near-duplicates" in said) == is_proved
    assert ("No proof of a split covers the held-out rows" in said) != is_proved


def test_a_draft_that_is_not_planned_yet_starts_once_it_is(
    home: Context, browser: Browser, dataset: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    waited, answers = [], [None, None, Planned(json.loads(ANSWER.read_text(encoding="utf-8")))]

    def plan(*_: Any, wait_seconds: float, **__: Any) -> Planned | None:
        waited.append(wait_seconds)
        return answers.pop(0)

    monkeypatch.setattr(DraftPlanner, "plan", plan)
    one, form = browser("train"), {"text": f"base_model: tiny\ndata: {{train: {dataset[1]}}}", "side": "text"}
    first = post(one, "start", **form)
    assert first.status_code == 200
    assert 'hx-post="/runs/new/start"' in first.text, "it asks again, to start"
    assert "Then the run starts" in first.text
    assert 'hx-post="/runs/new/plan"' in post(one, **form).text, "a plan alone starts nothing"
    assert home.jobs.list() == []
    assert post(one, "start", **form).headers["hx-redirect"].startswith("/runs/run-")
    assert max(waited) <= 0.3, "no request of a script waits for a plan"
