"""Exports of Slack: threads over days, roles, and texts as Slack shows them."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.ml.data.conversations.exports import Converted, convert, export_kind
from luthier.ml.data.conversations.slack import readable

_NAMES = {"U1": "Anna", "U2": "Ben"}


def _message(user: str, text: str, ts: str, thread: str = "", **more: Any) -> dict[str, Any]:
    own = {"type": "message", "user": user, "text": text, "ts": ts, **more}
    return own | ({"thread_ts": thread} if thread else {})


def _export(folder: Path, days: dict[str, list[dict[str, Any]]]) -> Path:
    users = [{"id": "U1", "name": "anna", "profile": {"display_name": "Anna"}}, {"id": "U2", "real_name": "Ben"}]
    (folder / "users.json").write_text(json.dumps(users))
    (folder / "channels.json").write_text(json.dumps([{"id": "C1", "name": "help"}]))
    for name, messages in days.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(messages))
    return folder


def _convert(folder: Path, *chosen: str) -> tuple[list[list[tuple[str, str]]], Converted]:
    assert export_kind(folder) == "slack"
    output = folder / "out.jsonl"
    done = convert(folder, "slack", "team.zip", output, chosen)
    rows = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    return [[(turn["role"], turn["content"]) for turn in row["messages"]] for row in rows], done


def test_a_thread_over_two_days_is_a_row_and_the_rest_is_counted(tmp_path: Path) -> None:
    broadcast = _message(
        "U2", "See <https://x.example/a?b=1&amp;c=2|the page>", "3.0", "1.0", subtype="thread_broadcast"
    )
    folder = _export(
        tmp_path,
        {
            "help/2024-03-05.json": [
                _message("U1", "How do I log in, <@U2>?", "1.0", "1.0", files=[{"id": "F"}]),
                _message("U1", "Nice weather", "1.5"),
                _message("U1", "joined", "1.6", subtype="channel_join"),
                {"type": "message", "subtype": "bot_message", "bot_id": "B", "text": "x", "ts": "1.7"},
            ],
            "help/2024-03-06.json": [broadcast, broadcast, _message("U2", "Second &lt;b&gt;", "4.0", "1.0")],
            "help/2024-03-07.json": [_message("U2", "Lost", "9.0", "0.5")],
        },
    )
    rows, done = _convert(folder)
    assert rows == [
        [
            ("user", "How do I log in, @Ben?"),
            ("assistant", "See the page (https://x.example/a?b=1&c=2)\n\nSecond <b>"),
        ]
    ]
    assert dict(done.tally.left_out) == {"threads without their first message": 1}
    assert dict(done.tally.parts_left_out) == {
        "attachments": 1,
        "messages outside of threads": 1,
        "notes of Slack": 1,
        "messages of bots": 1,
    }


def test_who_answers_can_be_chosen_by_name(tmp_path: Path) -> None:
    thread = [
        _message("U2", "News", "1.0", "1.0"),
        _message("U1", "When?", "2.0", "1.0"),
        _message("U2", "Now", "3.0", "1.0"),
    ]
    rows, done = _convert(_export(tmp_path, {"help/2024-03-05.json": thread}), "ben")
    assert rows == [[("user", "When?"), ("assistant", "Now")]]
    assert done.tally.parts_left_out == {"messages of the assistant before the first question": 1}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<@U1> and <@U9|carl> and <@U8>", "@Anna and @carl and @U8"),
        ("<#C1|help> <!here> <!subteam^S1|@team> <!date^1^{date}|Monday>", "#help @here @team Monday"),
        (
            "<http://a.example|a.example> <http://a.example> <mailto:a@b.example|a@b.example>",
            "http://a.example http://a.example a@b.example",
        ),
        ("&amp;lt; is &lt; &amp;quot; &quot;", "&lt; is < &quot; &quot;"),
    ],
)
def test_markup_is_shown_as_slack_shows_it(text: str, expected: str) -> None:
    assert readable(text, _NAMES) == expected


_ANYTHING = st.none() | st.integers() | st.sampled_from(["", "U1", "1.0", "x"]) | st.lists(st.none(), max_size=1)
_NAMES_OF_FIELDS = ("type", "user", "text", "ts", "thread_ts", "subtype", "files", "user_profile", "bot_id")


@given(st.lists(st.dictionaries(st.sampled_from(_NAMES_OF_FIELDS), _ANYTHING) | _ANYTHING, max_size=5))
def test_no_message_however_damaged_stops_the_others(messages: list[Any]) -> None:
    thread = [_message("U1", "Q", "7.0", "7.0"), _message("U2", "A", "8.0", "7.0")]
    with TemporaryDirectory() as folder:
        days = {"a/2024-03-05.json": messages, "b/2024-03-05.json": thread}
        rows, _ = _convert(_export(Path(folder), days))
    assert rows[-1] == [("user", "Q"), ("assistant", "A")]


@given(st.text(max_size=60))
def test_text_without_markup_comes_back_as_it_was_typed(typed: str) -> None:
    escaped = typed.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    assert readable(escaped, _NAMES) == typed
