from __future__ import annotations

import random

import numpy as np
import polars as pl
from hypothesis import given
from hypothesis import strategies as st
from tests.vacuous import nonempty

from luthier.ml.data.rows.prompt_map import prompt_map, shared_prefix

TOPICS = ("soup bread cheese tasty kitchen", "engine wheel brake fuel tyre", "python loop class import list")


def topical(num: int, start: str = "") -> tuple[list[str], list[int]]:
    draw = random.Random(3)
    topics = [draw.randrange(3) for _ in range(num)]
    return [start + " ".join(draw.choice(TOPICS[topic].split()) for _ in range(12)) for topic in topics], topics


def test_texts_of_one_topic_lie_together_whatever_the_way_of_projection() -> None:
    for num in (120, 900):  # by the Gram matrix, and by ARPACK
        texts, topics = topical(num)
        found = prompt_map(pl.Series(texts))
        centres = np.array([found.xy[np.array(topics) == topic].mean(axis=0) for topic in range(3)])
        nearest = ((found.xy[:, None] - centres) ** 2).sum(axis=2).argmin(axis=1)
        assert (nearest == topics).mean() > 0.95
        assert 0.3 < found.explained_share <= 1


def test_regions_are_named_by_words_of_their_topic() -> None:
    texts, _ = topical(300)
    regions = prompt_map(pl.Series(texts)).regions
    assert regions
    for region in regions:
        assert any(set(region.words) <= set(topic.split()) for topic in TOPICS)


def test_a_beginning_that_nearly_all_share_does_not_count() -> None:
    start = "You are a helpful assistant. Answer briefly: "
    with_start, _ = topical(200, start)
    without, _ = topical(200)
    found, bare = prompt_map(pl.Series(with_start)), prompt_map(pl.Series(without))
    assert found.prefix == start
    np.testing.assert_allclose(found.xy, bare.xy, atol=1e-9)


def test_the_prefix_of_nine_in_ten_is_enough_and_of_eight_is_not() -> None:
    assert shared_prefix(["Question: what is it"] * 5 + ["Question: why so"] * 4 + ["else"]) == "Question: "
    assert shared_prefix(["Question: a"] * 4 + ["Question: b"] * 4 + ["x", "y"]) == ""
    assert shared_prefix(["only one text"]) == ""


def test_a_sample_is_drawn_above_the_limit_and_the_same_one_each_time() -> None:
    texts, _ = topical(2_000)
    once, again = prompt_map(pl.Series(texts), max_points=100), prompt_map(pl.Series(texts), max_points=100)
    other = prompt_map(pl.Series(texts), max_points=100, seed=1)
    assert len(once.positions) == 100
    assert once.num_texts == 2_000
    assert (np.diff(once.positions) > 0).all()
    np.testing.assert_array_equal(once.positions, again.positions)
    np.testing.assert_array_equal(once.xy, again.xy)
    assert set(once.positions) != set(other.positions)


def test_nothing_to_tell_apart_lies_in_one_point() -> None:
    for texts in ([], [None, None], ["a"], ["same words"] * 700, ["", ""], ["?!", "..."]):
        found = prompt_map(pl.Series(texts, dtype=pl.String))
        assert not np.ptp(found.xy, axis=0).any() if len(found.xy) else True
        assert found.explained_share == 0.0
        assert found.regions == ()
    assert len(prompt_map(pl.Series([None, "x", None])).positions) == 1


def test_many_texts_of_few_words_do_not_upset_the_solver() -> None:
    found = prompt_map(pl.Series(["a", "b"] * 400))
    assert np.isfinite(found.xy).all()
    assert found.explained_share > 0.99


@given(st.lists(st.none() | st.text(max_size=40), max_size=30))
def test_any_texts_give_finite_points_centred_on_zero(texts: list[str | None]) -> None:
    found = prompt_map(pl.Series(texts, dtype=pl.String))
    assert list(found.positions) == [place for place, text in enumerate(texts) if text is not None]
    assert found.xy.shape == (len(found.positions), 2)
    assert np.isfinite(found.xy).all()
    assert 0 <= found.explained_share <= 1
    if len(found.xy):
        np.testing.assert_allclose(found.xy.mean(axis=0), 0, atol=1e-6)


def test_points_know_the_region_that_they_lie_in() -> None:
    texts, topics = topical(300)
    found = prompt_map(pl.Series(texts))
    assert len(found.members) == len(found.xy)
    for number, region in nonempty(enumerate(found.regions)):
        inside = found.members == number
        assert inside.sum() == region.num_points
        assert np.allclose(found.xy[inside].mean(axis=0), (region.x, region.y))
        assert len(set(np.array(topics)[inside])) == 1
    few = prompt_map(pl.Series(texts[:5]))
    assert (few.regions, few.members.tolist()) == ((), [-1] * 5)
