"""Texts that stand inside other texts."""

from __future__ import annotations

import random

import polars as pl

from luthier.ml.data.dedup.ngram_overlap import ngram_overlap

WORDS = [f"w{number}" for number in range(5_000)]


def text(num_words: int, seed: int) -> list[str]:
    return random.Random(seed).choices(WORDS, k=num_words)


def column(*texts: list[str]) -> pl.Series:
    return pl.Series([" ".join(words) for words in texts], dtype=pl.String)


def test_a_quotation_inside_a_longer_text_is_found_whatever_its_case() -> None:
    quoted = text(40, 0)
    found = ngram_overlap(
        column(text(100, 1), [*text(200, 2), *(w.upper() for w in quoted), *text(200, 3)]), column(text(60, 4), quoted)
    )
    assert (found.positions.tolist(), found.others.tolist()) == ([1], [1])
    assert (found.num_shared.tolist(), found.num_windows.tolist()) == ([28], [28])


def test_half_of_it_is_enough_and_less_is_not() -> None:
    whole = text(112, 0)  # 100 windows
    assert ngram_overlap(column(whole[:62]), column(whole)).positions.tolist() == [0]  # 50 windows
    assert ngram_overlap(column([*whole[:35], *text(5, 1), *whole[70:95]]), column(whole)).positions.tolist() == []


def test_a_run_of_fifty_words_is_enough_in_however_long_a_text() -> None:
    whole = text(1_000, 0)
    assert ngram_overlap(column(text(30, 1), whole[300:350]), column(whole)).positions.tolist() == [1]
    assert ngram_overlap(column(text(30, 1), whole[300:349]), column(whole)).positions.tolist() == []


def test_a_text_cut_up_over_several_is_found_in_all_of_them() -> None:
    whole = text(100, 0)
    found = ngram_overlap(column(whole[:40], text(50, 1), whole[30:70], whole[60:]), column(whole))
    assert found.positions.tolist() == [0, 2, 3]


def test_boilerplate_is_not_counted_and_said() -> None:
    notice = text(60, 0)
    texts = [[*notice, *text(20, seed)] for seed in range(1, 12)]
    found = ngram_overlap(column(*texts), column([*notice, *text(20, 50)], notice))
    assert found.positions.tolist() == []
    assert found.num_boilerplate == 48
    assert found.num_only_boilerplate == 1
    few = ngram_overlap(column(*texts[:10]), column([*notice, *text(20, 50)], notice))
    assert set(few.positions.tolist()) == set(range(10))
    assert few.num_boilerplate == 0


def test_own_words_beside_boilerplate_are_still_found() -> None:
    notice, own = text(60, 0), text(40, 1)
    texts = [[*notice, *text(20, seed)] for seed in range(2, 22)]
    found = ngram_overlap(column(*texts, own), column([*notice, *own]))
    assert found.positions.tolist() == [20]


def test_the_first_words_after_boilerplate_alone_are_no_leak() -> None:
    notice = text(60, 0)
    texts = [[*notice, *text(20, seed)] for seed in range(2, 22)]
    texts[5][60:64] = ["who", "wrote", "the", "novel"]
    assert (
        ngram_overlap(column(*texts), column([*notice, "who", "wrote", "the", "novel", "emma"])).positions.tolist()
        == []
    )


def test_short_and_empty_texts_cover_nothing() -> None:
    empty = pl.Series([], dtype=pl.String)
    short = column(text(12, 0), [])
    for left, right in ((short, short), (empty, short), (short, empty), (empty, empty)):
        assert ngram_overlap(left, right).positions.tolist() == []
    assert ngram_overlap(column(text(13, 0)), column(text(13, 0))).positions.tolist() == [0]


def test_unrelated_texts_give_no_alarm() -> None:
    left = column(*(text(80, seed) for seed in range(500)))
    right = column(*(text(80, seed) for seed in range(1_000, 1_500)))
    assert ngram_overlap(left, right).positions.tolist() == []
