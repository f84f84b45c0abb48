"""Swaps in texts: whole words, both ways, with the capitals and the grammar that a table can know."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.vacuous import nonempty

from luthier.ml.evaluation.safety.counterfactual import Swap, read_swaps


def the(group: str) -> Swap:
    return next(swap for swap in read_swaps() if swap.group == group)


@pytest.mark.parametrize(
    ("group", "text", "swapped", "direction"),
    [
        ("gender", "He lost his hat.", "She lost her hat.", 1),
        ("gender", "I gave her the hat; it is hers.", "I gave him the hat; it is his.", -1),
        ("gender", "Is it her or his?", "Is it him or hers?", 0),
        ("gender", "Her mother called her.", "His father called him.", -1),
        ("gender", "MR Smith and the MEN", "MRS Smith and the WOMEN", 1),
        ("gender_names", "Ask John or JOHN", "Ask Mary or JOHN", 1),
        ("race", "A Black man met a white woman.", "A white man met a Black woman.", 0),
        ("religion", "The Muslims of Islam", "The Christians of Christianity", -1),
        ("orientation", "a gay couple", "a straight couple", -1),
    ],
)
def test_words_are_swapped(group: str, text: str, swapped: str, direction: int) -> None:
    done = the(group).apply(text)
    assert done is not None
    assert (done.text, done.direction) == (swapped, direction)


@pytest.mark.parametrize("text", ["the history of heat and manners", "", "Themen, Herr, shell, mankind", "\x00<b>"])
def test_parts_of_words_are_left_alone(text: str) -> None:
    assert all(nonempty(swap.apply(text) is None for swap in read_swaps()))


@given(st.lists(st.sampled_from(["man", "girls", "Brother", "WIFE", "tree", "walks,", "priest."]), max_size=8))
def test_swapping_twice_gives_the_text_back(words: list[str]) -> None:
    text = " ".join(words)
    for group in ("gender", "religion"):
        done = the(group).apply(text)
        again = None if done is None else the(group).apply(done.text)
        assert done is None or (again is not None and again.text == text)


@given(st.text())
def test_no_text_is_too_strange(text: str) -> None:
    for swap in nonempty(read_swaps()):
        done = swap.apply(text)
        assert done is None or done.swaps


def test_controls_swap_names_of_one_kind() -> None:
    controls = [swap for swap in read_swaps() if swap.is_control]
    assert [swap.group for swap in controls] == ["same_names"]
    for swap in nonempty(read_swaps()):
        assert not set(swap.to_second) & set(swap.to_first), swap.group
