"""Topics of texts, and words that become more frequent."""

from __future__ import annotations

import numpy as np

from luthier.ml.drift.evidence import needed_strength, no_slots
from luthier.ml.drift.topics import TextWords, find_topics, hash_buckets, word_evidence


def made(subjects: list[int], seed: int) -> TextWords:
    """Ten words each: six of the subject's thirty, four of forty common ones."""
    generator = np.random.default_rng(seed)
    rows = [
        np.concatenate((1_000 * (one + 1) + generator.integers(0, 30, 6), generator.integers(0, 40, 4)))
        for one in subjects
    ]
    return TextWords(np.concatenate(rows).astype(np.uint64), np.full(len(subjects), 10))


def test_texts_of_a_subject_fall_into_one_topic_the_largest_first() -> None:
    subjects = [0] * 120 + [1] * 80 + [2] * 50
    topics = find_topics(made(subjects, 1), 3)
    assert topics is not None
    found, near = topics.nearest(made(subjects, 2))
    assert [
        np.bincount(found[start:stop].astype(int)).argmax() for start, stop in ((0, 120), (120, 200), (200, 250))
    ] == [0, 1, 2]
    assert (found == np.repeat([0, 1, 2], [120, 80, 50])).mean() > 0.95
    again = find_topics(made(subjects, 1), 3)
    assert again is not None
    assert (again.centres == topics.centres).all()
    assert near.min() > 0


def test_texts_without_words_have_no_topic() -> None:
    empty = TextWords(np.empty(0, dtype=np.uint64), np.zeros(3, dtype=np.int64))
    assert find_topics(empty) is None
    topics = find_topics(made([0] * 30, 1))
    assert topics is not None
    assert np.isnan(topics.nearest(empty)[0]).all()


def test_a_new_subject_is_found_by_its_words_and_steady_ones_are_not() -> None:
    generator = np.random.default_rng(3)
    subjects = generator.integers(0, 8, 1_500)
    hours, draws = np.arange(1_500) // 15, generator.random(1_500)
    steady = word_evidence(made(list(subjects), 4), hours, draws, no_slots)
    assert steady is not None
    assert steady.log_strength.max() < needed_strength(25)
    subjects[(np.arange(1_500) >= 1_000) & (generator.random(1_500) < 0.3)] = 20
    found = word_evidence(made(list(subjects), 4), hours, draws, no_slots)
    assert found is not None
    assert found.log_strength[-1] > needed_strength(25)
    assert 60 <= found.began <= 75
    assert found.place in set(hash_buckets(np.arange(21_000, 21_030, dtype=np.uint64)).tolist())
    early = word_evidence(made(list(subjects), 4).of(np.arange(750)), hours[:750], draws[:750], no_slots)
    assert early is not None
    assert np.allclose(early.log_strength, found.log_strength[:50])
