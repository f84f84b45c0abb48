"""Patterns of callers: the same matches as Python's re, and an end where that would find none."""

from __future__ import annotations

import re

import pytest

from luthier.core.errors import RequestError, library_words_hidden
from luthier.core.system import bounded_regex
from luthier.core.system.bounded_regex import BoundedPattern
from luthier.ml.evaluation.grounding.citation import compiled, find_patterns
from luthier.ml.evaluation.metrics.structured_output import SchemaCheck

BOMB = r"(?:a|aa)+$"
TEXT = "a" * 60 + "!"


@pytest.fixture(autouse=True)
def briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded_regex, "SEARCH_SECONDS", 0.2)


@pytest.mark.parametrize("pattern", [r"AB-\d+", r"(?i)ab[- ]?(?P<id>\d{3})\b", r"\b(?=b)|(?<=a)b", r"[^\W\d_]{2,}"])
def test_matches_are_those_of_re(pattern: str) -> None:
    text = "AB-12, ab 345 and b, ab"
    found = [(m.span(), m[0], m.groupdict()) for m in BoundedPattern("p", pattern).finditer(text)]
    assert found == [(m.span(), m[0], m.groupdict()) for m in re.finditer(pattern, text)]
    assert found
    assert BoundedPattern("p", pattern).search(text)


def test_a_search_without_end_is_ended() -> None:
    bomb = BoundedPattern("pattern product", BOMB)
    for search in (bomb.search, bomb.fullmatch, lambda text: list(bomb.finditer(text))):
        with pytest.raises(RequestError, match=r"takes more than 0\.2 s on a text of 61 characters"):
            search(TEXT)


def test_citations_and_schemas_are_searched_so() -> None:
    with pytest.raises(RequestError, match="pattern product"):
        list(find_patterns(TEXT, compiled({"product": BOMB})))
    for schema, value in (
        ({"type": "object", "properties": {"a": {"pattern": BOMB}}}, {"a": TEXT}),
        ({"patternProperties": {BOMB: {"type": "string"}}}, {TEXT: 1}),
        ({"patternProperties": {BOMB: {}}, "additionalProperties": False}, {TEXT: 1}),
    ):
        assert "takes more than" in str(SchemaCheck(schema).fault(value))
    with pytest.raises(RequestError, match="unevaluatedProperties"):
        SchemaCheck({"patternProperties": {"a": {}}, "unevaluatedProperties": False})


def test_schemas_say_what_they_said() -> None:
    schema = {
        "properties": {"a": {"pattern": "^b+$"}, "c": {}},
        "patternProperties": {"^n_": {"type": "number"}},
        "additionalProperties": {"type": "boolean"},
    }
    check = SchemaCheck(schema)
    assert check.fits({"a": "bb", "c": 1, "n_x": 1.5, "else": True})
    for wrong in ({"a": "bc"}, {"n_x": "one"}, {"else": 1}):
        assert not check.fits(wrong)
    assert "'d' unexpected" in str(
        SchemaCheck({"properties": {"c": {}}, "additionalProperties": False}).fault({"d": 1})
    )


@pytest.mark.parametrize("pattern", ["(", "a{2,1}", "[", "x" * 3000])
def test_what_is_no_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(RequestError, match="is not a regular expression"):
        BoundedPattern("p", pattern)
    with library_words_hidden(), pytest.raises(RequestError, match="it has a mistake"):
        BoundedPattern("p", pattern)
