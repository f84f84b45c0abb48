"""One declaration per optimizer: update rule, settings, memory, traffic, computation and default learning rate.

Nothing here loads torch: recipes and plans read it. A plug-in optimizer (entry point group `luthier.optimizers`) is an
`OptimizerRules`. It must declare the size of its state: otherwise a plan could only guess the memory of a run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, NamedTuple

from luthier.core.registry import OPTIMIZERS

if TYPE_CHECKING:
    from luthier.core.recipe import ScheduleName

FP32: Final = 4.0
"""Bytes of a 32-bit number."""


class Matrices(NamedTuple):
    """Trained matrices of one size.

    Attributes:
        num: Number of matrices.
        rows, columns: Size of each.
        is_stacked: Whether they are stacked in one three-dimensional tensor, as those of experts are.
    """

    num: int
    rows: int
    columns: int
    is_stacked: bool = False


_LARGE_GRADIENT_BYTES: Final = 256 << 20


@dataclass(frozen=True, slots=True)
class TrainedSizes:
    """The sizes of the trained parameters, over all devices.

    Attributes:
        num_parameters: Total number of trained parameters.
        is_full: Whether the model itself is trained rather than an adapter.
        matrices: Matrices of the layers, or of the adapter.
        tables: Embeddings and an untied head, if trained in whole.
        num_looked_up: Parameters in embedding tables.
        num_in_vectors: Parameters in biases and norms.
    """

    num_parameters: int
    is_full: bool
    matrices: tuple[Matrices, ...] = ()
    tables: tuple[Matrices, ...] = ()
    num_looked_up: int = 0
    num_in_vectors: int = 0

    @property
    def single(self) -> tuple[Matrices, ...]:
        """The matrices of the layers that are separate parameters."""
        return tuple(one for one in self.matrices if not one.is_stacked)


class StateBytes(NamedTuple):
    """Bytes of optimizer state: on the device, and in host memory if it is paged."""

    device: float
    host: float = 0.0


def _nothing(_: TrainedSizes) -> float:
    return 0.0


@dataclass(frozen=True, slots=True)
class OptimizerRules:
    """The declaration of an optimizer.

    Attributes:
        title: Display name.
        summary: When to use it, in one sentence.
        update_rule: "module:Class" of its `optimizers.protocol.UpdateRule`.
        settings: Its settings with the defaults of its paper. Settings without a recipe key are given in
            `training.optimizer.options`.
        state_bytes: Bytes of its state, in addition to the fp32 masters and summed gradients that every rule has.
        passing_bytes: Temporary bytes during a step.
        moved_bytes: Memory traffic of a step in bytes per parameter beyond AdamW's, on a CPU and on a GPU.
        step_flops: FLOPs of matrix products in a step, in bf16; every device computes all of them.
        learning_rate_factor: Factor on the default learning rate, with the reason; None if AdamW's rate fits.
        only_full: Why it cannot be used with an adapter; empty if it can.
        only_accelerator: Why it cannot be used on a CPU, and the alternative; empty if it can.
        can_be_sharded: Whether it updates each element of a weight independently.
        has_second_moment: Whether `beta2` is the decay of a second moment, so that it can be scaled with the batch
            size.
        averages_weights: Whether its `averages` are what is validated and saved, in place of the weights.
        lr_schedule: Default schedule of the learning rate, with its reason; None if the usual one fits.
        above_zero: Settings that must not be 0, with the reason.
    """

    title: str
    summary: str
    update_rule: str
    settings: Mapping[str, bool | int | float | str]
    state_bytes: Callable[[TrainedSizes], StateBytes]
    passing_bytes: Callable[[TrainedSizes], float] = _nothing
    moved_bytes: tuple[float, float] = (0.0, 0.0)
    step_flops: Callable[[TrainedSizes], float] = _nothing
    learning_rate_factor: tuple[float, str] | None = None
    only_full: str = ""
    only_accelerator: tuple[str, str] | None = None
    can_be_sharded: bool = False
    has_second_moment: bool = False
    averages_weights: bool = False
    lr_schedule: tuple[ScheduleName, str] | None = None
    above_zero: Mapping[str, str] = field(default_factory=dict)


def gradient_buffers(num_bytes: float) -> int:
    """The number of micro-batch gradients that a worker can buffer.

    With two, the worker continues with the next micro-batch while the first waits to be added. If gradients are large,
    the memory of a second buffer is not worth the time saved.

    Args:
        num_bytes: Size of the gradients of one micro-batch, in bytes.
    """
    return 1 if num_bytes > _LARGE_GRADIENT_BYTES else 2


def rules_of(name: str) -> OptimizerRules:
    """The rules of an optimizer.

    Raises:
        NotFoundError: the name is not registered, or the plug-in declares no `OptimizerRules`.
    """
    rules: OptimizerRules = OPTIMIZERS.declaration(name)
    return rules


_ADAM: Final = {"beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8}
# Two codes of one byte, and two scales of four bytes for each 256 of them (`blockwise`).
_PACKED: Final = 2.0 + 2 * FP32 / 256
_MUON_ITERATIONS: Final = 5
_MUON_RATE: Final = 5.0


def _two_moments(sizes: TrainedSizes) -> StateBytes:
    return StateBytes(2 * FP32 * sizes.num_parameters)


def _packed_moments(sizes: TrainedSizes) -> StateBytes:
    # Embedding tables keep fp32 moments, as in bitsandbytes (Dettmers et al., 2022, arXiv:2110.02861, section 2.3).
    tables = sizes.num_looked_up
    return StateBytes(2 * FP32 * tables + _PACKED * (sizes.num_parameters - tables))


def _paged_moments(sizes: TrainedSizes) -> StateBytes:
    tables = sizes.num_looked_up
    return StateBytes(2 * FP32 * tables, _PACKED * (sizes.num_parameters - tables))


def _rows_and_columns(sizes: TrainedSizes) -> StateBytes:
    # The factored second moment: one row vector and one column vector for each matrix, none for the product.
    sides = sum(one.num * (one.rows + one.columns) for one in (*sizes.matrices, *sizes.tables))
    return StateBytes(FP32 * (sides + sizes.num_in_vectors))


def _one_moment(sizes: TrainedSizes) -> StateBytes:
    return StateBytes(FP32 * sizes.num_parameters)


def _direction(sizes: TrainedSizes) -> float:
    """The update direction of the largest matrix."""
    return FP32 * max((one.rows * one.columns for one in (*sizes.single, *sizes.tables)), default=0)


def _largest(sizes: TrainedSizes) -> float:
    """Two copies of the largest matrix: its squared gradient and its update, in full."""
    # The thin matrices of an adapter are next to nothing.
    found = (*sizes.single, *sizes.tables) if sizes.is_full else sizes.tables
    return 2 * FP32 * max((one.rows * one.columns for one in found), default=0)


def _momentum(sizes: TrainedSizes) -> StateBytes:
    """One moment per matrix, AdamW's two for everything else."""
    # Stacked experts are not in `single`: AdamW moves them, with two moments.
    by_muon = sum(one.num * one.rows * one.columns for one in sizes.single)
    return StateBytes(2 * FP32 * sizes.num_parameters - FP32 * by_muon)


def _orthogonal(sizes: TrainedSizes) -> float:
    """The update in fp32, and in bf16 before and after one iteration."""
    return (FP32 + 4.0) * max((one.rows * one.columns for one in sizes.single), default=0)


def _iterations(sizes: TrainedSizes) -> float:
    """Per iteration x x^T, its square, and their product with x."""
    total = 0.0
    for one in sizes.single:
        # The products are with the shorter side: x is transposed where it has more rows than columns.
        short, long = sorted((one.rows, one.columns))
        total += one.num * _MUON_ITERATIONS * (4.0 * short * short * long + 2.0 * short**3)
    return total


_ADAMW: Final = OptimizerRules(
    "AdamW",
    "The default. With an adapter its moments are small, so the others save little memory.",
    "luthier.ml.training.optimizers.update_rules:AdamW",
    _ADAM,
    _two_moments,
    can_be_sharded=True,
    has_second_moment=True,
)
# The traffic of packing and of Adafactor's full-size intermediates is fitted on a CPU (docs/log.md); on a GPU it is not
# measured, and each elementwise pass counts.
_ADAMW_8BIT: Final = OptimizerRules(
    "8-bit AdamW",
    "Full fine-tuning with less memory and nearly the same steps.",
    "luthier.ml.training.optimizers.update_rules:AdamW8bit",
    _ADAM,
    _packed_moments,
    moved_bytes=(28.0, 190.0),
    has_second_moment=True,
)

RULES: Final[Mapping[str, OptimizerRules]] = {
    "adamw": _ADAMW,
    "adamw_8bit": _ADAMW_8BIT,
    "paged_adamw_8bit": replace(
        _ADAMW_8BIT,
        title="Paged 8-bit AdamW",
        summary="Full fine-tuning on a GPU for which that is still too much; its moments are in host memory.",
        update_rule="luthier.ml.training.optimizers.update_rules:PagedAdamW8bit",
        state_bytes=_paged_moments,
        only_accelerator=(
            "paging keeps the moments in the host's memory, and on a CPU they are there anyway",
            "adamw_8bit, which is the same without the paging",
        ),
    ),
    "adafactor": OptimizerRules(
        "Adafactor",
        "Full fine-tuning with the least memory.",
        "luthier.ml.training.optimizers.update_rules:Adafactor",
        {},
        _rows_and_columns,
        passing_bytes=_largest,
        moved_bytes=(28.0, 60.0),
    ),
    "lion": OptimizerRules(
        "Lion",
        "Full fine-tuning with half of AdamW's moments; try several learning rates.",
        "luthier.ml.training.optimizers.update_rules:Lion",
        {"beta1": 0.9, "beta2": 0.99},
        _one_moment,
        passing_bytes=_direction,
        # five elementwise passes over 52 bytes, where AdamW's one pass is over 28; counted, not measured
        moved_bytes=(24.0, 24.0),
        learning_rate_factor=(
            0.2,
            "a fifth of AdamW's: Lion moves every weight by the whole rate (3 to 10 times smaller, arXiv:2302.06675, "
            "section 5)",
        ),
    ),
    "schedule_free_adamw": OptimizerRules(
        "Schedule-free AdamW",
        "A constant learning rate and an average of all steps: the number of steps need not be known before.",
        "luthier.ml.training.optimizers.schedule_free:ScheduleFreeAdamW",
        _ADAM,
        _two_moments,
        passing_bytes=_direction,
        # eight elementwise passes over 88 bytes, where AdamW's one pass is over 28; counted, not measured
        moved_bytes=(60.0, 60.0),
        has_second_moment=True,
        averages_weights=True,
        lr_schedule=("constant", "after the warm-up: the average of the steps takes the place of a rate that falls"),
        above_zero={"beta1": "the average is found in the weights by a division by it"},
    ),
    "muon": OptimizerRules(
        "Muon",
        "Full fine-tuning, if a trial run shows that it is worth the time of its matrix products.",
        "luthier.ml.training.optimizers.update_rules:Muon",
        # the betas are those of what AdamW moves
        _ADAM | {"momentum": 0.95, "num_iterations": _MUON_ITERATIONS, "adamw_rate_factor": 1 / _MUON_RATE},
        _momentum,
        passing_bytes=_orthogonal,
        moved_bytes=(8.0, 8.0),
        step_flops=_iterations,
        has_second_moment=True,
        # Muon's update has a root mean square of 0.2, AdamW's first ones have nearly 1 (docs/log.md).
        learning_rate_factor=(
            _MUON_RATE,
            f"{_MUON_RATE:g} times AdamW's, since Muon's updates are that much smaller; what AdamW updates "
            "(embeddings, head, vectors, stacked experts) has this rate times optimizer.adamw_rate_factor",
        ),
        only_full="Muon evens out the singular values of a whole matrix's update, and an adapter's two thin matrices "
        "are none",
    ),
}
