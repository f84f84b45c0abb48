"""The map, the split and the comparison of a dataset's versions, as their pages show them."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from html import unescape
from typing import Any

import pytest
from fastapi.testclient import TestClient

from luthier.core.access import Caller
from luthier.features.datasets import service as dataset_versions
from luthier.features.files import references as file_references
from luthier.platform.home.context import Context
from luthier.platform.processes.analysis_child import answer_to
from luthier.testing.servers import wait_for

Browser = Callable[..., TestClient]
HX = {"HX-Request": "true"}
TOPICS = ("soup bread cheese tasty kitchen", "engine wheel brake fuel tyre", "python loop class import list")
HOSTILE = '<script>alert(1)</script> "><img src=x onerror=alert(1)> \u202e'


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers questions here: tests of the services hold that a process of its own does so."""

    def answer(context: Context, question: str, given: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(json.dumps(answer_to(context, {"question": question, **given})))
        return found

    monkeypatch.setattr(file_references, "answer_to", answer)


def rows(num: int = 60) -> list[dict[str, Any]]:
    draw = random.Random(1)
    made = [
        {"prompt": " ".join(draw.choices(TOPICS[n % 3].split(), k=12)) + f" {n}", "completion": f"answer {n}"}
        for n in range(num)
    ]
    made[0]["prompt"] = HOSTILE + made[0]["prompt"]
    return made


def bring(home: Context, contents: list[dict[str, Any]], name: str = "faq", dataset_id: str | None = None) -> str:
    caller = Caller(name="Ada")
    file = dataset_versions.keep_rows(home, caller, [(json.dumps(r) + "\n").encode() for r in contents], "faq.jsonl")
    if dataset_id is None:
        return dataset_versions.create_dataset(home, caller, name, file)[0].dataset_id
    dataset_versions.add_version(
        home, caller, dataset_id, file, origin="upload", parent=1, note="<b>note</b>", details={}
    )
    return dataset_id


def found(one: TestClient, address: str) -> Any:
    """The page once what it shows was found out."""
    one.get(address)
    wait_for(lambda: "data-look-again" not in one.get(address).text)
    return one.get(address)


def words(answer: Any) -> str:
    return " ".join(unescape(re.sub("<[^>]*>", " ", answer.text)).split())


def is_safe(text: str) -> bool:
    return "<script>alert" not in text and "<img src=x" not in text and "\u202e" not in text


def test_a_map_is_drawn_by_the_first_look(home: Context, browser: Browser) -> None:
    address, one = f"/datasets/{bring(home, rows())}/map", browser("read")
    assert "The map is being drawn" in one.get(address).text
    page = found(one, address)
    assert page.text.count('<path class="dots') >= 3
    assert is_safe(page.text)
    points = one.get(f"{address}/points?version=1").json()["points"]
    assert points[0]["text"].startswith(HOSTILE), "the script puts it in as text"
    assert len(points) == 60


def test_a_map_that_is_not_there_yet_has_no_points(home: Context, browser: Browser) -> None:
    file = dataset_versions.keep_rows(home, Caller(), [b"[{"], "broken.json")
    dataset = dataset_versions.create_dataset(home, Caller(), "broken", file)[0]
    address, one = f"/datasets/{dataset.dataset_id}/map", browser("read")
    page = found(one, address)
    assert "broken.json is not JSON" in page.text
    assert "again=true" in page.text
    assert one.get(f"{address}/points").status_code == 404


def test_the_rows_of_a_group_are_listed_and_led_to_the_queue(home: Context, browser: Browser) -> None:
    address, one = f"/datasets/{bring(home, rows(120))}/map", browser("read")
    found(one, address)
    piece = one.get(f"{address}?version=1&group=0", headers=HX)
    assert piece.text.lstrip().startswith('<section id="rows"')
    assert piece.text.count('<th scope="row"') == 25
    assert "page 1 of 2" in piece.text
    num_rows = int(re.search(r"(\d+) rows</span>", piece.text)[1])  # type: ignore[index]
    queue = unescape(re.search(r'href="([^"]*/annotate[^"]*rows=[^"]*)"', piece.text)[1])  # type: ignore[index]
    assert f"0 of {num_rows} chosen rows decided" in words(one.get(queue))
    second = one.get(f"{address}?version=1&group=0&page=2")
    assert second.text.count('<th scope="row" class="number"><a') == num_rows - 25
    points = one.get(f"{address}/points?version=1").json()["points"]
    hostile = one.get(f"{address}?version=1&group={points[0]['group']}")
    assert "alert(1)" in hostile.text
    assert is_safe(hostile.text)
    assert one.get(f"{address}?version=1&group=9").status_code == 404


def test_few_rows_have_no_map(home: Context, browser: Browser) -> None:
    dataset_id = bring(home, [{"prompt": "p", "completion": "c"}] * 2)
    assert "Nothing to lay out" in found(browser("read"), f"/datasets/{dataset_id}/map").text
    few = bring(home, rows(5), "few")
    page = found(browser("read"), f"/datasets/{few}/map?group=-1")
    assert "All rows are in one list" in page.text
    assert page.text.count('<th scope="row" class="number"><a') == 5


def test_a_split_is_made_and_proved(home: Context, browser: Browser) -> None:
    address, one = f"/datasets/{bring(home, rows())}/split", browser("train", "read")
    form = one.get(address)
    assert "Not split yet" in form.text
    assert '<option value="completion">' in form.text
    sent = {"version": 1, "validation": "20", "held_out": "10", "seed": "1", "near": "on", "near_threshold": "0.8"}
    answer = one.post(address, data=sent)
    assert (answer.status_code, answer.headers["location"].partition("&")[0]) == (303, f"{address}?version=1")
    page = found(one, answer.headers["location"])
    assert 'name="validation" type="number" min="0" max="95" step="any" value="20"' in page.text
    page = words(page)
    for said in ("faq-train v1 42", "Proof that nothing leaks", "faq-held-out v1"):
        assert said in page
    assert "proved" not in words(browser("read").get(address.replace("split", "annotate")))
    assert {dataset.name for dataset, _ in dataset_versions.list_datasets(home, Caller())} == {
        "faq", "faq-train", "faq-validation", "faq-held-out",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        ({"validation": "many"}, "'many' as the share of validation"),
        ({"validation": "96"}, "expected a number from 0 to 95"),
        ({"validation": "60", "held_out": "50"}, "validation"),
        ({"near": "on", "near_threshold": "0.1"}, "'0.1' as the similarity"),
        ({"validation": "0", "held_out": "0"}, "leave nothing to split off"),
        ({"stratify_by": HOSTILE}, "alert(1)"),
        ({"version": "9"}, "no version 9"),
    ],
)
def test_a_split_that_is_refused_keeps_the_form(
    home: Context, browser: Browser, sent: dict[str, str], said: str
) -> None:
    address, one = f"/datasets/{bring(home, rows(20))}/split", browser("train", "read")
    answer = one.post(address, data={"version": "1", "validation": "10", "held_out": "10", "seed": "77"} | sent)
    if answer.status_code == 303:
        answer = found(one, answer.headers["location"])
    assert said in words(answer)
    assert is_safe(answer.text)
    assert "version" in sent or 'value="77"' in answer.text
    assert len(dataset_versions.list_datasets(home, Caller())) == 1


def test_viewers_see_the_proof_and_split_nothing(home: Context, browser: Browser) -> None:
    address = f"/datasets/{bring(home, rows(20))}/split"
    viewer = browser("read")
    assert '<form class="card' not in viewer.get(address).text
    assert viewer.post(address, data={"version": 1, "validation": "10", "held_out": "10"}).status_code == 403


def test_what_changed_between_two_versions(home: Context, browser: Browser) -> None:
    before = rows()
    after = [dict(row) for row in before]
    after[3]["completion"] = "a better answer 3"
    after[5]["completion"] = HOSTILE
    del after[7]
    dataset_id = bring(home, before)
    address, one = f"/datasets/{dataset_id}/compare", browser("read")
    assert "There is only one version" in one.get(address).text
    bring(home, after, dataset_id=dataset_id)
    assert "The versions are being compared" in one.get(address).text
    page = found(one, address)
    assert "<ins>a better </ins>answer 3" in page.text
    assert is_safe(page.text)
    said = words(page)
    for words_said in ("57 rows", "Removed rows", "completion 2", "“<b>note</b>”", "60 rows 59 rows"):
        assert words_said in said
    assert "version 1 against itself" in words(one.get(f"{address}?a=1&b=1"))
    assert "has no &#39;nowhere&#39;" in found(one, f"{address}?a=1&b=2&key=nowhere").text
    assert one.get(f"{address}?a=1&b=9").status_code == 404
