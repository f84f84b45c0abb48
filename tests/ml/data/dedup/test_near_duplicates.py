"""Near-duplicates, checked against all pairs."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.core.errors import RequestError
from luthier.ml.data.dedup.near_duplicates import near_clusters, near_duplicate_groups, near_matches
from luthier.ml.data.dedup.shingles import (
    bands_of,
    jaccards,
    pairs_within,
    recall_at,
    shingles_of,
    signatures_of,
)
from luthier.ml.data.files.row_frames import RowFrames
from luthier.ml.data.files.spill import Spill

VOCABULARY = [f"{a}{b}{c}" for a, b, c in itertools.product("bdfgkl", "aeiou", ["n", "r", "st", "m"])]


def edited(words: Sequence[str], num_edits: int, rng: random.Random) -> list[str]:
    made = list(words)
    for _ in range(num_edits):
        place = rng.randrange(len(made))
        match rng.randrange(3):
            case 0:
                made[place] = rng.choice(VOCABULARY)
            case 1:
                made.insert(place, rng.choice(VOCABULARY))
            case _:
                del made[place]
    return made


def corpus(seed: int) -> list[str]:
    """2,000 texts: unrelated ones, copies after 1 to 6 word edits, and reviews made from a few templates."""
    rng = random.Random(seed)
    texts = [[rng.choice(VOCABULARY) for _ in range(rng.randint(40, 160))] for _ in range(900)]
    texts += [edited(texts[number], 1 + number % 6, rng) for number in range(600)]
    templates = [[rng.choice(VOCABULARY) for _ in range(90)] for _ in range(10)]
    for number in range(500):
        words = list(templates[number % 10])
        for place in rng.sample(range(90), 1 + number % 3):
            words[place] = rng.choice(VOCABULARY)
        texts.append(words)
    rng.shuffle(texts)
    return [" ".join(words) for words in texts]


def true_pairs(texts: list[str], threshold: float = 0.8) -> set[tuple[int, int]]:
    """All pairs, by sets of strings."""
    words = [text.split() for text in texts]
    sets = [{tuple(w[i : i + 3]) for i in range(len(w) - 2)} for w in words]
    holders: dict[tuple[str, ...], list[int]] = {}
    for number, shingles in enumerate(sets):
        for shingle in shingles:
            holders.setdefault(shingle, []).append(number)
    shared: dict[tuple[int, int], int] = {}
    for numbers in holders.values():
        for pair in itertools.combinations(numbers, 2):
            shared[pair] = shared.get(pair, 0) + 1
    return {(a, b) for (a, b), num in shared.items() if num / (len(sets[a]) + len(sets[b]) - num) >= threshold}


@pytest.mark.parametrize("seed", [0, 1])
def test_recall_and_precision_against_all_pairs(seed: int) -> None:
    texts = corpus(seed)
    truth = true_pairs(texts)
    assert len(truth) > 1_000
    groups = near_duplicate_groups(pl.Series(texts))
    found = sum(groups[a] == groups[b] for a, b in truth)
    assert found / len(truth) >= 0.99

    # Precision: what is put together is what the true pairs put together, and nothing else.
    component = list(range(len(texts)))
    for a, b in sorted(truth):
        low, high = sorted((component[a], component[b]))
        component = [low if label == high else label for label in component]
    together = [number for number in range(len(texts)) if groups[number] != number]
    assert len(together) > 300
    assert all(component[number] == component[groups[number]] for number in together)


def test_what_is_dropped_is_near_to_something_kept() -> None:
    texts = pl.Series(corpus(2))
    made = near_clusters(texts)
    dropped = np.flatnonzero(made.kept != np.arange(len(texts)))
    assert len(dropped) > 300
    assert made.num_unsettled == 0
    assert (made.kept[made.kept[dropped]] == made.kept[dropped]).all(), "a kept text is not dropped itself"
    assert (made.kept[dropped] < dropped).all(), "the first stays"
    shingles = shingles_of(texts)
    assert (jaccards(shingles, dropped, shingles, made.kept[dropped]) == made.similarities[dropped]).all()
    assert made.similarities.min() >= 0.8
    assert (made.groups == near_duplicate_groups(texts)).all()


def test_a_chain_is_one_cluster_but_its_far_end_stays() -> None:
    words = [str(number) for number in range(100)]
    chain = [" ".join(words[start : start + 60]) for start in range(0, 30, 4)]
    made = near_clusters(pl.Series(chain))
    assert made.groups.tolist() == [0] * 8
    # 4 words further are 54 of 62 shingles, 8 further 50 of 66: only the direct neighbour of a kept one is dropped
    assert made.kept.tolist() == [0, 0, 2, 2, 4, 4, 6, 6]


def test_a_chain_of_more_than_a_hundred_retained_texts_is_settled_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    words = [str(number) for number in range(2_000)]
    chain = pl.Series([" ".join(words[start : start + 60]) for start in range(0, 1_000, 4)])
    made = near_clusters(chain)
    assert made.groups.tolist() == [0] * 250
    assert made.kept.tolist() == [at - at % 2 for at in range(250)]
    assert made.num_unsettled == 0
    # What is left over where comparisons run out is counted, and stays.
    monkeypatch.setattr("luthier.ml.data.dedup.near_duplicates._LEAST_COMPARISONS", 0)
    monkeypatch.setattr("luthier.ml.data.dedup.near_duplicates._MAX_ROUNDS", 2)
    short = near_clusters(chain)
    assert short.kept.tolist() == [0, 0, 2, 2, 4, 4, *range(6, 250)]
    assert short.num_unsettled == 243, "all but the four kept texts and the three that go for them"


@settings(deadline=None, max_examples=15)
@given(st.randoms(use_true_random=False), st.integers(0, 3))
def test_the_order_of_rows_does_not_change_the_clusters(rng: random.Random, seed: int) -> None:
    texts = corpus(seed)[:120]
    order = list(range(len(texts)))
    rng.shuffle(order)

    def partition(groups: Sequence[int], names: Sequence[int]) -> set[frozenset[int]]:
        clusters: dict[int, set[int]] = {}
        for name, group in zip(names, groups, strict=True):
            clusters.setdefault(group, set()).add(name)
        return {frozenset(cluster) for cluster in clusters.values()}

    straight = partition(near_duplicate_groups(pl.Series(texts)).tolist(), range(len(texts)))
    shuffled = partition(near_duplicate_groups(pl.Series([texts[i] for i in order])).tolist(), order)
    assert straight == shuffled


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ([], []),
        (["one"], [0]),
        (["", "", "!"], [0, 1, 2]),
        (["same old text here"] * 5, [0] * 5),
        (["yes", "no", "Yes!", None, "no"], [0, 1, 0, 3, 1]),
        (["", "a b c d", None, "A b c d"], [0, 1, 2, 1]),
    ],
)
def test_odd_columns(texts: list[str | None], expected: list[int]) -> None:
    assert near_duplicate_groups(pl.Series(texts, dtype=pl.String)).tolist() == expected


def test_a_row_of_a_million_characters_among_others() -> None:
    huge = " ".join(map(str, range(200_000)))
    assert len(huge) > 1_000_000
    groups = near_duplicate_groups(pl.Series(["short text of words", huge, huge + " and a word", "x" * 1_000_000]))
    assert groups.tolist() == [0, 1, 1, 3]


def test_a_hot_bucket_of_one_template_still_falls_together() -> None:
    rng = random.Random(5)
    template = [rng.choice(VOCABULARY) for _ in range(80)]
    texts = [" ".join(edited(template, 2, rng)) for _ in range(3_000)]
    groups = near_duplicate_groups(pl.Series(texts))
    assert (groups == groups.min()).mean() >= 0.99


def test_matches_name_the_most_similar_text_of_the_other_side() -> None:
    rng = random.Random(6)
    others = [[rng.choice(VOCABULARY) for _ in range(60)] for _ in range(300)]
    texts = [edited(others[number], 1 + number % 3, rng) for number in range(100)]
    texts += [[rng.choice(VOCABULARY) for _ in range(60)] for _ in range(100)]
    left, right = pl.Series([" ".join(w) for w in texts]), pl.Series([" ".join(w) for w in others])
    found = near_matches(left, right)
    a, b = shingles_of(left), shingles_of(right)
    side = np.arange(100)
    truth = side[jaccards(a, side, b, side) >= 0.8]
    assert len(truth) > 50
    assert set(truth.tolist()) <= set(found.positions.tolist())
    assert (found.others == found.positions).all()
    assert (found.jaccards == jaccards(a, found.positions, b, found.others)).all()
    assert len(near_matches(left, pl.Series([], dtype=pl.String)).positions) == 0
    assert len(near_matches(pl.Series(["", "!"]), pl.Series(["", "?"])).positions) == 0


def test_of_hundreds_of_equal_matches_the_first_is_named() -> None:
    text = "a text that stands there many hundred times over"
    found = near_matches(pl.Series([text, "something else entirely different"]), pl.Series([text] * 500))
    assert (found.positions.tolist(), found.others.tolist(), found.jaccards.tolist()) == ([0], [0], [1.0])


@pytest.mark.parametrize("threshold", [0.2, 1.5, float("nan")])
def test_a_threshold_outside_the_search_is_refused(threshold: float) -> None:
    with pytest.raises(RequestError, match="Jaccard similarity from"):
        near_duplicate_groups(pl.Series(["a"]), threshold=threshold)
    with pytest.raises(RequestError, match="Jaccard similarity from"):
        near_matches(pl.Series(["a"]), pl.Series(["a"]), threshold=threshold)


def test_texts_in_company_are_those_that_are_paired() -> None:
    """The search relies on it: sets are kept of these texts only."""
    bands = bands_of(pl.Series(corpus(3)))
    paired: set[int] = set()
    for keys in bands.keys:
        for left, right in pairs_within(keys):
            paired |= {*left.tolist(), *right.tolist()}
    assert len(paired) > 1_000
    assert paired == set(np.flatnonzero(bands.in_company(np.arange(2_000))).tolist())


@pytest.mark.parametrize("seed", [0, 1])
def test_files_in_place_of_memory_change_nothing(seed: int, tmp_path: Path) -> None:
    texts, others = corpus(seed), corpus(seed)[::3] + corpus(seed + 1)[::2]
    spill = Spill(0, tmp_path)
    rows, other_rows = (RowFrames({"text": pl.String}, spill) for _ in range(2))
    for start in range(0, 2_000, 300):
        rows.append(pl.DataFrame({"text": texts[start : start + 300]}))
        other_rows.append(pl.DataFrame({"text": others[start : start + 300]}))
    assert rows.is_spilled
    there, here = near_clusters(rows.texts("text")), near_clusters(pl.Series(texts))
    for name in ("groups", "kept", "similarities"):
        assert (getattr(there, name) == getattr(here, name)).all()
    far = near_matches(rows.texts("text"), other_rows.texts("text"))
    near = near_matches(pl.Series(texts), pl.Series(others))
    assert len(near.positions) > 600
    for name in ("positions", "others", "jaccards"):
        assert (getattr(far, name) == getattr(near, name)).all()
    assert spill.written_bytes > 1_000_000


def test_the_signature_estimates_the_similarity() -> None:
    rng = random.Random(7)
    texts = [[rng.choice(VOCABULARY) for _ in range(80)] for _ in range(400)]
    copies = [edited(words, 5, rng) for words in texts]
    made = shingles_of(pl.Series([" ".join(words) for words in texts + copies]))
    signatures = signatures_of(made)
    side = np.arange(400)
    error = (signatures[:400] == signatures[400:]).mean(axis=1) - jaccards(made, side, made, side + 400)
    assert abs(error.mean()) < 0.01
    assert np.sqrt((error**2).mean()) < 0.045
    assert recall_at(0.8) == pytest.approx(0.998, abs=0.001)
