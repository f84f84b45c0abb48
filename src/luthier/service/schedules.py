"""The batches of a run, made in one place: for training, for its validations, for probes and for the bill before it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from luthier.service.plans import Prepared, PreparedSplit

if TYPE_CHECKING:
    from luthier.core.dataset import TokenisedExample
    from luthier.data.batches import StepSchedule
    from luthier.data.replay import ReplaySchedule
    from luthier.data.shared_prefix import Families, OwnBeginnings
    from luthier.train.step import ValidationBatch


def of_training(
    prepared: Prepared, *, shares_prefix: bool, packs: bool = False, micro_batch_tokens: int | None = None
) -> StepSchedule | ReplaySchedule:
    """The steps of a run, over `prepared.trained_units`.

    shares_prefix: whether units that begin alike go into micro-batches of their own. packs: whether the rows of a
    micro-batch lie end to end. micro_batch_tokens: in place of the plan's.
    """
    from luthier.data.replay import ReplaySchedule

    data, size = prepared.plan.data, prepared.plan.training.global_batch_size
    num_replayed = data.replay.num_per_step if data.replay else 0
    how = _How(shares_prefix, packs, micro_batch_tokens or prepared.plan.training.micro_batch_tokens)
    task = _schedule(prepared, prepared.train, size - num_replayed, how)
    if prepared.replay is None:
        return task
    general = _schedule(prepared, prepared.replay, num_replayed, how)
    return ReplaySchedule(task, general, len(prepared.train.units))


class _How(NamedTuple):
    """How examples fall into micro-batches."""

    shares_prefix: bool
    packs: bool
    micro_batch_tokens: int


def _schedule(prepared: Prepared, split: PreparedSplit, size: int, how: _How) -> StepSchedule:
    """Steps of `size` examples of one split."""
    from luthier.data.batches import StepSchedule

    training, units = prepared.plan.training, split.units
    return StepSchedule(
        [max(row.num_tokens for row in unit) for unit in units],
        global_batch_size=size,
        micro_batch_tokens=how.micro_batch_tokens,
        order=training.order,
        seed=training.seed,
        rows_per_unit=split.rows_per_unit,
        families=_families(units, size) if how.shares_prefix else None,
        own=_own_beginnings(units) if how.shares_prefix else None,
        packed=_together(units) if how.packs else None,
    )


def of_validation(prepared: Prepared, *, shares_prefix: bool, packs: bool = False) -> list[ValidationBatch]:
    """The validation split in micro-batches: one step that holds them all, cut as training steps are cut."""
    from luthier.data.batches import StepSchedule

    if prepared.validation is None:
        return []
    units = prepared.validation.units
    whole = StepSchedule(
        [max(row.num_tokens for row in unit) for unit in units],
        global_batch_size=len(units),
        micro_batch_tokens=prepared.plan.training.micro_batch_tokens,
        order="as_given",
        seed=0,
        rows_per_unit=prepared.validation.rows_per_unit,
        families=_families(units, len(units)) if shares_prefix else None,
        own=_own_beginnings(units) if shares_prefix else None,
        packed=_together(units) if packs else None,
    )
    return [([units[i] for i in batch], whole.shared_tokens(batch)) for batch in whole.step(0)]


def _together(units: Sequence[Sequence[TokenisedExample]]) -> list[int]:
    """Tokens of each unit, all of its rows together."""
    return [sum(row.num_tokens for row in unit) for unit in units]


def _families(units: Sequence[Sequence[TokenisedExample]], size: int) -> Families | None:
    """The families of examples that begin alike, where each stands for itself."""
    from luthier.data.shared_prefix import find_families

    return find_families(units, global_batch_size=size) if _are_single(units) else None


def _own_beginnings(units: Sequence[Sequence[TokenisedExample]]) -> OwnBeginnings | None:
    """The beginning that the rows of each unit share, where units have several."""
    from luthier.data.shared_prefix import own_beginnings

    return None if _are_single(units) else own_beginnings(units)


def _are_single(units: Sequence[Sequence[TokenisedExample]]) -> bool:
    return len(units[0]) == 1
