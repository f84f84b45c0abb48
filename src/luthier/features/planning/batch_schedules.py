"""The batches of a run, made in one place: for training, for its validations, for probes and for the bill before it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from luthier.core.data_sources import source_place, sources_of
from luthier.core.recipe import OrderName
from luthier.features.planning.service import Prepared
from luthier.features.planning.training_data import PreparedSplit

if TYPE_CHECKING:
    from luthier.ml.data.stream.schedule import StreamSchedule
    from luthier.ml.data.tokenise.batches import ReplaySchedule, StepSchedule
    from luthier.ml.data.tokenise.shared_prefix import Families, UnitPrefixes
    from luthier.ml.data.tokenise.token_store import Units
    from luthier.ml.training.objective_protocol import Batch, Unit


Shape = tuple[tuple[int, ...], tuple[tuple[int, int], ...]]
"""A micro-batch: the prefixes that are computed once (`collate`), and of each row its tokens and its learned ones."""


def of_training(
    prepared: Prepared, *, shares_prefix: bool, packs: bool = False, micro_batch_tokens: int | None = None
) -> StepSchedule | ReplaySchedule:
    """The steps of a run, over `prepared.trained_units`.

    Args:
        prepared: The run.
        shares_prefix: Whether units with a common prefix go into separate micro-batches. Blocks of texts, of which
            every token is learned, share nothing.
        packs: Whether the rows of a micro-batch are packed.
        micro_batch_tokens: In place of the plan's; None takes the plan's.
    """
    from luthier.ml.data.tokenise.batches import ReplaySchedule

    data, size = prepared.plan.data, prepared.plan.training.global_batch_size
    num_replayed = data.replay.num_per_step if data.replay else 0
    how = _How(shares_prefix, packs, micro_batch_tokens or prepared.plan.training.micro_batch_tokens)
    task = _schedule(prepared, prepared.train, size - num_replayed, how)
    if prepared.replay is None:
        return task
    general = _schedule(prepared, prepared.replay, num_replayed, how)
    return ReplaySchedule(task, general, len(prepared.train.units))


@contextmanager
def of_run(
    prepared: Prepared, *, shares_prefix: bool, packs: bool = False, folder: Path | None = None
) -> Iterator[tuple[Sequence[Unit], StepSchedule | ReplaySchedule | StreamSchedule]]:
    """The units and steps that a run trains: those of `of_training`, or of a stream, whose files are open meanwhile.

    Args:
        prepared: The run.
        shares_prefix: As for `of_training`.
        packs: As for `of_training`.
        folder: Where forked processes find the streamed rows of a step; None where none are forked.
    """
    from luthier.ml.inference.models.structure import read_structure

    stream = prepared.train.stream
    if stream is None:
        yield prepared.trained_units, of_training(prepared, shares_prefix=shares_prefix, packs=packs)
        return
    how = _How(shares_prefix, packs, prepared.plan.training.micro_batch_tokens)

    def divide(units: Units) -> StepSchedule:
        are_cut = prepared.train.rows_per_unit == 1 and bool((units.num_rows > 1).any())
        return _schedule_of(prepared, units, len(units), how, order="as_given", are_cut=are_cut)

    schedule = stream.schedule(
        prepared.plan,
        divide,
        vocabulary_size=read_structure(prepared.model.path).vocabulary_size,
        folder=folder if prepared.plan.training.micro_batch_workers > 1 else None,
    )
    with closing(schedule):
        yield schedule.units, schedule


class _How(NamedTuple):
    """How examples fall into micro-batches."""

    shares_prefix: bool
    packs: bool
    micro_batch_tokens: int


def _schedule(prepared: Prepared, split: PreparedSplit, size: int, how: _How) -> StepSchedule:
    """Steps of `size` examples of one split."""
    how = how._replace(shares_prefix=how.shares_prefix and not split.is_packed)
    order = prepared.plan.training.order
    return _schedule_of(prepared, split.units, size, how, order=order, are_cut=bool(split.row_counts))


def _schedule_of(
    prepared: Prepared, units: Units, size: int, how: _How, *, order: OrderName, are_cut: bool
) -> StepSchedule:
    """Steps of `size` units. are_cut: whether the rows of a unit are the answers of one conversation."""
    from luthier.ml.data.tokenise.batches import StepSchedule

    training = prepared.plan.training
    return StepSchedule(
        units.longest,
        global_batch_size=size,
        micro_batch_tokens=how.micro_batch_tokens,
        order=order,
        seed=training.seed,
        rows_per_unit=units.num_rows,
        families=_families(units, size) if how.shares_prefix else None,
        own=_own_prefixes(units, are_cut=are_cut) if how.shares_prefix else None,
        packed=units.totals if how.packs else None,
        min_micro_batches=training.min_micro_batches,
    )


def shapes_of_drawn(
    prepared: Prepared,
    schedule: StepSchedule | ReplaySchedule,
    step: int,
    micro_batch_tokens: int,
    num_devices: int = 1,
) -> list[Shape]:
    """The micro-batches of a step that draws its answers, all as long as they may be; devices share the prompts.

    Args:
        prepared: the plan and its rows.
        schedule: of its steps.
        step: number of the step, from 0.
        micro_batch_tokens: most tokens of a micro-batch, padding included.
        num_devices: among which the prompts are divided.
    """
    objective, units = prepared.plan.objective, prepared.train.units
    assert objective.num_samples is not None
    assert objective.max_new_tokens is not None
    prompts = [row.num_prompt_tokens for batch in schedule.step(step) for i in batch for row in units[i]]
    share = -(-len(prompts) // num_devices)
    shares_prefix = prepared.plan.training.shared_prefix
    return [
        shape
        for start in range(0, len(prompts), share)
        for shape in _drawn(
            prompts[start : start + share],
            objective.num_samples,
            objective.max_new_tokens,
            micro_batch_tokens,
            shares_prefix=shares_prefix,
        )
    ]


def _drawn(prompts: Sequence[int], num: int, new: int, micro_batch_tokens: int, *, shares_prefix: bool) -> list[Shape]:
    """`num` answers of `new` tokens to each prompt, cut as ml/training/objectives/grpo.py cuts them."""
    if not shares_prefix:
        rows = sorted(((prompt + new, new) for prompt in prompts for _ in range(num)), reverse=True)
        plain: list[list[tuple[int, int]]] = []
        for row in rows:
            # Longest first, so the first row of a batch is the width that all of its rows are padded to.
            if not plain or plain[-1][0][0] * (len(plain[-1]) + 1) > micro_batch_tokens:
                plain.append([])
            plain[-1].append(row)
        return [((), tuple(part)) for part in plain]
    made: list[tuple[list[int], int]] = []
    for prompt in prompts:
        # The prompt is computed once for its answers, so it counts once against the budget.
        at_once = max(1, min(num, (micro_batch_tokens - prompt) // new))
        last = made[-1][0] if made and made[-1][1] == num else []
        if at_once == num and last and sum(last) + prompt + (len(last) + 1) * num * new <= micro_batch_tokens:
            last.append(prompt)
        else:
            made += [([prompt], min(at_once, num - start)) for start in range(0, num, at_once)]
    return [
        (tuple(part) if each > 1 else (), tuple((prompt + new, new) for prompt in part for _ in range(each)))
        for part, each in made
    ]


def of_validation(prepared: Prepared, *, shares_prefix: bool, packs: bool = False) -> Sequence[Batch]:
    """The validation split in micro-batches: one step that holds them all, cut as training steps are cut.

    Of rows in files a micro-batch is made each time that it is asked for.
    """
    from luthier.ml.data.files.sequences import LazySequence
    from luthier.ml.data.tokenise.batches import LazyBatches, StepSchedule

    if prepared.validation is None:
        return []
    units = prepared.validation.units
    shares_prefix = shares_prefix and not prepared.validation.is_packed
    whole = StepSchedule(
        units.longest,
        global_batch_size=len(units),
        micro_batch_tokens=prepared.plan.training.micro_batch_tokens,
        order="as_given",
        seed=0,
        rows_per_unit=units.num_rows,
        families=_families(units, len(units)) if shares_prefix else None,
        own=_own_prefixes(units, are_cut=bool(prepared.validation.row_counts)) if shares_prefix else None,
        packed=units.totals if packs else None,
        min_micro_batches=prepared.plan.training.min_micro_batches,
    )
    made = LazyBatches(units, _by_source(prepared, whole.step(0)), whole.shared_tokens)
    return made if isinstance(units.rows, LazySequence) else list(made)


def _by_source(prepared: Prepared, batches: Sequence[tuple[int, ...]]) -> Sequence[tuple[int, ...]]:
    """The micro-batches, divided so that each holds rows of one source: their losses are reported apart."""
    assert prepared.validation is not None
    sources = sources_of(prepared.plan.data, prepared.plan.data.validation)
    if not sources:
        return batches
    units = prepared.validation.units
    places = [source_place(sources, unit[0].id) for unit in units]
    return [
        tuple(i for i in batch if places[i] == place)
        for batch in batches
        for place in dict.fromkeys(places[i] for i in batch)
    ]


def _families(units: Units, size: int) -> Families | None:
    """The families of examples that begin alike, of those that are one row each."""
    from luthier.ml.data.tokenise.shared_prefix import find_families

    if _are_single(units):
        return find_families(units, global_batch_size=size)
    return None if (units.num_rows > 1).all() else _families_of_single(units, size)


def _families_of_single(units: Units, size: int) -> Families:
    """The families of the units of one row among others, of which a step draws its share."""
    import numpy as np

    from luthier.ml.data.files.sequences import selected
    from luthier.ml.data.tokenise.shared_prefix import Families, find_families
    from luthier.ml.data.tokenise.token_store import Units

    places = np.flatnonzero(units.num_rows == 1)
    # A family larger than what one step draws of such units could never lie in one step as a whole.
    share = max(1, round(size * len(places) / len(units)))
    # The row of such a unit is the last of all rows up to it.
    rows = selected(units.rows, np.cumsum(units.num_rows)[places] - 1)
    found = find_families(Units(rows), global_batch_size=share)
    families, prefix = np.full(len(units), -1, dtype=np.int64), np.zeros(len(units), dtype=np.int64)
    # Family -1 means none: units of several rows stay outside.
    families[places], prefix[places] = found.families, found.prefix_tokens
    return Families(families, prefix)


def _own_prefixes(units: Units, *, are_cut: bool) -> UnitPrefixes | None:
    """The beginning that the rows of each unit share, where units have several."""
    from luthier.ml.data.tokenise.shared_prefix import unit_prefixes

    return None if _are_single(units) else unit_prefixes(units, are_cut=are_cut)


def _are_single(units: Units) -> bool:
    return bool((units.num_rows == 1).all())
