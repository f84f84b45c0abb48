"""Loops are found wherever they stand, and in no text without one."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from luthier.ml.data.audit.repeated_completion import loop_in


@given(
    before=st.integers(0, 300),
    turn=st.text(alphabet="abcdefgh ", min_size=5, max_size=60).filter(lambda text: len(text.replace(" ", "")) >= 4),
    more=st.integers(0, 5),
)
def test_a_loop_is_found_wherever_it_stands(before: int, turn: str, more: int) -> None:
    noise = random.Random(before)
    words = "".join(noise.choice("ijklmnopqrst ") for _ in range(before))
    times = max(4, 80 // len(turn) + 1) + more
    assert loop_in(f"{words}{turn * times} END") is not None


@given(st.integers())
def test_words_in_any_order_are_no_loop(seed: int) -> None:
    noise = random.Random(seed)
    words = ["the", "violin", "was", "very", "good", "and", "its", "sound", "spruce", "maple", "of", "a"]
    assert loop_in(" ".join(noise.choice(words) for _ in range(300))) is None


def test_rules_and_figures_are_no_loops() -> None:
    for text in ("-" * 500, "|---|---|" * 50, "0.0 " * 100, "very very very very good", ""):
        assert loop_in(text) is None


def test_ten_million_characters_do_not_hang() -> None:
    assert loop_in("0" * 10_000_000) is None
    assert loop_in("ab " * 3_000_000) == (0, 3)
