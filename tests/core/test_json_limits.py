"""Depth, number of values and half characters, the same wherever JSON comes in."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.core.ids import sha256_document
from luthier.core.json_limits import (
    MAX_DEPTH,
    MAX_VALUES,
    JsonLimitError,
    fault_of,
    fault_of_text,
    json_text,
    json_utf8,
    loads,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def nested(depth: int, within: Any = 1) -> Any:
    for _ in range(depth):
        within = {"a": within}
    return within


@given(JSON)
def test_what_is_ordinary_passes_as_it_is(value: Any) -> None:
    for ascii_only in (True, False):
        text = json.dumps(value, ensure_ascii=ascii_only)
        assert fault_of_text(text) is None
        assert loads(text) == value


@pytest.mark.parametrize("deep", [nested(MAX_DEPTH + 1), [[]] * 80 + [nested(MAX_DEPTH)]])
def test_what_nests_too_deep_is_found(deep: Any) -> None:
    fault = fault_of_text(json.dumps({"messages": [], "tools": deep}))
    assert fault is not None
    assert fault.place.startswith("tools.")
    assert str(MAX_DEPTH) in fault.expected


def test_as_deep_as_may_be_passes() -> None:
    assert fault_of_text(json.dumps(nested(MAX_DEPTH))) is None
    assert fault_of_text(json.dumps([[1]] * 1000)) is None


@pytest.mark.parametrize("bracket", ["[", '{"a":'])
@pytest.mark.parametrize("count", [1_000, 100_000])
def test_what_no_parser_reads_is_found_with_its_field(bracket: str, count: int) -> None:
    fault = fault_of_text('{"model": "[[[", "tools": ' + bracket * count)
    if fault is None:  # no JSON: it ends in the middle, and a parser that reads so deep says so
        assert count == 1_000
        with pytest.raises(ValueError, match="Expecting"):
            loads('{"model": "[[[", "tools": ' + bracket * count)
        return
    assert fault.place == "tools"
    with pytest.raises(JsonLimitError, match="nested too deeply at tools"):
        loads('{"model": "[[[", "tools": ' + bracket * count)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        (r'{"messages": [{"content": "\ud800"}]}', "messages.0.content"),
        (r'{"messages": [{"content": "a\udfffb"}]}', "messages.0.content"),
        ('{"a": "\ud800"}', "a"),
        (r'{"a": {"\ud800": 1}}', "a.\N{REPLACEMENT CHARACTER}"),
        (r'"\uD83D"', ""),
    ],
)
def test_half_a_character_is_found(text: str, place: str) -> None:
    fault = fault_of_text(text)
    assert fault is not None
    assert fault.place == place
    assert "surrogate" in fault.came
    str(JsonLimitError(fault)).encode()  # what is said of it can be sent


def test_whole_pairs_pass() -> None:
    assert fault_of_text(r'{"a": "\ud83d\ude00 \\ud800"}') is None


def test_too_many_values_are_found() -> None:
    fault = fault_of({"input": list(range(MAX_VALUES + 1))})
    assert fault is not None
    assert "values" in fault.came
    assert fault_of([1] * (MAX_VALUES - 1)) is None
    assert fault_of_text("[" + "1," * MAX_VALUES + "1]") is not None


def test_numbers_in_lists_are_not_counted_with_what_a_request_holds() -> None:
    """A prompt may come as token ids, as many as a context has."""
    assert fault_of_text(json.dumps({"prompt": [7] * 500_000}), max_values=100) is None
    for many in (["a"] * 101, [True] * 101, [[1]] * 101, {f"k{n}": 1 for n in range(60)}):
        fault = fault_of_text(json.dumps({"prompt": many}), max_values=100)
        assert fault is not None
        assert fault.place == "prompt"


@pytest.mark.parametrize("text", ["\ud83d", "a\udfffb", "\ud83dx\ude00", "caf\u00e9 \U0001f600", "\\ud83d"])
def test_json_is_written_in_utf8_whatever_its_texts_hold(text):
    """Half of a surrogate pair, as a request or a file may bring it, is no reason to lose an answer."""
    document = {text: [text, {"n": 1.5}]}
    assert json.loads(json_utf8(document)) == document
    assert json.loads(json_text(document, indent=2)) == document
    json_text(document).encode()
    digest = sha256_document({"a": text})
    assert digest == sha256_document({"a": text})
    assert digest != sha256_document({"a": f"{text} "})


def test_characters_that_utf8_has_are_written_as_they_are():
    assert json_utf8({"a": "caf\u00e9"}, separators=(",", ":")) == '{"a":"caf\u00e9"}'.encode()
    with pytest.raises(ValueError, match="not JSON compliant"):
        json_utf8(float("nan"), allow_nan=False)
