"""JSON answers as fields, and back."""

from __future__ import annotations

import json
from itertools import product

import pytest

from luthier.ml.baselines.json_fields import Raw, fields_of, style_of, written

DOCUMENT = {
    "name": "Käthe",
    "items": [{"n": 1, "of": []}, "x", None],
    "in": {"a": {"b": True}, "c": {}},
    "sum": -12.5,
}


@pytest.mark.parametrize(
    ("indent", "separators", "is_ascii"), list(product((None, 2, 4), (None, (",", ":")), (True, False)))
)
def test_an_object_is_written_as_json_dumps_has_written_it(
    indent: int | None, separators: tuple[str, str] | None, is_ascii: bool
) -> None:
    text = json.dumps(DOCUMENT, indent=indent, separators=separators, ensure_ascii=is_ascii)
    fields = fields_of(text)
    assert fields is not None
    assert fields["in", "a", "b"] is True
    assert fields["in", "c"] == {}
    assert written(fields, style_of([text, "no json"])) == text


def test_numbers_keep_their_digits() -> None:
    text = '{"price": 1.50, "large": 12345678901234567890123, "none": null, "odd": NaN}'
    fields = fields_of(text)
    assert fields is not None
    assert fields["price",] == Raw("1.50")
    assert written(fields, style_of([text])) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[1]",
        "{",
        '{"a": 1} and more',
        "7",
        "{" * 100_000,
        '{"a":' * 100_000,
        '{"a": ' + "[" * 400 + "]" * 400 + "}",
        '{"a": "\\ud800"}',
    ],
    ids=lambda text: text[:20],
)
def test_anything_else_has_no_fields(text: str) -> None:
    assert fields_of(text) is None
