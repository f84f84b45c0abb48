from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.core.text.sentences import sentence_spans


def sentences(text: str) -> list[str]:
    return [text[start:end] for start, end in sentence_spans(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        (
            "Dr. Smith met him at 3.14 p.m. on Monday. He left.",
            ["Dr. Smith met him at 3.14 p.m. on Monday.", "He left."],
        ),
        ("J. R. R. Tolkien wrote it. It is long.", ["J. R. R. Tolkien wrote it.", "It is long."]),
        ("Siehe z.B. Abb. 3. und den 3. Mai. Danach mehr.", ["Siehe z.B. Abb. 3. und den 3. Mai.", "Danach mehr."]),
        ("He said “Go!” and went. (Really.) Yes.", ["He said “Go!” and went.", "(Really.)", "Yes."]),
        ("They sell pens, paper, etc. The shop is old.", ["They sell pens, paper, etc.", "The shop is old."]),
        ("They sell pens, etc. at the shop.", ["They sell pens, etc. at the shop."]),
        ("今日は晴れ。明日は雨！本当？はい", ["今日は晴れ。", "明日は雨！", "本当？", "はい"]),
        ("A line that is\nwrapped by hand. Next\none.", ["A line that is\nwrapped by hand.", "Next\none."]),
        ("Title\n\nFirst paragraph\n\n\nSecond", ["Title", "First paragraph", "Second"]),
        ("- one\n- two\n  goes on\n1. three", ["- one", "- two\n  goes on", "1. three"]),
        ("| a | b |\n|---|---|\n| 1 | 2 |", ["| a | b |", "|---|---|", "| 1 | 2 |"]),
        ("```\nx = f. Y\n\ny = 2\n```\nAfter it.", ["```", "x = f. Y", "y = 2", "```", "After it."]),
        ("See Harrow v. Mills. It held.", ["See Harrow v. Mills.", "It held."]),
        ("O.C.G.A. § 34-9-1 applies. So.", ["O.C.G.A. § 34-9-1 applies.", "So."]),
        ("Wait... What? Well… no.", ["Wait...", "What?", "Well… no."]),
        ("", []),
        (" \n\t\n ", []),
    ],
)
def test_where_sentences_end(text: str, expected: list[str]) -> None:
    assert sentences(text) == expected


@given(st.text(alphabet="aB. !?\n\t-|`1。“”#é😀\r\u2028", max_size=200))
def test_nothing_but_blanks_is_left_out(text: str) -> None:
    spans = sentence_spans(text)
    assert all(start < end for start, end in spans)
    assert all(a[1] <= b[0] for a, b in pairwise(spans))
    covered = {at for start, end in spans for at in range(start, end)}
    assert all(text[at].isspace() for at in range(len(text)) if at not in covered)


def test_ten_million_characters_are_no_trouble() -> None:
    assert len(sentence_spans("A sentence of words. " * 20_000)) == 20_000
    assert sentence_spans("x" * 10_000_000) == [(0, 10_000_000)]
    assert len(sentence_spans("." * 1_000_000)) == 1
