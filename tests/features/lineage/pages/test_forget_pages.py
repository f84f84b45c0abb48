"""What holds a person's rows is shown before anything is removed; viewers see nothing of it."""

from __future__ import annotations

import json
from typing import Any

from tests.fixtures.pages import Browser, shown
from tests.fixtures.service import chat_row

from luthier.core.access import Caller
from luthier.core.records.traffic import Feedback
from luthier.features.datasets import service as dataset_versions
from luthier.features.lineage.forget import forget_row, preview_forget
from luthier.platform.auth.service import create_project
from luthier.platform.home.context import Context

ME = Caller()
SECRET = "Ann Example lives at 4 Mill Lane"
ADDRESS = "/datasets/forget"


def line(row: dict[str, Any]) -> bytes:
    return json.dumps(row).encode() + b"\n"


def about(text: str = SECRET) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": text}]}


def add(home: Context, name: str, *versions: list[bytes], caller: Caller = ME) -> str:
    """A dataset with these versions."""
    files = [dataset_versions.keep_rows(home, caller, lines, "rows.jsonl") for lines in versions]
    dataset, _ = dataset_versions.create_dataset(home, caller, name, files[0])
    for number, file in enumerate(files[1:], 1):
        dataset_versions.add_version(home, caller, dataset.dataset_id, file, origin="upload", parent=number)
    return dataset.dataset_id


def newest(home: Context, dataset_id: str) -> bytes:
    version = dataset_versions.get_version(home, ME, dataset_id)
    return dataset_versions.path_of(home, ME, version).read_bytes()


def test_a_preview_names_newest_and_earlier_versions_and_changes_nothing(home: Context) -> None:
    one, two = line(chat_row(1)), line(chat_row(2))
    held = add(home, "orders", [line(about()), one, line(about(f"{SECRET}!"))])
    before = add(home, "letters", [line(about()), one], [one])
    add(home, "others", [one, two])
    found = preview_forget(home, ME, f"  {SECRET.upper()} ")
    assert [(one.dataset.dataset_id, one.version.number, one.num_rows) for one in found.newest] == [(held, 1, 2)]
    assert [(one.dataset.dataset_id, one.version.number, one.num_rows) for one in found.earlier] == [(before, 1, 1)]
    assert found.changes_anything
    document = found.as_json()
    assert document["versions"] == [{"dataset_id": held, "version": 1, "num_rows": 2}]
    assert document["earlier_versions"] == [{"dataset_id": before, "version": 1, "num_rows": 1}]
    assert dataset_versions.get_version(home, ME, held).number == 1
    assert not preview_forget(home, ME, "Nobody at all").is_found


def test_earlier_versions_of_datasets_that_are_not_changed_are_named_as_keeping_the_row(home: Context) -> None:
    one = line(chat_row(1))
    dataset_id = add(home, "letters", [line(about()), one], [one])
    done = forget_row(home, ME, SECRET)
    assert done.versions == ()
    assert done.left == (f"version 1 of {dataset_id} keeps it: versions are never changed",)


def test_rows_are_previewed_then_removed_and_what_stays_is_shown(home: Context, browser: Browser) -> None:
    one = line(chat_row(1))
    held = add(home, "orders", [line(about()), one])
    before = add(home, "letters", [line(about()), one], [one])
    said = {"project_id": "default", "exchange_id": "chatcmpl-1", "model": "support", "author": "a"}
    home.feedback.put(Feedback(feedback_id="feedback-a", thumb="down", correction=SECRET, **said))
    admin = browser("admin")
    assert ADDRESS in admin.get("/datasets").text
    answer = admin.post(ADDRESS, data={"row": SECRET})
    assert "Mill" not in answer.headers["location"]
    page = shown(admin, answer).text
    assert f'href="/datasets/{held}"' in page
    assert f'href="/datasets/{before}?version=1"' in page
    assert "<dt>Texts of feedback</dt><dd>1</dd>" in page
    assert f'name="row" value="{SECRET}"' in page
    assert newest(home, held) == line(about()) + one
    page = shown(admin, admin.post(f"{ADDRESS}/remove", data={"row": SECRET})).text
    assert f'<a href="/datasets/{held}?version=2">orders, version 2</a></dt><dd>1 row removed</dd>' in page
    assert "What still contains it" in page
    assert f'href="/datasets/{before}?version=1"' in page
    assert f'href="/datasets/{held}?version=1"' in page
    assert f"{ADDRESS}/remove" not in page
    assert newest(home, held) == one
    [left] = home.feedback.list("default")
    assert (left.thumb, left.correction) == ("down", None)
    entry = home.audit_log.newest(limit=1)[0]
    assert (entry.action, "Mill" in entry.document) == ("row.forgotten", False)


def test_only_admins_remove_and_only_trainers_search(home: Context, browser: Browser) -> None:
    held = add(home, "orders", [line(about()), line(chat_row(1))])
    trainer, viewer = browser("read", "train"), browser("read")
    page = shown(trainer, trainer.post(ADDRESS, data={"row": SECRET})).text
    assert "Admins of the project can remove these rows" in page
    assert f"{ADDRESS}/remove" not in page
    for one, addresses in ((trainer, [f"{ADDRESS}/remove"]), (viewer, [ADDRESS, f"{ADDRESS}/remove"])):
        for address in addresses:
            assert one.post(address, data={"row": SECRET}).status_code == 403
    assert viewer.get(ADDRESS).status_code == 403
    assert ADDRESS not in viewer.get("/datasets").text
    assert dataset_versions.get_version(home, ME, held).number == 1


def test_another_project_finds_and_removes_nothing(home: Context, browser: Browser) -> None:
    held = add(home, "orders", [line(about()), line(chat_row(1))])
    other = create_project(home, "friends").project_id
    stranger = browser("admin", project=other)
    page = shown(stranger, stranger.post(ADDRESS, data={"row": SECRET})).text
    assert "Nothing that could be searched contains it" in page
    stranger.post(f"{ADDRESS}/remove", data={"row": SECRET})
    assert dataset_versions.get_version(home, ME, held).number == 1


def test_what_cannot_be_removed_is_said_with_the_reason(home: Context, browser: Browser) -> None:
    add(home, "orders", [line(about()), line(about(f"{SECRET} too"))])
    admin = browser("admin")
    page = shown(admin, admin.post(ADDRESS, data={"row": SECRET})).text
    assert "every row matches: remove the dataset instead" in page
    assert f"{ADDRESS}/remove" not in page
    refused = admin.post(f"{ADDRESS}/remove", data={"row": SECRET})
    assert refused.status_code == 422
    assert "every row of the dataset" in refused.text
    short = admin.post(ADDRESS, data={"row": 'Ann"<b>'})
    assert short.status_code == 422
    assert 'value="Ann&#34;&lt;b&gt;"' in short.text


def test_a_result_is_shown_to_the_session_that_searched_alone(home: Context, browser: Browser) -> None:
    add(home, "orders", [line(about()), line(chat_row(1))])
    address = browser("admin").post(ADDRESS, data={"row": SECRET}).headers["location"]
    page = browser("admin").get(address).text
    assert "The result is no longer here" in page
    assert "Mill Lane" not in page
