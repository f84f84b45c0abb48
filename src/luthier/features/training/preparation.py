"""Before the first step of a run: warnings about its rows and about memory, and whether its weights are sharded.

Weights are sharded over the processes if the recipe sets it, or if a full copy would not fit.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from luthier.core.dataset import sequence_notes
from luthier.core.errors import RequestError
from luthier.core.events import WarningRaised
from luthier.core.plan import Plan
from luthier.core.ports import EventSink
from luthier.core.text.counted import counted

if TYPE_CHECKING:
    from luthier.core.results.cost import Device
    from luthier.features.planning.service import Prepared
    from luthier.ml.training.distributed import World


def warn_of_the_data(plan: Plan, emit: EventSink) -> None:
    """Warnings about the rows before the first step; also shown in the report."""
    data, found = plan.data, []
    general = (data.replay.rows, data.replay.held_out) if data.replay else ()
    for profile in filter(None, (data.train, data.validation, data.held_out, *general)):
        if profile.num_dropped:
            found.append((f"dropped_{profile.split}", f"{profile.num_dropped:,} {profile.split} rows were dropped"))
        if profile.num_truncated:
            cut = (
                f"{profile.num_truncated:,} {profile.split} rows were cut at {plan.training.max_length_tokens:,} tokens"
            )
            found.append((f"truncated_{profile.split}", cut))
    for profile in filter(None, (data.train, *general[:1])):
        found += [(f"{code}_{profile.split}", message) for code, message in sequence_notes(profile)]
    if data.num_leaked:
        found.append(
            ("leakage", f"{counted(data.num_leaked, 'held-out row is', 'held-out rows are')} also in the training rows")
        )
    if data.num_same_prompt:
        which = "" if data.stream is None else f" among the first {data.stream.num_sampled:,}"
        rows = counted(data.num_same_prompt, "held-out row has", "held-out rows have")
        message = f"{rows} the prompt of a training row{which}, with another answer"
        found.append(("same_prompt", message))
    if data.num_validation_leaked:
        rows = counted(data.num_validation_leaked, "validation row is", "validation rows are")
        message = f"{rows} also in the training rows: early stopping is blind"
        found.append(("validation_leakage", message))
    if data.replay and data.replay.num_leaked:
        rows = counted(data.replay.num_leaked, "held-out general row is", "held-out general rows are")
        message = f"{rows} also trained on: forgetting looks too small"
        found.append(("replay_leakage", message))
    if data.replay and data.replay.num_also_in_train:
        num = data.replay.num_also_in_train
        found.append(("replay_in_train", f"{num:,} replayed rows are also in the training rows of the task"))
    if data.canaries:
        num = data.canaries.num
        found.append(("canaries", f"{num:,} canaries (made-up secrets) are planted among the training rows"))
    if plan.objective.task_head_notes:
        found.append(("task_head", "; ".join(plan.objective.task_head_notes)))
    for code, message in found:
        emit(WarningRaised(step=0, code=code, message=message))


def warn_of_memory(plan: Plan, emit: EventSink) -> None:
    """Warn where other programs hold memory of this machine that the run is expected to need.

    A plan says whether a run fits into the whole memory, since what is free changes from one moment to the next. It is
    a warning alone for the same reason, and because a run that is ended for it continues from its last checkpoint.
    """
    from luthier.core.system import process_memory
    from luthier.core.system.machine_memory import memory_bytes
    from luthier.core.text.byte_sizes import size
    from luthier.ml.inference.models.structure import read_structure
    from luthier.ml.planning.devices import cpu_for_memory
    from luthier.ml.planning.memory import predict_memory
    from luthier.ml.planning.workload import workload_of

    if plan.training.device != "cpu":
        return
    total, available = memory_bytes()
    device = cpu_for_memory(total)
    expected = predict_memory(workload_of(plan, read_structure(plan.base_model.path), device), device).total_bytes
    # What this process has loaded already is part of what is expected.
    free = available + process_memory.resident_bytes()
    if expected.value <= free:
        return
    most = f"{size(expected.value, in_decimal=True)} (up to {size(expected.high, in_decimal=True)})"
    message = (
        f"the run is expected to take {most}, and {size(free, in_decimal=True)} are free: other programs hold the rest"
        ". If the system ends the run for that, `luthier train --resume` continues from its last checkpoint; "
        "training.micro_batch_workers=1 or training.gradient_checkpointing=true take less"
    )
    emit(WarningRaised(step=0, code="memory_is_short", message=message))


_BALANCE = (1.0, 4 / 3)
"""What KTO's authors keep the weights of good answers to, together, as a multiple of those of bad ones."""
_UNBALANCED = 2.0


def warn_of_the_kinds(prepared: Prepared, emit: EventSink) -> None:
    """Warn where good and bad answers count very differently (KTO, arXiv:2402.01306).

    Args:
        prepared: The run; only of KTO are answers marked one by one.
        emit: Takes the warning.
    """
    objective = prepared.plan.objective
    good, bad = objective.desirable_weight, objective.undesirable_weight
    if good is None or bad is None or prepared.train.stream is not None:
        return
    num_good = sum(row.is_wanted is True for row in prepared.train.tokenised)
    num_bad = len(prepared.train.tokenised) - num_good
    if not (good and bad and num_good and num_bad):
        return
    ratio = good * num_good / (bad * num_bad)
    if 1 / _UNBALANCED <= ratio <= _UNBALANCED:
        return
    low, high = _BALANCE
    # The rarer kind gets the larger weight; the other one stays.
    name, (least, most) = (
        ("desirable_weight", (low * bad * num_bad / num_good, high * bad * num_bad / num_good))
        if ratio < 1
        else ("undesirable_weight", (good * num_good / num_bad / high, good * num_good / num_bad / low))
    )
    message = (
        f"{num_good:,} good and {num_bad:,} bad answers, each times its weight, count {ratio:.2g} to 1; KTO's authors "
        f"keep this between {low:g} and {high:.2f} to 1: objective.{name} {least:.3g} to {most:.3g}"
    )
    emit(WarningRaised(step=0, code="unbalanced_kinds", message=message))


def is_spread(plan: Plan, world: World, emit: EventSink) -> bool:
    """Whether to shard, the same on all ranks; with `auto`, a warning gives the reason.

    Raises:
        RecipeError: Sharding is requested but the method or objective does not support it.
    """
    from luthier.core.errors import RecipeError
    from luthier.ml.training.sharding import refuse_unspreadable

    asked = plan.training.sharding
    if asked == "fsdp":
        refuse_unspreadable(plan)
    if world.size == 1 or asked != "auto":
        return asked == "fsdp" and world.size > 1
    # Rank 0 decides for all: predictions from each rank's own measurements could differ, and the ranks would then block
    # in different collective calls.
    reason = world.broadcast_text(_too_large(plan, world.size, world.local_size) or "" if world.is_first else "")
    if not reason:
        return False
    try:
        refuse_unspreadable(plan)
    except RecipeError as error:
        emit(WarningRaised(step=0, code="not_spread", message=f"{reason}; {error.came.lower()} is not possible"))
        return False
    message = f"{reason}: weights and optimizer are spread over the {world.size} processes (training.sharding fsdp)"
    emit(WarningRaised(step=0, code="spread", message=message))
    return True


def _too_large(plan: Plan, num: int, num_local: int) -> str | None:
    """Why a full copy of the run does not fit on each device of this machine; None if it does.

    Args:
        plan: Of the run.
        num: Of all processes that share its steps.
        num_local: Of those on this machine.
    """
    from luthier.ml.charts import figures
    from luthier.ml.inference.models.structure import read_structure
    from luthier.ml.planning import hardware
    from luthier.ml.planning.devices import this_machine
    from luthier.ml.planning.memory import predict_memory
    from luthier.ml.planning.predict import fits
    from luthier.ml.planning.workload import workload_of

    try:
        device = this_machine(hardware.measure())
    except RequestError:  # an unknown accelerator: no prediction
        return None
    device = _share_of(device, num_local).model_copy(update={"num_devices": num})
    workload = workload_of(plan, read_structure(plan.base_model.path), device)
    if device.is_cpu:
        # Processes that share steps have no workers, and rank 0 evaluates when the others have ended.
        workload = replace(workload, num_workers=1, judging=None)
    memory = predict_memory(workload, device)
    if fits(memory, device):
        return None
    there = figures.size(round(device.memory_bytes))
    needed = figures.size(round(memory.total_bytes.value), round(device.memory_bytes))
    return f"a full copy of the run would take {needed} of {there} a device"


def _share_of(device: Device, num_local: int) -> Device:
    """A device from the view of one of several processes: accelerators are exclusive, a CPU's memory is shared."""
    if not device.is_cpu:
        return device
    return device.model_copy(update={"memory_bytes": device.memory_bytes // num_local})
