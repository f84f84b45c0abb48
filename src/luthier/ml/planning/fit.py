"""What fits on a device: the largest micro-batch, the longest row, and what a run gives up first to fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from luthier.core.cost import Device, Room
from luthier.ml.planning.batch_shapes import KEPT_MAX_TOKENS
from luthier.ml.planning.calibration import Calibration
from luthier.ml.planning.memory import predict_memory
from luthier.ml.planning.predict import fits
from luthier.ml.planning.speed import step_seconds
from luthier.ml.planning.workload import Workload, with_micro_batch

_MAX_TOKENS: Final = 1 << 24
"""Nothing is looked for beyond: no micro-batch and no row is larger today."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """A run that fits, and what was changed for it: names of changes, none where it fitted as it was."""

    workload: Workload
    changes: tuple[str, ...]

    @property
    def micro_batch_tokens(self) -> int:
        """The budget that keeps micro-batches as small as they must be."""
        return self.workload.batches.peak_tokens


def room(workload: Workload, device: Device, *, longest_tokens: int, calibration: Calibration | None = None) -> Room:
    """The largest micro-batch of the run's longest rows, and the longest row that fits alone."""
    return Room(
        micro_batch_rows=max_rows(workload, device, length=longest_tokens, calibration=calibration),
        length_tokens=longest_tokens,
        longest_row_tokens=longest_row(workload, device, calibration=calibration),
    )


def max_rows(
    workload: Workload,
    device: Device,
    *,
    length: int,
    most: int | None = None,
    calibration: Calibration | None = None,
) -> int:
    """Rows of `length` tokens that fit in one micro-batch; 0 where none does.

    Args:
        most: none beyond is tried.
    """
    limit = max(1, _MAX_TOKENS // length) if most is None else most
    return _largest(limit, lambda rows: _fits(with_micro_batch(workload, rows, length), device, calibration))


def longest_row(workload: Workload, device: Device, *, calibration: Calibration | None = None) -> int:
    """Tokens of the longest row that fits when it is alone; 0 where not even one token does."""

    def holds(length: int) -> bool:
        return _fits(with_micro_batch(workload, 1, length), device, calibration)

    # Rows just above the limit keep no probabilities and may need less than those just below.
    beyond = KEPT_MAX_TOKENS + 1
    if workload.attention == "by_length" and holds(beyond):
        return _largest(_MAX_TOKENS, holds, least=beyond)
    most = KEPT_MAX_TOKENS if workload.attention == "by_length" else _MAX_TOKENS
    return _largest(most, holds)


def made_to_fit(
    workload: Workload, device: Device, *, longest_tokens: int, calibration: Calibration | None = None
) -> Fitted | None:
    """The fastest way to run the same training on a device; None where it does not fit by any of these.

    Tried: as it is; smaller micro-batches; activations computed again; weights spread over the devices where there are
    several; all of these together. None of them changes what is learned.
    """
    found = ways_to_fit(workload, device, longest_tokens=longest_tokens, calibration=calibration)
    return found[0] if found else None


def ways_to_fit(
    workload: Workload, device: Device, *, longest_tokens: int, calibration: Calibration | None = None
) -> list[Fitted]:
    """All of these ways that fit, the fastest step first; one alone where the run fits as it is."""
    if _fits(workload, device, calibration):
        return [Fitted(workload, ())]
    found: list[Fitted] = []
    for is_spread in (False, True) if device.num_devices > 1 and workload.sharding != "fsdp" else (False,):
        for is_recomputed in (False, True) if not workload.gradient_checkpointing else (False,):
            changed = replace(
                workload,
                sharding="fsdp" if is_spread else workload.sharding,
                gradient_checkpointing=is_recomputed or workload.gradient_checkpointing,
            )
            names = (("sharding",) if is_spread else ()) + (("checkpointing",) if is_recomputed else ())
            if _fits(changed, device, calibration):
                found.append(Fitted(changed, names))
                continue
            smaller = _smaller(changed, device, longest_tokens, calibration)
            if smaller is not None:
                found.append(Fitted(smaller, ("micro_batch", *names)))
    # Stable: of ways that are equally fast the one that changes least stays first.
    return sorted(found, key=lambda way: step_seconds(way.workload, device, calibration).value)


def _smaller(
    workload: Workload, device: Device, longest_tokens: int, calibration: Calibration | None
) -> Workload | None:
    """The run in the largest micro-batches that fit, each of rows as long as the longest; None where no row fits."""
    most = max(1, workload.batches.peak_tokens // longest_tokens)
    rows = max_rows(workload, device, length=longest_tokens, most=most, calibration=calibration)
    return with_micro_batch(workload, rows, longest_tokens) if rows else None


def _fits(workload: Workload, device: Device, calibration: Calibration | None) -> bool:
    return fits(predict_memory(workload, device, calibration), device)


def _largest(limit: int, holds: Callable[[int], bool], *, least: int = 1) -> int:
    """The largest number from `least` to `limit` for which `holds` is true; 0 where it is false at `least`.

    It must be true up to some number and false from there on.
    """
    if not holds(least):
        return 0
    # Doubling finds a bound in log2(limit) predictions, bisection between the last two finds the number.
    low, high = least, 2 * least
    while high <= limit and holds(high):
        low, high = high, 2 * high
    high = min(high, limit + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
