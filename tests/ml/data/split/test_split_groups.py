"""The one way in which rows are split."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.core.dataset import Split
from luthier.core.errors import DataError
from luthier.ml.data.split.split import SIDES, group_sides, hashes_of, majority, united


def sides_of(
    groups: dict[str, int], *, validation: float, held_out: float, seed: int, strata: dict[str, str] | None = None
) -> dict[str, Split]:
    """The side of each group by its name."""
    numbers = None
    if strata is not None:
        names = sorted(set(strata.values()))
        numbers = np.array([names.index(strata[group]) for group in groups], dtype=np.int64)
    codes = group_sides(
        hashes_of(groups, seed),
        np.array(list(groups.values()), dtype=np.int64),
        validation=validation,
        held_out=held_out,
        strata=numbers,
    )
    return {name: SIDES[code] for name, code in zip(groups, codes.tolist(), strict=True)}


sizes = st.dictionaries(st.text("abcdef", min_size=1, max_size=4), st.integers(1, 6), min_size=24, max_size=80)


@settings(max_examples=150, deadline=None)
@given(sizes, st.integers(0, 99), st.floats(0.05, 0.3), st.floats(0.05, 0.3))
def test_a_side_is_off_by_at_most_one_group(
    groups: dict[str, int], seed: int, validation: float, held_out: float
) -> None:
    side = sides_of(groups, validation=validation, held_out=held_out, seed=seed)
    assert side.keys() == groups.keys()
    rows = Counter[str]()
    for group, where in side.items():
        rows[where] += groups[group]
    total, largest = sum(groups.values()), max(groups.values())
    assert abs(rows["validation"] - validation * total) <= largest
    assert abs(rows["held_out"] - held_out * total) <= largest
    assert set(rows) == set(SIDES)
    moved = dict(reversed(groups.items()))
    assert sides_of(moved, validation=validation, held_out=held_out, seed=seed) == side


@settings(max_examples=100, deadline=None)
@given(sizes, st.integers(0, 99), st.integers(2, 5))
def test_strata_have_their_share(groups: dict[str, int], seed: int, num_strata: int) -> None:
    strata = {group: str(index % num_strata) for index, group in enumerate(sorted(groups))}
    side = sides_of(groups, validation=0.2, held_out=0.2, seed=seed, strata=strata)
    total, largest = sum(groups.values()), max(groups.values())
    for split in ("validation", "held_out"):
        rows = sum(groups[group] for group in groups if side[group] == split)
        assert abs(rows - 0.2 * total) <= largest
        for stratum in set(strata.values()):
            inside = [group for group in groups if strata[group] == stratum]
            taken = sum(groups[group] for group in inside if side[group] == split)
            assert abs(taken - 0.2 * sum(groups[group] for group in inside)) <= 2 * largest
            assert any(side[group] == "train" for group in inside)
    moved = dict(reversed(groups.items()))
    assert sides_of(moved, validation=0.2, held_out=0.2, seed=seed, strata=strata) == side


def test_rare_strata_together_give_their_share() -> None:
    groups = {f"{stratum}-{n}": 1 for stratum in range(50) for n in range(4)}
    strata = {group: group.split("-")[0] for group in groups}
    side = sides_of(groups, validation=0.1, held_out=0.1, seed=0, strata=strata)
    assert Counter(side.values()) == {"train": 160, "validation": 20, "held_out": 20}


def test_strata_of_one_group_each_cannot_be_split() -> None:
    groups = {str(n): 1 for n in range(20)}
    with pytest.raises(DataError, match="20 strata of 20 groups leave none to held_out"):
        sides_of(groups, validation=0.0, held_out=0.1, seed=0, strata={group: group for group in groups})


def test_one_stratum_is_no_stratification() -> None:
    groups = {str(n): 1 + n % 3 for n in range(50)}
    plain = sides_of(groups, validation=0.1, held_out=0.2, seed=5)
    assert sides_of(groups, validation=0.1, held_out=0.2, seed=5, strata=dict.fromkeys(groups, "all")) == plain


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.none() | st.integers(0, 9), st.none() | st.integers(0, 9)), max_size=40))
def test_components_are_what_a_search_of_the_graph_finds(keys: list[tuple[int | None, int | None]]) -> None:
    columns = [[key[at] for key in keys] for at in range(2)]
    first = [
        np.array([row if key is None else column.index(key) for row, key in enumerate(column)], dtype=np.int64)
        for column in columns
    ]
    found = united(*first).tolist()
    for start in range(len(keys)):
        reached, front = {start}, [start]
        while front:
            row = front.pop()
            for other in range(len(keys)):
                shares = any(a is not None and a == b for a, b in zip(keys[row], keys[other], strict=True))
                if shares and other not in reached:
                    reached.add(other)
                    front.append(other)
        assert found[start] == min(reached)


def test_most_rows_decide_and_ties_go_to_the_least_value() -> None:
    groups, values = np.array([1, 0, 1, 1, 0, 1, 1]), np.array([5, 3, 2, 5, 4, 2, 9])
    assert majority(groups, values).tolist() == [3, 2]
    assert majority(np.array([0]), np.array([7])).tolist() == [7]
