"""What a summary shows of masked values."""

from __future__ import annotations

from collections import Counter

import pytest

from luthier.ml.data.personal_data.find import find_personal_data
from luthier.ml.data.repair.masked_values import MAX_EXAMPLES, MaskedValues, form_of


@pytest.mark.parametrize(
    ("value", "form"),
    [
        ("2400/200", "24••/•••"),
        ("+49 (0) 30 901820", "+49 (•) •• ••••••"),
        ("anna.k@acme-corp.com", "a•••.k@a•••-c•••.c••"),
        ("12 Baker Street", "12 B•••• S•••••"),
        ("Considering 16", "C•••••••••• 16"),
    ],
)
def test_a_value_is_shown_by_its_form(value: str, form: str) -> None:
    assert form_of(value) == form


def test_an_excerpt_hides_all_values_in_it_also_those_that_are_cut() -> None:
    text = "bob@acme-corp.com and then, quite near, ann@acme-corp.com, zoe@acme-corp.com; far@acme-corp.com"
    seen = MaskedValues()
    span = find_personal_data(text)[1]
    seen.see("personal_data", text, span, "person2@example.com")
    seen.end(3, Counter({("personal_data", "email"): 4}))
    (found,) = seen.as_json()
    (example,) = found["examples"]
    assert example["line"] == 3
    assert "acme" not in example["before"] + example["after"]
    assert "a••@a•••-c•••.c••" in example["before"]
    assert "person2@example.com" in example["after"]


def test_counts_are_of_all_and_examples_of_the_first_rows() -> None:
    seen = MaskedValues()
    text = "ann@acme-corp.com"
    for line in range(1, 6):
        for span in find_personal_data(text):
            seen.see("personal_data", text, span, "person1@example.com")
        seen.end(line, Counter({("personal_data", "email"): 1}))
    seen.end(6, Counter())
    (found,) = seen.as_json()
    assert (found["num_values"], found["num_rows"]) == (5, 5)
    assert [one["line"] for one in found["examples"]] == list(range(1, MAX_EXAMPLES + 1))


def test_what_was_taken_back_is_no_example() -> None:
    """Inside a string of JSON a change that would break it is not made."""
    seen = MaskedValues()
    (span,) = find_personal_data("ann@acme-corp.com")
    seen.see("personal_data", "ann@acme-corp.com", span, "person1@example.com")
    seen.end(1, Counter())
    assert seen.as_json() == []
