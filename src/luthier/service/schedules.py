"""The batches of a run, made in one place: for training, for its validations, for probes and for the bill before it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from luthier.service.plans import Prepared

if TYPE_CHECKING:
    from luthier.data.batches import StepSchedule
    from luthier.train.loop import ValidationBatch


def of_training(prepared: Prepared, *, shares_prefix: bool, micro_batch_tokens: int | None = None) -> StepSchedule:
    """The steps of a run.

    shares_prefix: whether examples that begin alike go into micro-batches of their own. micro_batch_tokens: in place of
    the plan's.
    """
    from luthier.data.batches import StepSchedule
    from luthier.data.shared_prefix import find_families

    training, rows = prepared.plan.training, prepared.train.tokenised
    size = training.global_batch_size
    return StepSchedule(
        [e.num_tokens for e in rows],
        global_batch_size=size,
        micro_batch_tokens=micro_batch_tokens or training.micro_batch_tokens,
        order=training.order,
        seed=training.seed,
        families=find_families(rows, global_batch_size=size) if shares_prefix else None,
    )


def of_validation(prepared: Prepared, *, shares_prefix: bool) -> list[ValidationBatch]:
    """The validation split in micro-batches: one step that holds them all, cut as training steps are cut."""
    from luthier.data.batches import StepSchedule
    from luthier.data.shared_prefix import find_families

    if prepared.validation is None:
        return []
    rows = prepared.validation.tokenised
    whole = StepSchedule(
        [e.num_tokens for e in rows],
        global_batch_size=len(rows),
        micro_batch_tokens=prepared.plan.training.micro_batch_tokens,
        order="as_given",
        seed=0,
        families=find_families(rows, global_batch_size=len(rows)) if shares_prefix else None,
    )
    return [([rows[i] for i in batch], whole.shared_tokens(batch)) for batch in whole.step(0)]
