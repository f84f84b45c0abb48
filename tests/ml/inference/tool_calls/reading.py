"""Reading an answer in pieces, as an engine does."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from luthier.core.conversation import Conversation, Message
from luthier.core.stream import Sampling, TextRequest
from luthier.ml.inference.tool_calls.forms import form_of

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Cremona", "Mittenwald"]}, "days": {"type": "integer", "maximum": 9}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
CLOCK: dict[str, Any] = {"type": "function", "function": {"name": "clock"}}
ASK = Conversation(messages=(Message(role="user", content="How is the weather?"),), tools=(WEATHER, CLOCK))


def asked(**wishes: Any) -> TextRequest:
    return TextRequest(conversation=ASK, **({"sampling": Sampling(temperature=1.0, seed=3)} | wishes))


def read(
    text: str, *, template: str = "<tool_call>", width: int = 1, request: TextRequest | None = None
) -> tuple[str, list[tuple[str, str]], int]:
    """An answer in pieces of `width` characters: its text, its calls as name and arguments, and how many pieces."""
    return read_parts([text[place : place + width] for place in range(0, len(text), width)], template, request)


def read_parts(
    parts: Iterable[str], template: str, request: TextRequest | None = None
) -> tuple[str, list[tuple[str, str]], int]:
    """An answer in these pieces."""
    reader = form_of(template).reader(request or asked())
    said, calls, pieces = "", dict[int, list[str]](), 0
    for more, found in [*(reader.add(part) for part in parts), reader.end()]:
        said += more
        for piece in found:
            pieces += 1
            if piece.name is not None:
                assert piece.call_id is not None
                assert piece.call_id.startswith("call_")
                calls[piece.index] = [piece.name, ""]
            calls[piece.index][1] += piece.arguments
    assert reader.num_calls == len(calls)
    return said, [(name, arguments) for name, arguments in calls.values()], pieces
