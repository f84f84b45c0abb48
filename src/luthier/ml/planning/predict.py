"""What a workload takes on a device, as one `Prediction` with intervals, and the calibration of its terms.

A prediction is a sum of few terms, each computed from the workload and the device: time that products would take at
the device's full rate, time that memory traffic would take at its full bandwidth, one call of each layer, the
optimizer's traffic. A calibration scales the terms by what real steps on the device took. Three measurements
determine it, because each factor is drawn towards its prior: ridge regression in relative errors, no factor below
zero.

Sources: Lawson & Hanson, 1974, "Solving Least Squares Problems", chapter 23.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from luthier.core.errors import RequestError
from luthier.core.estimate import Estimate
from luthier.core.frozen_model import FrozenModel
from luthier.core.results.cost import Device, MachineLoad, MemoryPrediction, Prediction
from luthier.ml.planning import memory as optimizer_cost
from luthier.ml.planning import speed, step_counts
from luthier.ml.planning.memory import memory_terms, predict_memory
from luthier.ml.planning.speed import prior_factors, time_terms
from luthier.ml.planning.workload import Workload

_PULL, _MEMORY_PULL = 0.1, 0.3
"""Weight of the priors: being wrong by a factor of two in a term costs as much as being off by a tenth in a step. Bytes
are counted, not tabled, so that their priors are better: off by three tenths of a peak."""

MIN_TIME_SPREAD: Final = 0.16
MIN_MEMORY_SPREAD: Final = 0.14
"""About two standard deviations of what three probes leave in other runs (benchmarks/plan_accuracy.py)."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """A workload that really ran.

    Attributes:
        workload: what ran.
        step_seconds: mean seconds a step, without the first, which warms up.
        peak_memory_bytes: of the process.
        busy_cores: cores that other processes used meanwhile.
    """

    workload: Workload
    step_seconds: float
    peak_memory_bytes: float
    busy_cores: float = 0.0


class Calibration(FrozenModel):
    """Fitted factors.

    Attributes:
        device: its title, which a calibration holds for and no other.
        factors: on the terms of `speed.time_terms`, in place of the priors.
        memory_factor: on activations and logits.
        memory_offset_bytes: added to the runtime part.
        time_spread: relative, about two standard deviations of what the fit leaves, never below a floor since few
            probes cannot show less.
        memory_spread: the same for memory.
    """

    device: str
    factors: dict[str, float]
    memory_factor: float
    memory_offset_bytes: float
    time_spread: float
    memory_spread: float
    num_measurements: int


def fit(device: Device, measurements: Sequence[Measurement]) -> Calibration:
    """The calibration that the measurements on a device speak for.

    Raises:
        RequestError: none or impossible ones.
    """
    if not measurements or any(m.step_seconds <= 0 or m.peak_memory_bytes <= 0 for m in measurements):
        raise RequestError(
            f"{len(measurements)} measurements: {[(m.step_seconds, m.peak_memory_bytes) for m in measurements]}",
            expected="at least one, with seconds and bytes above zero",
            do="probe again: luthier plan RECIPE --probe",
        )
    factors, time_spread = _fit_time(device, measurements)
    factor, offset, memory_spread = _fit_memory(device, measurements)
    return Calibration(
        device=device.title,
        factors=factors,
        memory_factor=factor,
        memory_offset_bytes=offset,
        time_spread=max(MIN_TIME_SPREAD, time_spread),
        memory_spread=max(MIN_MEMORY_SPREAD, memory_spread),
        num_measurements=len(measurements),
    )


def _fit_time(device: Device, measurements: Sequence[Measurement]) -> tuple[dict[str, float], float]:
    priors = [prior_factors(device, m.workload) for m in measurements]
    names = list(priors[0])
    middle = {name: sum(p[name] for p in priors) / len(priors) for name in names}
    rows, wanted = [], []
    for m in measurements:
        terms = time_terms(m.workload, device)
        # In units of the prior, so that every unknown is about 1; divided by the measured seconds, so that the fit
        # minimises relative errors and a short probe weighs as much as a long one.
        rows.append([terms[name] * middle[name] / m.step_seconds for name in names])
        wanted.append(1.0)
    scales, residuals = _ridge(np.array(rows), np.array(wanted), _PULL)
    found = {name: float(scale * middle[name]) for name, scale in zip(names, scales, strict=True)}
    return found, _spread(residuals)


def _fit_memory(device: Device, measurements: Sequence[Measurement]) -> tuple[float, float, float]:
    """Scales the part that grows with the batch; what is left over as a constant goes to the runtime."""
    rows, wanted = [], []
    for m in measurements:
        fixed, growing, runtime = memory_terms(m.workload, device)
        rows.append([growing / m.peak_memory_bytes, runtime / m.peak_memory_bytes])
        wanted.append(1.0 - fixed / m.peak_memory_bytes)
    scales, residuals = _ridge(np.array(rows), np.array(wanted), _MEMORY_PULL)
    # The runtime depends on the device alone, so any measurement gives it.
    runtime = memory_terms(measurements[0].workload, device)[2]
    return float(scales[0]), float((scales[1] - 1.0) * runtime), _spread(residuals)


def _ridge(rows: np.ndarray, wanted: np.ndarray, pull: float) -> tuple[np.ndarray, np.ndarray]:
    """Scales >= 0 drawn towards 1 with the weight `pull`, and what is left of each wanted value."""
    from scipy.optimize import nnls

    count = rows.shape[1]
    # Ridge as extra rows: pull x scale = pull. Few probes cannot separate all terms, and what they do not show
    # stays at its prior. Non-negative: a negative rate would predict negative time on another shape.
    pulled = np.vstack([rows, pull * np.eye(count)])
    scales, _ = nnls(pulled, np.concatenate([wanted, np.full(count, pull)]))
    return scales, wanted - rows @ scales


def _spread(residuals: np.ndarray) -> float:
    # Residuals are relative, so this is a relative spread of two standard deviations.
    return 2.0 * math.sqrt(float(np.mean(residuals**2)))


# Room that is left for what else runs on the device.
_USABLE_SHARE = 0.95
# Share of the board's power that training draws on average, and what the building adds to it for cooling and
# conversion (the Uptime Institute's survey of 2024 found a mean power usage effectiveness of 1.56).
_POWER_SHARE = Estimate(value=0.8, low=0.6, high=1.0)
_POWER_USAGE_EFFECTIVENESS = Estimate(value=1.3, low=1.1, high=1.6)
_CHECKPOINT_GB_PER_SECOND = 0.5


def predict(
    workload: Workload,
    device: Device,
    *,
    calibration: Calibration | None = None,
    usd_per_hour: Estimate | None = None,
    load: MachineLoad | None = None,
) -> Prediction:
    """Time, memory, energy and money of a run, judging included.

    Args:
        workload: the run.
        device: where it runs.
        calibration: of a probe on this device; without one, tabled factors.
        usd_per_hour: of one device; None where it has no price.
        load: how busy the device is now, for this machine alone. Expected values are for the quiet machine, so that a
            plan that is requested twice gets one answer; the upper ends apply where this load continues.

    Raises:
        RequestError: a calibration of another device.
    """
    if calibration is not None and calibration.device != device.title:
        raise RequestError(
            f"a calibration of {calibration.device} for {device.title}",
            expected="one that was measured on the very device",
            do="probe on that device, or predict without a calibration",
        )
    step = under_load(speed.step_seconds(workload, device, calibration), load)
    memory = predict_memory(workload, device, calibration)
    # The same parts as the quote shows, so that its total is their sum.
    hours = total(hours_by_part(workload, device, step, calibration=calibration, load=load))
    per_second = workload.step_tokens
    notes = _notes(workload, device, memory, calibration, load)
    return Prediction(
        device=device,
        step_seconds=step,
        num_steps=workload.num_steps,
        hours=hours,
        peak_memory=memory,
        fits=fits(memory, device),
        usd=None if usd_per_hour is None else _product(hours, usd_per_hour).times(device.num_devices),
        energy_kwh=_energy(hours, device),
        calibrated=calibration is not None,
        flops_per_step=step_counts.step_flops(workload).total * workload.step_updates,
        tokens_per_second=Estimate(
            # The slowest step gives the lowest rate: the ends change places.
            value=per_second / step.value,
            low=per_second / step.high,
            high=per_second / step.low,
        ),
        load=load,
        notes=notes if usd_per_hour is not None else (*notes, "no price is known for this device"),
    )


def fits(memory: MemoryPrediction, device: Device) -> bool:
    """Whether the expected peak stays below the device's memory, less a twentieth for what else is there."""
    return memory.total_bytes.value <= _USABLE_SHARE * device.memory_bytes


def under_load(estimate: Estimate, load: MachineLoad | None) -> Estimate:
    """The estimate, with its upper end for the case that the present load continues."""
    return estimate if load is None else estimate.model_copy(update={"high": estimate.high * load.slowdown})


def hours_by_part(
    workload: Workload,
    device: Device,
    step: Estimate,
    *,
    calibration: Calibration | None = None,
    load: MachineLoad | None = None,
) -> dict[str, Estimate]:
    """Hours of steps, of validations, of writing checkpoints and of judging.

    `grading`, where models grade answers: what each step takes for it, which is not in `steps` then; validations have
    theirs.
    Where an objective needs the model at its start, or a method finds its first weights on rows, also of that
    `reference`; with a teacher, of the `teacher`;
    `judging` only where rows are held out.

    Args:
        workload: the run.
        device: where it runs.
        step: seconds of one, under the load.
        calibration: of the device; None uses the priors.
        load: how busy the machine is; None for idle.
    """
    learning = under_load(speed.learning_seconds(workload, device, calibration), load)
    validation = speed.validation_seconds(workload, step, learning).times(workload.num_validations)
    saved = checkpoint_seconds(workload) * workload.num_checkpoints
    # Disks differ by far more than anything else here, and none is measured.
    checkpoints = Estimate(value=saved, low=saved / 3, high=saved * 3)
    grading = under_load(speed.grading_seconds(workload, device, calibration), load)
    # All parts add up to the whole: what grading takes of a step is not counted with the step.
    parts = {
        "steps": step.minus(grading).times(workload.num_steps),
        "validations": validation,
        "checkpoints": checkpoints,
    }
    if workload.gradings:
        parts["grading"] = grading.times(workload.num_steps)
    if workload.num_reference_tokens:
        parts["reference"] = speed.reference_seconds(workload, step)
    if workload.teacher is not None:
        parts["teacher"] = speed.teacher_seconds(workload, step)
    if workload.judging is not None:
        parts["judging"] = under_load(speed.judging_seconds(workload, device, step, calibration), load)
    return {name: seconds.times(1 / 3600) for name, seconds in parts.items()}


def total(parts: Mapping[str, Estimate]) -> Estimate:
    """The sum of all parts, end by end."""
    # Ends are added, not variances: errors of the parts have common causes and do not cancel.
    found = Estimate(value=0.0, low=0.0, high=0.0)
    for part in parts.values():
        found = found.plus(part)
    return found


def checkpoint_seconds(workload: Workload) -> float:
    """Seconds to write one checkpoint: fp32 masters of what is trained, and what the optimizer remembers."""
    moments = optimizer_cost.moment_bytes(workload, on_device=False)
    return (workload.num_trainable * 4.0 + moments) / 1e9 / _CHECKPOINT_GB_PER_SECOND


def mean_watts(device: Device) -> Estimate | None:
    """What all devices of a run draw on average while training, cooling included; None where the power is unknown."""
    if device.power_watts <= 0:
        return None
    return _product(_POWER_SHARE, _POWER_USAGE_EFFECTIVENESS).times(device.power_watts * device.num_devices)


def _energy(hours: Estimate, device: Device) -> Estimate | None:
    watts = mean_watts(device)
    return None if watts is None else _product(hours, watts).times(1e-3)


def _product(one: Estimate, other: Estimate) -> Estimate:
    return Estimate(value=one.value * other.value, low=one.low * other.low, high=one.high * other.high)


def _notes(
    workload: Workload,
    device: Device,
    memory: MemoryPrediction,
    calibration: Calibration | None,
    load: MachineLoad | None,
) -> tuple[str, ...]:
    notes = []
    if load is not None and load.slowdown > 1:
        notes.append(
            f"other processes use {load.busy_cores:.1f} of {load.num_cores} cores now, and products take "
            f"{load.slowdown:.1f} times as long: the upper ends of time and money hold for that, the expected values "
            "for the quiet machine"
        )
    if calibration is None:
        notes.append("no probe has run on this device: rates come from a table, so intervals are wide")
    if fits(memory, device) and memory.total_bytes.high > device.memory_bytes:
        notes.append("the expected memory fits, but the upper end of its interval does not")
    if device.is_cpu:
        notes.append("the CPU's power is assumed from its cores, not measured")
    if (rollouts := workload.rollouts) is not None:
        most = rollouts.num_answers * rollouts.new_tokens
        notes.append(
            f"a step draws at most {most:,.0f} tokens; time and tokens are for answers as long as they may be, "
            "the lower end for a tenth of that"
        )
    if workload.gradings:
        notes.append(
            "the time of grading by models is for replies as long as they may be, the lower end for two tokens each; "
            "questions that are asked again, and replies that are stored already, are not in it"
        )
    if device.num_devices > 1:
        notes.append(
            "more than one device: rates and links of data sheets, compared with figures that others have published "
            "(docs/scale.md); nothing of this was measured here"
        )
    return tuple(notes)
