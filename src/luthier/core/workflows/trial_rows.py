"""The kinds of rows that a chat model is tried with before there are real rows: one of each."""

from __future__ import annotations

import json
from typing import Any, Final

_TOOL: Final[dict[str, Any]] = {
    "type": "function",
    "function": {
        "name": "price",
        "description": "The price of a wood.",
        "parameters": {
            "type": "object",
            "properties": {"wood": {"type": "string", "description": "Its name."}},
            "required": ["wood"],
        },
    },
}
# nine letters and digits, as the strictest of the templates requires
_CALL: Final[dict[str, Any]] = {
    "id": "callAB123",
    "type": "function",
    "function": {"name": "price", "arguments": json.dumps({"wood": "ebony"})},
}
_WOODS: Final = ("spruce", "maple", "ebony", "cedar", "willow", "rosewood", "pine", "ash")


def _user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def _answer(text: str | None, **_more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **_more}


TRIAL_ROWS: Final[dict[str, dict[str, Any]]] = {
    "one turn": {"messages": [_user("Which wood is the front of?"), _answer("Spruce.")]},
    "two turns": {
        "messages": [
            _user("Which wood is the front of?"),
            _answer("Spruce."),
            _user("And the back?"),
            _answer("Maple."),
        ]
    },
    "system": {
        "messages": [{"role": "system", "content": "Answer in one word."}, _user("The front?"), _answer("Spruce.")]
    },
    "tools": {
        "messages": [
            _user("What does the darkest wood cost?"),
            _answer(None, tool_calls=[_CALL]),
            {"role": "tool", "tool_call_id": "callAB123", "name": "price", "content": "12"},
            _answer("It costs 12."),
        ],
        "tools": [_TOOL],
    },
    "reasoning_content": {"messages": [_user("The front?"), _answer("Spruce.", reasoning_content="It must be light.")]},
    "think text": {"messages": [_user("The front?"), _answer("<think>\nIt must be light.\n</think>\n\nSpruce.")]},
    "two thinking turns": {
        "messages": [
            _user("The front?"),
            _answer("Spruce.", reasoning_content="It must be light."),
            _user("And the back?"),
            _answer("Maple.", reasoning_content="It must reflect."),
        ]
    },
}
"""A row of each kind, as OpenAI's format writes it."""


def made_rows(num: int) -> list[dict[str, Any]]:
    """Rows of one turn and of different lengths for a training step; every two of them share a prefix."""
    return [
        {
            "messages": [
                _user(f"Which wood is part {number // 2} of the lute made of?{' Say it in one word.' * (number % 2)}"),
                _answer(f"Part {number // 2} is made of {_WOODS[number % len(_WOODS)]}."),
            ]
        }
        for number in range(num)
    ]
