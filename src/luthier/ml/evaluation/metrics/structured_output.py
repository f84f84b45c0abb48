"""Structured output in answers: fenced code blocks, JSON and which of its fields are right, and JSON Schema.

Schemas are checked offline.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from luthier.core.errors import RequestError, are_library_words_hidden
from luthier.core.system.bounded_regex import BoundedPattern

if TYPE_CHECKING:
    from luthier.ml.evaluation.metrics.protocol import Array

# Fences count only at the beginning of a line: three backticks inside code do not end it.
# Lines may end in \r\n, as those of files of Windows do.
_FENCED = re.compile(r"^[ \t]*```[^\n`]*\n(.*?)^[ \t]*```[ \t\r]*$", re.DOTALL | re.MULTILINE)
_OPENING = re.compile(r"\A\s*```[^\n`]*\n")


def fenced_blocks(text: str) -> list[str]:
    """The text between fences, in order; an unclosed fence does not count."""
    return _FENCED.findall(text)


def outside_of_fences(text: str) -> str:
    """The text before, between and after the fenced blocks, without white space at its ends."""
    return _FENCED.sub("", text).strip()


def first_block(text: str) -> str:
    """The first fenced block; the whole answer where there is none, without a fence that is opened and never closed."""
    blocks = fenced_blocks(text)
    return blocks[0] if blocks else _OPENING.sub("", text)


@dataclass(frozen=True, slots=True)
class JsonValue:
    """A JSON value; `null` is one too."""

    value: Any


@dataclass(frozen=True, slots=True)
class Found:
    """The JSON in an answer.

    Attributes:
        value: None if it is not JSON.
        is_in_prose: whether it contains JSON and other text.
    """

    value: JsonValue | None
    is_in_prose: bool = False


def find_json(text: str) -> Found:
    """The JSON of an answer: all of it, or one fenced block with nothing around.

    With prose around a fenced block, or around an object or a list, it is not valid, but reported separately.
    """
    if (whole := read_json(text)) is not None:
        return Found(whole)
    blocks = fenced_blocks(text)
    if len(blocks) == 1 and (block := read_json(blocks[0])) is not None:
        return Found(None, True) if outside_of_fences(text) else Found(block)
    return Found(None, _holds_json(text))


def read_json(text: str) -> JsonValue | None:
    """The value of a text that is JSON by RFC 8259, with different names in each object; None for any other."""
    try:
        # json.loads accepts NaN, Infinity and repeated names; RFC 8259 has no such numbers, and of a repeated name one
        # value would be lost.
        return JsonValue(json.loads(text, parse_constant=_refuse, object_pairs_hook=_different))
    except (ValueError, RecursionError):
        return None


def value_at(value: Any, path: str) -> JsonValue | None:
    """The field of this name or dotted path; None if there is none."""
    # A name that contains a dot takes precedence over a path.
    if isinstance(value, dict) and path in value:
        return JsonValue(value[path])
    head, dot, rest = path.partition(".")
    if not dot or not isinstance(value, dict) or head not in value:
        return None
    return value_at(value[head], rest)


def equal(one: JsonValue | None, other: JsonValue | None) -> bool:
    """Whether both are the same JSON: 1 and 1.0 are, 1 and true are not; the order of an object's fields is nothing."""
    return one is not None and other is not None and _same(one.value, other.value)


def count_fields(pairs: Sequence[tuple[JsonValue | None, JsonValue | None]], fields: Sequence[str] | None) -> Array:
    """For each answer and the row's own: [rows, 2] fields right, fields expected.

    Fields that only the answer has are not counted here; they affect the exact match of whole answers.

    Args:
        pairs: the answer and the row's own; None for a text that is not JSON.
        fields: which; by default all of the row's own answer, which is one field where it is not an object.
    """
    import numpy as np  # here: a server checks schemas, and needs none of it for that

    return np.array([_count(given, expected, fields) for given, expected in pairs], dtype=np.float64).reshape(-1, 2)


def _count(given: JsonValue | None, expected: JsonValue | None, fields: Sequence[str] | None) -> tuple[int, int]:
    if expected is None:
        return 0, 0
    if not fields and not isinstance(expected.value, dict):
        return int(equal(given, expected)), 1
    names = list(fields or expected.value)
    found = given.value if given else None
    return sum(equal(value_at(found, name), value_at(expected.value, name)) for name in names), len(names)


def _same(one: Any, other: Any) -> bool:
    # In Python True == 1; in JSON true is not 1.
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[name], other[name]) for name in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)


def _holds_json(text: str) -> bool:
    """Whether the text contains an object or a list, starting at its first bracket."""
    starts = [place for place in (text.find("{"), text.find("[")) if place >= 0]
    if not starts:
        return False
    try:
        # raw_decode allows text behind the value, which loads refuses.
        json.JSONDecoder(parse_constant=_refuse).raw_decode(text, min(starts))
    except (ValueError, RecursionError):
        return False
    return True


def _refuse(name: str) -> NoReturn:
    raise ValueError(name)


def _different(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name twice")
    return found


class SchemaCheck:
    """A schema of its declared draft, 2020-12 by default. `format` is not checked.

    Args:
        schema: the JSON Schema.

    Raises:
        RequestError: the schema is invalid, or has external references, which would have to be fetched.
    """

    def __init__(self, schema: dict[str, Any]) -> None:
        from jsonschema import Draft202012Validator, SchemaError
        from jsonschema.validators import validator_for
        from referencing import Registry, Resource
        from referencing.exceptions import Unresolvable
        from referencing.jsonschema import DRAFT202012

        kind = validator_for(schema, default=Draft202012Validator)
        try:
            kind.check_schema(schema)
        except SchemaError as error:
            where = "/".join(map(str, error.absolute_path)) or "the top"
            raise RequestError(
                f"json_schema is wrong at {where}: {_reason(error)}",
                expected=f"a schema as {kind.META_SCHEMA.get('$id', 'its draft')} has them",
                do="correct the schema",
            ) from error
        # An empty registry resolves no external references: no request leaves the machine.
        registry: Registry[Any] = Registry()
        root = Resource.from_contents(schema, default_specification=DRAFT202012)
        resolver = registry.with_resource("", root).resolver()
        for reference in sorted(_references(schema)):
            try:
                found = reference.startswith("#") and resolver.lookup(reference)
            except (Unresolvable, ValueError):
                found = False
            if not found:
                raise RequestError(
                    f"json_schema refers to {reference!r}, which is not in it",
                    expected="references within the schema, like #/$defs/name",
                    do="copy what it refers to into $defs: nothing is fetched during evaluation",
                )
        self._validator = _with_bounded_patterns(kind, schema)(schema, registry=registry)

    def fits(self, value: Any) -> bool:
        """Whether the value is valid."""
        return self.fault(value) is None

    def fault(self, value: Any) -> str | None:
        """The validation error of a value, or None."""
        from jsonschema.exceptions import best_match

        try:
            error = best_match(self._validator.iter_errors(value))
        except RecursionError:
            return "is nested too deeply for this schema"
        except RequestError as error:
            return f"cannot be checked: {error.came}"
        return None if error is None else f"does not fit the schema: {_reason(error)}"


def _with_bounded_patterns(kind: Any, schema: Any) -> Any:
    """The validator class, with a time limit for the schema's regular expressions.

    Raises:
        RequestError: an invalid schema, or `patternProperties` with `unevaluatedProperties`.
    """
    from jsonschema.exceptions import ValidationError
    from jsonschema.validators import extend

    words = _patterns(schema)
    known = {word: BoundedPattern("json_schema", word) for word in words}

    def pattern(validator: Any, word: str, value: Any, _schema: Any) -> Iterator[Any]:
        if validator.is_type(value, "string") and not known[word].search(value):
            yield ValidationError(f"{value!r} does not match {word!r}")

    def pattern_properties(validator: Any, properties: Any, value: Any, _schema: Any) -> Iterator[Any]:
        for word, inner in properties.items() if validator.is_type(value, "object") else ():
            for name in [name for name in value if known[word].search(name)]:
                yield from validator.descend(value[name], inner, path=name, schema_path=word)

    def additional_properties(validator: Any, inner: Any, value: Any, own: Any) -> Iterator[Any]:
        if not validator.is_type(value, "object"):
            return
        named, fitting = own.get("properties", {}), own.get("patternProperties", {})
        more = [name for name in value if name not in named and not any(known[word].search(name) for word in fitting)]
        if validator.is_type(inner, "object"):
            for name in more:
                yield from validator.descend(value[name], inner, path=name)
        elif not inner and more:
            shown = ", ".join(map(repr, sorted(more)))
            yield ValidationError(f"Additional properties are not allowed ({shown} unexpected)")

    own = {"pattern": pattern, "patternProperties": pattern_properties, "additionalProperties": additional_properties}
    return extend(kind, own)


def _patterns(schema: Any) -> set[str]:
    """The regular expressions of a schema, at any depth."""
    if isinstance(schema, list):
        return set().union(*map(_patterns, schema)) if schema else set()
    if not isinstance(schema, dict):
        return set()
    # For unevaluatedProperties the library evaluates these patterns itself, bypassing the time limit below.
    if "unevaluatedProperties" in schema and "patternProperties" in json.dumps(schema):
        raise RequestError(
            "json_schema has patternProperties with unevaluatedProperties",
            expected="one of the two: how long such a check takes cannot be bounded",
            do="write additionalProperties in place of unevaluatedProperties",
        )
    own = {schema["pattern"]} if isinstance(schema.get("pattern"), str) else set()
    own |= set(schema["patternProperties"]) if isinstance(schema.get("patternProperties"), dict) else set()
    return own.union(*map(_patterns, schema.values()))


def _reason(error: Any) -> str:
    """What is wrong: in the library's words, which quote the value, or by place and keyword for others."""
    if not are_library_words_hidden():
        return str(error.message)[:200]
    return f"{error.json_path[:100]} does not satisfy `{error.validator}`"


def _references(schema: Any) -> set[str]:
    if isinstance(schema, list):
        return set().union(*map(_references, schema)) if schema else set()
    if not isinstance(schema, dict):
        return set()
    own = {value for name, value in schema.items() if name in ("$ref", "$dynamicRef") and isinstance(value, str)}
    return own.union(*map(_references, schema.values()))
