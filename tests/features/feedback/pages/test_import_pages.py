"""Feedback from a file by the page: what is new counts, refused lines are named, viewers may not."""

from __future__ import annotations

import json
from typing import Any

from fastapi.testclient import TestClient
from tests.fixtures.pages import Browser, shown

from luthier.core.records.traffic import Exchange
from luthier.features.feedback import import_pages
from luthier.features.traffic import service as traffic
from luthier.platform.home.context import Context

ADDRESS = "/review/import"


def asked(home: Context, number: int) -> str:
    said = ({"role": "user", "content": f"Question {number}?"},)
    values: dict[str, Any] = {"exchange_id": f"chatcmpl-{number}", "project_id": "default", "at": 1_790_000_000.0}
    traffic.record(home, Exchange(model="shop-bot", messages=said, answer="No.", **values))
    return f"chatcmpl-{number}"


def send(one: TestClient, content: bytes, name: str = "said.jsonl") -> Any:
    return one.post(ADDRESS, files={"file": (name, content)})


def test_a_file_of_feedback_is_imported_once_and_refused_lines_are_named(home: Context, browser: Browser) -> None:
    first, second = asked(home, 1), asked(home, 2)
    lines = [
        {"exchange_id": first, "thumb": "up", "author": "u1"},
        {"exchange_id": second, "thumb": "down", "correction": "Yes.", "author": "u1"},
        {"exchange_id": "chatcmpl-<b>", "thumb": "up"},
    ]
    content = "".join(f"{json.dumps(line)}\n" for line in lines).encode()
    one = browser("read", "train")
    assert ADDRESS in one.get("/review").text
    page = shown(one, send(one, content)).text
    assert "<dt>New</dt><dd>2</dd>" in page
    assert "<dt>Waiting for review</dt><dd>1</dd>" in page
    assert "line 3" in page
    assert "chatcmpl-&lt;b&gt;" in page
    kept = {given.exchange_id: (given.thumb, given.correction) for given in home.feedback.list("default")}
    assert kept == {first: ("up", None), second: ("down", "Yes.")}
    entry = home.audit_log.newest(limit=1)[0]
    assert (entry.action, json.loads(entry.document)["new"]) == ("feedback.imported", 2)
    page = shown(one, send(one, content)).text
    assert "<dt>New</dt><dd>0</dd>" in page
    assert "<dt>Known before</dt><dd>2</dd>" in page
    assert list(home.artifacts.incoming.glob("*")) == []


def test_who_may_only_look_imports_nothing(home: Context, browser: Browser) -> None:
    content = f'{{"exchange_id": "{asked(home, 1)}", "thumb": "up"}}\n'.encode()
    viewer = browser("read")
    assert ADDRESS not in viewer.get("/review").text
    assert viewer.get(ADDRESS).status_code == 403
    assert send(viewer, content).status_code == 403
    assert list(home.feedback.list("default")) == []


def test_a_file_that_is_missing_or_too_large_is_refused(home: Context, browser: Browser, monkeypatch: Any) -> None:
    one = browser("read", "train")
    empty = one.post(ADDRESS, files={"file": ("", b"")})
    assert empty.status_code == 400
    assert "no file was chosen" in empty.text
    monkeypatch.setattr(import_pages, "_MAX_BYTES", 10)
    large = send(one, b'{"exchange_id": "chatcmpl-1", "thumb": "up"}\n')
    assert large.status_code == 413
    assert list(home.artifacts.incoming.glob("*")) == []


def test_a_file_may_be_larger_than_other_requests(home: Context, browser: Browser) -> None:
    one = browser("read", "train")
    line = json.dumps({"exchange_id": asked(home, 1), "thumb": "up", "author": "u1"})
    content = f"{line}{' ' * home.settings.max_request_bytes}\n".encode()
    assert len(content) > home.settings.max_request_bytes
    assert "<dt>New</dt><dd>1</dd>" in shown(one, send(one, content)).text
