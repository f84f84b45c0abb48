"""How models write tool calls, and how those are separated from the rest of an answer.

    family                      form of a call                                                          recognised by
    Hermes, Qwen, SmolLM2/3     <tool_call>{"name": "f", "arguments": {...}}</tool_call>                 <tool_call>
    Luthier's own tiny model    <call>{"name": "f", "arguments": {...}}</call>                           <call>
    Mistral                     [TOOL_CALLS][{"name": "f", "arguments": {...}}, ...]                     [TOOL_CALLS]
    Llama 3                     {"name": "f", "parameters": {...}} and nothing else, <|python_tag|> before it or not
    all others                  as Hermes

The table is looked up in the text of the model's chat template. What only looks like a call (no JSON, a tool that was
not offered) is returned as text.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from luthier.core.stream import TextRequest
from luthier.core.text.json_schema import check_schema
from luthier.ml.inference.tool_call_reader import ToolCallReader

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
