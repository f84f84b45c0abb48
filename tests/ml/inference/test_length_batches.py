from hypothesis import given
from hypothesis import strategies as st

from luthier.ml.inference.batches import (
    CALL_TOKENS,
    common_prefix_length,
    in_two_lengths,
    length_batches,
    memory_batches,
    padded_tokens,
)


@given(st.lists(st.integers(1, 50)), st.integers(1, 200), st.integers(1, 8))
def test_every_item_is_in_one_batch_and_no_batch_is_too_big(lengths, max_tokens, max_rows):
    batches = length_batches(lengths, max_tokens=max_tokens, max_rows=max_rows)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        padded = len(batch) * max(lengths[index] for index in batch)
        assert len(batch) <= max_rows
        assert padded <= max_tokens or len(batch) == 1


@given(st.lists(st.integers(1, 50)))
def test_the_longest_come_first(lengths):
    flat = [lengths[index] for batch in length_batches(lengths, max_tokens=60, max_rows=4) for index in batch]
    assert flat == sorted(lengths, reverse=True)


@given(st.lists(st.integers(1, 300), min_size=1, max_size=40))
def test_two_lengths_save_the_most_padding_that_one_cut_can_and_more_than_a_call_costs(lengths):
    groups = in_two_lengths(lengths)
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    assert all(group == sorted(group) for group in groups)
    together, ordered = len(lengths) * max(lengths), sorted(lengths)
    cuts = [cut * ordered[cut - 1] + (len(ordered) - cut) * ordered[-1] for cut in range(1, len(ordered))]
    padded = sum(len(group) * max(lengths[index] for index in group) for group in groups)
    least = min(cuts, default=together)
    assert padded == (least if together - least > CALL_TOKENS else together)
    assert len(groups) == 1 + (padded < together)


@given(st.lists(st.integers(0, 1), max_size=6), st.lists(st.lists(st.integers(0, 1), max_size=6), min_size=1))
def test_the_common_prefix_is_the_longest_that_all_share(shared, tails):
    sequences = [shared + tail for tail in tails]
    length = common_prefix_length(sequences)
    assert length >= len(shared)
    assert len({tuple(sequence[:length]) for sequence in sequences}) == 1
    longer = {tuple(sequence[: length + 1]) for sequence in sequences}
    assert len(longer) > 1 or length == min(map(len, sequences))


def test_no_sequences_share_nothing():
    assert common_prefix_length([]) == 0


def padded(lengths, batches):
    return sum(len(batch) * max(lengths[index] for index in batch) for batch in batches)


def test_short_rows_have_a_batch_of_their_own_only_where_a_long_one_would_pad_them_beyond_memory():
    lengths = [10, 100, 10, 10]
    assert memory_batches(lengths, 400) == [[1, 0, 2, 3]]
    assert memory_batches(lengths, 399) == [[1], [0, 2, 3]]
    assert memory_batches([], 5) == []


@given(st.lists(st.integers(1, 300), max_size=30), st.integers(1, 4000))
def test_rows_are_divided_until_they_fit_or_none_is_padded(lengths, most_tokens):
    batches = memory_batches(lengths, most_tokens)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    assert padded_tokens(lengths, batches) == padded(lengths, batches)
    if padded(lengths, batches) > most_tokens:
        assert padded(lengths, batches) == sum(lengths)
    if len(lengths) * max(lengths, default=0) <= most_tokens:
        assert len(batches) <= 1


@given(st.lists(st.integers(1, 9), max_size=20), st.integers(1, 60), st.randoms())
def test_the_same_lengths_are_divided_in_the_same_way_in_any_order(lengths, most_tokens, random):
    """Rows are divided again with each step: another division of the same rows would copy all keys and values."""
    shuffled = random.sample(lengths, len(lengths))
    found = [
        sorted(sorted(rows[index] for index in batch) for batch in memory_batches(rows, most_tokens))
        for rows in (lengths, shuffled)
    ]
    assert found[0] == found[1]
