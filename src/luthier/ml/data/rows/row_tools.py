"""The tools of a row: OpenAI's `tools`, or the older `functions`, which mean the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from luthier.ml.data.files.bad_field import ABSENT, BadFieldError, name_of_type
from luthier.ml.data.files.untrusted_input import StrictJsonError, strict_loads

_FUNCTION_KEYS: Final = ("name", "description", "parameters")


def tools_of(fields: Mapping[str, Any], place: str = "") -> tuple[dict[str, Any], ...]:
    """The tools of a row under either name; empty for none.

    Args:
        fields: of the row, or of an object in it.
        place: what the names of the fields begin with in messages, such as `input.`.

    Raises:
        BadFieldError: both are given, or one is no list of tools.
    """
    functions = fields.get("functions")
    if functions is None:
        return parse_tools(f"{place}tools", fields.get("tools"))
    if fields.get("tools") is not None:
        raise BadFieldError(f"{place}functions", functions, "is given with tools; only one of the two is possible")
    listed = [] if functions == "" else list_of_objects(f"{place}functions", functions)
    return parse_tools(f"{place}functions", [{"type": "function", "function": function} for function in listed])


def parse_tools(field: str, value: Any) -> tuple[dict[str, Any], ...]:
    """OpenAI's `tools` list, also as JSON text. Null and an empty list mean no tools.

    Raises:
        BadFieldError: no list of objects, or a tool without a named function.
    """
    if value is None or value == [] or value == "":
        return ()
    tools = []
    for index, tool in enumerate(list_of_objects(field, value)):
        # Bare function objects are common in files that were not made for OpenAI.
        made = tool if "function" in tool else {"type": "function", "function": tool}
        function = made["function"]
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise BadFieldError(f"{field}[{index}]", tool, "is no tool: it has no function with a name")
        tools.append(_as_in_prompts(made))
    return tuple(tools)


def _as_in_prompts(tool: dict[str, Any]) -> dict[str, Any]:
    """A tool with the keys of a function in the order in which the server writes them, and without `strict`.

    Templates print tools as they come: the prompts of training would differ from those of use otherwise. OpenAI's
    clients write `strict` and other orders, and the server reads `strict` by itself.
    """
    function = tool["function"]
    known = {name: function[name] for name in _FUNCTION_KEYS if function.get(name) is not None}
    rest = {name: value for name, value in function.items() if name not in (*_FUNCTION_KEYS, "strict")}
    return {"type": "function", "function": known | rest} | {
        name: value for name, value in tool.items() if name != "function"
    }


def list_of_objects(field: str, value: Any) -> list[dict[str, Any]]:
    """A list of objects, also as JSON text.

    Args:
        field: name of the field, for messages.
        value: its raw value.

    Raises:
        BadFieldError: at the first value that is another.
    """
    if value is None:
        raise BadFieldError(field, ABSENT, "is absent or null")
    if isinstance(value, str):
        try:
            value = strict_loads(value)
        except StrictJsonError as error:
            reason = f"is text that is not JSON where a list is expected: {error.reason}"
            raise BadFieldError(field, value, reason) from error
    if not isinstance(value, list):
        raise BadFieldError(field, value, f"is {name_of_type(value)} where a list is expected")
    for index, item in enumerate(value):
        if not isinstance(item, dict):
            raise BadFieldError(f"{field}[{index}]", item, f"is {name_of_type(item)} where an object is expected")
    return value
