"""Grammars of answers that call tools, in llguidance's dialect of Lark.

A special token must be forced as a token (`<[ID]>`): its characters would be tokenised differently, and no regular
expression matches it. So what a model writes around its calls in special tokens has to be in the grammar as well, such
as the channels of gpt-oss.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from luthier.core.stream import TextRequest
from luthier.core.text.json_schema import check_schema, placed
from luthier.ml.inference.tool_calls import channels
from luthier.ml.inference.tool_calls.native import NUMBER, NativeForm

if TYPE_CHECKING:
    from luthier.ml.inference.tool_calls.forms import ToolForm

TokenId = Callable[[str], int | None]
"""The id of a text that is a single token of the vocabulary, otherwise None."""
COMPACT: Final = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""Whitespace rules for JSON: arbitrary blanks would let a small model generate blanks until its limit."""
_ANY_TEXT: Final = "TEXT: /(.|\\n)*/\n"
_OBJECT: Final[Mapping[str, Any]] = {"type": "object"}
_LATER: Final = r"[ \t\r\n]*[^a-zA-Z0-9_\-( \t\r\n](.|\n)*|[ \t\r\n]+[a-zA-Z0-9_\-](.|\n)*"
_NO_CALL: Final = rf"([ \t\r\n]*([^{{\[ \t\r\n](.|\n)*|\[[ \t\r\n]*[a-zA-Z0-9_\-]*({_LATER})?))?"
"""A text that begins neither as JSON nor, with a bracket, a name and another bracket, as a list of calls of Python."""


def required_calls(form: ToolForm, asked: TextRequest, token_id: TokenId) -> str:
    """The grammar of an answer that must be a call or, with a schema, a call or a match.

    Args:
        form: how the model writes calls.
        asked: the request with its tools.
        token_id: names special tokens.

    Raises:
        UnsupportedError: the schema is too large, or has no finite instance.
    """
    functions = functions_of(asked)
    if asked.tool_name is not None:
        functions = [one for one in functions if one.get("name") == asked.tool_name]
    for function in functions:
        check_schema(function.get("parameters"))
    if asked.json_schema is not None:
        check_schema(asked.json_schema)
    call = {"anyOf": _call_schemas(functions, form.key, is_list=form.is_list), "x-guidance": COMPACT}
    # A request that names one tool requires exactly that call.
    may_repeat = asked.calls_in_parallel and asked.tool_name is None
    if form.is_list:
        most = {} if may_repeat else {"maxItems": 1}
        listed = {"type": "array", "items": call, "minItems": 1, **most, "x-guidance": COMPACT}
        calls, rules = f"{_mark(form.begin, token_id)} calls", f"calls: %json {json.dumps(listed)}\n"
    else:
        calls = 'call ("\\n" call)*' if may_repeat and not form.begins_only_answers else "call"
        begin, end = _mark(form.begin, token_id), _mark(form.end, token_id)
        rules = f"call: {begin} body {end}\nbody: %json {json.dumps(call)}\n"
    if asked.tool_choice == "required" or asked.json_schema is None:
        return f"start: {calls}\n{rules}"
    answer = {**asked.json_schema, "x-guidance": COMPACT}
    return f"start: answer | {calls}\n{rules}answer: %json {json.dumps(answer)}\n"


def strict_calls(form: ToolForm, asked: TextRequest, token_id: TokenId, shown: Sequence[str] = ()) -> str:
    """The grammar of any text in which each call matches its schema, where the tool is in `strict_tools`.

    Args:
        form: how the model writes calls.
        asked: the request with its tools.
        token_id: names special tokens.
        shown: special tokens that may be anywhere outside of calls, such as those around a thought.

    Raises:
        UnsupportedError: a schema is too large, or has no finite instance.
    """
    functions = functions_of(asked)
    strict = [one for one in functions if one.get("name") in asked.strict_tools]
    for function in strict:
        check_schema(function.get("parameters"))
    known = [*strict, *({"name": one.get("name")} for one in functions if one not in strict)]
    if form.in_channels and all(token_id(mark) is not None for mark in channels.MARKS):
        return _in_channels(known, token_id)
    call: dict[str, Any] = {"anyOf": _call_schemas(known, form.key, is_list=form.is_list), "x-guidance": COMPACT}
    if form.is_list:
        call = {"type": "array", "items": call, "minItems": 1, "x-guidance": COMPACT}
    body = f"body: %json {json.dumps(call)}\n"
    if not form.begin:
        # A call is the whole answer: what begins as one must become one.
        return f"start: body | PLAIN\nPLAIN: /{_NO_CALL}/\n{body}"
    end = _mark(form.end, token_id) if form.end else ""
    begun, rules = _after_mark("own", form.begin, "call", token_id)
    if form.native is not None:
        more, native_rules = _native(form.native, known, token_id)
        begun, rules = begun + more, rules + native_rules
    often = "*" if asked.calls_in_parallel else "?"
    free = [_mark(mark, token_id) for mark in shown if mark not in form.marks and token_id(mark) is not None]
    between = " free*" if free else ""
    rules += f"free: TEXT ({' | '.join(free)})\n" if free else ""
    start = f"start:{between} (({' | '.join(begun)}){between}){often} TEXT\n"
    return f'{start}{_ANY_TEXT}{rules}call: "\\n"? body "\\n"? {end}\n{body}'


def functions_of(asked: TextRequest) -> list[dict[str, Any]]:
    """The functions of a request; tools come wrapped (`{"type": "function", "function": ...}`) or bare."""
    return [tool.get("function", tool) for tool in asked.tools]


def _after_mark(name: str, mark: str, rule: str, token_id: TokenId) -> tuple[list[str], str]:
    """Rules for a text in which the first mark is followed by a rule: their names, and the rules."""
    # Lazy: the first mark in the text begins a call. It may be one token of the vocabulary, or be spelled out.
    names = [f"{name}_spelled"]
    rules = f"{name}_mark[lazy]: TEXT {_literal(mark)}\n{name}_spelled: {name}_mark {rule}\n"
    if token_id(mark) is not None:
        names.append(f"{name}_marked")
        rules += f"{name}_marked: TEXT {_mark(mark, token_id)} {rule}\n"
    return names, rules


def _native(form: NativeForm, functions: Sequence[dict[str, Any]], token_id: TokenId) -> tuple[list[str], str]:
    """The calls of a native form, with JSON for their arguments: the names of the rules that begin one, and rules."""
    end = _mark(form.end, token_id)
    if form.leads:
        calls, rules = [], ""
        for number, function in enumerate(functions):
            for lead, trail in form.leads:
                parts = " ".join(_part(part, str(function.get("name")), token_id) for part in lead)
                calls.append(f"{parts} native_{number} {_literal(trail) if trail else ''} {end}")
            rules += f"native_{number}: %json {json.dumps(_arguments(function))}\n"
        rules += f"native: {' | '.join(calls)}\n"
    else:
        items = {"anyOf": _call_schemas(functions, "arguments", is_list=True), "x-guidance": COMPACT}
        listed = {"type": "array", "items": items, "minItems": 1, "x-guidance": COMPACT}
        rules = f"native: native_list {end}\nnative_list: %json {json.dumps(listed)}\n"
    begun: list[str] = []
    for number, mark in enumerate(form.begins):
        is_section = bool(form.call) and mark != form.call
        names, more = _after_mark(f"begin_{number}", mark, "section" if is_section else "native", token_id)
        begun, rules = begun + names, rules + more
    if form.call:
        one = f'"\\n"? {_mark(form.call, token_id)} native'
        rules += f'section: {one} ({one})* "\\n"? {_mark(form.close, token_id)}\n'
    return begun, rules


def _in_channels(functions: Sequence[dict[str, Any]], token_id: TokenId) -> str:
    """The channels of gpt-oss, behind a prompt that ends with the beginning of the assistant's turn."""
    start, channel, constrain, message, end = (_mark(mark, token_id) for mark in channels.MARKS)
    calls = ""
    for number, function in enumerate(functions):
        name = f"to=functions.{function.get('name')}"
        calls += (
            f'call_{number}: {_literal(f" {name}")} {channel} "commentary" kind {message} arguments_{number} '
            f"| {channel} {_literal(f'commentary {name}')} kind {message} arguments_{number}\n"
            f"arguments_{number}: %json {json.dumps(_arguments(function))}\n"
        )
    called = " | ".join(f"call_{number}" for number in range(len(functions)))
    return (
        f'start: part ({start} "assistant" part)*\n'
        f"part: {channel} name {message} TEXT {end}? | {called}\n"
        'name: "analysis" | "commentary" | "final"\n'
        f'kind: " "? {constrain}? "json"?\n{_ANY_TEXT}{calls}'
    )


def _part(part: str, name: str, token_id: TokenId) -> str:
    """One part of what is before the arguments of a call."""
    return "/[0-9]{1,4}/" if part == NUMBER else _mark(part.replace("{name}", name), token_id)


def _arguments(function: Mapping[str, Any]) -> dict[str, Any]:
    return {**(function.get("parameters") or _OBJECT), "x-guidance": COMPACT}


def _call_schemas(functions: Sequence[dict[str, Any]], key: str, *, is_list: bool) -> list[dict[str, Any]]:
    """The schema of a call of each function, for `anyOf` of the document, or of its items in a list."""
    root = "#/items" if is_list else "#"
    return [_call_schema(one, key, f"{root}/anyOf/{number}") for number, one in enumerate(functions)]


def _call_schema(function: dict[str, Any], key: str, place: str) -> dict[str, Any]:
    arguments = placed(function.get("parameters") or {"type": "object"}, f"{place}/properties/{key}")
    return {
        "type": "object",
        # The name before the arguments: llguidance keeps this order, so the arguments can be streamed.
        "properties": {"name": {"const": function.get("name")}, key: arguments},
        "required": ["name", key],
        "additionalProperties": False,
    }


def _mark(text: str, token_id: TokenId) -> str:
    number = token_id(text) if text else None
    return _literal(text) if number is None else f"<[{number}]>"


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
