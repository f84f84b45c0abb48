"""What counts as supported by a passage."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.core.records.support import support

PASSAGE = """Antonio Stradivari worked in Cremona from about 1666 until his death in 1737. He made about 1,100
instruments, of which some 650 survive. The front of his violins is spruce, the back is maple. One of them, the
"Lady Blunt", was sold for 15.9 million US dollars. The workshop was kept at -5 degrees in winter; three sons worked
there with him."""


@pytest.mark.parametrize(
    "answer",
    [
        "Spruce.",
        "Antonio Stradivari worked in Cremona.",
        "He made about 1100 instruments.",
        "The Lady Blunt was sold for 15.9 million dollars",
        "3 sons worked there.",
        "Three sons were working in the workshop.",
        "It was kept at \u22125 degrees.",
        "In 1737",
        "STRADIVARI'S violins",
    ],
)
def test_what_the_passage_says_is_supported(answer: str) -> None:
    found = support(answer, PASSAGE)
    assert (found.unsupported_numbers, found.unsupported_names) == ((), ())
    assert found.fraction == 1.0


@pytest.mark.parametrize(
    ("answer", "numbers", "names"),
    [
        ("He died in 1738.", ("1738",), ()),
        ("He made 110 instruments.", ("110",), ()),
        ("It was sold for 15.90 million dollars.", ("15.90",), ()),
        ("It was kept at 5 degrees.", ("5",), ()),
        ("Four sons worked there.", ("Four",), ()),
        ("He worked in Vienna.", (), ("Vienna",)),
        ("Vienna is where he worked.", (), ("Vienna",)),
        ("Nicolo Amati worked there with 7 sons.", ("7",), ("Nicolo", "Amati")),
        ("It was sold by iMusic and NASA.", (), ("iMusic", "NASA")),
        ("He worked there. Guarneri was his friend.", (), ("Guarneri",)),
    ],
)
def test_planted_numbers_and_names_are_seen(answer: str, numbers: tuple[str, ...], names: tuple[str, ...]) -> None:
    found = support(answer, PASSAGE)
    assert (found.unsupported_numbers, found.unsupported_names) == (numbers, names)
    assert found.fraction < 1


def test_the_fraction_counts_content_words() -> None:
    found = support("The front is spruce, and the varnish is secret.", PASSAGE)
    assert (found.num_content_words, found.fraction) == (4, 0.5)
    assert found.unsupported_words == ("varnish", "secret")


def test_words_at_the_beginning_of_a_sentence_are_no_names() -> None:
    assert support("Roughly speaking, spruce. Perhaps maple.", PASSAGE).unsupported_names == ()


def test_the_longest_run_is_in_words() -> None:
    assert support("I think the back is maple, or so", PASSAGE).longest_run == 4
    assert support("Nothing", PASSAGE).longest_run == 0


@pytest.mark.parametrize("answer", ["", "Yes.", "It is.", "..."])
def test_nothing_to_hold_against_the_passage_is_no_support(answer: str) -> None:
    found = support(answer, PASSAGE)
    assert (found.fraction, found.num_content_words) == (0.0, 0)


def test_scripts_without_spaces_are_held_sign_by_sign() -> None:
    passage = "小提琴的面板是云杉木，背板是枫木。"
    assert support("面板是云杉木", passage).fraction == 1.0
    assert support("背板是铁", passage).unsupported_words == ("铁",)


@given(st.text(max_size=200), st.text(max_size=200))
def test_any_texts_can_be_held_against_each_other(answer: str, passage: str) -> None:
    found = support(answer, passage)
    assert 0 <= found.fraction <= 1
    assert bool(found.unsupported_words) == (found.num_content_words > 0 and found.fraction < 1)
    assert set(found.unsupported_numbers) | set(found.unsupported_names) <= set(found.unsupported_words)


@given(st.text(max_size=200))
def test_a_passage_supports_itself(text: str) -> None:
    found = support(text, text)
    assert found.unsupported_words == ()
    assert found.fraction == (1.0 if found.num_content_words else 0.0)
