"""The batches of a run, made in one place: for training, for its validations, for probes and for the bill before it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from luthier.service.plans import Prepared

if TYPE_CHECKING:
    from luthier.data.batches import StepSchedule
    from luthier.train.step import ValidationBatch


def of_training(prepared: Prepared, *, shares_prefix: bool, micro_batch_tokens: int | None = None) -> StepSchedule:
    """The steps of a run.

    shares_prefix: whether units that begin alike go into micro-batches of their own. micro_batch_tokens: in place of
    the plan's.
    """
    from luthier.data.batches import StepSchedule
    from luthier.data.shared_prefix import find_families

    training, units = prepared.plan.training, prepared.train.units
    size = training.global_batch_size
    return StepSchedule(
        [max(row.num_tokens for row in unit) for unit in units],
        global_batch_size=size,
        micro_batch_tokens=micro_batch_tokens or training.micro_batch_tokens,
        order=training.order,
        seed=training.seed,
        rows_per_unit=prepared.train.rows_per_unit,
        families=find_families(units, global_batch_size=size) if shares_prefix else None,
    )


def of_validation(prepared: Prepared, *, shares_prefix: bool) -> list[ValidationBatch]:
    """The validation split in micro-batches: one step that holds them all, cut as training steps are cut."""
    from luthier.data.batches import StepSchedule
    from luthier.data.shared_prefix import find_families

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
        families=find_families(units, global_batch_size=len(units)) if shares_prefix else None,
    )
    return [([units[i] for i in batch], whole.shared_tokens(batch)) for batch in whole.step(0)]
