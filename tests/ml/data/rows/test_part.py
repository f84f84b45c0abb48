"""Shares of rows: nested, disjoint, of the asked size, whatever the order of the file."""

from __future__ import annotations

import random

import pytest

from luthier.core.dataset import Example
from luthier.core.errors import DataError
from luthier.ml.data.rows.rows import hash_order, is_in_fraction, part_of


def rows(num: int) -> list[Example]:
    return [Example(id=f"rows:{n}", text=f"row number {n}") for n in range(num)]


def texts(examples: list[Example]) -> list[str | None]:
    return [example.text for example in examples]


def test_parts_nest_do_not_overlap_and_make_up_the_whole() -> None:
    examples = rows(100)
    eighth, quarter, half = (part_of(examples, (0.0, share)) for share in (0.125, 0.25, 0.5))
    assert [len(eighth), len(quarter), len(half)] == [12, 25, 50]
    assert set(texts(eighth)) < set(texts(quarter)) < set(texts(half))
    rest = part_of(examples, (0.5, 1.0))
    assert not set(texts(rest)) & set(texts(half))
    assert len(rest) + len(half) == 100


def test_the_order_of_the_file_stays_and_does_not_matter() -> None:
    examples = rows(60)
    mixed = random.Random(0).sample(examples, 60)
    chosen = part_of(examples, (0.0, 0.3))
    assert texts(chosen) == [e.text for e in examples if e in chosen]
    assert set(texts(part_of(mixed, (0.0, 0.3)))) == set(texts(chosen))


def test_rows_of_one_group_stand_together_but_at_the_ends() -> None:
    examples = [Example(id=f"rows:{n}", text=f"{n}", group=str(n % 10)) for n in range(100)]
    chosen = part_of(examples, (0.0, 0.35))
    sizes = sorted(sum(e.group == group for e in chosen) for group in {e.group for e in chosen})
    assert sizes == [5, 10, 10, 10]


def test_a_share_without_a_row_is_refused() -> None:
    with pytest.raises(DataError, match=r"\[0.0, 0.1\] of 4 training rows holds none[\s\S]*widen data.subset"):
        part_of(rows(4), (0.0, 0.1))


def test_a_row_by_itself_is_in_a_fraction_where_it_is_in_the_first_ones_by_the_hash() -> None:
    examples = [Example(id=f"a:{n}", text=f"text {n}") for n in range(400)]
    order = hash_order(examples).tolist()
    for fraction in (0.05, 0.3, 0.9):
        chosen = {place for place, one in enumerate(examples) if is_in_fraction(one, fraction)}
        assert chosen == set(order[: len(chosen)])
        # Five standard deviations of 400 draws.
        assert abs(len(chosen) - 400 * fraction) < 5 * (400 * fraction * (1 - fraction)) ** 0.5
    assert all(is_in_fraction(one, 1.0) for one in examples)
