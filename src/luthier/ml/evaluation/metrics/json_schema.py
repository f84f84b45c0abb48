"""JSON Schema, checked offline."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from luthier.core.errors import RequestError
from luthier.core.library_errors import are_library_words_hidden
from luthier.core.system.bounded_regex import BoundedPattern


class SchemaCheck:
    """A schema of the draft that it names, 2020-12 where it names none. `format` is not checked.

    Args:
        schema: the JSON Schema.

    Raises:
        RequestError: the schema is wrong, or refers to something outside of itself, which would have to be fetched.
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
        # An empty registry resolves nothing outside of the schema: no request leaves the machine.
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
                    do="copy what it refers to into $defs: nothing is fetched while judging",
                )
        self._validator = _with_bounded_patterns(kind, schema)(schema, registry=registry)

    def fits(self, value: Any) -> bool:
        """Whether the value fits."""
        return self.fault(value) is None

    def fault(self, value: Any) -> str | None:
        """What is wrong with the value; None where it fits."""
        from jsonschema.exceptions import best_match

        try:
            error = best_match(self._validator.iter_errors(value))
        except RecursionError:
            return "is nested too deeply for this schema"
        except RequestError as error:
            return f"cannot be checked: {error.came}"
        return None if error is None else f"does not fit the schema: {_reason(error)}"


def _with_bounded_patterns(kind: Any, schema: Any) -> Any:
    """The class of validators, with a bound on the time of the schema's regular expressions.

    Raises:
        RequestError: one that is none, and for `patternProperties` beside `unevaluatedProperties`.
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
    # The library evaluates these patterns itself for unevaluatedProperties, past the bounded ones below.
    if "unevaluatedProperties" in schema and "patternProperties" in json.dumps(schema):
        raise RequestError(
            "json_schema has patternProperties beside unevaluatedProperties",
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
    return f"{error.json_path[:100]} is not as `{error.validator}` asks"


def _references(schema: Any) -> set[str]:
    if isinstance(schema, list):
        return set().union(*map(_references, schema)) if schema else set()
    if not isinstance(schema, dict):
        return set()
    own = {value for name, value in schema.items() if name in ("$ref", "$dynamicRef") and isinstance(value, str)}
    return own.union(*map(_references, schema.values()))
