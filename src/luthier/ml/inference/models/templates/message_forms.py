"""The message format that a chat template expects and its end-of-turn tokens, measured by rendering probes.

    content     a text; or a list of parts, for templates that iterate over parts and do not accept text
    arguments   of a tool call: an object; or JSON text, for templates that write the value unchanged
    name        of a tool result: omitted as in OpenAI's format; or the tool's name, for templates that require it
    id          of a tool call, of any length; or of nine letters and digits, for templates that refuse others
                (Mistral's); or `functions.NAME:NUMBER`, for templates that write it in place of the name (Kimi K2's);
                both get ids where rows have none

With the wrong format a template drops the content, writes the Python repr of an object, or raises.

End-of-turn tokens differ as well. Most templates write a token after each answer; some write none, so that the token of
the next role ends the turn (`<|user|>`), and some end a tool call with another token than an answer (`<|call|>`). The
stop tokens of the tokenizer and generation_config.json also count.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any, Final

from luthier.core.errors import TemplateError, library_reason
from luthier.core.ids import sha256_bytes
from luthier.core.json_limits import loads
from luthier.ml.inference.models.templates.thought_writing import Render

_QUESTION, _ANSWER, _NEXT = "Which wood?", "Spruce-wood", "Which glue?"
CALLS: Final[list[dict[str, Any]]] = [
    {"id": "abcdefgh1", "type": "function", "function": {"name": "price", "arguments": {"wood": _ANSWER}}}
]
"""A probe call; its id has the length that the strictest templates require."""
_ID_CHARACTERS: Final = 9
_LONG_ID: Final = "call_0123456789abcdef01234567"
"""An id as this server and OpenAI's give it to a call."""


@dataclass(frozen=True, slots=True)
class TurnEnd:
    """The token that ends a turn.

    Attributes:
        id: of the token.
        text: of the token.
        is_written: whether the template writes it after the last turn.
    """

    id: int
    text: str
    is_written: bool


@dataclass(frozen=True, slots=True)
class EndProbe:
    """The inputs for detecting end-of-turn tokens.

    Attributes:
        render: renders messages with the template.
        special: the special tokens by id.
        encode: converts a text to ids.
        stops: ids that stop a generation, the tokenizer's own first.
    """

    render: Render
    special: Mapping[int, str]
    encode: Callable[[str], list[int]]
    stops: tuple[int, ...]

    def of_answer(self, tail: str) -> TurnEnd | None:
        """The end token of an answer.

        Args:
            tail: the text that the template writes after the last answer.
        """
        if (own := self._first(tail)) is not None:
            # The first token may only close the answer's frame; a stop token after it is the real end.
            if own not in self.stops:
                own = self._stop_of_every(tail) or own
            return TurnEnd(own, self.special[own], is_written=True)
        turns: list[dict[str, Any]] = [
            {"role": "user", "content": _QUESTION},
            {"role": "assistant", "content": _ANSWER},
            {"role": "user", "content": _NEXT},
        ]
        return self._of_next_role(turns)

    def _stop_of_every(self, tail: str) -> int | None:
        """A stop token that the template writes after both last and earlier answers.

        Some templates close the answer with a separate token before the one that ends the turn.
        """
        turns: list[dict[str, Any]] = [
            {"role": "user", "content": _QUESTION},
            {"role": "assistant", "content": _ANSWER},
            {"role": "user", "content": _NEXT},
        ]
        text = self.render(turns, False)
        if text is None or _ANSWER not in text:
            return None
        earlier = set(self.encode(text.rpartition(_ANSWER)[2].partition(_NEXT)[0]))
        return next((token for token in self.encode(tail) if token in self.stops and token in earlier), None)

    def unasked_prompt(self) -> str:
        """What the template writes behind every conversation although no generation prompt is asked for; mostly empty.

        Cohere's of Command R7B begins the next answer behind an answer, too.
        """
        question, answer = {"role": "user", "content": _QUESTION}, {"role": "assistant", "content": _ANSWER}
        turns: list[list[dict[str, Any]]] = [
            [question], [question, answer], [question, answer, {"role": "user", "content": _NEXT}],
        ]  # fmt: skip
        found = [self.render(one, False) for one in turns]
        if None in found or found[:2] != [self.render(one, True) for one in turns[:2]]:
            return ""  # it writes one where it is asked, or never
        prompt, answered, longer = map(str, found)
        if not answered.startswith(prompt) or longer.startswith(answered):
            return ""
        # Both end with it, and perhaps with the end of a turn before it.
        pairs = zip(reversed(prompt), reversed(answered), strict=False)
        common = prompt[len(prompt) - sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs)) :]
        ends = [self.special[one] for one in self.stops if one in self.special]
        after = [at + len(end) for end in ends if (at := common.rfind(end)) >= 0]
        unasked = common[max(after, default=0) :].lstrip()
        is_whole = longer.endswith(unasked) and longer.startswith(answered.removesuffix(unasked).rstrip())
        return unasked if unasked.strip() and is_whole else ""

    def of_call(self, answer: TurnEnd) -> TurnEnd:
        """The end token of a tool call; that of an answer if the template does not support calls."""
        turns: list[dict[str, Any]] = [
            {"role": "user", "content": _QUESTION},
            {"role": "assistant", "content": "", "tool_calls": CALLS},
        ]
        text = self.render(turns, False)
        if text is None or _ANSWER not in text:
            return answer
        if answer.is_written:
            # After the call's argument, which contains the answer's text.
            tail = text.rpartition(_ANSWER)[2]
            found = [token for token in self.encode(tail) if token in self.special]
            written = found[-1] if found and tail.rstrip().endswith(self.special[found[-1]].strip()) else None
            return answer if written is None else TurnEnd(written, self.special[written], is_written=True)
        result = {"role": "tool", "content": _NEXT, "tool_call_id": CALLS[0]["id"], "name": "price"}
        return self._of_next_role([*turns, result]) or answer

    def _of_next_role(self, turns: list[dict[str, Any]]) -> TurnEnd | None:
        """The token of the following role if it stops generation; otherwise the first stop token."""
        shorter, longer = self.render(turns[:-1], False), self.render(turns, False)
        if shorter is not None and longer is not None and longer.startswith(shorter):
            first = self._first(longer[len(shorter) :])
            if first is not None and first in self.stops:
                return TurnEnd(first, self.special[first], is_written=False)
        known = [token for token in self.stops if token in self.special]
        return TurnEnd(known[0], self.special[known[0]], is_written=False) if known else None

    def _first(self, text: str) -> int | None:
        """The first special token in a text."""
        return next((token for token in self.encode(text) if self.special.get(token, "").strip()), None)


_FORM_QUESTION, _FORM_ANSWER, _RESULT = "Which wood?", "Spruce-wood", "Twelve-euro"
_ARGUMENTS: Final = CALLS[0]["function"]["arguments"]


@dataclass(frozen=True, slots=True)
class MessageForms:
    """The message format of a template; all false is the usual one.

    Attributes:
        content_as_parts: the content is a list of parts.
        arguments_as_text: arguments of a tool call are JSON text.
        names_results: a tool result contains the name of the tool.
        shortens_ids: ids of calls have nine letters and digits; others are replaced by a digest.
        names_ids: ids of calls hold the name of the tool and the number of the call in the conversation; others are
            replaced by such.
    """

    content_as_parts: bool = False
    arguments_as_text: bool = False
    names_results: bool = False
    shortens_ids: bool = False
    names_ids: bool = False

    def sent(self, messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The messages as a client of this model sends them: with ids of calls that the model knows."""
        if not (self.shortens_ids or self.names_ids):
            return list(messages)
        identified = with_ids(messages)
        return _with_named_ids(identified) if self.names_ids else identified

    def applied(self, messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The messages in this format; the given ones are not modified."""
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
        if self.shortens_ids:
            shown = message | changed
            if calls := shown.get("tool_calls"):
                changed["tool_calls"] = [
                    call | {"id": _short_id(call["id"])} if call.get("id") else call for call in calls
                ]
            if call_id := shown.get("tool_call_id"):
                changed["tool_call_id"] = _short_id(call_id)
        return message | changed if changed else message


AS_USUAL: Final = MessageForms()


def measure_forms(render: Render) -> MessageForms | None:
    """The message format of a template; None if it renders a plain question and answer in neither form.

    Args:
        render: renders messages without conversion.
    """
    turns: list[dict[str, Any]] = [
        {"role": "user", "content": _FORM_QUESTION},
        {"role": "assistant", "content": _FORM_ANSWER},
    ]
    contents = (AS_USUAL, MessageForms(content_as_parts=True))
    forms = next((form for form in contents if _writes_content(render(form.applied(turns), False))), None)
    if forms is None:
        return None
    # With the content form just found: a wrong one would make every later probe fail.
    as_text = _wants_text(render, forms)
    named = _wants_names(render, MessageForms(forms.content_as_parts, as_text))
    found = MessageForms(forms.content_as_parts, as_text, named)
    return replace(
        found,
        shortens_ids=_wants_short_ids(render, found),
        names_ids=_writes_ids_alone(render, found),
    )


def _wants_text(render: Render, forms: MessageForms) -> bool:
    """Whether arguments must be text: as an object they are rejected or written as a Python repr."""
    turns: list[dict[str, Any]] = [
        {"role": "user", "content": _FORM_QUESTION},
        {"role": "assistant", "content": "", "tool_calls": CALLS},
    ]
    text = render(forms.applied(turns), False)
    # `str` of a dict: single quotes show a Python repr.
    if text is not None and str(_ARGUMENTS) not in text:
        return False
    return _writes(
        render(MessageForms(forms.content_as_parts, arguments_as_text=True).applied(turns), False), _json(_ARGUMENTS)
    )


def _wants_names(render: Render, forms: MessageForms) -> bool:
    """Whether a result without a name is rejected and one with the tool's name is not."""
    turns: list[dict[str, Any]] = [
        {"role": "user", "content": _FORM_QUESTION},
        {"role": "assistant", "content": "", "tool_calls": CALLS},
        {"role": "tool", "content": _RESULT, "tool_call_id": CALLS[0]["id"]},
    ]
    named = MessageForms(forms.content_as_parts, forms.arguments_as_text, names_results=True)
    return render(forms.applied(turns), False) is None and _writes(render(named.applied(turns), False), _RESULT)


def _wants_short_ids(render: Render, forms: MessageForms) -> bool:
    """Whether a call with an id as OpenAI's API gives it is rejected, and one with nine letters and digits is not."""
    found = []
    for call_id in (CALLS[0]["id"], _LONG_ID):
        turns: list[dict[str, Any]] = [
            {"role": "user", "content": _FORM_QUESTION},
            {"role": "assistant", "content": "", "tool_calls": [CALLS[0] | {"id": call_id}]},
            {"role": "tool", "content": _RESULT, "tool_call_id": call_id},
        ]
        found.append(render(forms.applied(turns), False))
    return _writes(found[0], _RESULT) and found[1] is None


def _writes_ids_alone(render: Render, forms: MessageForms) -> bool:
    """Whether a call is written with its id and without the name of its tool."""
    turns: list[dict[str, Any]] = [
        {"role": "user", "content": _FORM_QUESTION},
        {"role": "assistant", "content": "", "tool_calls": [CALLS[0] | {"id": _LONG_ID}]},
        {"role": "tool", "content": _RESULT, "tool_call_id": _LONG_ID},
    ]
    text, named = (render(forms.applied(one), False) for one in (turns, _with_named_ids(turns)))
    name = CALLS[0]["function"]["name"]
    return _writes(text, _ANSWER) and _writes(text, _LONG_ID) and not _writes(text, name) and _writes(named, name)


def with_ids(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages with an id for each call without one; results without one answer the calls in their order.

    Args:
        messages: in OpenAI's format; they are not changed.
    """
    made, open_ids, num_calls = list[dict[str, Any]](), list[str](), 0
    for message in messages:
        if calls := message.get("tool_calls"):
            named = [call | {"id": call.get("id") or f"call_{num}"} for num, call in enumerate(calls, num_calls)]
            num_calls += len(calls)
            open_ids = [str(call["id"]) for call in named]
            made.append(message | {"tool_calls": named})
        elif message["role"] == "tool" and open_ids:
            answered = str(message.get("tool_call_id") or open_ids[0])
            open_ids = [one for one in open_ids if one != answered]
            made.append(message | {"tool_call_id": answered})
        else:
            made.append(message)
    return made


def _with_named_ids(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages with ids of calls as Kimi K2 writes them; those that are so already stay."""
    made, ids, num_before = list[dict[str, Any]](), dict[str, str](), 0
    for message in messages:
        if calls := message.get("tool_calls"):
            changed = []
            for call in calls:
                call_id, name = str(call.get("id") or ""), str(call["function"]["name"])
                is_named = call_id.startswith(f"functions.{name}:")
                # The latest call of an id is the one that a result after it answers.
                ids[call_id] = call_id if is_named else f"functions.{name}:{num_before}"
                changed.append(call | {"id": ids[call_id]})
                num_before += 1
            made.append(message | {"tool_calls": changed})
        elif (answered := str(message.get("tool_call_id") or "")) in ids:
            made.append(message | {"tool_call_id": ids[answered]})
        else:
            made.append(message)
    return made


def _short_id(call_id: str) -> str:
    """An id of nine letters and digits, the same for equal ids."""
    is_right = len(call_id) == _ID_CHARACTERS and call_id.isascii() and call_id.isalnum()
    return call_id if is_right else sha256_bytes(call_id.encode(errors="surrogatepass"))[:_ID_CHARACTERS]


def _writes(text: str | None, part: str) -> bool:
    return text is not None and part in text


def _writes_content(text: str | None) -> bool:
    """Whether question and answer are rendered, rather than the repr of their list of parts."""
    is_listed = text is not None and ("'type'" in text or '"type"' in text)
    return _writes(text, _FORM_QUESTION) and _writes(text, _FORM_ANSWER) and not is_listed


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
    """The name of the tool called with this id, or by the only call of the last turn with calls."""
    calls = [list(message["tool_calls"]) for message in before if message.get("tool_calls")]
    # The latest turn first: ids may be reused in a long conversation.
    for call in [call for turn in reversed(calls) for call in turn]:
        if call_id is not None and call.get("id") == call_id:
            return str(call["function"]["name"])
    return str(calls[-1][0]["function"]["name"]) if calls and call_id is None and len(calls[-1]) == 1 else None


def parsed_call(index: int, call: dict[str, Any]) -> dict[str, Any]:
    """A tool call with its arguments as an object; in OpenAI's format they are JSON text.

    Args:
        index: of its message, for errors.
        call: in OpenAI's format.

    Raises:
        TemplateError: the arguments are no JSON.
    """
    function = dict(call.get("function") or {})
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            function["arguments"] = loads(arguments) if arguments.strip() else {}
        except ValueError as error:
            reason = library_reason(error)
            raise TemplateError(
                f"message {index + 1} calls {function.get('name')!r} with arguments {arguments[:80]!r}: {reason}",
                expected="arguments as JSON text",
                do="repair the row",
            ) from error
    return {**call, "function": function}
