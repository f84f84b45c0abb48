"""JSON in answers: how it is found, and which of its fields are right."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from luthier.ml.evaluation.metrics.fenced import fenced_blocks, outside_of_fences
from luthier.ml.evaluation.metrics.protocol import Array


@dataclass(frozen=True, slots=True)
class JsonValue:
    """A JSON value; `null` is one too."""

    value: Any


@dataclass(frozen=True, slots=True)
class Found:
    """What an answer holds.

    Attributes:
        value: None where it is not JSON.
        is_in_prose: it holds JSON and other text.
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
    """The field of this name, or by a path of names with dots between; None where there is none."""
    # A name that itself has a dot wins over a path.
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
    """Of each answer with the row's own: [rows, 2] fields right, fields expected.

    Fields that only the answer has are not counted here: they show in whole answers right.

    Args:
        pairs: the answer and the row's own; None for a text that is no JSON.
        fields: which; by default all of the row's own answer, which is one field where it is no object.
    """
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
    """Whether the text holds an object or a list, from its first bracket on."""
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
