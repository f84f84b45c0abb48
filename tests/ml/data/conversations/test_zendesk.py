"""Tickets of Zendesk: who is the user, what is private, and which files hold tickets."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.core.errors import DataError
from luthier.ml.data.conversations.exports import Converted, convert, export_kind

_REQUESTER, _AGENT, _COPIED = 11, 22, 33


def _comment(author: int, body: str, at: int, **more: Any) -> dict[str, Any]:
    time = f"2024-03-05T08:{at:02}:00Z"
    return {"id": at, "author_id": author, "body": body, "public": True, "created_at": time, **more}


def _ticket(*comments: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "id": 7,
        "subject": "Meter  shows nothing",
        "requester_id": _REQUESTER,
        "assignee_id": _AGENT,
        "collaborator_ids": [_COPIED],
        "comments": list(comments),
        **more,
    }


def _convert(path: Path, *chosen: str) -> tuple[list[list[tuple[str, str]]], Converted]:
    assert export_kind(path) == "zendesk"
    output = path.with_name("rows-out.jsonl")
    done = convert(path, "zendesk", path.name, output, chosen)
    rows = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    return [[(turn["role"], turn["content"]) for turn in row["messages"]] for row in rows], done


def _lines(folder: Path, *tickets: dict[str, Any], name: str = "tickets.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(one) + "\n" for one in tickets), encoding="utf-8")
    return path


_TICKET = _ticket(
    _comment(_AGENT, "Change the battery.", 3),
    _comment(_REQUESTER, "It shows nothing.\r\nWhy?", 1),
    _comment(_AGENT, "He is always annoying.", 2, public=False),
    _comment(_COPIED, "Mine, too.", 4, attachments=[{"id": 1}]),
    _comment(-1, "Ticket was merged.", 5),
    _comment(44, "Then yours needs one, too.", 6),
)


@pytest.mark.parametrize("name", ["tickets.jsonl", "tickets.json"])
def test_the_requester_and_those_in_copy_are_the_user_and_agents_the_assistant(tmp_path: Path, name: str) -> None:
    deleted = {**_TICKET, "status": "deleted"}
    rows, done = _convert(_lines(tmp_path, _TICKET, deleted, name=name))
    assert rows == [
        [
            ("user", "It shows nothing.\nWhy?"),
            ("assistant", "Change the battery."),
            ("user", "Mine, too."),
            ("assistant", "Then yours needs one, too."),
        ]
    ]
    assert dict(done.tally.parts_left_out) == {"private notes": 1, "attachments": 1, "automatic messages": 1}
    assert dict(done.tally.left_out) == {"deleted tickets": 1}
    assert done.tally.left_out_summary() == (
        "deleted tickets: 1; private notes: 1; attachments: 1; automatic messages: 1"
    )


def test_a_private_note_is_never_in_a_row_however_it_is_marked(tmp_path: Path) -> None:
    for public in (False, "false", 0):
        ticket = _ticket(
            _comment(_REQUESTER, "Q", 1), _comment(_AGENT, "SECRET", 2, public=public), _comment(_AGENT, "A", 3)
        )
        rows, _ = _convert(_lines(tmp_path, ticket))
        assert rows == [[("user", "Q"), ("assistant", "A")]]


def test_the_users_of_the_export_decide_by_their_roles_and_are_named(tmp_path: Path) -> None:
    people = [
        {"id": _REQUESTER, "role": "end-user", "email": "anna@home.example"},
        {"id": _COPIED, "role": "agent", "name": "Ben"},
        {"id": 44, "role": "end-user"},
    ]
    ticket = _ticket(
        _comment(_REQUESTER, "Q", 1), _comment(_COPIED, "A", 2), _comment(44, "Q2", 3), _comment(_AGENT, "A2", 4)
    )
    path = tmp_path / "export.json"
    path.write_text(json.dumps({"tickets": [ticket], "users": people, "groups": []}))
    rows, done = _convert(path)
    assert [role for role, _ in rows[0]] == ["user", "assistant", "user", "assistant"]
    assert done.tally.roles_summary() == (
        "messages of the assistant: Ben 1, id 22 1; of the user: anna@home.example 1, id 44 1"
    )
    rows, _ = _convert(path, "ben")
    assert rows == [[("user", "Q"), ("assistant", "A")]]


def test_a_line_that_cannot_be_read_is_counted(tmp_path: Path) -> None:
    path = _lines(tmp_path, _TICKET)
    path.write_text(path.read_text() + "{broken\n")
    _, done = _convert(path)
    assert done.tally.left_out == {"conversations that cannot be read": 1}


def test_tickets_without_an_answer_are_refused_with_the_counts(tmp_path: Path) -> None:
    path = _lines(tmp_path, _ticket(_comment(_REQUESTER, "Q", 1)))
    with pytest.raises(DataError, match="conversations without an answer of the assistant: 1"):
        _convert(path)
    assert not (tmp_path / "rows-out.jsonl").exists()


_ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 50) | st.sampled_from(["", "a", "false", "@Ä"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["id", "channel", "role"]), inner),
    max_leaves=4,
)
_NAMES = ("author_id", "author", "body", "html_body", "public", "created_at", "via", "attachments", "type")
_TICKET_NAMES = ("id", "subject", "requester_id", "requester", "assignee", "collaborator_ids", "status", "ticket")


@given(
    st.lists(st.dictionaries(st.sampled_from(_NAMES), _ANYTHING), max_size=4),
    st.dictionaries(st.sampled_from(_TICKET_NAMES), _ANYTHING),
    st.booleans(),
)
def test_no_ticket_however_damaged_stops_the_others(
    comments: list[dict[str, Any]], fields: dict[str, Any], is_one_document: bool
) -> None:
    with TemporaryDirectory() as folder:
        tickets = [_TICKET, {**fields, "comments": comments}]
        if is_one_document:
            path = Path(folder) / "all.json"
            path.write_text(json.dumps({"tickets": tickets, "users": comments}), encoding="utf-8")
        else:
            path = _lines(Path(folder), *tickets)
        rows, done = _convert(path)
    assert rows[0][0] == ("user", "It shows nothing.\nWhy?")
    assert len(rows) + sum(done.tally.left_out.values()) == 2


def test_other_rows_are_no_tickets(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a", "completion": "b", "comments": "c"}\n')
    assert export_kind(path) is None
