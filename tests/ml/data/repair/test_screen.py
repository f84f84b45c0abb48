"""Rows that a repair leaves as they are: none of them has anything to mask, however it is written."""

from __future__ import annotations

import json
from typing import Any, Final

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.ml.data.personal_data.masking import MaskedKinds
from luthier.ml.data.personal_data.recognizers import KINDS
from luthier.ml.data.personal_data.secrets import find_secrets, may_hold_secrets
from luthier.ml.data.repair.masked_values import MaskedValues
from luthier.ml.data.repair.screen import untouched
from luthier.ml.data.repair.steps import StepOptions, Steps
from luthier.ml.data.rows.read_json import JsonLine

_WITHOUT_NAMES: Final = tuple(kind for kind in KINDS if kind != "name")
_OPTIONS: Final = StepOptions(
    names=("secret", "personal_data"),
    mask=MaskedKinds(_WITHOUT_NAMES),
    mapping={},
    has_schema=True,
    html_is_meant=False,
)
_VALUES: Final = (
    "anna.berg@firm.de", "+49 30 901820", "4539 1488 0343 6467", "DE89 3704 0044 0532 0130 00", "536-90-4399",
    "84.17.45.12", "2a02:8108:1a40::7c1", "12 Baker Street", "Hauptstraße 7", "12 rue de Rivoli", "Calle de Alcalá 45",
    "password = 'hG7#kQ2!xW9z'", "AKIAQYLPMN5HFIQR7XYA", "to\u212aen: hG7kQ2xW9zLm4Rt8", "2021", "plain words", "",
)  # fmt: skip
_TEXTS: Final = st.lists(st.sampled_from(_VALUES) | st.text(max_size=6), max_size=3).map(" ".join)


def _as_inner_json(text: str) -> str:
    return json.dumps({"to": text}, ensure_ascii=True)


_STRINGS: Final = _TEXTS | _TEXTS.map(_as_inner_json) | _TEXTS.map(_as_inner_json).map(_as_inner_json)
_JSON: Final = st.recursive(
    _STRINGS | st.integers() | st.none() | st.booleans(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(_TEXTS, inner, max_size=2),
    max_leaves=4,
)
_ROWS: Final = st.dictionaries(st.sampled_from(["prompt", "completion", "provenance", "notes"]), _JSON, max_size=3)


@given(rows=st.lists(_ROWS, min_size=1, max_size=4))
def test_a_row_that_is_left_as_it_is_has_nothing_to_mask(rows: list[dict[str, Any]]) -> None:
    flags = untouched([(row, False) for row in rows], _OPTIONS)

    assert len(flags) == len(rows)
    for row, is_untouched in zip(rows, flags, strict=True):
        if is_untouched:
            changed, done = Steps(_OPTIONS, MaskedValues()).apply(row, to_clean=False)
            assert not done
            assert changed == row


@pytest.mark.parametrize(
    "value", [value for value in _VALUES if value not in ("2021", "plain words", "")], ids=lambda value: str(value)[:12]
)
def test_a_row_with_a_value_is_looked_at(value: str) -> None:
    rows = [{"prompt": "Where?", "completion": f"Write to {value} today."}, {"prompt": _as_inner_json(value)}]

    assert untouched([(row, False) for row in rows], _OPTIONS) == [False, False]


def test_lines_of_jsonl_are_parsed_and_those_that_cannot_be_read_are_looked_at() -> None:
    bodies = [b'{"prompt": "Hello", "completion": "Good day"}\n', b'{"prompt": \n', b'{"prompt": "a@firm.de"}\n']
    lines = [JsonLine(at, body, len(body), 0, is_whole=True) for at, body in enumerate(bodies, 1)]

    assert untouched([*((line, False) for line in lines), None], _OPTIONS) == [True, False, False, False]


def test_a_row_is_left_as_it_is_where_nothing_is_masked_but_not_where_it_is_to_be_cleaned() -> None:
    row = {"prompt": "a@firm.de"}
    nothing = StepOptions(names=(), mask=MaskedKinds(), mapping={}, has_schema=True, html_is_meant=False)

    assert untouched([(row, False)], nothing) == [True]
    assert untouched([({"prompt": "caf\u00c3\u00a9"}, True)], nothing) == [False]


def test_half_a_surrogate_pair_hides_no_value() -> None:
    assert untouched([({"prompt": "\ud83d a@firm.de"}, False)], _OPTIONS) == [False]


def test_a_mark_with_a_letter_beyond_ascii_is_a_mark() -> None:
    text = "to\u212aen: hG7kQ2xW9zLm4Rt8"

    assert find_secrets(text)
    assert may_hold_secrets(pl.Series([text])).to_list() == [True]
