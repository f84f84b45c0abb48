"""JSON that other readers take in silence is refused."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.ml.data.files.untrusted_input import StrictJsonError, strict_loads

_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(_json)
def test_what_json_writes_is_read_back(value: object) -> None:
    assert strict_loads(json.dumps(value)) == value


@pytest.mark.parametrize(
    ("text", "reason", "place"),
    [
        ('{"a": 1, "a": 1}', "the key 'a' appears twice", (0, 0)),
        ('[{"b": {"a": 1, "a": 2}}]', "the key 'a' appears twice", (0, 0)),
        ("[Infinity]", "Infinity is not JSON", (0, 0)),
        ("-Infinity", "-Infinity is not JSON", (0, 0)),
        ('{"a": 1}\n{', "extra data", (2, 1)),
        ('{"a"\n 1}', "expecting ':' delimiter", (2, 2)),
        ('{"a": "x\ny"}', "invalid control character", (1, 9)),
        ("", "expecting value", (1, 1)),
    ],
)
def test_refused(text: str, reason: str, place: tuple[int, int]) -> None:
    with pytest.raises(StrictJsonError) as caught:
        strict_loads(text)
    assert caught.value.reason.startswith(reason)
    assert (caught.value.line, caught.value.column) == place


def test_deep_values_are_errors_and_many_rows_and_half_characters_are_none():
    with pytest.raises(StrictJsonError, match="nested too deeply"):
        strict_loads("[" * 70 + "]" * 70)
    assert strict_loads(r'[{"text": "\ud83d"}]') == [
        {"text": "\ud83d"}
    ]  # whoever learns the text refuses it, by its field
    assert len(strict_loads("[" + "1," * 1_200_000 + "1]")) == 1_200_001
