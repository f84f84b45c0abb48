"""Who is meant by two namings."""

from __future__ import annotations

import pytest

from luthier.ml.evaluation.grounding.cases import PartyIndex, joined, names_before, same_parties


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (("Harrow", "Mills"), ("Harrow", "Tallow Mills, Inc."), True),
        (("Under Harrow", "Mills"), ("Harrow", "Mills"), True),
        (("Harrow", "Stone Mills"), ("Harrow", "Tallow Mills"), False),
        (("State", "Harrow"), ("State of Westmark", "Harrow"), True),
        (("State", "Harrow"), ("Commonwealth", "Harrow"), True),
        (("Harrow", "Smith"), ("Smith", "Harrow"), False),
        (("", "Harrow"), ("State", "Harrow"), True),
        (("HARROW", "Tallow & Pine Co."), ("Harrow", "Tallow and Pine Company"), True),
    ],
)
def test_the_same_parties(one: tuple[str, str], other: tuple[str, str], same: bool) -> None:
    assert same_parties(one, other) is same
    assert same_parties(other, one) is same


def test_an_index_finds_what_comparing_all_would() -> None:
    index = PartyIndex()
    index.add(("Harrow", "Tallow Mills"), "a")
    index.add(("Harrow", "Stone Mills"), "b")
    assert not PartyIndex()
    assert index.find(("Harrow", "Mills")) == ["a", "b"]
    assert index.find(("Harrow", "Stone")) == ["b"]
    assert index.find(("Roe", "Mills")) == []


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        ("the Board. Harrow v. Mills, ", "Harrow v. Mills"),
        ("(Harrow v. Mills, ", "Harrow v. Mills"),
        ("*Harrow v. Mills*, ", "Harrow v. Mills"),
        ("Ex parte Harrow, ", "In re Harrow"),
        ("Harrow v. the Board said this. And then, ", None),
        ("Harrow v. Mills; see also ", None),
        ("", None),
    ],
)
def test_parties_before_a_citation(before: str, expected: str | None) -> None:
    found = names_before(f"{before}31 Pelm. 204", len(before))
    assert (joined(found[1]) if found else None) == expected
