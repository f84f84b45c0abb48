"""Tool calls that are written in tags rather than as JSON, between the marks of a call or of several.

    Qwen3-Coder, Qwen3.5, Nemotron 3, Seed-OSS  <function=NAME><parameter=KEY>VALUE</parameter>...</function>
    GLM from 4.5 on                             NAME<arg_key>KEY</arg_key><arg_value>VALUE</arg_value>...
    MiniMax M2                                  <invoke name="NAME"><parameter name="KEY">VALUE</parameter>...</invoke>
    DeepSeek V3.2, V4                           the same, with ｜DSML｜ before the name of each tag, and string="true"
                                                where a value is a text, "false" where it is JSON
    Step-3                                      the same, with steptml: before the name of each tag
    MiniMax M3                                  <invoke name="NAME"><KEY>VALUE</KEY>...</invoke>, a mark before a tag;
                                                a value may have its own elements

Tags may be on their own lines. A value is a text as it is, or anything else as JSON or as Python writes it; which of
both it is follows from the schema of the tool.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from luthier.core.json_limits import MAX_DEPTH
from luthier.core.text.json_schema import referred
from luthier.ml.inference.tool_calls.arguments import TOOL_NAME
from luthier.ml.inference.tool_calls.values import python_value

_FUNCTION: Final = "<function="
_HEAD: Final = re.compile(r"\s*<function=([^<>\n]+)>")
_PARAMETER: Final = re.compile(r"\s*<parameter=([^<>\n]+)>(.*?)</parameter>", re.DOTALL)
_TAIL: Final = re.compile(r"\s*(?:</function>)?\s*")
_NAME: Final = re.compile(rf"\s*({TOOL_NAME})\s*")
_KEY: Final = "<arg_key>"
_PAIR: Final = re.compile(r"\s*<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>", re.DOTALL)
_WORDS: Final[dict[str, Any]] = {"True": True, "False": False, "None": None}
_TAG: Final = re.compile(r"<(/?)([^<>\s/]{1,256})((?:\s[^<>]*)?)>")
_TOOL: Final = re.compile(r"\s*name=\"([^\"<>\n]+)\"\s*")
_ITEM: Final = "item"


def may_begin(text: str, end: str, tools: Mapping[str, Any]) -> bool:
    """Whether a text may be the beginning of such a call.

    Args:
        text: what follows the mark of a call, without space before it; not empty.
        end: the mark that ends a call.
        tools: the schema of the arguments of each tool, by its name.
    """
    if text.startswith("<"):
        return text.startswith(_FUNCTION) or _FUNCTION.startswith(text)
    match = _NAME.match(text)
    if match is None:
        return False
    rest = text[match.end() :]
    if not rest and match.end() == match.end(1):
        return any(name.startswith(match[1]) for name in tools)
    return match[1] in tools and (rest.startswith(_KEY) or _KEY.startswith(rest) or end.startswith(rest))


def tagged_call(text: str, tools: Mapping[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """The name and the arguments of a call; None where the text is no call of one of the tools.

    Args:
        text: all that is between the marks of the call.
        tools: the schema of the arguments of each tool, by its name; None for a tool without one.
    """
    head, pair, is_tail = _HEAD.match(text), _PARAMETER, _TAIL
    if head is None:
        head, pair, is_tail = _NAME.match(text), _PAIR, re.compile(r"\s*")
    if head is None or (name := head[1].strip()) not in tools:
        return None
    given: dict[str, str] = {}
    place = head.end()
    while (found := pair.match(text, place)) is not None:
        given[found[1].strip()] = found[2]
        place = found.end()
    if is_tail.fullmatch(text, place) is None:
        return None
    return name, {key: _typed(key, value, tools[name]) for key, value in given.items()}


def invoked_calls(text: str, tools: Mapping[str, Any], mark: str = "") -> list[tuple[str, dict[str, Any]]] | None:
    """Names and arguments of calls in `invoke` tags; None where the text is something else.

    Args:
        text: all that is between the marks of the calls.
        tools: the schema of the arguments of each tool, by its name; None for a tool without one.
        mark: what is before the name of each tag.
    """
    own = re.escape(mark)
    head = re.compile(rf'\s*<{own}invoke name="([^"<>\n]+)"\s*>')
    parameter = re.compile(
        rf'\s*<{own}parameter name="([^"<>\n]+)"(?:\s+string="(true|false)")?\s*>(.*?)</{own}parameter>', re.DOTALL
    )
    tail = re.compile(rf"\s*</{own}invoke>\s*")
    calls: list[tuple[str, dict[str, Any]]] = []
    place = 0
    while place < len(text):
        begun = head.match(text, place)
        if begun is None:
            return None
        name, place = begun[1].strip(), begun.end()
        arguments: dict[str, Any] = {}
        while (found := parameter.match(text, place)) is not None:
            key, place = found[1].strip(), found.end()
            if found[2] is None:
                arguments[key] = _typed(key, found[3], tools.get(name))
            else:
                arguments[key] = found[3] if found[2] == "true" else _value(found[3], {"other"})
        if (ended := tail.match(text, place)) is None:
            return None
        calls.append((name, arguments))
        place = ended.end()
    return calls or None


@dataclass(slots=True)
class _Element:
    """A tag with what is in it.

    Attributes:
        name: Of the tag.
        rest: What is behind its name.
        text: Before the first tag in it.
        parts: The tags in it.
    """

    name: str
    rest: str = ""
    text: str = ""
    parts: list[_Element] = field(default_factory=list)


def nested_calls(text: str, tools: Mapping[str, Any], mark: str) -> list[tuple[str, dict[str, Any]]] | None:
    """Names and arguments of calls whose parameters are elements of their names; None where the text is something else.

    Args:
        text: all that is between the marks of the calls.
        tools: the schema of the arguments of each tool, by its name; None for a tool without one.
        mark: what is before each tag: tags without it belong to a value.
    """
    first, *pieces = text.split(mark)
    whole = _Element("")
    open_ones = [whole]
    for piece in pieces:
        tag = _TAG.match(piece)
        if tag is None or first.strip():
            return None
        inside = open_ones[-1]
        if not tag[1] and inside.text.strip():
            return None
        if not tag[1]:
            inside.parts.append(_Element(tag[2], tag[3], piece[tag.end() :]))
            open_ones.append(inside.parts[-1])
        elif tag[2] != inside.name or len(open_ones) == 1 or piece[tag.end() :].strip():
            return None
        else:
            open_ones.pop()
        if len(open_ones) > MAX_DEPTH:
            return None
    calls: list[tuple[str, dict[str, Any]]] = []
    for one in whole.parts:
        tool = _TOOL.fullmatch(one.rest)
        if one.name != "invoke" or tool is None:
            return None
        name = tool[1].strip()
        root = schema if isinstance(schema := tools.get(name), dict) else {}
        calls.append(
            (name, {part.name: _of_element(part, _property(root, part.name, root), root) for part in one.parts})
        )
    return calls if len(open_ones) == 1 and calls else None


def _of_element(one: _Element, schema: Any, root: Mapping[str, Any]) -> Any:
    kinds = _kinds(schema, root)
    are_items = all(part.name == _ITEM for part in one.parts)
    if not one.parts:
        is_empty = not one.text.strip() and "string" not in kinds
        if is_empty and kinds & {"array", "object"}:
            return [] if "array" in kinds else {}
        return _value(one.text, kinds)
    if "array" in kinds or (are_items and "object" not in kinds):
        items = next((node["items"] for node in _nodes(schema, root) if "items" in node), None)
        return [_of_element(part, items, root) for part in one.parts]
    return {part.name: _of_element(part, _property(schema, part.name, root), root) for part in one.parts}


def _property(schema: Any, name: str, root: Mapping[str, Any]) -> Any:
    """The schema of a property; None where there is none."""
    of_objects = (node["properties"] for node in _nodes(schema, root) if isinstance(node.get("properties"), dict))
    return next((own[name] for own in of_objects if name in own), None)


def _typed(key: str, text: str, schema: Any) -> Any:
    """The value of a parameter, by the schema of the arguments."""
    root = schema if isinstance(schema, dict) else {}
    own = root.get("properties")
    return _value(text, _kinds(own.get(key) if isinstance(own, dict) else None, root))


def _value(text: str, kinds: set[str]) -> Any:
    """A value of one of these types; of any that is not known, a text."""
    text = text.removeprefix("\n").removesuffix("\n")
    bare = text.strip()
    if not kinds or "string" in kinds:
        return None if "null" in kinds and bare in ("null", "None") else text
    if bare in _WORDS:
        return _WORDS[bare]
    try:
        found = json.loads(bare)
        json.dumps(found, allow_nan=False)  # Python reads infinities, too
        return found
    except (ValueError, RecursionError):
        return _as_python(bare, text)


def _as_python(bare: str, text: str) -> Any:
    """A list or an object as Python writes it; otherwise the text."""
    if not bare.startswith(("{", "[", "(")):
        return text
    try:
        found = python_value(bare)
        json.dumps(found)  # as above: one that is nested too deeply is a text
        return found
    except (ValueError, RecursionError):
        return text


def _kinds(schema: Any, root: Mapping[str, Any]) -> set[str]:
    """The types of JSON that a schema allows; none where it does not say it."""
    found: set[str] = set()
    for node in _nodes(schema, root):
        kinds = node.get("type")
        found |= {one for one in (kinds if isinstance(kinds, list) else [kinds]) if isinstance(one, str)}
        for value in [*_listed(node, "enum"), *([node["const"]] if "const" in node else ())]:
            found.add("string" if isinstance(value, str) else "null" if value is None else "other")
    return found


def _nodes(schema: Any, root: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """A schema and those that it is put together of."""
    waiting, seen = [schema], set[int]()
    while waiting:
        node = waiting.pop()
        # By identity: a schema may refer to itself.
        if not isinstance(node, dict) or id(node) in seen:
            continue
        seen.add(id(node))
        yield node
        for key in ("anyOf", "oneOf", "allOf"):
            waiting += _listed(node, key)
        if isinstance(reference := node.get("$ref"), str):
            waiting.append(referred(root, reference))


def _listed(node: Mapping[str, Any], key: str) -> list[Any]:
    found = node.get(key)
    return found if isinstance(found, list) else []
