"""The interval of a loss of quality: of prompts in pairs, so that what is hard on both sides does not widen it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.ml.export.parity import increase_a_token

_ROWS = st.lists(st.tuples(st.floats(0, 500), st.floats(-2, 2), st.integers(1, 60)), min_size=2, max_size=32)


@given(_ROWS)
def test_the_value_is_the_mean_a_token_and_lies_among_those_of_the_prompts(
    rows: list[tuple[float, float, int]],
) -> None:
    source = [nats for nats, _, _ in rows]
    export = [nats + more * count for nats, more, count in rows]
    counts = [count for _, _, count in rows]
    found = increase_a_token(export, source, counts)
    a_token = [more for _, more, _ in rows]
    assert found.value == pytest.approx(np.average(a_token, weights=counts), abs=1e-6)
    assert min(a_token) - 1e-6 <= found.low <= found.high <= max(a_token) + 1e-6


@given(st.floats(-1, 1), st.lists(st.floats(0, 500), min_size=1, max_size=32))
def test_what_is_lost_everywhere_alike_is_sure(lost: float, source: list[float]) -> None:
    found = increase_a_token([nats + lost * 7 for nats in source], source, [7] * len(source))
    assert found.high - found.low < 1e-6
    assert found.value == pytest.approx(lost, abs=1e-6)


def test_without_references_nothing_is_lost() -> None:
    assert increase_a_token([], [], []).value == 0
