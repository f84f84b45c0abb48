"""What real steps on a device taught the cost model: factors on its terms, and how far it is still off.

A prediction is a sum of few terms, each computed from the workload and the device: time that products would take at
the device's full rate, time that memory traffic would take at its full bandwidth, one call of each layer, the
optimizer's traffic. A calibration scales the terms. Three measurements determine it, because each factor is drawn
towards its prior: ridge regression in relative errors, no factor below zero (Lawson & Hanson, 1974, "Solving Least
Squares Problems", chapter 23).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy.optimize import nnls

from luthier.core.cost import Device
from luthier.core.errors import RequestError
from luthier.core.frozen_model import FrozenModel
from luthier.ml.planning.memory import memory_terms
from luthier.ml.planning.speed import prior_factors, time_terms
from luthier.ml.planning.workload import Workload

_PULL: Final = 0.1
"""Weight of the priors: being wrong by a factor of two in a term costs as much as being off by a tenth in a step."""

MIN_TIME_SPREAD: Final = 0.16
MIN_MEMORY_SPREAD: Final = 0.07
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
        time_spread, memory_spread: relative, about two standard deviations of what the fit leaves, never below a floor
            since few probes cannot show less.
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
    scales, residuals = _ridge(np.array(rows), np.array(wanted))
    found = {name: float(scale * middle[name]) for name, scale in zip(names, scales, strict=True)}
    return found, _spread(residuals)


def _fit_memory(device: Device, measurements: Sequence[Measurement]) -> tuple[float, float, float]:
    """Scales the part that grows with the batch; what is left over as a constant goes to the runtime."""
    rows, wanted = [], []
    for m in measurements:
        fixed, growing, runtime = memory_terms(m.workload, device)
        rows.append([growing / m.peak_memory_bytes, runtime / m.peak_memory_bytes])
        wanted.append(1.0 - fixed / m.peak_memory_bytes)
    scales, residuals = _ridge(np.array(rows), np.array(wanted))
    # The runtime depends on the device alone, so any measurement gives it.
    runtime = memory_terms(measurements[0].workload, device)[2]
    return float(scales[0]), float((scales[1] - 1.0) * runtime), _spread(residuals)


def _ridge(rows: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scales >= 0 drawn towards 1, and what is left of each wanted value."""
    count = rows.shape[1]
    # Ridge as extra rows: PULL x scale = PULL. Few probes cannot tell all terms apart, and what they do not show
    # stays at its prior. Non-negative: a negative rate would predict negative time on another shape.
    pulled = np.vstack([rows, _PULL * np.eye(count)])
    scales, _ = nnls(pulled, np.concatenate([wanted, np.full(count, _PULL)]))
    return scales, wanted - rows @ scales


def _spread(residuals: np.ndarray) -> float:
    # Residuals are relative, so this is a relative spread of two standard deviations.
    return 2.0 * math.sqrt(float(np.mean(residuals**2)))
