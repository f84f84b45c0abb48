"""Conversations of Intercom: contacts and teammates, notes, bots and what the program writes itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from luthier.ml.data.conversations.exports import convert, export_kind

_ANNA = {"type": "user", "id": "u1", "email": "anna@home.example"}
_BEN = {"type": "admin", "id": "a1", "name": "Ben"}
_BOT = {"type": "bot", "id": "b1", "name": "Fin"}


def _part(author: dict[str, str], body: str | None, kind: str = "comment", **more: Any) -> dict[str, Any]:
    return {"type": "conversation_part", "part_type": kind, "body": body, "author": author, **more}


_CONVERSATION = {
    "type": "conversation",
    "id": "77",
    "source": {"subject": "<p>Log in</p>", "body": "<p>How do I <b>log in</b> &amp; out?</p>", "author": _ANNA},
    "conversation_parts": {
        "type": "conversation_part.list",
        "conversation_parts": [
            _part(_BOT, "<p>Hello!</p>"),
            _part(_BEN, None, "assignment"),
            _part(_BEN, "<p>SECRET</p>", "note"),
            _part(_BEN, "<p>Press <a href='https://x.example'>here</a>.</p>", attachments=[{"name": "a.png"}]),
            _part(_ANNA, "<p>It fails.</p>", "open"),
            _part(_BEN, "<p>Now it works.</p>", "close"),
        ],
    },
}


def _convert(path: Path, document: Any, *chosen: str) -> tuple[list[Any], dict[str, int]]:
    path.write_text(json.dumps(document) + "\n", encoding="utf-8")
    assert export_kind(path) == "intercom"
    output = path.with_name("out.jsonl")
    done = convert(path, "intercom", path.name, output, chosen)
    rows = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert all("SECRET" not in json.dumps(row) for row in rows)
    return rows, dict(done.tally.parts_left_out)


@pytest.mark.parametrize("shape", ["object", "array", "document"])
def test_contacts_are_the_user_and_teammates_the_assistant(tmp_path: Path, shape: str) -> None:
    document = {"object": _CONVERSATION, "array": [_CONVERSATION], "document": {"conversations": [_CONVERSATION]}}[
        shape
    ]
    (row,), left_out = _convert(tmp_path / "a.json", document)
    assert row["title"] == "Log in"
    assert row["source"] == "a.json, conversation 77"
    assert [(turn["role"], turn["content"]) for turn in row["messages"]] == [
        ("user", "How do I **log in** & out?"),
        ("assistant", "Press [here](https://x.example)."),
        ("user", "It fails."),
        ("assistant", "Now it works."),
    ]
    assert left_out == {"messages of bots": 1, "private notes": 1, "attachments": 1}


def test_a_bot_answers_where_it_is_chosen(tmp_path: Path) -> None:
    (row,), _ = _convert(tmp_path / "a.jsonl", _CONVERSATION, "fin")
    assert [turn["content"] for turn in row["messages"]] == ["How do I **log in** & out?", "Hello!"]
