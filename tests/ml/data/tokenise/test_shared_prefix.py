"""Families of examples that begin alike: found, disjoint, and no larger saving is left beside them."""

from __future__ import annotations

import random
from array import array

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.core.dataset import TokenisedExample, shareable_tokens
from luthier.ml.data.tokenise.shared_prefix import (
    MICRO_BATCH_TOKENS,
    MIN_TOKENS,
    Families,
    find_families,
    unit_prefixes,
)


def example(ids: list[int], first_learned: int | None = None) -> TokenisedExample:
    first = len(ids) - 1 if first_learned is None else first_learned
    return TokenisedExample("row", array("i", ids), bytes(int(i >= first) for i in range(len(ids))))


def num_families(found: Families) -> int:
    return int(found.families.max(initial=-1)) + 1


def common_tokens(examples: list[TokenisedExample]) -> int:
    """The length of the beginning that all share and may share, token by token."""
    longest = min(map(shareable_tokens, examples))
    same = (len({e.input_ids[i] for e in examples}) == 1 for i in range(longest))
    return next((i for i, is_same in enumerate(same) if not is_same), longest)


def drawn(num: int, seed: int) -> list[int]:
    return random.Random(seed).choices(range(1000), k=num)


def test_one_system_prompt_is_one_family() -> None:
    prompt = drawn(40, 0)
    rows = [example([*prompt, n, n + 1, n + 2], 41) for n in range(20)]
    found = find_families([(e,) for e in rows], global_batch_size=8)
    assert num_families(found) == 1
    assert found.prefix_tokens.tolist() == [40] * 20


def test_two_prompts_are_two_families_and_strangers_belong_to_none() -> None:
    rows = [example([*drawn(50, n % 2), 7 * n, 1], 50) for n in range(20)]
    rows += [example(drawn(30, 100 + n)) for n in range(5)]
    found = find_families([(e,) for e in rows], global_batch_size=10)
    assert num_families(found) == 2
    assert found.prefix_tokens.tolist() == [50] * 20 + [0] * 5
    assert found.families[20:].tolist() == [-1] * 5
    assert len({*found.families[0:20:2].tolist()}) == len({*found.families[1:20:2].tolist()}) == 1


def test_a_longer_beginning_of_fewer_is_taken_where_it_saves_more() -> None:
    """All share 20 tokens, halves 20 or 200 more: 20 * 15 - 100 a step against 2 * (220 * 7 - 100) for the halves."""
    header, halves = drawn(20, 0), [drawn(200, 1), drawn(200, 2)]
    rows = [example([*header, *halves[n % 2], n], 220) for n in range(16)]
    assert set(find_families([(e,) for e in rows], global_batch_size=16).prefix_tokens.tolist()) == {220}
    one = [example([*header, *halves[0][: 3 * (n % 2)], 500 + n], 20) for n in range(16)]
    assert set(find_families([(e,) for e in one], global_batch_size=16).prefix_tokens.tolist()) == {20}


def test_nothing_learned_is_shared_but_the_token_before_it_may_be() -> None:
    rows = [example([*drawn(30, 0), n], 20) for n in range(8)]
    assert shareable_tokens(rows[0]) == 20
    assert set(find_families([(e,) for e in rows], global_batch_size=8).prefix_tokens.tolist()) == {20}


def test_equal_rows_keep_a_token_of_their_own() -> None:
    rows = [TokenisedExample("row", array("i", drawn(30, 0)), bytes(30)) for _ in range(8)]
    assert common_tokens(rows) == 29
    assert set(find_families([(e,) for e in rows], global_batch_size=8).prefix_tokens.tolist()) == {29}


@pytest.mark.parametrize(("num_tokens", "expected"), [(MIN_TOKENS - 1, 0), (MIN_TOKENS, MIN_TOKENS)])
def test_short_beginnings_are_left_alone(num_tokens: int, expected: int) -> None:
    rows = [example([*drawn(num_tokens, 0), n], num_tokens) for n in range(8)]
    assert set(find_families([(e,) for e in rows], global_batch_size=8).prefix_tokens.tolist()) == {expected}


def test_a_family_that_a_step_hardly_ever_meets_twice_is_none() -> None:
    rows = [example([*drawn(60, n // 2), n], 60) for n in range(100)]
    assert num_families(find_families([(e,) for e in rows], global_batch_size=10)) == 0


def test_one_row_and_no_row() -> None:
    assert num_families(find_families([(example(drawn(20, 0)),)], global_batch_size=4)) == 0
    assert num_families(find_families([], global_batch_size=4)) == 0


@st.composite
def files(draw: st.DrawFn) -> list[TokenisedExample]:
    headers = draw(st.lists(st.integers(1, 60), min_size=1, max_size=4))
    num = draw(st.integers(2, 24))
    rows = []
    for n in range(num):
        which = draw(st.integers(0, len(headers) - 1))
        ids = [*drawn(headers[which], draw(st.integers(0, 2))), *drawn(draw(st.integers(1, 6)), 1000 + n)]
        rows.append(example(ids, draw(st.integers(1, len(ids) - 1)) if len(ids) > 1 else 0))
    return rows


@given(files(), st.integers(2, 16))
def test_families_are_what_they_say(rows: list[TokenisedExample], size: int) -> None:
    found = find_families([(e,) for e in rows], global_batch_size=size)
    for number in range(num_families(found)):
        members = np.flatnonzero(found.families == number)
        (length,) = set(found.prefix_tokens[members].tolist())
        assert MIN_TOKENS <= length <= common_tokens([rows[i] for i in members])
        assert length * (len(members) * size / len(rows) - 1) > MICRO_BATCH_TOKENS
    assert (found.prefix_tokens[found.families < 0] == 0).all()


@given(files(), st.integers(2, 16))
def test_no_single_family_saves_more(rows: list[TokenisedExample], size: int) -> None:
    """Held against all groups by one common beginning: the families found save at least what the best of these does."""
    found = find_families([(e,) for e in rows], global_batch_size=size)

    def saved(members: list[int], length: int) -> float:
        is_group = length >= MIN_TOKENS and len(members) > 1
        return length * (len(members) * size / len(rows) - 1) - MICRO_BATCH_TOKENS if is_group else 0.0

    numbers = range(num_families(found))
    groups = [np.flatnonzero(found.families == n).tolist() for n in numbers]
    total = sum(saved(group, int(found.prefix_tokens[group[0]])) for group in groups)
    best = 0.0
    for row in rows:
        for length in range(1, shareable_tokens(row) + 1):
            beginning = row.input_ids[:length]
            members = [
                i for i, e in enumerate(rows) if shareable_tokens(e) >= length and e.input_ids[:length] == beginning
            ]
            best = max(best, saved(members, length))
    assert total >= best - 1e-9


def test_the_rows_of_a_unit_share_their_prompt_and_nothing_learned() -> None:
    """Two completions of 30 tokens of prompt, which go on alike for 3 learned tokens; and two strangers."""
    prompt = drawn(30, 0)
    pair = [example([*prompt, 1, 2, 3, *own], 30) for own in ([4, 5], [6, 7, 8, 9])]
    strangers = [example(drawn(20, 1)), example(drawn(25, 2))]
    found = unit_prefixes([pair, strangers])
    assert found.prefix_tokens.tolist() == [30, 0]
    assert found.computed_tokens.tolist() == [30 + 5 + 7, 45]


def test_the_answers_of_one_conversation_share_what_one_learns_and_another_has_as_context() -> None:
    first = TokenisedExample("r:1", array("i", [1, 2, 3, 4, 9]), bytes([0, 0, 1, 1, 1]))
    second = TokenisedExample("r:1", array("i", [1, 2, 3, 4, 5, 6]), bytes([0, 0, 0, 0, 0, 1]))
    alone = TokenisedExample("r:2", array("i", [1, 2, 3]), bytes([0, 0, 1]))
    own = unit_prefixes([(first, second), (alone,)], are_cut=True)
    assert own.prefix_tokens.tolist() == [4, 0]
    assert own.computed_tokens.tolist() == [7, 3]
