"""Rows in the ShareGPT shape become conversations: `conversations` of {"from", "value"}, or of {"role", "content"}.

Source: the ShareGPT exports and their tool-calling extension as used by LLaMA-Factory (roles function_call and
observation, fields `system` and `tools` next to `conversations`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from luthier.core.conversation import Conversation, Message
from luthier.ml.data.files.bad_field import ABSENT, BadFieldError, check_text, name_of_type
from luthier.ml.data.files.untrusted_input import StrictJsonError, strict_loads
from luthier.ml.data.rows.chat_rows import check_learnable, parse_messages, with_system
from luthier.ml.data.rows.row_tools import parse_tools

_ROLES = {
    "system": "system",
    "developer": "developer",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "tool": "tool",
    "function": "function",
}
_CALLING = "function_call"


def _speaker(turn: Mapping[str, Any]) -> Any:
    return turn.get("from", turn.get("role"))


def role_of(turn: Mapping[str, Any]) -> str | None:
    """The role of a turn of ShareGPT, by `from` or `role`; None where it has none that is known."""
    return _ROLES.get(str(_speaker(turn)))


def sharegpt_conversation(fields: dict[str, Any]) -> Conversation:
    """The conversation of a ShareGPT row.

    Raises:
        BadFieldError: at the first wrong value.
        EmptyAnswerError: an answer that is to be learned is empty.
    """
    turns = fields.get("conversations")
    if isinstance(turns, str):  # as CSV has them
        try:
            turns = strict_loads(turns)
        except StrictJsonError as error:
            reason = f"is text that is not JSON where a list is expected: {error.reason}"
            raise BadFieldError("conversations", turns, reason) from error
    if not isinstance(turns, list):
        value = ABSENT if turns is None else turns
        raise BadFieldError("conversations", value, f"is {name_of_type(turns)} where a list is expected")
    raw = openai_turns("conversations", turns)
    try:
        messages: tuple[Message, ...] = parse_messages("conversations", raw)
    except BadFieldError as error:
        raise BadFieldError(_name_in_row(error.field, turns), error.value, error.reason) from error
    check_learnable("conversations", messages)
    messages = with_system(messages, fields.get("system"))
    return Conversation(messages=messages, tools=parse_tools("tools", fields.get("tools")))


def openai_turns(field: str, turns: Sequence[Any]) -> list[dict[str, Any]]:
    """Turns of ShareGPT as raw messages, with ids of calls, which ShareGPT has not.

    Args:
        field: Name of the field, for messages.
        turns: Its turns.

    Raises:
        BadFieldError: at the first wrong turn.
    """
    raw: list[dict[str, Any]] = []
    open_ids: list[str] = []
    for index, turn in enumerate(turns):
        where = f"{field}[{index}]"
        if not isinstance(turn, dict):
            raise BadFieldError(where, turn, f"is {name_of_type(turn)} where an object is expected")
        message = _openai_message(where, turn, index, open_ids[0] if open_ids else None)
        raw.append(message)
        # ShareGPT has no call ids: observations answer the calls before them in their order, and the last call once all
        # others are answered.
        if _speaker(turn) == _CALLING:
            is_more = index > 0 and _speaker(turns[index - 1]) == _CALLING
            open_ids = [*(open_ids if is_more else []), *(call["id"] for call in message["tool_calls"])]
        elif message.get("role") == "tool" and len(open_ids) > 1:
            del open_ids[0]
    return raw


def _openai_message(where: str, turn: dict[str, Any], index: int, call_id: str | None) -> dict[str, Any]:
    if "from" not in turn:
        role = turn.get("role", ABSENT)
        if role == _CALLING:
            rest = {name: value for name, value in turn.items() if name not in ("role", "content")}
            calls = _calls(f"{where}.content", turn.get("content"), index)
            return {**rest, "role": "assistant", "content": None, "tool_calls": calls}
        # A role that is not known is passed on, so that parse_messages names it together with the known ones.
        said = {**turn, "role": _ROLES[role]} if isinstance(role, str) and role in _ROLES else turn
        return _with_call_id(said, call_id)
    speaker = turn["from"]
    if not isinstance(speaker, str) or speaker not in _ROLES:
        raise BadFieldError(f"{where}.from", speaker, f"is not a known speaker; known: {', '.join(_ROLES)}")
    rest = {name: value for name, value in turn.items() if name not in ("from", "value")}
    value = turn.get("value")
    if speaker == _CALLING:
        calls = _calls(f"{where}.value", value, index)
        return {**rest, "role": "assistant", "content": None, "tool_calls": calls}
    if isinstance(value, str) or value is None:
        check_text(f"{where}.value", value)
    return _with_call_id({**rest, "role": _ROLES[speaker], "content": value}, call_id)


def _with_call_id(message: dict[str, Any], call_id: str | None) -> dict[str, Any]:
    """The turn of a tool with the id of the call that it answers, where it names none."""
    if message.get("role") != "tool" or call_id is None or message.get("tool_call_id") is not None:
        return message
    return {**message, "tool_call_id": call_id}


def _calls(field: str, value: Any, index: int) -> list[dict[str, Any]]:
    text = check_text(field, value)
    try:
        parsed = strict_loads(text)
    except StrictJsonError as error:
        raise BadFieldError(field, text, f"is a function call that is not JSON: {error.reason}") from error
    calls = parsed if isinstance(parsed, list) else [parsed]
    if not calls or not all(isinstance(call, dict) for call in calls):
        raise BadFieldError(field, text, "is a function call that is not an object with name and arguments")
    return [{"id": f"call_{index}_{n}", "type": "function", "function": call} for n, call in enumerate(calls)]


def _name_in_row(field: str, turns: list[dict[str, Any]]) -> str:
    """`conversations[3].content` under the name that the row itself has for it."""
    head, _, name = field.rpartition(".")
    index = head.removeprefix("conversations[").removesuffix("]")
    if name == "content" and index.isdigit() and "from" in turns[int(index)]:
        return f"{head}.value"
    return field
