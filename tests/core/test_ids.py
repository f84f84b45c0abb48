"""Ids are sortable and safe in paths."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.core.ids import is_id, new_id


def test_a_new_id_is_one() -> None:
    assert is_id(new_id("run"), "run")
    assert not is_id(new_id("run"), "eval")
    assert new_id("run") != new_id("run")


def test_ids_sort_in_the_order_in_which_they_were_made() -> None:
    made = [new_id("run") for _ in range(3000)]
    assert made == sorted(set(made))
    assert all(is_id(one, "run") for one in made)


def test_ids_of_threads_differ() -> None:
    with ThreadPoolExecutor(4) as threads:
        made = list(threads.map(lambda _: new_id("job"), range(2000)))
    assert len(set(made)) == 2000


def test_an_id_has_the_time_of_the_clock_after_it_was_set_back(monkeypatch: pytest.MonkeyPatch) -> None:
    new_id("run")
    monkeypatch.setattr(time, "time_ns", lambda: 1_767_225_600 * 10**9 + 5 * 10**8)
    assert new_id("run").startswith("run-20260101-000000-8")
    monkeypatch.setattr(time, "time_ns", lambda: 1_767_225_600 * 10**9 + 4 * 10**8)
    assert new_id("run").startswith("run-20260101-000000-80"), "a step of less than a second keeps the order"


@pytest.mark.parametrize(
    "text", ["", "run-", "run-../../etc", "run-20260101-000000-abcdef/..", "run-20260101-000000-ABCDEF", "RUN"]
)
def test_anything_else_is_not(text: str) -> None:
    assert not is_id(text, "run")


@given(st.text())
def test_no_text_with_a_separator_passes(text: str) -> None:
    if is_id(text, "run"):
        assert set(text) <= set("run-0123456789abcdef")
