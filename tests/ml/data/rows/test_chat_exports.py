"""Exported conversations of ChatGPT and Claude become chat rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from luthier.core.errors import DataError
from luthier.ml.data.rows.formats import LoadedFile, load_file


def _load(tmp_path: Path, document: Any) -> LoadedFile:
    path = tmp_path / "conversations.json"
    path.write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")
    return load_file(path)


def _turns(loaded: LoadedFile) -> list[list[tuple[str, str | None]]]:
    conversations = [example.conversation for example in loaded.examples]
    return [[(m.role, m.content) for m in one.messages] for one in conversations if one is not None]


def _node(name: str, parent: str | None, role: str = "", text: Any = "", **more: Any) -> dict[str, Any]:
    content = more.pop("content", {"content_type": "text", "parts": [text]})
    message = {"author": {"role": role}, "content": content, "metadata": {}, **more} if role else None
    return {name: {"id": name, "message": message, "parent": parent, "children": []}}


def _chatgpt(*nodes: dict[str, Any], current: str) -> dict[str, Any]:
    mapping: dict[str, Any] = {}
    for node in nodes:
        mapping |= node
    return {"title": "Wood", "create_time": 1.5, "mapping": mapping, "current_node": current, "safe_urls": []}


BASIC = (
    _node("root", None),
    _node("hidden", "root", "system", ""),
    _node("q", "hidden", "user", "Which wood?"),
    _node("old", "q", "assistant", "Oak."),
    _node("thought", "q", "assistant", content={"content_type": "thoughts", "thoughts": [{"content": "Hm."}]}),
    _node("new", "thought", "assistant", "Spruce,"),
    _node("more", "new", "assistant", "or cedar."),
    _node("open", "more", "user", "And why"),
)


def test_the_branch_of_chatgpt_that_was_shown_last_is_read(tmp_path: Path) -> None:
    loaded = _load(tmp_path, [_chatgpt(*BASIC, current="open"), _chatgpt(*BASIC, current="old")])
    assert loaded.shape == "chat"
    assert _turns(loaded) == [
        [("user", "Which wood?"), ("assistant", "Spruce,\n\nor cedar.")],
        [("user", "Which wood?"), ("assistant", "Oak.")],
    ]
    assert "read as an export of ChatGPT" in loaded.shape_reason
    assert _turns(_load(tmp_path, _chatgpt(*BASIC, current="old"))) == [
        [("user", "Which wood?"), ("assistant", "Oak.")]
    ]


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        (_node("n", "q", "tool", "42"), "a call of a tool"),
        (_node("n", "q", "assistant", "print(1)", recipient="python"), "a call of a tool"),
        (
            _node(
                "n", "q", "user", content={"content_type": "multimodal_text", "parts": [{"asset_pointer": "x"}, "?"]}
            ),
            "a picture or a file",
        ),
        (_node("n", "q", "assistant", content={"content_type": "tether_quote", "text": "a"}), "type tether_quote"),
        (_node("n", "q", "user", "Hello?"), "has no answer"),
    ],
)
def test_what_is_more_than_text_is_a_problem_of_its_conversation(
    tmp_path: Path, node: dict[str, Any], reason: str
) -> None:
    with pytest.raises(DataError, match="1 of 2 rows") as caught:
        _load(tmp_path, [_chatgpt(*BASIC, current="old"), _chatgpt(*BASIC, node, current="n")])
    (problem,) = caught.value.problems
    assert problem.line == 2
    assert reason in problem.reason
    assert problem.value == '"Wood"'


def test_a_circle_of_turns_ends(tmp_path: Path) -> None:
    circle = _chatgpt(_node("a", "b", "assistant", "x"), _node("b", "a", "user", "y"), current="a")
    assert _turns(_load(tmp_path, [circle])) == [[("user", "y"), ("assistant", "x")]]


def test_conversations_of_claude_are_read(tmp_path: Path) -> None:
    turns: list[dict[str, Any]] = [
        {"sender": "human", "text": "Which wood?", "attachments": [], "files": []},
        {
            "sender": "assistant",
            "text": "Hm. Spruce.",
            "content": [{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "Spruce."}],
        },
    ]
    loaded = _load(tmp_path, [{"uuid": "1", "name": "Wood", "chat_messages": turns}])
    assert _turns(loaded) == [[("user", "Which wood?"), ("assistant", "Spruce.")]]
    assert "read as an export of Claude" in loaded.shape_reason
    turns[0]["files"] = [{"file_name": "wood.jpg"}]
    with pytest.raises(DataError) as caught:
        _load(tmp_path, [{"uuid": "1", "name": "Wood", "chat_messages": turns}])
    assert "a picture or a file" in caught.value.problems[0].reason


def test_a_row_that_has_messages_of_its_own_is_no_export(tmp_path: Path) -> None:
    row: dict[str, Any] = {"mapping": {"a": 1}, "current_node": "a", "messages": [{"role": "user", "content": "q"}]}
    row["messages"].append({"role": "assistant", "content": "a"})
    assert _turns(_load(tmp_path, [row])) == [[("user", "q"), ("assistant", "a")]]
