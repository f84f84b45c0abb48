"""/datasets/{id}/audit, /repair and /tokens: begun by a button, seen when they are done, kept as a version."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

from fastapi.testclient import TestClient
from tests.vacuous import nonempty

from luthier.core.access import Caller
from luthier.features.datasets import service as dataset_versions
from luthier.features.datasets.store import DatasetVersion
from luthier.features.models.service import pull_model
from luthier.platform.home.context import Context
from luthier.testing.servers import wait_for

Browser = Callable[..., TestClient]
TRAIN = ("read", "train")
HOSTILE = '<script>alert(1)</script>"><img src=x onerror=alert(1)>'


def chat(question: str, answer: str) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def make(home: Context, rows: list[dict[str, object]], name: str = "Questions") -> DatasetVersion:
    caller = Caller(name="ada")
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    file = dataset_versions.keep_rows(home, caller, [content], "rows.jsonl")
    return dataset_versions.create_dataset(home, caller, name, file)[1]


GOOD = [chat(f"What comes after {n}?", f"After {n} comes {n + 1}.") for n in range(12)]
BAD = [*GOOD, GOOD[3], chat(HOSTILE, HOSTILE), chat(HOSTILE, HOSTILE), chat("Say it", "")]


def done(one: TestClient, address: str) -> str:
    wait_for(lambda: "data-look-again" not in one.get(address).text)
    return one.get(address).text


def test_an_audit_is_begun_seen_and_opened(home: Context, browser: Browser) -> None:
    one, version = browser(*TRAIN), make(home, BAD)
    address = f"/datasets/{version.dataset_id}/audit"
    assert "Not audited yet" in one.get(address).text
    answer = one.post(address, data={"version": "1"})
    assert (answer.status_code, answer.headers["location"]) == (303, f"{address}?version=1")
    page = done(one, answer.headers["location"])
    assert re.search(r'grade-[DF]"', page)
    assert "exact duplicate" in page
    assert "audited <time" in page
    assert "<script>alert" not in page
    links = re.findall(rf'href="({address}/\d+\?version=1)"', page)
    findings = [one.get(link).text for link in links]
    copies = next(text for text in findings if "Exact duplicate" in text)
    assert "&amp;show=all&amp;rows=" in copies, "and they can be gone through one by one"
    assert "What comes after 3?" in copies
    assert "What comes after 4?" not in copies, "only the rows that it is about"
    assert all(nonempty("<script>alert" not in text for text in findings))
    assert one.get(f"{address}/99?version=1").status_code == 404
    viewer = browser("read")
    assert "exact duplicate" in viewer.get(address).text, "what was found is there for all of the project"
    assert "/repair" not in viewer.get(address).text
    assert viewer.post(address, data={"version": "1"}).status_code == 403
    assert "grade-" in one.get("/datasets").text


def test_settings_that_cannot_be_are_told_in_the_form(home: Context, browser: Browser) -> None:
    one, version = browser(*TRAIN), make(home, GOOD)
    address = f"/datasets/{version.dataset_id}"
    answer = one.post(f"{address}/audit", data={"version": "1", "model": "nobody"})
    assert answer.status_code == 422
    assert "not on this machine" in answer.text
    answer = one.post(f"{address}/repair", data={"version": "1"})
    assert answer.status_code == 422
    assert "no repair was chosen" in answer.text
    answer = one.post(f"{address}/repair/keep", data={"version": "1", "action": "encoding"})
    assert answer.status_code == 409
    assert "not previewed" in answer.text
    assert one.post(f"{address}/tokens", data={"version": "1", "model": "nobody"}).status_code == 422
    assert one.post(f"{address}/audit", data={"version": "9"}).status_code == 404
    assert one.post(f"{address}/audit", data={}).status_code == 422


def test_a_repair_shows_what_it_would_do_and_becomes_a_version(home: Context, browser: Browser) -> None:
    one, version = browser(*TRAIN), make(home, BAD)
    address = f"/datasets/{version.dataset_id}"
    form = one.get(f"{address}/repair").text
    assert 'value="exact_duplicate" checked' in form
    assert 'value="refusal">' in form
    asked = {"version": "1", "action": ["exact_duplicate", "empty_completion"]}
    answer = one.post(f"{address}/repair", data=asked)
    assert answer.status_code == 303
    page = done(one, answer.headers["location"])
    assert "What it would do" in page
    assert page.count('<span class="badge bad">removed</span>') == 3
    assert "says the same as line 4" in page
    assert "<script>alert" not in page
    assert len(dataset_versions.show_dataset(home, Caller(), version.dataset_id)[1]) == 1, "nothing was changed yet"
    kept = one.post(f"{address}/repair/keep", data=asked | {"note": "copies"})
    assert (kept.status_code, kept.headers["location"]) == (303, address)
    shown = one.get(address).text
    assert "Version 2 is the repaired one." in shown
    assert "repaired from version 1: 0 rows changed, 3 rows removed" in shown
    assert browser("read").get(f"{address}/repair").status_code == 403
    assert browser("read").post(f"{address}/repair/keep", data=asked).status_code == 403


def test_a_repair_shows_what_it_masks_and_masks_what_is_chosen(home: Context, browser: Browser) -> None:
    rows = [*GOOD, chat("Who?", "Write to zoe@acme-corp.com."), chat("Where?", "At 12 Baker Street.")]
    one, version = browser(*TRAIN), make(home, rows)
    address = f"/datasets/{version.dataset_id}"
    form = one.get(f"{address}/repair").text
    assert 'name="mask" value="street">' in form
    for mask, words in (([], "Not masked: street, name"), (["street"], "At 1 Example Street.")):
        asked = {"version": "1", "action": ["personal_data"], "mask": mask}
        answer = one.post(f"{address}/repair", data=asked)
        assert answer.status_code == 303
        page = done(one, answer.headers["location"])
        assert "What is masked" in page
        assert "Write to z••@a•••-c•••.c••." in page
        assert words in page
    kept = one.post(f"{address}/repair/keep", data=asked)
    assert kept.status_code == 303
    newest = dataset_versions.show_dataset(home, Caller(), version.dataset_id)[1][0]
    assert newest.details["mask"]["every"] == ["street"]
    wrong = one.post(f"{address}/repair", data={"version": "1", "action": ["encoding"], "mask": ["street"]})
    assert "personal data is not among the repairs" in wrong.text


def test_tokens_are_marked_where_they_are_learned(home: Context, browser: Browser, tiny_model: Path) -> None:
    version = make(home, [*GOOD, chat("<b>bold</b>", "<i>it</i>")])
    one = browser(*TRAIN)
    address = f"/datasets/{version.dataset_id}/tokens"
    assert "No base model is on this machine yet" in one.get(address).text
    pull_model(home, str(tiny_model))
    assert "See what the model will see" in one.get(address).text
    answer = one.post(address, data={"version": "1", "model": "tiny", "template": "auto"})
    page = done(one, answer.headers["location"])
    assert "tiny, chat template" in page
    assert '<svg class="drawn"' in page
    assert re.search(r'<span class="token" title="\d+">&lt;\|im_start\|&gt;</span>', page)
    assert re.search(r'<mark class="token" title="\d+">&lt;\|im_end\|&gt;</mark>', page)
    assert "fit the context of 512 tokens" in page
    viewer = browser("read")
    assert viewer.post(address, data={"version": "1", "model": "tiny"}).status_code == 403
    assert "tiny, chat template" in viewer.get(answer.headers["location"]).text


def test_rows_that_cannot_be_trained_on_are_told_where_tokens_were_asked_for(
    home: Context, browser: Browser, tiny_model: Path
) -> None:
    pull_model(home, str(tiny_model))
    one, version = browser(*TRAIN), make(home, BAD)
    answer = one.post(f"/datasets/{version.dataset_id}/tokens", data={"version": "1", "model": "tiny"})
    page = done(one, answer.headers["location"])
    assert "1 of 16 rows of rows.jsonl is wrong" in page
    assert "See what is wrong with the rows" in page
