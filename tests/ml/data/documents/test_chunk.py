from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.vacuous import nonempty

from luthier.core.errors import RequestError
from luthier.core.text.sentences import sentence_spans
from luthier.ml.data.documents.chunk import chunk, count_words
from luthier.ml.inference.models.token_counter import token_counter

SENTENCES = [f"Sentence number {n} has seven words." for n in range(100)]


def test_whole_sentences_with_whole_sentences_as_overlap() -> None:
    text = " ".join(SENTENCES)
    chunks = chunk(text, count_tokens=count_words, max_tokens=30, overlap_tokens=12)
    assert chunks[0].text == " ".join(SENTENCES[:5])  # six words each
    assert chunks[1].text == " ".join(SENTENCES[3:8])  # twelve of them again
    assert chunks[1].num_overlap_characters == len(" ".join(SENTENCES[3:5]))
    assert chunks[0].num_overlap_characters == 0
    assert not any(part.is_cut for part in chunks)
    assert all(part.num_tokens == count_words([part.text])[0] <= 30 for part in chunks)


def test_no_overlap_puts_the_text_in_pieces() -> None:
    text = " ".join(SENTENCES)
    chunks = chunk(text, count_tokens=count_words, max_tokens=31, overlap_tokens=0)
    assert " ".join(part.text for part in chunks) == text


def test_headings_stand_first_and_are_counted() -> None:
    chunks = chunk(
        " ".join(SENTENCES), count_tokens=count_words, max_tokens=20, overlap_tokens=0, headings=("Book", "Chapter one")
    )
    assert chunks[3].text.startswith("Book\nChapter one\n\nSentence number 6")
    assert all(part.num_tokens <= 20 for part in chunks)
    assert chunks[0].num_headings_left_out == 0


def test_headings_that_take_more_than_half_are_left_out_and_counted() -> None:
    outer, inner = "word " * 15, "Inner"
    chunks = chunk("A text.", count_tokens=count_words, max_tokens=20, overlap_tokens=0, headings=(outer, inner))
    assert (chunks[0].text, chunks[0].num_headings_left_out) == ("Inner\n\nA text.", 1)
    chunks = chunk("A text.", count_tokens=count_words, max_tokens=20, overlap_tokens=0, headings=(outer,))
    assert (chunks[0].text, chunks[0].num_headings_left_out) == ("A text.", 1)


def test_a_sentence_that_is_too_long_is_cut_and_said_to_be() -> None:
    text = "Short one. " + "word " * 100 + "end. Short two."
    chunks = chunk(text, count_tokens=count_words, max_tokens=20, overlap_tokens=5)
    assert any(part.is_cut for part in chunks)
    assert all(part.num_tokens <= 20 for part in chunks)
    assert sum(part.text.count("word") for part in chunks) == 100  # no part of a cut sentence is overlap


def test_a_word_of_ten_million_characters(tiny_model: Path) -> None:
    count = token_counter(tiny_model)
    chunks = chunk("x" * 300_000, count_tokens=count, max_tokens=2048, overlap_tokens=64)
    assert "".join(part.text for part in chunks) == "x" * 300_000
    assert all(part.num_tokens <= 2048 and part.is_cut for part in chunks)
    chunks = chunk(
        "x" * 10_000_000, count_tokens=lambda texts: list(map(len, texts)), max_tokens=10**6, overlap_tokens=0
    )
    assert sum(map(len, (part.text for part in chunks))) == 10_000_000


@settings(max_examples=60, deadline=None)
@given(
    st.text(alphabet="aB. !?\n-|`1。“é😀 \u0301", max_size=600),
    st.integers(16, 40),
    st.integers(0, 8),
    st.lists(st.text("abc ", max_size=30), max_size=3),
)
def test_no_chunk_is_too_long_and_nothing_is_lost(
    tiny_model: Path, text: str, most: int, overlap: int, headings: list[str]
) -> None:
    count = token_counter(tiny_model)
    chunks = chunk(text, count_tokens=count, max_tokens=most, overlap_tokens=overlap, headings=headings)
    covered: set[int] = set()
    for part in chunks:
        assert part.num_tokens == count([part.text])[0] <= most
        assert part.text.endswith(text[part.start : part.end])
        covered.update(range(part.start, part.end))
    assert all(text[at].isspace() for at in range(len(text)) if at not in covered)
    assert all(a.end <= b.end and a.start < b.start for a, b in pairwise(chunks))
    whole = set(sentence_spans(text))
    starts, ends = {start for start, _ in whole}, {end for _, end in whole}
    assert all(part.start in starts and part.end in ends for part in chunks if not part.is_cut)


def test_words_of_languages_without_blanks() -> None:
    assert count_words(["two words", "今日は 晴れ", "", "mixed 日本 text"]) == [2, 5, 0, 4]


@pytest.mark.parametrize(("most", "overlap"), [(15, 0), (0, 0), (100, 51), (100, -1)])
def test_sizes_that_cannot_be(most: int, overlap: int) -> None:
    with pytest.raises(RequestError):
        chunk("text", count_tokens=count_words, max_tokens=most, overlap_tokens=overlap)


def test_a_text_of_blanks_has_no_chunk() -> None:
    assert chunk(" \n ", count_tokens=count_words, max_tokens=20, overlap_tokens=2) == []


def test_a_chunk_that_continues_a_table_begins_with_the_names_of_its_columns() -> None:
    header = "| Article | Price |\n| --- | --- |\n"
    rows = [f"| lamp {n} | {n} EUR |" for n in range(40)]
    text = f"The prices:\n\n{header}" + "\n".join(rows) + "\n\nAll without tax."
    chunks = chunk(text, count_tokens=count_words, max_tokens=60, overlap_tokens=8)
    assert len(chunks) > 5
    assert chunks[0].text.startswith("The prices:\n\n| Article |")
    for part in nonempty(chunks[1:-1]):
        assert part.text == header + text[part.start : part.end]
        assert part.text.count("Article") == 1
    assert all(part.num_tokens == count_words([part.text])[0] <= 60 for part in chunks)
    assert not any(part.is_cut for part in chunks)
    said = "\n".join(part.text for part in chunks)
    assert all(row in said for row in rows)


def test_names_that_take_more_than_a_quarter_are_not_repeated_and_no_row_is_cut_for_them() -> None:
    wide = "| " + " | ".join(f"column {n}" for n in range(9)) + " |\n|" + " --- |" * 9 + "\n"
    text = wide + "\n".join("| x " * 9 + "|" for _ in range(20))
    chunks = chunk(text, count_tokens=count_words, max_tokens=60, overlap_tokens=0)
    assert ["column" in part.text for part in chunks[:3]] == [True, False, False]
    narrow = "| a | b |\n| --- | --- |\n"
    text = narrow + "\n".join("| " + "word " * 52 + "| y |" for _ in range(3))
    chunks = chunk(text, count_tokens=count_words, max_tokens=60, overlap_tokens=0)
    assert not any(part.is_cut for part in chunks)
    assert [part.text.startswith("| a | b |") for part in chunks] == [True, False, False, False]
