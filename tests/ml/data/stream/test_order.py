"""The order of streamed rows is a function of the seed alone, and what a buffer holds is known without reading."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from luthier.ml.data.stream.order import SourceChoice, Words, batch_order, buffered_after, draws_of, shard_order


def test_words_are_those_of_one_philox_stream_wherever_one_begins() -> None:
    words = Words(7, 2, 3)
    key = np.array([7, 2 << 56 | 3], dtype=np.uint64)
    expected = [int(word) for word in np.random.Philox(key=key).random_raw(3000)]
    assert [words.at(place) for place in range(3000)] == expected
    assert [words.at(place) for place in (2999, 0, 1024, 1023)] == [expected[i] for i in (2999, 0, 1024, 1023)]


@given(
    num_rows=st.integers(1, 60),
    size=st.integers(1, 20),
    seed=st.integers(0, 9),
    share=st.floats(0, 1),
    ended=st.booleans(),
)
def test_the_buffer_after_some_draws_is_that_of_drawing_one_by_one(
    num_rows: int, size: int, seed: int, share: float, ended: bool
) -> None:
    words = draws_of(seed, 4)
    buffer, following = list(range(min(size, num_rows))), min(size, num_rows)
    num_draws = round(share * num_rows)
    if not ended:  # the end of the epoch has not been met yet
        num_draws = min(num_draws, num_rows - len(buffer))
    for draw in range(num_draws):
        place = words.at(draw) % len(buffer)
        if following < num_rows:
            buffer[place], following = following, following + 1
        else:
            buffer[place] = buffer[-1]
            buffer.pop()
    is_known = ended or len(buffer) < size
    assert buffered_after(num_draws, size, draws_of(seed, 4), num_rows if is_known else None) == buffer


def test_shards_and_batches_are_permuted_by_seed_source_and_pass() -> None:
    orders = [
        tuple(shard_order(seed, lane, number, 9, is_shuffled=True))
        for seed, lane, number in ((1, 0, 0), (2, 0, 0), (1, 1, 0), (1, 0, 1))
    ]
    assert len(set(orders)) == 4
    assert {tuple(sorted(order)) for order in orders} == {tuple(range(9))}
    assert shard_order(1, 0, 5, 4, is_shuffled=False) == [0, 1, 2, 3]
    assert sorted(batch_order(1, 0, 16)) == list(range(16))
    assert batch_order(1, 0, 16) != batch_order(1, 1, 16)


def test_sources_are_drawn_by_their_weights() -> None:
    choice = SourceChoice((1.0, 3.0, 4.0), seed=5)
    found = Counter(choice.at(place) for place in range(8000))
    # Five standard deviations of a binomial of 8,000 draws are 190 for the first and 220 for the others.
    assert abs(found[0] - 1000) < 190
    assert abs(found[1] - 3000) < 220
    assert abs(found[2] - 4000) < 225
