"""Whether a JSON schema can be kept to by a model: that it is of a size, and that some value of it has an end."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, Final

from luthier.core.errors import UnsupportedError
from luthier.core.json_limits import fault_of

MAX_BYTES: Final = 131_072
MAX_PROPERTIES: Final = 5000
"""As OpenAI's structured outputs."""
_ALL: Final = ("allOf",)
_ANY: Final = ("anyOf", "oneOf")
_NAMED: Final = ("properties", "patternProperties", "$defs", "definitions")
_LISTED: Final = ("allOf", "anyOf", "oneOf", "prefixItems")
_SINGLE: Final = ("items", "additionalProperties", "not", "if", "then", "else", "contains")

Schema = Mapping[str, Any]


def check_schema(schema: Any, param: str | None = None) -> None:
    """Raise UnsupportedError for a schema that is too large or deep, or that no finite value satisfies.

    Args:
        schema: the JSON schema.
        param: where it is in the request.
    """
    if (fault := fault_of(schema)) is not None:
        place = f" at {fault.place}" if fault.place else ""
        raise _refused(f"a schema with {fault.came}{place}", fault.expected, "make the schema smaller", param)
    num_bytes = len(json.dumps(schema))
    # By identity: equal parts at two places are two nodes. The caller holds the schema, so no id is used again.
    nodes = dict(_nodes(schema))
    num_properties = sum(len(node.get("properties") or ()) for node in nodes.values() if _is_map(node, "properties"))
    if num_bytes > MAX_BYTES or num_properties > MAX_PROPERTIES:
        raise _refused(
            f"a schema of {num_bytes:,} bytes with {num_properties:,} properties",
            f"at most {MAX_BYTES:,} bytes and {MAX_PROPERTIES:,} properties",
            "make the schema smaller",
            param,
        )
    if isinstance(schema, dict) and id(schema) not in _ending(schema, nodes):
        raise _refused(
            "a schema that no finite value satisfies: it needs itself within itself, without end",
            "a recursion that can end, such as an optional property, a list that may be empty, or anyOf with a leaf",
            "make the recursive property optional",
            param,
        )


def placed(schema: Any, place: str) -> Any:
    """A copy of a schema for a place within another document: its references name its own parts from there.

    Args:
        schema: the JSON schema.
        place: a JSON pointer, such as `#/anyOf/0`.
    """
    nodes = {number for number, _ in _nodes(schema)}

    def copied(value: Any) -> Any:
        if isinstance(value, list):
            return [copied(one) for one in value]
        if not isinstance(value, dict):
            return value
        made = {key: copied(one) for key, one in value.items()}
        # Values that are written out (`const`, `default`) may have such a key, too, and are no schemas.
        if id(value) in nodes and isinstance(reference := value.get("$ref"), str) and reference.startswith("#"):
            made["$ref"] = f"{place}{reference[1:]}"
        return made

    made = copied(schema)
    if isinstance(made, dict):
        # References would count from a document of this name.
        made.pop("$id", None)
    return made


def _refused(came: str, expected: str, do: str, param: str | None) -> UnsupportedError:
    return UnsupportedError(came, expected=expected, do=do, code="invalid_value", param=param)


def _ending(root: Schema, nodes: Mapping[int, Schema]) -> set[int]:
    """The nodes of which some finite value exists: the least fixed point, over the dependencies.

    A schema is a Horn formula in this (an object ends when all its required properties do, `anyOf` when one of them
    does), so each node is checked again only when something that it waits for has been found to end.
    """
    waits = _Waits(root)
    ending: set[int] = set()
    waiting: dict[int, set[int]] = defaultdict(set)
    stack = list(nodes)
    while stack:
        number = stack.pop()
        node = nodes.get(number)
        if node is None or number in ending:
            continue
        open_ones = waits.open_ones(node, ending)
        if not open_ones:
            ending.add(number)
            # Only what waited for this node is looked at again: linear in the number of edges, not quadratic in the
            # nodes.
            stack += waiting.pop(number, ())
        for other in open_ones:
            waiting[other].add(number)
    return ending


class _Waits:
    """What a node waits for."""

    def __init__(self, root: Schema) -> None:
        self._root = root

    def open_ones(self, node: Schema, ending: set[int]) -> list[int]:
        """Nodes that do not end yet and that this one needs to; none where it ends."""
        found: list[int] = []
        if isinstance(reference := node.get("$ref"), str):
            found += _open([referred(self._root, reference)], ending)
        # A value that is written out is finite, regardless of other constraints.
        if "const" in node or "enum" in node:
            return found
        for key in _ALL:
            found += _open(_list(node, key), ending)
        for key in _ANY:
            choices = _list(node, key)
            # One choice that ends is enough; as long as none does, each of them may be the first.
            if choices and not any(_ends(one, ending) for one in choices):
                found += _open(choices, ending)
        kinds = node.get("type")
        if kinds == "object":
            properties = node["properties"] if _is_map(node, "properties") else {}
            found += _open([properties.get(name) for name in _list(node, "required") if isinstance(name, str)], ending)
        elif kinds == "array":
            found += _open(self._needed_items(node), ending)
        return found

    def _needed_items(self, node: Schema) -> list[Any]:
        least = node.get("minItems")
        if not isinstance(least, int) or least < 1:
            return []
        # Only the items that must be there count: an optional item may recurse.
        first = _list(node, "prefixItems")[:least]
        return [*first, node.get("items")] if least > len(first) else first


def referred(root: Schema, reference: str) -> Any:
    """What a reference within the document names; None for any other, which is somebody else's to refuse."""
    found: Any = root
    if not reference.startswith("#"):
        return None
    # A JSON pointer (RFC 6901). ~1 before ~0, as the RFC says: `~01` is `~1`, not `/`.
    for part in reference[1:].split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        if isinstance(found, dict):
            found = found.get(name)
        elif isinstance(found, list) and name.isascii() and name.isdigit() and int(name[:9]) < len(found):
            found = found[int(name[:9])]
        else:
            return None
    return found


def _ends(node: Any, ending: set[int]) -> bool:
    """Whether a part is known to end; what is not a separate schema (`true`, a missing property) always does."""
    return not isinstance(node, dict) or id(node) in ending


def _open(nodes: list[Any], ending: set[int]) -> list[int]:
    return [id(node) for node in nodes if not _ends(node, ending)]


def _list(node: Schema, key: str) -> list[Any]:
    found = node.get(key)
    return found if isinstance(found, list) else []


def _is_map(node: Schema, key: str) -> bool:
    return isinstance(node.get(key), dict)


def _nodes(schema: Any) -> Iterator[tuple[int, Schema]]:
    """Every schema within a schema or referred to in it, itself included, by its identity."""
    waiting, seen = [schema], set[int]()
    while waiting:
        node = waiting.pop()
        if not isinstance(node, dict) or id(node) in seen:
            continue
        seen.add(id(node))
        yield id(node), node
        # It may be in a section that holds schemas by agreement only, such as `components` of OpenAPI.
        if isinstance(reference := node.get("$ref"), str):
            waiting.append(referred(schema, reference))
        for key in _NAMED:
            if _is_map(node, key):
                waiting += node[key].values()
        for key in _LISTED:
            waiting += _list(node, key)
        waiting += [node[key] for key in _SINGLE if key in node]
