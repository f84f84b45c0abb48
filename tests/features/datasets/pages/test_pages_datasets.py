"""/datasets: the list, one dataset with its rows and versions, and who may do what there."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from fastapi.testclient import TestClient

from luthier.core.access import Caller
from luthier.features.datasets import rows as dataset_index
from luthier.features.datasets import rows as dataset_rows
from luthier.features.datasets import service as dataset_versions
from luthier.features.datasets.store import DatasetVersion
from luthier.platform.auth.service import create_project
from luthier.platform.home.context import Context
from luthier.testing.servers import wait_for

Browser = Callable[..., TestClient]
HOSTILE = '<script>alert(1)</script>"><img src=x onerror=alert(1)>'
TRAIN = ("read", "train")


def make(home: Context, name: str, rows: list[dict[str, object]], caller: Caller | None = None) -> DatasetVersion:
    caller = caller or Caller(name="ada")
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    file = dataset_versions.keep_rows(home, caller, [content], f"{name[:20]}.jsonl")
    return dataset_versions.create_dataset(home, caller, name, file, note=name)[1]


def texts(number: int) -> list[dict[str, object]]:
    return [{"prompt": f"question {n}", "completion": f"answer {n}"} for n in range(number)]


def test_an_empty_list_teaches_the_next_step(browser: Browser) -> None:
    page = browser(*TRAIN).get("/datasets").text
    assert "No datasets yet" in page
    assert 'href="/datasets/new"' in page
    assert 'href="/datasets/new"' not in browser("read").get("/datasets").text


def test_the_list_tells_of_each_and_is_searched_by_name(home: Context, browser: Browser) -> None:
    make(home, "Legal questions", texts(3))
    make(home, "Poems", texts(4))
    one = browser("read")
    page = one.get("/datasets").text
    assert page.index("Poems") < page.index("Legal questions"), "what was changed last comes first"
    assert "questions and answers" in page
    found = one.get("/datasets?q=LEGAL").text
    assert "Legal questions" in found
    assert "Poems</a>" not in found
    assert "No dataset has" in one.get("/datasets", params={"q": HOSTILE}).text


def test_hostile_text_shows_as_text(home: Context, browser: Browser) -> None:
    rows: list[dict[str, object]] = [
        {"prompt": HOSTILE, "completion": "\u202egnp.exe", HOSTILE: HOSTILE},
        {"prompt": HOSTILE * 9, "completion": [{"role": HOSTILE, "content": HOSTILE}]},
    ]
    version = make(home, HOSTILE, rows)
    one = browser(*TRAIN)
    for address in ("", "?start=1", "/audit", "/repair", "/tokens"):
        page = one.get(f"/datasets/{version.dataset_id}{address}").text
        assert "<script>alert" not in page
        assert "<img src=x" not in page
        assert "\u202e" not in page
    shown = one.get(f"/datasets/{version.dataset_id}").text
    assert "&lt;script&gt;alert(1)" in shown
    assert "⟨U+202E⟩gnp.exe" in shown
    for address in ("/datasets", "/datasets/new", f"/datasets/new?dataset={version.dataset_id}"):
        assert "<img src=x" not in one.get(address).text


def test_who_cannot_split_sees_who_can(home: Context, browser: Browser) -> None:
    address = f"/datasets/{make(home, 'Any', texts(3)).dataset_id}/split"
    says = "A member with the role trainer can do this."
    assert says in browser("read").get(address).text
    assert says not in browser(*TRAIN).get(address).text


def test_rows_are_paged_through_and_long_ones_folded(home: Context, browser: Browser) -> None:
    version = make(home, "Many", [*texts(45), {"prompt": "p", "completion": "word " * 200}])
    one = browser("read")
    address = f"/datasets/{version.dataset_id}"
    first = one.get(address).text
    assert "question 19" in first
    assert "question 20" not in first
    assert f"{address}?version=1&amp;start=20" in first
    last = one.get(f"{address}?start=40").text
    assert "1,000 characters" in last
    assert "start=20" in last
    assert "start=60" not in last
    assert "There are no rows after row" in one.get(f"{address}?start=99").text
    assert one.get(f"{address}?start=-1").status_code == 422


def test_versions_are_told_of_and_downloaded(home: Context, browser: Browser) -> None:
    version = make(home, "Poems", texts(3))
    caller = Caller(name="bob")
    rows = [json.dumps(row).encode() + b"\n" for row in texts(2)]
    file = dataset_versions.keep_rows(home, caller, rows, "größer.jsonl")
    details = {"fates": {"changed": 1, "removed": 2}, "grade_before": "F", "grade_after": "A"}
    dataset_versions.add_version(
        home, caller, version.dataset_id, file, origin="repair", parent=1, note="cleaner", details=details
    )
    one = browser(*TRAIN)
    page = one.get(f"/datasets/{version.dataset_id}").text
    for words in (
        "version 2, newest",
        "repaired from version 1: 1 row changed, 2 rows removed, grade F → A",
        "cleaner",
    ):
        assert words in page
    assert f"/start?dataset={version.dataset_id}&amp;version=2" in page
    assert "question 2" in one.get(f"/datasets/{version.dataset_id}?version=1").text
    newest = one.get(f"/datasets/{version.dataset_id}/download")
    assert newest.content == b"".join(rows)
    assert newest.headers["content-disposition"] == "attachment; filename*=UTF-8''gr%C3%B6%C3%9Fer.jsonl"
    assert len(one.get(f"/datasets/{version.dataset_id}/download?version=1").content.splitlines()) == 3
    assert one.get(f"/datasets/{version.dataset_id}?version=3").status_code == 404


def test_a_file_without_a_shape_says_why(home: Context, browser: Browser) -> None:
    version = make(home, "Odd", [{"a": 1}])
    page = browser("read").get(f"/datasets/{version.dataset_id}").text
    assert "A model cannot be trained on these rows yet" in page


def test_a_dataset_whose_file_is_lost_can_still_be_removed(home: Context, browser: Browser) -> None:
    version = make(home, "Lost", texts(3))
    for path in (*home.settings.artifacts_folder.rglob("*"), *home.settings.file_cache_folder.rglob("*")):
        if path.is_file():
            path.unlink()
    one, address = browser(*TRAIN), f"/datasets/{version.dataset_id}"
    page = one.get(address)
    assert page.status_code == 200
    assert "is damaged: the file is gone" in page.text
    assert "Remove this dataset" in page.text
    assert one.post(f"{address}/remove").status_code == 303


def test_a_large_file_is_looked_at_meanwhile(home: Context, browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    version = make(home, "Poems", texts(3))
    monkeypatch.setattr(dataset_index, "SMALL_BYTES", 1)
    rows: list[dict[str, object]] = texts(7)
    large = make(home, "Large", rows)
    assert large.num_rows is None, "nobody waits for that"
    one = browser("read")
    wait_for(lambda: dataset_rows.look_of(home, Caller(), large).state == "answered")
    address = f"/datasets/{large.dataset_id}"
    assert "The rows are being indexed" in one.get(address).text, "nobody waits for that either"
    wait_for(lambda: "data-look-again" not in one.get(address).text)
    assert "question 6" in one.get(address).text
    assert "not counted" not in one.get("/datasets").text
    assert one.get(f"/datasets/{version.dataset_id}").status_code == 200


def test_a_dataset_is_removed_by_who_may_train(home: Context, browser: Browser) -> None:
    version = make(home, "Poems", texts(3))
    address = f"/datasets/{version.dataset_id}"
    assert "Remove this dataset" not in browser("read").get(address).text
    assert browser("read").post(f"{address}/remove").status_code == 403
    one = browser(*TRAIN)
    assert "data-confirm=" in one.get(address).text
    answer = one.post(f"{address}/remove")
    assert (answer.status_code, answer.headers["location"]) == (303, "/datasets")
    assert "was removed with its 1 version" in one.get("/datasets").text
    assert one.get(address).status_code == 404


def test_other_projects_datasets_are_not_there(home: Context, browser: Browser) -> None:
    project = create_project(home, "other")
    version = make(home, "Theirs", texts(3), Caller(name="eve", project_id=project.project_id))
    own = make(home, "Mine", texts(3))
    one, address = browser(*TRAIN), f"/datasets/{version.dataset_id}"
    assert "Theirs" not in one.get("/datasets").text
    for path in ("", "/download", "/audit", "/audit/1", "/repair", "/tokens"):
        assert one.get(address + path).status_code == 404
    for path in ("/remove", "/audit", "/repair", "/repair/keep", "/tokens"):
        assert one.post(address + path, data={"version": "1", "action": "encoding"}).status_code == 404
    asked = {"version": "1", "against": version.dataset_id, "action": "contamination"}
    assert one.post(f"/datasets/{own.dataset_id}/audit", data=asked).status_code == 404
    assert one.post(f"/datasets/{own.dataset_id}/repair", data=asked).status_code == 404
    assert "Theirs" in browser(*TRAIN, project="other").get(address).text


def test_a_file_that_a_dataset_holds_is_not_deleted_by_the_api(home: Context, browser: Browser) -> None:
    version = make(home, "Poems", texts(3))
    one = browser()
    from luthier.platform.auth.service import create_key

    headers = {"Authorization": f"Bearer {create_key(home, 'api', scopes=TRAIN)[1]}"}
    answer = one.delete(f"/v1/files/{version.file_id}", headers=headers)
    assert answer.status_code == 409
    assert "dataset 'Poems'" in answer.json()["error"]["message"]
    assert one.get(f"/v1/files/{version.file_id}", headers=headers).status_code == 200
