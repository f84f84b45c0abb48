"""How models write tool calls, how those are separated from text while both are streamed, and how tools are described.

    family                      form of a call                                                          recognised by
    Hermes, Qwen, SmolLM2/3     <tool_call>{"name": "f", "arguments": {...}}</tool_call>                 <tool_call>
    Luthier's own tiny model    <call>{"name": "f", "arguments": {...}}</call>                           <call>
    Mistral                     [TOOL_CALLS][{"name": "f", "arguments": {...}}, ...]                     [TOOL_CALLS]
    Llama 3                     {"name": "f", "parameters": {...}} and nothing else, <|python_tag|> before it or not
    all others                  as Hermes

The table is looked up in the text of the model's chat template. What only looks like a call (no JSON, a tool that was
not offered) is returned as text. The arguments of a call are streamed as they grow.

For models whose chat template does not know tools, the system message describes them. The instructions, and the form of
earlier calls and their results in the conversation, are always the same:

    system      ...its own text, if there is one...
                You may call these functions. To call one, write:
                <tool_call>{"name": ..., "arguments": {...}}</tool_call>
                and nothing after it; its result comes in the next message.
                Functions, one a line, with the JSON schema of their arguments:
                {"name": ..., "description": ..., "parameters": {...}}
    assistant   <tool_call>{"name": ..., "arguments": {...}}</tool_call>
    user        <tool_response>...</tool_response>
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, Final

from luthier.core.conversation import Conversation, Message
from luthier.core.stream import CallPiece, TextRequest
from luthier.core.text.json_schema import check_schema

_BLANKS: Final = " \t\r\n"
_NAME: Final = r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)'


class ToolCallReader:
    """Reads one answer.

    Args:
        begin, end: what surrounds a call; `end` may be empty.
        only_whole: whether a call is the whole answer or none.
        is_list: whether calls are in a JSON list behind `begin`.
        names: of the tools that may be called; a call of another one is returned as text.
        most: how many calls are reported, the rest being left out; None for all.

    Attributes:
        num_calls: how many calls have begun.
    """

    def __init__(
        self, begin: str, end: str, *, only_whole: bool, is_list: bool, names: AbstractSet[str], most: int | None
    ) -> None:
        self._begin, self._end, self._is_list = begin, end, is_list
        self._names, self._most = names, most
        self._held = ""
        self._is_inside = only_whole
        self._arguments: _Arguments | None = None
        self._is_behind = False  # behind the arguments of a call, before its end
        self._opening = begin  # emitted as text if it turns out to be no call
        self._only_whole = only_whole
        self.num_calls = 0

    def add(self, text: str) -> tuple[str, list[CallPiece]]:
        """What of the text so far is certain: text beside calls, and more of calls."""
        self._held += text
        emitted, calls = "", list[CallPiece]()
        while True:
            # One piece of text may end a call and begin the next: repeated until nothing changes any more.
            before = (self._held, self._is_inside, self._is_behind)
            if self._arguments is not None:
                calls += self._more_arguments(self._arguments)
            elif self._is_behind:
                self._skip_end()
            elif self._is_inside:
                emitted += self._head(calls)
            else:
                emitted += self._text()
            if before == (self._held, self._is_inside, self._is_behind):
                return emitted, calls

    def end(self) -> tuple[str, list[CallPiece]]:
        """What was held back: no text comes any more."""
        left, self._held = self._held, ""
        # A call that was cut off stays as streamed: its arguments cannot be taken back.
        if self._arguments is not None or self._is_behind or (self.num_calls and not left.strip(_BLANKS)):
            return "", []
        if self._is_inside and not self._only_whole:
            left = self._opening + left
        return left, []

    def _text(self) -> str:
        """Text, up to where a call begins or may begin."""
        if self._only_whole or not self._begin:
            return self._take(len(self._held)) if not self.num_calls else self._drop()
        place = self._held.find(self._begin)
        if place >= 0:
            before = self._take(place)
            emitted = before.rstrip(_BLANKS)
            self._opening = before[len(emitted) :] + self._take(len(self._begin))
            self._is_inside = True
            return emitted
        # The end of the text may be the beginning of a mark, and blanks before a mark are not part of the text.
        sure = len(self._held) - _num_open(self._held, self._begin)
        sure = len(self._held[:sure].rstrip(_BLANKS))
        if self.num_calls and not self._held[:sure].strip(_BLANKS):
            return ""
        return self._take(sure)

    def _head(self, calls: list[CallPiece]) -> str:
        """Before the arguments of a call; returns what turned out to be text."""
        if self._most is not None and self.num_calls >= self._most:
            # More calls than asked for: without a mark to look for, the rest is dropped.
            self._is_inside, self._begin = False, ""
            return self._drop()
        if self._is_list:
            self._held = self._held.lstrip(_BLANKS + "[,")
            if self._held.startswith("]"):
                self._is_inside = False
                self._take(1)
                return ""
        # Name first, then arguments: in this order the arguments can be streamed as they grow.
        if (match := re.match(_NAME, self._held)) is not None:
            name = _json_text(match[1])
            if name not in self._names:
                return self._give_up()
            self._take(match.end())
            calls.append(self._begun(name))
            self._arguments = _Arguments()
            return ""
        return self._whole(calls)

    def _whole(self, calls: list[CallPiece]) -> str:
        """A call whose parts are in another order, once it is complete; returns what turned out to be text."""
        # Parsed again with each piece: an unfinished JSON object raises ValueError.
        opened = self._held.lstrip(_BLANKS)
        if opened and not opened.startswith("{"):
            return self._give_up()
        try:
            found, length = json.JSONDecoder().raw_decode(opened)
        except ValueError:
            # The closing mark is there and the JSON is not: it never will be.
            is_complete = bool(self._end) and self._end in self._held
            return self._give_up() if is_complete else ""
        except RecursionError:  # nested more deeply than the parser goes
            return self._give_up()
        name = found.get("name")
        arguments = found.get("arguments", found.get("parameters", {}))
        # A model may write anything as the name, a list among it, which no set can look up.
        if not isinstance(name, str) or name not in self._names or not isinstance(arguments, dict | str):
            return self._give_up()
        text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        self._take(len(self._held) - len(opened) + length)
        calls.append(self._begun(name).model_copy(update={"arguments": text}))
        self._is_behind = True
        return ""

    def _begun(self, name: str) -> CallPiece:
        self.num_calls += 1
        return CallPiece(index=self.num_calls - 1, call_id=f"call_{uuid.uuid4().hex[:24]}", name=name)

    def _more_arguments(self, arguments: _Arguments) -> list[CallPiece]:
        text = self._take(arguments.num_own(self._held))
        if arguments.has_ended:
            self._arguments, self._is_behind = None, True
        return [CallPiece(index=self.num_calls - 1, arguments=text)] if text else []

    def _skip_end(self) -> None:
        """What closes a call: braces, blanks, and the mark that ends it."""
        # The outer object's brace behind the arguments; small models write one too many.
        self._held = self._held.lstrip(_BLANKS + "}")
        if not self._held or (self._end and len(self._held) < len(self._end) and self._end.startswith(self._held)):
            return
        if self._end and self._held.startswith(self._end):
            self._take(len(self._end))
        # In a list the next call follows without a mark of its own.
        self._is_behind, self._is_inside = False, self._is_list

    def _give_up(self) -> str:
        """It is no call: what begins it is text, and a later one may yet be one."""
        self._is_inside = False
        opening = "" if self._only_whole else self._opening
        return opening + (self._take(len(self._held)) if self._only_whole else "")

    def _take(self, num: int) -> str:
        taken, self._held = self._held[:num], self._held[num:]
        return taken

    def _drop(self) -> str:
        self._held = ""
        return ""


class _Arguments:
    """Finds the end of a JSON object that comes in pieces."""

    def __init__(self) -> None:
        self._depth, self._is_text, self._is_escaped = 0, False, False
        self.has_ended = False

    def num_own(self, text: str) -> int:
        """How many characters of the text, which goes on where the last one ended, belong to the object."""
        for place, character in enumerate(text):
            # Braces inside of a string, and quotes behind a backslash, do not count.
            if self._is_escaped:
                self._is_escaped = False
            elif self._is_text:
                self._is_escaped = character == "\\"
                self._is_text = character != '"'
            elif character == '"':
                self._is_text = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth == 0:
                    self.has_ended = True
                    return place + 1
        return len(text)


def _json_text(quoted: str) -> str:
    """A JSON string as text; itself, quotes and all, where it is not valid JSON, so that it is no tool's name."""
    try:
        return str(json.loads(quoted))
    except ValueError:
        return quoted


def _num_open(text: str, mark: str) -> int:
    """How many characters at the end may be the beginning of the mark."""
    for num in range(min(len(text), len(mark) - 1), 0, -1):
        if mark.startswith(text[-num:]):
            return num
    return 0


TokenId = Callable[[str], int | None]
COMPACT: Final = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""How JSON is written: blanks wherever it allows them would let a small model write blanks until its limit."""


@dataclass(frozen=True, slots=True)
class ToolForm:
    """One family's way to call.

    Attributes:
        begin, end: what surrounds each call; `end` empty where nothing does.
        key: of the arguments.
        begins_only_answers: a call is the whole answer or none.
        has_special_marks: `begin` is a special token, which decoding usually leaves out.
        is_list: calls are in one JSON list.
    """

    begin: str
    end: str
    key: str = "arguments"
    begins_only_answers: bool = False
    has_special_marks: bool = False
    is_list: bool = False

    def written(self, name: str, arguments: str, *, quotes: bool = True) -> str:
        """A call as the model writes it.

        Args:
            name: of the tool.
            arguments: JSON text.
            quotes: whether the name is written as a JSON string.
        """
        named = json.dumps(name) if quotes else name
        call = f'{{"name": {named}, "{self.key}": {arguments}}}'
        return f"{self.begin}[{call}]" if self.is_list else f"{self.begin}{call}{self.end}"

    def grammar(self, asked: TextRequest, token_id: TokenId) -> str:
        """The grammar of an answer that must call, or, with a schema, call or follow it; llguidance's dialect of Lark.

        Args:
            asked: the request with its tools.
            token_id: id of a text that is one token of its own in the vocabulary; None for any other.

        Raises:
            UnsupportedError: a schema that is too large, or that no finite value follows.
        """
        # Tools come wrapped (`{"type": "function", "function": ...}`) or bare.
        functions = [tool.get("function", tool) for tool in asked.tools]
        if asked.tool_name is not None:
            functions = [one for one in functions if one.get("name") == asked.tool_name]
        for function in functions:
            check_schema(function.get("parameters"))
        if asked.json_schema is not None:
            check_schema(asked.json_schema)
        call = {"anyOf": [self._call_schema(one) for one in functions], "x-guidance": COMPACT}
        # A request that names one tool wants exactly that call.
        may_repeat = asked.calls_in_parallel and asked.tool_name is None
        if self.is_list:
            most = {} if may_repeat else {"maxItems": 1}
            listed = {"type": "array", "items": call, "minItems": 1, **most, "x-guidance": COMPACT}
            calls, rules = f"{_mark(self.begin, token_id)} calls", f"calls: %json {json.dumps(listed)}\n"
        else:
            calls = 'call ("\\n" call)*' if may_repeat and not self.begins_only_answers else "call"
            begin, end = _mark(self.begin, token_id), _mark(self.end, token_id)
            rules = f"call: {begin} body {end}\nbody: %json {json.dumps(call)}\n"
        if asked.tool_choice == "required" or asked.json_schema is None:
            return f"start: {calls}\n{rules}"
        answer = {**asked.json_schema, "x-guidance": COMPACT}
        return f"start: answer | {calls}\n{rules}answer: %json {json.dumps(answer)}\n"

    def reader(self, asked: TextRequest) -> ToolCallReader:
        """Reads one answer."""
        names = {str(tool.get("function", tool).get("name")) for tool in asked.tools}
        return ToolCallReader(
            self.begin,
            self.end,
            only_whole=self.begins_only_answers,
            is_list=self.is_list,
            names=names,
            most=None if asked.calls_in_parallel else 1,
        )

    def _call_schema(self, function: dict[str, Any]) -> dict[str, Any]:
        arguments = function.get("parameters") or {"type": "object"}
        return {
            "type": "object",
            # The name before the arguments: llguidance keeps this order, and the reader can stream the arguments.
            "properties": {"name": {"const": function.get("name")}, self.key: arguments},
            "required": ["name", self.key],
            "additionalProperties": False,
        }


HERMES: Final = ToolForm("<tool_call>", "</tool_call>")
_FORMS: Final = (
    ("<tool_call>", HERMES),
    ("<call>", ToolForm("<call>", "</call>")),
    ("[TOOL_CALLS]", ToolForm("[TOOL_CALLS]", "", has_special_marks=True, is_list=True)),
    ("python_tag", ToolForm("", "", key="parameters", begins_only_answers=True)),
    ('"parameters', ToolForm("", "", key="parameters", begins_only_answers=True)),
)


def form_of(template: str) -> ToolForm:
    """The form in which a model with this chat template calls."""
    return next((form for mark, form in _FORMS if mark in template), HERMES)


def _mark(text: str, token_id: TokenId) -> str:
    number = token_id(text) if text else None
    # A special token must be forced as that token: its characters one by one would be other tokens.
    return json.dumps(text) if number is None else f"<[{number}]>"


TOOLS_PROMPT: Final = """\
You may call these functions. To call one, write:
{example}
and nothing after it; its result comes in the next message.
Functions, one a line, with the JSON schema of their arguments:
{functions}"""
"""What the system text says of tools. example: of a call. functions: one a line."""
TOOL_RESPONSE: Final = ("<tool_response>", "</tool_response>")
"""What surrounds the result of a call."""


def with_tools_as_text(conversation: Conversation, form: ToolForm) -> Conversation:
    """The same conversation in messages of text alone; unchanged where it has to do with no tool."""
    messages = [_as_text(message, form) for message in conversation.messages]
    if conversation.tools:
        functions = "\n".join(json.dumps(tool.get("function", tool), ensure_ascii=False) for tool in conversation.tools)
        words = TOOLS_PROMPT.format(example=form.written("...", "{...}", quotes=False), functions=functions)
        if messages and messages[0].role in ("system", "developer"):
            content = f"{messages[0].content or ''}\n\n{words}"
            messages[0] = messages[0].model_copy(update={"content": content})
        else:
            messages.insert(0, Message(role="system", content=words))
    # Without `tools`: a template that knows them must not write them a second time.
    return Conversation(messages=tuple(messages))


def _as_text(message: Message, form: ToolForm) -> Message:
    if message.role in ("tool", "function"):
        begin, end = TOOL_RESPONSE
        # As a user's turn: templates without tools refuse the role `tool`.
        return Message(role="user", content=f"{begin}{message.content or ''}{end}")
    if not message.tool_calls:
        return message
    calls = [
        form.written(call["function"]["name"], call["function"].get("arguments") or "{}") for call in message.tool_calls
    ]
    parts = [message.content] if message.content else []
    return message.model_copy(update={"content": "\n".join([*parts, *calls]), "tool_calls": ()})
