from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.ml.inference.engine_wrappers import MAX_PAUSE_SECONDS, MAX_RETRY_AFTER_SECONDS, is_passing, pause_seconds


@pytest.mark.parametrize(
    ("status", "passes"), [(408, True), (409, True), (429, True), (500, True), (503, True), (400, False), (404, False)]
)
def test_what_may_pass(status, passes):
    assert is_passing(status) is passes


@given(st.integers(1, 40), st.floats(0.001, 10), st.floats(0, 1))
def test_pauses_double_up_to_a_minute_and_jitter_halves_at_most(attempt, first, draw):
    pause = pause_seconds(attempt, None, first, draw)
    whole = min(first * 2.0 ** (attempt - 1), MAX_PAUSE_SECONDS)
    assert pause is not None
    assert whole / 2 <= pause <= whole


@given(st.text())
def test_any_header_can_be_read_or_counts_as_none(header):
    pause = pause_seconds(1, header, 1.0, 0.0)
    assert pause is None or 0 <= pause <= MAX_RETRY_AFTER_SECONDS


def test_what_the_server_asks_is_kept():
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=40), usegmt=True)
    assert pause_seconds(3, "17", 0.5, 0.9) == 17
    assert pause_seconds(3, "0.5", 0.5, 0.9) == 0.5
    assert 30 < (pause_seconds(1, soon, 0.5, 0.9) or 0) <= 40
    assert pause_seconds(1, "301", 0.5, 0.9) is None
    assert pause_seconds(1, "soon", 0.5, 0.0) == 0.5
