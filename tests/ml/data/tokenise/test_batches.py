"""Every example once an epoch, batches that depend on seed and step only, and little padding."""

from __future__ import annotations

from array import array
from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.core.dataset import TokenisedExample
from luthier.core.errors import DataError, RecipeError
from luthier.core.recipe import OrderName
from luthier.ml.data.tokenise.batches import LazyBatches, StepSchedule
from luthier.ml.data.tokenise.shared_prefix import Families, UnitPrefixes

_ORDERS: list[OrderName] = ["by_length", "shuffled", "as_given"]


def _schedule(
    lengths: list[int], *, size: int = 4, tokens: int = 100, order: OrderName = "by_length", seed: int = 0
) -> StepSchedule:
    return StepSchedule(lengths, global_batch_size=size, micro_batch_tokens=tokens, order=order, seed=seed)


def _examples(schedule: StepSchedule, step: int) -> list[int]:
    return list(chain.from_iterable(schedule.step(step)))


_lengths = st.lists(st.integers(1, 300), min_size=1, max_size=120)
_settings = settings(max_examples=150, deadline=None)


@_settings
@given(_lengths, st.integers(1, 20), st.integers(1, 500), st.sampled_from(_ORDERS), st.integers(0, 2**31 - 1))
def test_each_epoch_holds_every_example_once(
    lengths: list[int], size: int, tokens: int, order: OrderName, seed: int
) -> None:
    schedule = _schedule(lengths, size=size, tokens=tokens, order=order, seed=seed)
    per_epoch = schedule.num_steps_per_epoch
    for epoch in (0, 3):
        steps = [_examples(schedule, epoch * per_epoch + index) for index in range(per_epoch)]
        assert sorted(chain.from_iterable(steps)) == list(range(len(lengths)))
        assert all(len(step) == size for step in steps[:-1])
        assert 1 <= len(steps[-1]) <= size


@_settings
@given(_lengths, st.integers(1, 20), st.integers(1, 500), st.sampled_from(_ORDERS))
def test_micro_batches_keep_the_token_budget(lengths: list[int], size: int, tokens: int, order: OrderName) -> None:
    schedule = _schedule(lengths, size=size, tokens=tokens, order=order)
    for step in range(schedule.num_steps_per_epoch):
        for micro_batch in schedule.step(step):
            longest = max(lengths[index] for index in micro_batch)
            assert len(micro_batch) == 1 or len(micro_batch) * longest <= tokens


@pytest.mark.parametrize("order", _ORDERS)
def test_a_step_does_not_depend_on_the_steps_before_it(order: OrderName) -> None:
    lengths = [7 * n % 50 + 1 for n in range(90)]
    in_order = _schedule(lengths, order=order)
    walked = [in_order.step(step) for step in range(70)]
    for step in (69, 0, 30, 22, 23, 5):
        assert _schedule(lengths, order=order).step(step) == walked[step]
        assert in_order.step(step) == walked[step]


@pytest.mark.parametrize("order", ["by_length", "shuffled"])
def test_epochs_and_seeds_differ(order: OrderName) -> None:
    lengths = [7 * n % 50 + 1 for n in range(90)]
    one, other = _schedule(lengths, order=order), _schedule(lengths, order=order, seed=1)
    per_epoch = one.num_steps_per_epoch
    first = [one.step(step) for step in range(per_epoch)]
    assert first != [one.step(per_epoch + step) for step in range(per_epoch)]
    assert first != [other.step(step) for step in range(per_epoch)]


def test_the_order_of_a_seed_stays_as_it_is() -> None:
    """Runs of earlier versions must resume with the batches that they were started with."""
    schedule = _schedule([1] * 8, size=8, tokens=8, order="shuffled", seed=42)
    assert schedule.step(0) == ((7, 1, 6, 4, 3, 5, 0, 2),)


def test_as_given_keeps_the_order_of_the_file_over_steps() -> None:
    schedule = _schedule([1] * 10, size=4, order="as_given")
    assert [_examples(schedule, step) for step in range(3)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_by_length_wastes_less_than_shuffled() -> None:
    lengths = [n % 97 + 10 for n in range(1_000)]
    by_length = _schedule(lengths, size=16, tokens=2_000)
    shuffled = _schedule(lengths, size=16, tokens=2_000, order="shuffled")
    assert by_length.padding_fraction() < 0.1 < shuffled.padding_fraction()


def test_padding_fraction_is_counted_over_computed_positions() -> None:
    assert _schedule([10, 5], size=2, tokens=20, order="as_given").padding_fraction() == pytest.approx(5 / 20)
    assert _schedule([10, 10], size=2, tokens=20).padding_fraction() == 0


def test_the_short_last_batch_is_not_always_the_longest_examples() -> None:
    lengths = list(range(1, 42))
    last = [_examples(_schedule(lengths, size=8, tokens=1_000, seed=seed), 5) for seed in range(20)]
    assert {len(batch) for batch in last} == {1}
    assert len({batch[0] for batch in last}) > 5


def test_epoch_of_counts_finished_steps() -> None:
    schedule = _schedule([1] * 10, size=4)
    assert [schedule.epoch_of(step) for step in (0, 3, 6)] == [0.0, 1.0, 2.0]


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(DataError, match="no examples"):
        _schedule([])
    with pytest.raises(RecipeError, match="global_batch_size is 0"):
        _schedule([1], size=0)
    with pytest.raises(RecipeError, match="seed is -1"):
        _schedule([1], seed=-1)


@_settings
@given(
    st.lists(st.tuples(st.integers(1, 200), st.integers(-1, 2)), min_size=1, max_size=80),
    st.integers(1, 20),
    st.integers(1, 500),
    st.sampled_from(_ORDERS),
)
def test_families_change_the_micro_batches_and_not_the_steps(
    rows: list[tuple[int, int]], size: int, tokens: int, order: OrderName
) -> None:
    """Each micro-batch is of one family and keeps the budget, its beginning counted once."""
    of_family = np.array([family for _, family in rows])
    prefix = np.where(of_family >= 0, 20 + 10 * of_family, 0)
    lengths = [own + int(shared) for (own, _), shared in zip(rows, prefix, strict=True)]
    plain = _schedule(lengths, size=size, tokens=tokens, order=order)
    shared = StepSchedule(
        lengths,
        global_batch_size=size,
        micro_batch_tokens=tokens,
        order=order,
        seed=0,
        families=Families(of_family, prefix),
    )
    for step in range(plain.num_steps_per_epoch):
        assert sorted(_examples(shared, step)) == sorted(_examples(plain, step))
        for micro_batch in shared.step(step):
            (family,) = {int(of_family[i]) for i in micro_batch}
            beginnings = shared.shared_tokens(micro_batch)
            assert beginnings == ((prefix[micro_batch[0]],) if len(micro_batch) > 1 and family >= 0 else ())
            if beginnings:  # laid one after another, without padding
                computed = beginnings[0] + sum(lengths[i] - beginnings[0] for i in micro_batch)
            else:
                computed = max(lengths[i] for i in micro_batch) * len(micro_batch)
            assert len(micro_batch) == 1 or computed <= tokens


def test_a_shared_beginning_makes_room_for_more_rows() -> None:
    families = Families(np.zeros(16, dtype=np.int64), np.full(16, 250))
    schedule = StepSchedule(
        [340] * 16, global_batch_size=16, micro_batch_tokens=1700, order="as_given", seed=0, families=families
    )
    assert [len(micro_batch) for micro_batch in schedule.step(0)] == [16]  # 250 + 16 * 90 = 1,690
    assert [len(micro_batch) for micro_batch in _schedule([340] * 16, size=16, tokens=1700).step(0)] == [5, 5, 5, 1]
    assert schedule.padding_fraction() == 0


def test_the_beginning_of_each_unit_makes_room_for_more_units() -> None:
    """Pairs of a prompt of 100 tokens and completions of 40 and 10: 150 are computed, plain rows would be 280."""
    own = UnitPrefixes(np.full(8, 100), np.full(8, 150))
    shared, plain = (
        StepSchedule(
            [140] * 8, global_batch_size=8, micro_batch_tokens=600, order="as_given", seed=0, rows_per_unit=2, own=given
        )
        for given in (own, None)
    )
    assert shared.step(0) == ((0, 1, 2, 3), (4, 5, 6, 7))
    assert plain.step(0) == ((0, 1), (2, 3), (4, 5), (6, 7))
    assert shared.shared_tokens((0, 1, 2, 3)) == (100, 100, 100, 100)
    assert plain.shared_tokens((0, 1)) == ()
    assert shared.padding_fraction() == 0


def test_units_that_begin_with_nothing_in_common_are_plain_rows() -> None:
    own = UnitPrefixes(np.array([0, 0]), np.array([60, 60]))
    schedule = StepSchedule(
        [40, 30], global_batch_size=2, micro_batch_tokens=160, order="as_given", seed=0, rows_per_unit=2, own=own
    )
    assert schedule.step(0) == ((0, 1),)
    assert schedule.shared_tokens((0, 1)) == ()


@_settings
@given(_lengths, st.integers(1, 20), st.integers(1, 5), st.integers(0, 3), st.sampled_from(_ORDERS))
def test_the_shares_of_all_ranks_are_the_step(
    lengths: list[int], size: int, ranks: int, step: int, order: OrderName
) -> None:
    schedule = _schedule(lengths, size=size, order=order)
    shares = [list(chain.from_iterable(schedule.share(step, rank, ranks))) for rank in range(ranks)]
    assert sorted(chain.from_iterable(shares)) == sorted(_examples(schedule, step))
    most = -(-len(_examples(schedule, step)) // ranks)
    assert max(map(len, shares)) <= most
    if len(_examples(schedule, step)) % ranks == 0:
        assert {len(share) for share in shares} == {most}


def test_shares_are_even_in_tokens() -> None:
    schedule = _schedule([100, 90, 20, 10], order="as_given")
    shares = [list(chain.from_iterable(schedule.share(0, rank, 2))) for rank in (0, 1)]
    assert shares == [[0, 3], [1, 2]], "110 tokens each"


def test_alone_the_share_is_the_step() -> None:
    schedule = _schedule([5, 9, 3, 7, 2])
    assert schedule.share(0, 0, 1) == schedule.step(0)


@_settings
@given(
    st.lists(st.tuples(st.integers(1, 200), st.integers(-1, 2)), min_size=1, max_size=80),
    st.integers(1, 20),
    st.integers(1, 500),
    st.sampled_from(_ORDERS),
)
def test_packed_micro_batches_hold_whole_examples_and_waste_nothing(
    rows: list[tuple[int, int]], size: int, tokens: int, order: OrderName
) -> None:
    """The steps are those of padded micro-batches; what lies in one row keeps the budget, and no two fit in one."""
    of_family = np.array([family for _, family in rows])
    prefix = np.where(of_family >= 0, 20 + 10 * of_family, 0)
    lengths = [own + int(shared) for (own, _), shared in zip(rows, prefix, strict=True)]
    plain = _schedule(lengths, size=size, tokens=tokens, order=order)
    packed = StepSchedule(
        lengths,
        global_batch_size=size,
        micro_batch_tokens=tokens,
        order=order,
        seed=0,
        families=Families(of_family, prefix),
        packed=lengths,
    )
    assert packed.padding_fraction() == 0
    for step in range(plain.num_steps_per_epoch):
        assert sorted(_examples(packed, step)) == sorted(_examples(plain, step))
        filled: dict[int, list[int]] = {}
        for micro_batch in packed.step(step):
            (family,) = {int(of_family[i]) for i in micro_batch}
            own = sum(rows[i][0] for i in micro_batch)
            shared = int(prefix[micro_batch[0]])
            assert len(micro_batch) == 1 or shared + own <= tokens
            filled.setdefault(family, []).append(own)
        for family, sizes in filled.items():
            shared = 20 + 10 * family if family >= 0 else 0
            two_smallest = sorted(sizes)[:2]
            assert len(sizes) == 1 or shared + sum(two_smallest) > tokens


def test_packing_takes_fewer_micro_batches_than_padding() -> None:
    lengths = [90, 10, 80, 20, 60, 40]
    padded = _schedule(lengths, size=6, tokens=100)
    packed = StepSchedule(
        lengths, global_batch_size=6, micro_batch_tokens=100, order="by_length", seed=0, packed=lengths
    )
    assert len(packed.step(0)) == 3
    assert len(padded.step(0)) == 5


def test_packed_pairs_count_both_rows_and_what_they_share_once() -> None:
    """Two rows a unit: 30 + 20 own tokens of one behind 40 that they share, 10 + 10 of the other behind none."""
    own = UnitPrefixes(np.array([40, 0]), np.array([90, 20]))

    def schedule(tokens: int) -> StepSchedule:
        return StepSchedule(
            [70, 10],
            global_batch_size=2,
            micro_batch_tokens=tokens,
            order="as_given",
            seed=0,
            rows_per_unit=2,
            own=own,
            packed=[130, 20],
        )

    assert schedule(110).step(0) == ((0, 1),)
    assert schedule(109).step(0) == ((0,), (1,))
    assert schedule(110).shared_tokens((0, 1)) == (40, 0)
    assert schedule(110).shared_tokens((1,)) == (0,)
    assert schedule(110).padding_fraction() == 0


@pytest.mark.parametrize("packed", [None, [130, 20, 130, 20, 60]])
def test_units_of_equally_many_rows_stand_together(packed: list[int] | None) -> None:
    """A micro-batch shares the beginning of each unit, or that of its family where units are one row."""
    families = Families(np.array([-1, 0, -1, 0, -1]), np.array([0, 6, 0, 6, 0]))
    own = UnitPrefixes(np.array([40, 0, 30, 0, 0]), np.array([90, 20, 100, 20, 60]))
    schedule = StepSchedule(
        [70, 20, 70, 20, 60],
        global_batch_size=5,
        micro_batch_tokens=400,
        order="as_given",
        seed=0,
        rows_per_unit=[2, 1, 2, 1, 1],
        families=families,
        own=own,
        packed=packed,
    )
    batches = schedule.step(0)
    assert sorted(index for batch in batches for index in batch) == [0, 1, 2, 3, 4]
    found = {frozenset(batch): schedule.shared_tokens(batch) for batch in batches}
    assert found[frozenset((0, 2))] == (40, 30)
    assert found[frozenset((1, 3))] == (6,)
    assert found[frozenset((4,))] == (() if packed is None else (0,))


@_settings
@given(_lengths, st.integers(1, 20), st.integers(1, 6), st.booleans())
def test_a_step_is_cut_into_as_many_micro_batches_as_asked_where_it_has_the_examples(
    lengths: list[int], size: int, least: int, packed: bool
) -> None:
    schedule = StepSchedule(
        lengths,
        global_batch_size=size,
        micro_batch_tokens=10_000,
        order="by_length",
        seed=0,
        packed=lengths if packed else None,
        min_micro_batches=least,
    )
    plain = _schedule(lengths, size=size, tokens=10_000)
    for step in range(schedule.num_steps_per_epoch):
        found = schedule.step(step)
        assert sorted(chain.from_iterable(found)) == sorted(_examples(plain, step))
        assert len(found) == min(least, sum(map(len, found)))
        assert all(found)


def test_micro_batches_are_cut_where_their_halves_are_even() -> None:
    lengths = [40, 40, 40, 40, 10, 10, 10, 10]
    schedule = StepSchedule(
        lengths, global_batch_size=8, micro_batch_tokens=10_000, order="as_given", seed=0, min_micro_batches=2
    )
    sizes = [max(lengths[i] for i in batch) * len(batch) for batch in schedule.step(0)]
    # four rows of 40 and four of 10: any other cut leaves five rows of 40 computed at once
    assert max(sizes) == 160


def test_a_long_common_beginning_is_computed_in_two_micro_batches_at_most() -> None:
    lengths = [110] * 8
    families = Families(np.zeros(8, dtype=np.int64), np.full(8, 100, dtype=np.int64))
    schedule = StepSchedule(
        lengths,
        global_batch_size=8,
        micro_batch_tokens=10_000,
        order="as_given",
        seed=0,
        families=families,
        min_micro_batches=4,
    )
    assert [len(batch) for batch in schedule.step(0)] == [4, 4]


class _Rows:
    """Units that are made again each time, as those of rows in files are; counts how many are asked for."""

    def __init__(self, num: int) -> None:
        self.num, self.num_made = num, 0

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, index: int) -> tuple[TokenisedExample]:
        self.num_made += 1
        return (TokenisedExample(str(index), array("i", [index]), b"\x01"),)


def test_lazy_micro_batches_are_made_when_they_are_asked_for_and_so_are_their_slices() -> None:
    rows = _Rows(7)
    batches = LazyBatches(rows, ((0, 1, 2), (3, 4), (5, 6)), lambda batch: (len(batch),))  # type: ignore[arg-type]
    share = batches[1::2]
    assert (len(batches), len(share), rows.num_made) == (3, 1, 0)
    units, prefixes = share[0]
    assert ([unit[0].id for unit in units], prefixes, rows.num_made) == (["3", "4"], (2,), 2)
    assert [[unit[0].id for unit in one] for one, _ in batches] == [["0", "1", "2"], ["3", "4"], ["5", "6"]]
    assert batches[0][0][0][0] is not batches[0][0][0][0]
    with pytest.raises(IndexError):
        batches[3]
