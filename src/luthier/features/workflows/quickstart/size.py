"""How much a quickstart does on a machine: as many rows, as long, as a few minutes of it allow.

The same work takes a processor with bfloat16 products three minutes and one without half an hour. So the sizes below
are tried from the largest, and the first whose forecast (training and judging, at the present load) stays within the
limit is taken. Shorter rows come before fewer steps: a step of short rows teaches nearly as much, and costs less.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from luthier.core.cost import MachineLoad
    from luthier.ml.inference.models.structure import Structure
    from luthier.ml.planning.hardware import Hardware

MAX_SECONDS: Final = 240.0
"""Training and judging as forecast; fetching the base model, building rows and the report take a minute or two more."""

# The quickstart's rows with SmolLM2's tokenizer: what the template adds to each, and characters a token of the rest
# (measured over a third of the 4,910 rows of Python 3.11: within a tenth at every limit below).
_TEMPLATE_TOKENS, _CHARACTERS_A_TOKEN = 40, 4.0
_LEARNED_TOKENS: Final = 12.0
_SHOTS, _NEW_TOKENS = 4, 40
_TRAIN_SHARE, _VALIDATION_SHARE = 0.75, 0.1
_ALL_ROWS: Final = 4_910


@dataclass(frozen=True, slots=True)
class Size:
    """How much of the rows a quickstart uses.

    Attributes:
        num_rows: of all splits together; None means all of them.
        max_tokens: rows that should be longer are left out.
        mean_tokens: of the rows within that limit.
        epochs: over the training rows.
        max_samples: held-out rows that are judged.
        batch_rows: examples of a step.
    """

    num_rows: int | None
    max_tokens: int
    mean_tokens: float
    epochs: float
    max_samples: int
    batch_rows: int = 16

    @property
    def max_characters(self) -> int:
        """About how many characters a row of `max_tokens` has."""
        return int((self.max_tokens - _TEMPLATE_TOKENS) * _CHARACTERS_A_TOKEN)


@dataclass(frozen=True, slots=True)
class ChosenSize:
    """The size that was chosen, and why. expected_seconds: of training and judging; None where nothing was forecast."""

    size: Size
    expected_seconds: float | None
    why: str


FULL: Final = Size(num_rows=None, max_tokens=1024, mean_tokens=147, epochs=2.0, max_samples=200)
SIZES: Final = (
    Size(num_rows=800, max_tokens=1024, mean_tokens=147, epochs=1.0, max_samples=60),
    Size(num_rows=800, max_tokens=320, mean_tokens=132, epochs=1.0, max_samples=60),
    Size(num_rows=720, max_tokens=192, mean_tokens=110, epochs=1.0, max_samples=50),
    Size(num_rows=560, max_tokens=160, mean_tokens=103, epochs=1.0, max_samples=40),
    Size(num_rows=400, max_tokens=128, mean_tokens=95, epochs=1.0, max_samples=40),
    Size(num_rows=320, max_tokens=112, mean_tokens=90, epochs=1.0, max_samples=30, batch_rows=8),
    Size(num_rows=200, max_tokens=96, mean_tokens=83, epochs=1.0, max_samples=24, batch_rows=8),
    Size(num_rows=120, max_tokens=88, mean_tokens=78, epochs=1.0, max_samples=16, batch_rows=8),
    Size(num_rows=72, max_tokens=80, mean_tokens=74, epochs=1.0, max_samples=12, batch_rows=4),
    Size(num_rows=48, max_tokens=80, mean_tokens=74, epochs=1.0, max_samples=10, batch_rows=4),
)
"""From the most work to the least. Means are those of the rows within each limit."""


def choose_size(structure: Structure, hardware: Hardware, load: MachineLoad | None) -> ChosenSize:
    """The largest size that this machine does within `MAX_SECONDS`; the smallest where none is that small.

    Args:
        structure: of the base model.
        hardware: this machine, with its rates on a quiet day.
        load: how busy it is now; None where that does not matter, on an accelerator.
    """
    found = [(size, forecast_seconds(size, structure, hardware, load)) for size in SIZES]
    # From the most work to the least, so the first that fits is the largest.
    size, seconds = next((one for one in found if one[1] <= MAX_SECONDS), found[-1])
    busy = ""
    if load is not None and load.slowdown > 1:
        busy = f"; other processes use {load.busy_cores:.1f} of {load.num_cores} cores now"
    where = f"{hardware.cpu_name}, {hardware.num_threads} threads, {hardware.precision}: {hardware.why}{busy}"
    return ChosenSize(size, seconds, where)


def forecast_seconds(size: Size, structure: Structure, hardware: Hardware, load: MachineLoad | None = None) -> float:
    """Seconds of training and judging that a size is expected to take under the load."""
    from luthier.ml.planning.devices import this_machine
    from luthier.ml.planning.hypothetical_run import HypotheticalRun, hypothetical_workload
    from luthier.ml.planning.judging import Judging
    from luthier.ml.planning.predict import predict

    device = this_machine(hardware)
    rows, mean = size.num_rows or _ALL_ROWS, size.mean_tokens
    described = HypotheticalRun(
        num_rows=round(_TRAIN_SHARE * rows),
        mean_tokens=mean,
        max_tokens=size.max_tokens,
        epochs=size.epochs,
        global_batch_size=size.batch_rows,
        learned_fraction=_LEARNED_TOKENS / mean,
    )
    judging = Judging(
        num_rows=size.max_samples,
        systems=(False, False, True),
        prompt_tokens=mean - _LEARNED_TOKENS,
        reference_tokens=_LEARNED_TOKENS,
        shot_tokens=_SHOTS * mean,
        new_tokens=_NEW_TOKENS,
        longest_tokens=size.max_tokens + _SHOTS * mean + _NEW_TOKENS,
        writes=True,
        scores=True,
    )
    workload = replace(
        hypothetical_workload(structure, described, device),
        num_validations=1,
        num_validation_tokens=_VALIDATION_SHARE * rows * mean,
        judging=judging,
    )
    # The load of this moment counts here: the person waits now.
    return predict(workload, device).hours.value * 3600 * (load.slowdown if load is not None else 1.0)
