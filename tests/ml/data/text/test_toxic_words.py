"""The word list: what is seen through, what is harmless, and that the quick test misses nothing."""

from __future__ import annotations

import string
import sys
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.vacuous import nonempty

from luthier.ml.data.text.toxicity import _EVASIONS, CLASSES, _folded, english, read_words


def kinds(text: str) -> list[str]:
    return [word.kind for word in english().find(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("What a load of SHIT!", ["profanity"]),
        ("sh1t, $hit, f**k, fuuuuck, f u c k, f.u.c.k", ["profanity"] * 6),
        ("you b!tch, b*tches, B1TCHES", ["insult"] * 3),
        ("ｆｕｃｋ and fück", ["profanity"] * 2),
        ("I will kill you", ["threat"]),
        ("just kill yourself, son of a bitch", ["threat", "insult"]),
        ("you’re stupid", ["harassment"]),
        ("#bitch please", ["insult"]),
        ("a stupid lid and an ugly handle", ["mild", "mild"]),
        ("a class assembly of the Scunthorpe cocktail party passed", []),
        ("A Maine coon read Moby Dick with a garden hoe, spick and span, homo sapiens.", []),
        ("spicy cumin, cocker spaniels, tardy Yiddish titers in Niger, a hello from the shell", []),
        ("@bitchcraft wrote 5 mails in 1999 to 3 people", []),
        ("", []),
    ],
)
def test_what_is_found(text: str, expected: list[str]) -> None:
    assert kinds(text) == expected


def test_every_entry_finds_itself() -> None:
    words = english()
    for form, word in nonempty(words.words.items()):
        assert [found.kind for found in words.find(f"so {form} then")] == (
            [word.kind] if word.kind != "harmless" else []
        )
    for phrase, word in nonempty(words.phrases.items()):
        assert words.find(f"So, {' '.join(phrase).upper()}!") == ([word] if word.kind != "harmless" else [])


def test_the_list_has_all_classes_and_no_entry_twice() -> None:
    words = english()
    assert {word.kind for word in (*words.words.values(), *words.phrases.values())} == {*CLASSES, "harmless"}


@given(
    st.lists(
        st.one_of(
            st.sampled_from(sorted(english().words)),
            st.sampled_from([" ".join(phrase) for phrase in sorted(english().phrases)]),
            st.sampled_from(["f*ck", "sh1t", "fuuuck", "s h i t", "b!tch", "@ss", "$hit", "’s", "-", "\n", "ü"]),
            st.text(max_size=6),
        ),
        max_size=6,
    ).flatmap(lambda parts: st.sampled_from([" ".join(parts), " ".join(parts).upper(), "".join(parts)]))
)
def test_the_quick_test_of_a_column_misses_nothing(text: str) -> None:
    if english().find(text):
        assert english().may_be_in(pl.Series([text])).all()


def test_letters_of_other_alphabets_that_look_the_same_are_seen_and_pass_the_quick_test() -> None:
    texts = ["𝐒𝐇𝐈𝐓", "ｓｈｉｔ", "šhît", "ſhit", "SHIT"]
    assert [kinds(text) for text in texts] == [["profanity"]] * 5
    assert english().may_be_in(pl.Series(texts)).all()
    letters = [chr(code) for code in range(128, sys.maxunicode) if not 0xD800 <= code < 0xE000]
    folded = [letter for letter in letters if letter.isalpha() and set(_folded(letter)) & set(string.ascii_lowercase)]
    assert len(folded) > 1_000
    assert pl.Series(folded).str.contains(_EVASIONS).all()


def test_another_list_can_be_read(tmp_path: Path) -> None:
    file = tmp_path / "list.yaml"
    file.write_text("\n".join(f"{kind}: {kind}word~" for kind in (*CLASSES, "harmless")), encoding="utf-8")
    assert [word.kind for word in read_words(file).find("a slurword and mildwords, harmlessword")] == ["slur", "mild"]


@pytest.mark.parametrize("piece", ["f", "f*", "a ", "$", "*", "'", "f u c k ", "fuck ", "é"])
def test_a_row_of_300_000_characters_is_read_in_proportion(piece: str) -> None:
    text = (piece * 300_000)[:300_000]
    assert len(english().find(text)) <= 150_000
