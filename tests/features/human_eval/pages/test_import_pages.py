"""Ratings of Label Studio by the page: all of a file or none, in the panel of its tasks, by who may train."""

from __future__ import annotations

import json
import re
from html import unescape
from typing import Any

import pytest
from fastapi.testclient import TestClient
from tests.assessed import make_panel
from tests.fixtures.pages import Browser, shown

from luthier.core.access import Caller
from luthier.features.human_eval import import_pages
from luthier.features.human_eval.files import export_panel, import_label_studio
from luthier.features.human_eval.service import close_panel, ratings_table
from luthier.platform.auth.service import create_project
from luthier.platform.home.context import Context


def annotated(home: Context, panel_id: str, choice: str = "Answer 1") -> list[dict[str, Any]]:
    """The tasks of a panel as Label Studio exports them, each annotated by one person."""
    tasks: list[dict[str, Any]] = json.loads(export_panel(home, "default", panel_id, "json"))
    result = {"from_name": "preference", "to_name": "prompt", "type": "choices", "value": {"choices": [choice]}}
    for task in tasks:
        task["annotations"] = [{"completed_by": {"email": "dora@example.org"}, "result": [result]}]
    return tasks


def send(one: TestClient, panel_id: str, content: Any) -> Any:
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    return one.post(f"/evaluations/panels/{panel_id}/import", files={"file": ("export.json", data)})


def test_ratings_of_label_studio_are_imported(home: Context, browser: Browser) -> None:
    panel = make_panel(home, num_rows=6).panel
    one = browser("read", "train")
    address = f"/evaluations/panels/{panel.panel_id}"
    assert f'href="{address}/import"' in one.get(address).text
    form = unescape(one.get(f"{address}/import").text)
    assert '<Choices name="preference"' in form
    tasks = annotated(home, panel.panel_id)
    tasks[0]["annotations"].append({"completed_by": 7, "was_cancelled": True, "result": []})
    page = unescape(shown(one, send(one, panel.panel_id, tasks)).text)
    assert f"Imported: {panel.num_items} ratings by 1 rater." in page
    assert "cancelled: 1" in page
    found = [row for row in ratings_table(home, "default", panel.panel_id).rows if row.rater == "dora@example.org"]
    assert len(found) == panel.num_items
    send(one, panel.panel_id, annotated(home, panel.panel_id, "Tie"))
    again = [row for row in ratings_table(home, "default", panel.panel_id).rows if row.rater == "dora@example.org"]
    assert [row.preference for row in again] == ["tie"] * panel.num_items


def test_a_file_that_is_sent_twice_is_imported_once_and_another_file_by_itself(
    home: Context, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    panel, imported = make_panel(home, num_rows=3).panel, []

    def count(*given: Any) -> Any:
        imported.append(given[3])
        return import_label_studio(*given)

    monkeypatch.setattr(import_pages, "import_label_studio", count)
    one, address = browser("train"), f"/evaluations/panels/{panel.panel_id}/import"
    token = re.search(r'name="form_token" value="([^"]+)"', one.get(address).text)
    assert token is not None
    first, other = (json.dumps(annotated(home, panel.panel_id, choice)).encode() for choice in ("Answer 1", "Tie"))
    for content in (first, first, other):
        files = {"file": ("export.json", content)}
        shown(one, one.post(address, files=files, data={"form_token": token[1]}))
    assert imported == [first, other]


def test_a_file_with_a_wrong_annotation_changes_nothing_and_names_all(home: Context, browser: Browser) -> None:
    panel = make_panel(home, num_rows=12).panel
    tasks = annotated(home, panel.panel_id)
    for task in tasks[:8]:
        task["data"]["item"] = "<b>"
    answer = send(browser("train"), panel.panel_id, tasks)
    assert answer.status_code == 422
    assert "<b>'" not in answer.text
    # All eight are listed, and the first five are in the message.
    assert unescape(answer.text).count("'<b>' is not one of the") == 8 + 5
    assert ratings_table(home, "default", panel.panel_id).rows == ()


def test_other_files_panels_and_people_are_refused(
    home: Context, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    panel, other = make_panel(home, num_rows=6).panel, make_panel(home, num_rows=6, seed=8).panel
    tasks = annotated(home, other.panel_id)
    one = browser("read", "train")
    for content, words in ((b"no json", "is not JSON"), ({"a": 1}, "is not a list of tasks"), (tasks, "is of panel")):
        answer = send(one, panel.panel_id, content)
        assert answer.status_code == 422
        assert words in unescape(answer.text)
    assert send(one, "panel-20200101-000000-abcdef", tasks).status_code == 404
    friend = browser("read", "train", project=create_project(home, "friend").project_id)
    assert send(friend, other.panel_id, tasks).status_code == 404
    assert send(browser("read"), other.panel_id, tasks).status_code == 403
    monkeypatch.setattr(import_pages, "_MAX_BYTES", 10)
    assert send(one, other.panel_id, tasks).status_code == 413
    monkeypatch.undo()
    close_panel(home, Caller(), other.panel_id)
    assert "This panel is closed" in one.get(f"/evaluations/panels/{other.panel_id}/import").text
    assert send(one, other.panel_id, tasks).status_code == 409
    assert ratings_table(home, "default", other.panel_id).rows == ()
