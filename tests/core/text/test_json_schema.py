"""Schemas that no finite value keeps to, and those that only look like it."""

from __future__ import annotations

from typing import Any

import pytest

from luthier.core.errors import UnsupportedError
from luthier.core.text.json_schema import check_schema, placed

SELF = {"$ref": "#"}


def required(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


@pytest.mark.parametrize(
    "schema",
    [
        SELF,
        required(a=SELF),
        {"type": "array", "items": SELF, "minItems": 1},
        {"type": "array", "prefixItems": [{"type": "string"}, SELF], "minItems": 2},
        {"anyOf": [SELF]},
        {"anyOf": [SELF, required(a=SELF)]},
        {"allOf": [{"type": "string"}, SELF]},
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
        {"$ref": "#/$defs/a", "$defs": {"a": required(next={"$ref": "#/$defs/a"}, name={"type": "string"})}},
        required(a={"$ref": "#/properties/a"}),
        {
            "$ref": "#/components/schemas/a",
            "components": {"schemas": {"a": required(a={"$ref": "#/components/schemas/a"})}},
        },
    ],
)
def test_what_needs_itself_without_end_is_refused(schema: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedError, match="no finite value") as caught:
        check_schema(schema, "response_format")
    assert caught.value.param == "response_format"


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "object"},
        {"type": "object", "properties": {"a": SELF}},
        {"type": "array", "items": SELF},
        {"anyOf": [SELF, {"type": "null"}]},
        required(a={"anyOf": [SELF, {"type": "null"}]}),
        {"type": "array", "prefixItems": [{"type": "string"}, SELF], "minItems": 1},
        {"$ref": "#/$defs/list", "$defs": {"list": required(rest={"anyOf": [{"$ref": "#/$defs/list"}, {"const": 0}]})}},
        {"$ref": "https://elsewhere/schema"},
        {"$ref": "#/$defs/none"},
        {"$ref": "#/components/schemas/a", "components": {"schemas": {"a": {"type": "string"}}}},
        required(a={"$ref": "#/x/1"})
        | {"x": [0, required(a={"anyOf": [{"$ref": "#/x/1"}, {"$ref": "#/y"}]})], "y": {}},
        required(a={"enum": [1]}, b=True, **{"c/d": {"$ref": "#/properties/c~1e"}, "c/e": {"type": "string"}}),
    ],
)
def test_what_can_end_passes(schema: dict[str, Any]) -> None:
    check_schema(schema)


def test_what_is_too_large_or_deep_is_refused() -> None:
    deep: dict[str, Any] = {"type": "string"}
    for _ in range(100):
        deep = required(a=deep)
    with pytest.raises(UnsupportedError, match="nested too deep"):
        check_schema(deep)
    with pytest.raises(UnsupportedError, match="5,001 properties"):
        check_schema({"type": "object", "properties": {f"p{number}": {} for number in range(5001)}})
    with pytest.raises(UnsupportedError, match="bytes"):
        check_schema({"description": "a" * 200_000})


def test_a_long_chain_is_decided_link_by_link() -> None:
    """Backwards, too: each link is looked at again once, when what it waits for has been found to end."""
    links = {f"n{n}": required(a={"$ref": f"#/$defs/n{n + 1}"}) for n in range(1000)}
    check_schema({"$ref": "#/$defs/n0", "$defs": links | {"n1000": {"type": "string"}}})
    check_schema({"$ref": "#/$defs/n0", "$defs": {"n1000": {"type": "string"}} | dict(reversed(links.items()))})
    with pytest.raises(UnsupportedError, match="no finite value"):
        check_schema({"$ref": "#/$defs/n0", "$defs": links | {"n1000": {"$ref": "#/$defs/n0"}}})


def test_a_schema_within_another_document_refers_to_its_own_parts() -> None:
    written = {"$ref": "#/no/schema"}
    schema = {
        "$id": "https://example.org/a",
        "type": "object",
        "properties": {"$ref": {"type": "string"}, "next": SELF, "part": {"$ref": "#/$defs/a", "default": written}},
        "$defs": {"a": {"anyOf": [{"const": written}, {"$ref": "https://example.org/b"}, {"$ref": "#/$defs/a"}]}},
    }
    moved = placed(schema, "#/anyOf/1")
    assert moved == {
        "type": "object",
        "properties": {
            "$ref": {"type": "string"},
            "next": {"$ref": "#/anyOf/1"},
            "part": {"$ref": "#/anyOf/1/$defs/a", "default": written},
        },
        "$defs": {
            "a": {"anyOf": [{"const": written}, {"$ref": "https://example.org/b"}, {"$ref": "#/anyOf/1/$defs/a"}]}
        },
    }
    assert schema["properties"]["next"] == SELF, "the schema itself stays as it is"
    assert placed(True, "#/a") is True
