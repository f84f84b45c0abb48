"""Rows that are scored together: each once, none beyond the bounds, and only what is the same is shared."""

from array import array

from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.core.dataset import TokenisedExample, shareable_tokens
from luthier.ml.inference.batches import CALL_TOKENS, MIN_TOKENS, shared_batches


def row(ids, num_prompt, name="rows.jsonl:1"):
    return TokenisedExample(name, array("i", ids), bytes(place >= num_prompt for place in range(len(ids))))


def batches_of(examples, *, max_tokens=2048, max_kept_tokens=16_384, longest_shared=512):
    return shared_batches(
        examples, max_tokens=max_tokens, max_kept_tokens=max_kept_tokens, longest_shared=longest_shared
    )


def test_candidates_of_one_question_stand_behind_it():
    questions = [list(range(100 * q, 100 * q + 60)) for q in range(3)]
    examples = [row([*question, 900 + n], 60) for n in range(8) for question in questions]
    batches = batches_of(examples)
    assert [batch.num_shared for batch in batches] == [59, 59, 59]  # the token before the first learned one is not
    assert {tuple(row % 3 for row in batch.rows) for batch in batches} == {(q,) * 8 for q in range(3)}


def test_too_little_in_common_is_not_worth_a_call():
    examples = [row([*range(MIN_TOKENS - 1), 500 + n, 7], MIN_TOKENS + 1) for n in range(50)]
    assert [batch.num_shared for batch in batches_of(examples)] == [0]
    once = CALL_TOKENS // 40
    assert batches_of([row([*range(41), 500 + n], 41) for n in range(once)])[0].num_shared == 0
    assert batches_of([row([*range(41), 500 + n], 41) for n in range(once + 3)])[0].num_shared == 40


def test_a_long_family_is_cut_where_memory_ends_and_its_beginning_is_the_same():
    examples = [row([*range(300), 500 + n], 300) for n in range(20)]
    batches = batches_of(examples, max_kept_tokens=8 * 301)
    assert [(len(batch.rows), batch.is_same) for batch in batches] == [(8, False), (8, True), (4, True)]


def test_rows_longer_than_a_window_share_nothing():
    examples = [row([*range(300), 500 + n], 300) for n in range(20)]
    assert {batch.num_shared for batch in batches_of(examples, longest_shared=300)} == {0}


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 60), st.integers(1, 9)), min_size=1, max_size=40),
    st.integers(64, 400),
)
def test_each_row_comes_once_and_what_is_shared_is_the_same(parts, max_tokens):
    examples = [row([*([kind] * common), *range(100, 100 + own)], common) for kind, common, own in parts]
    batches = batches_of(examples, max_tokens=max_tokens, max_kept_tokens=500)
    assert sorted(place for batch in batches for place in batch.rows) == list(range(len(examples)))
    for batch in batches:
        members = [examples[place] for place in batch.rows]
        assert len({tuple(one.input_ids[: batch.num_shared]) for one in members}) == 1
        assert all(batch.num_shared < max(1, shareable_tokens(one)) for one in members)
        longest = max(one.num_tokens for one in members)
        assert len(members) == 1 or len(members) * (longest - batch.num_shared) <= max_tokens
        assert len(members) == 1 or batch.num_shared == 0 or len(members) * longest <= 500
