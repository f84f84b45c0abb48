"""In which form a chat template takes the parts of a message, where forms differ: measured by rendering probes.

    content     a text; or a list of parts, of templates that go over the parts of a message and know no text
    arguments   of a tool call: an object; or JSON text, of templates that write what they are given as it is
    name        of a tool's result: left out as OpenAI's format does; or that of the tool, of templates that refuse a
                result without it

A template that is given the wrong form drops the content, writes Python's form of an object, or raises.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from luthier.ml.inference.models.thought_writing import Render
from luthier.ml.inference.models.turn_end import CALLS

_QUESTION, _ANSWER, _RESULT = "Which wood?", "Spruce-wood", "Twelve-euro"
_ARGUMENTS: Final = CALLS[0]["function"]["arguments"]


@dataclass(frozen=True, slots=True)
class MessageForms:
    """The forms that a template takes; all false is the usual one.

    Attributes:
        content_as_parts: the content is a list of parts.
        arguments_as_text: arguments of a tool call are JSON text.
        names_results: a tool's result bears the name of the tool.
    """

    content_as_parts: bool = False
    arguments_as_text: bool = False
    names_results: bool = False

    def applied(self, messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The messages in these forms; those given are left as they are."""
        return [self._message(message, messages[:number]) for number, message in enumerate(messages)]

    def _message(self, message: dict[str, Any], before: Sequence[dict[str, Any]]) -> dict[str, Any]:
        changed: dict[str, Any] = {}
        if self.content_as_parts and isinstance(message.get("content"), str):
            changed["content"] = [{"type": "text", "text": message["content"]}]
        if self.arguments_as_text and message.get("tool_calls"):
            changed["tool_calls"] = [_with_text(call) for call in message["tool_calls"]]
        if self.names_results and message["role"] == "tool" and not message.get("name"):
            name = _called(message.get("tool_call_id"), before)
            changed |= {} if name is None else {"name": name}
        return message | changed if changed else message


AS_USUAL: Final = MessageForms()


def measure_forms(render: Render) -> MessageForms | None:
    """The forms that a template takes; None where it writes a plain question and its answer in neither form.

    Args:
        render: given messages as they are, in no other form.
    """
    turns: list[dict[str, Any]] = [{"role": "user", "content": _QUESTION}, {"role": "assistant", "content": _ANSWER}]
    contents = (AS_USUAL, MessageForms(content_as_parts=True))
    forms = next((form for form in contents if _writes_content(render(form.applied(turns), False))), None)
    if forms is None:
        return None
    # With the form of the content that was just found: a wrong one would fail every later probe.
    as_text = _wants_text(render, forms)
    named = _wants_names(render, MessageForms(forms.content_as_parts, as_text))
    return MessageForms(forms.content_as_parts, as_text, named)


def _wants_text(render: Render, forms: MessageForms) -> bool:
    """Whether arguments must come as text: as an object they are refused, or written as Python writes it."""
    turns: list[dict[str, Any]] = [
        {"role": "user", "content": _QUESTION},
        {"role": "assistant", "content": "", "tool_calls": CALLS},
    ]
    text = render(forms.applied(turns), False)
    # `str` of a dict: single quotes show that the template wrote Python's form.
    if text is not None and str(_ARGUMENTS) not in text:
        return False
    return _writes(
        render(MessageForms(forms.content_as_parts, arguments_as_text=True).applied(turns), False), _json(_ARGUMENTS)
    )


def _wants_names(render: Render, forms: MessageForms) -> bool:
    """Whether a result without a name is refused, and one with the tool's name is not."""
    turns: list[dict[str, Any]] = [
        {"role": "user", "content": _QUESTION},
        {"role": "assistant", "content": "", "tool_calls": CALLS},
        {"role": "tool", "content": _RESULT, "tool_call_id": CALLS[0]["id"]},
    ]
    named = MessageForms(forms.content_as_parts, forms.arguments_as_text, names_results=True)
    return render(forms.applied(turns), False) is None and _writes(render(named.applied(turns), False), _RESULT)


def _writes(text: str | None, part: str) -> bool:
    return text is not None and part in text


def _writes_content(text: str | None) -> bool:
    """Whether question and answer are written, and not the list of their parts as it is."""
    is_listed = text is not None and ("'type'" in text or '"type"' in text)
    return _writes(text, _QUESTION) and _writes(text, _ANSWER) and not is_listed


def _with_text(call: dict[str, Any]) -> dict[str, Any]:
    function = call["function"]
    arguments = function.get("arguments")
    return {
        **call,
        "function": {**function, "arguments": arguments if isinstance(arguments, str) else _json(arguments)},
    }


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _called(call_id: str | None, before: Sequence[dict[str, Any]]) -> str | None:
    """The name of the tool that was called under this id, or by the only call of the last turn that calls any."""
    calls = [list(message["tool_calls"]) for message in before if message.get("tool_calls")]
    # The latest turn first: ids may be used again in a long conversation.
    for call in [call for turn in reversed(calls) for call in turn]:
        if call_id is not None and call.get("id") == call_id:
            return str(call["function"]["name"])
    return str(calls[-1][0]["function"]["name"]) if calls and call_id is None and len(calls[-1]) == 1 else None
