"""All citations of a text, whatever the text is."""

from __future__ import annotations

import random
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.core.results.suite import CitationForm
from luthier.ml.evaluation.grounding.citation import Citation, clean, compiled
from luthier.ml.evaluation.grounding.find import find_citations, sentences_of

FORMS: tuple[CitationForm, ...] = get_args(CitationForm)


def test_each_citation_has_its_whole_sentence() -> None:
    text = "He fell. Harrow v. Mills, 31 Pelm. App. 204 (2019), and O.C.G.A. § 34-9-1 say so. It is\nlong."
    found = find_citations(text, FORMS)
    assert [one.kind for one in found] == ["us_case", "state_statute"]
    whole = "Harrow v. Mills, 31 Pelm. App. 204 (2019), and O.C.G.A. § 34-9-1 say so."
    assert [one.sentence for one in found] == [whole, whole]


def test_only_the_wanted_forms_are_found() -> None:
    text = "§ 5-1, O.C.G.A. § 34-9-1, 42 U.S.C. § 1983, Harrow v. Mills, 31 Pelm. 204 (2019), https://example.org/x"
    for form in FORMS:
        assert {one.kind for one in find_citations(text, (form,))} == {form}
    assert find_citations(text, ()) == ()
    assert len(find_citations(text, FORMS)) == 5


def test_a_path_of_a_url_holds_no_citations() -> None:
    found = find_citations("https://example.org/§34-9-1/Harrow-v.-Mills/410-U.S.-113", FORMS)
    assert [one.kind for one in found] == ["url"]


def test_patterns_go_beside_forms() -> None:
    found = find_citations("Part AB-123 of § 5-1", ("section",), compiled({"part": r"AB-\d+"}))
    assert [one.normal for one in found] == ["part ab-123", "§ 5-1"]


def test_no_sentence_ends_within_a_citation() -> None:
    text = clean("See Harrow v. Mills, 31 Pelm. App. 204 (2019). It held. 12 Pelm. Sup. 5 was old.")
    spans = sentences_of(text, find_citations(text, FORMS))
    assert [text[start:end] for start, end in spans][:2] == [
        "See Harrow v. Mills, 31 Pelm. App. 204 (2019).",
        "It held.",
    ]


PIECES = """§ §§ Section sections Sec. O.C.G.A. OCGA 42 U.S.C. C.F.R. Code Stat. Ann. ch. v. vs. Harrow Mills, In re
31 Pelm. App. 2d 3d 204 (2019) [1973] 34-9-1 -3 to and , ; ( ) (b) - 1 12 AAAA A. Id. supra, at https://x.org/a . 410
U.S. 113"""


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from([*PIECES.split(), "\n", "\n\n", "\u00a0"]), max_size=60).map(" ".join))
def test_any_order_of_the_pieces_is_read(text: str) -> None:
    found = find_citations(text, FORMS)
    cleaned = clean(text)
    assert list(found) == sorted(found, key=lambda one: (one.start, one.end))
    assert all(0 <= one.start < one.end <= len(cleaned) and one.sentence and one.normal for one in found)
    assert _read_again(found) == sorted({one.normal for one in found if one.kind != "us_case" and ":" not in one.text})


def _read_again(found: tuple[Citation, ...]) -> list[str]:
    """A citation alone reads as it did in its text."""
    again = set()
    for one in found:
        if one.kind != "us_case" and ":" not in one.text:
            again |= {one.normal} & {other.normal for other in find_citations(one.text, FORMS)}
    return sorted(again)


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=300))
def test_any_text_is_read(text: str) -> None:
    find_citations(text, FORMS)


@pytest.mark.parametrize(
    "piece",
    [
        "§ 1-", "§§ 1-1, ", "1-1-1-1", "1 A.", "1 A. ", "Aa Bb ", " v. ", "A v. B ", "A. ", "(", ")", "https://x.org/(",
        "1 U.S. 2, ", "Id. ", "§", "1", "A", "O.C.G.A. ", "§§ 1 to ", "In re A ", "2019) ", " ", "\n", "- ",
        "C.F.R. 1 ",
    ],
)  # fmt: skip
def test_long_runs_of_anything_are_read_to_their_end(piece: str) -> None:
    """25,000 characters, which an expression that goes back and forth would never finish."""
    find_citations(piece * (25_000 // len(piece)), FORMS)


def test_of_a_sentence_without_an_end_a_part_is_kept() -> None:
    (one,) = find_citations("word " * 500 + "§ 5-1 " + "word " * 500, FORMS)
    assert one.sentence.startswith("…")
    assert one.sentence.endswith("…")
    assert "§ 5-1" in one.sentence
    assert len(one.sentence) < 1_000


def test_a_long_answer_of_many_citations_keeps_them_all() -> None:
    draw = random.Random(0)
    numbers = [f"{draw.randint(1, 99)}-{draw.randint(1, 99)}-{place}" for place in range(3_000)]
    found = find_citations(" ".join(f"Rule {place}: O.C.G.A. § {one}." for place, one in enumerate(numbers)), FORMS)
    assert [one.normal for one in found] == [f"ocga {one}" for one in numbers]
