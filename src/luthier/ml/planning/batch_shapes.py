"""How the rows of a run fall into steps and micro-batches, replayed rows included.

A few numbers, which memory and time depend on.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Final

from luthier.core.errors import RecipeError
from luthier.core.plan import DataPlan, MethodPlan, ObjectivePlan
from luthier.core.recipe import Recipe, TrainingRecipe
from luthier.ml.inference.batches import in_two_lengths
from luthier.ml.planning import defaults
from luthier.ml.planning.defaults import Provenance
from luthier.ml.training.objectives.rules import rules_of

MAX_TOKENS: Final = 1 << 31

KEPT_MAX_TOKENS: Final = 1024
"""Rows of at most this many tokens keep the probabilities of attention on a CPU (ml/training/attention.py; a test
holds them
equal)."""
BLOCK_TOKENS: Final = 128
"""Queries that attention on a CPU computes together (ml/training/attention.py; a test holds them equal)."""
BLOCK_SCORES: Final = 1 << 20
"""Scores that it computes at a time (ml/training/prefix_attention.py; a test holds them equal)."""


@dataclass(frozen=True, slots=True)
class Batches:
    """How the rows of a run are divided into steps and micro-batches, on average over the run; per step unless stated.

    Attributes:
        peak_rows: rows of the largest micro-batch.
        peak_length: its padded length, in tokens.
        other_peaks: the same of those with fewer tokens in longer rows, which may take more memory.
        num_tokens: tokens a step, without padding.
        num_computed: tokens a step, padding included.
        length: padded length of a row, weighted by its tokens.
        num_micro_batches: of all devices together.
        num_learned: tokens that a loss is computed at.
        shared_keys: most keys that a token of a micro-batch with common prefixes meets on average, 0 where nothing is
            shared.
        shared_kept_keys: of these, those whose probabilities a CPU keeps.
    """

    peak_rows: int
    peak_length: int
    num_tokens: float
    num_computed: float
    num_learned: float
    num_micro_batches: float
    length: float
    other_peaks: tuple[tuple[int, int], ...] = ()
    shared_keys: float = 0.0
    shared_kept_keys: float = 0.0

    def __post_init__(self) -> None:
        size = self.peak_rows * self.peak_length
        if self.peak_rows < 1 or self.peak_length < 1 or size > MAX_TOKENS:
            raise RecipeError(
                f"a micro-batch of {self.peak_rows:,} rows of {self.peak_length:,} tokens",
                expected=f"at least one row of one token, and at most {MAX_TOKENS:,} tokens in all",
                do="correct training.micro_batch_tokens, training.global_batch_size or the lengths",
            )

    @property
    def peak_tokens(self) -> int:
        """Tokens of the largest micro-batch, padding included."""
        return self.peak_rows * self.peak_length


def splits_by_length(objective: ObjectivePlan) -> bool:
    """Whether plain rows of two lengths go through the model apart. The loss of routers reads all rows of one pass."""
    return rules_of(objective.name).splits_by_length and objective.router_aux_loss is None


def num_computed_tokens(lengths: Sequence[int], prefixes: Sequence[int] = (), *, apart: bool = False) -> int:
    """Tokens that go through the model in a micro-batch whose rows have these lengths.

    Args:
        lengths: tokens of each row.
        prefixes: tokens that equally many rows after one another begin with, computed once for them, with no padding
            anywhere; none for plain rows, which are padded to the longest.
        apart: whether plain rows of two lengths go through the model apart (`splits_by_length`).
    """
    if not prefixes:
        groups = in_two_lengths(lengths) if apart else [range(len(lengths))]
        return sum(max(lengths[i] for i in group) * len(group) for group in groups)
    # Rows of one group follow each other; its beginning is counted once instead of once a row.
    return sum(lengths) - (len(lengths) // len(prefixes) - 1) * sum(prefixes)


def batches_of(
    steps: Iterable[Sequence[Sequence[int]]],
    *,
    learned_fraction: float,
    shared: Iterable[Sequence[Sequence[int]]] | None = None,
    apart: bool = False,
) -> Batches:
    """The exact batches of a schedule: for each step its micro-batches, for each of these the lengths of its rows.

    Args:
        steps: for each step and micro-batch the lengths of its rows, in tokens.
        learned_fraction: learned tokens as a share of all tokens.
        shared: for each step and micro-batch the tokens of the prefixes that are computed once
            (`num_computed_tokens`); None where nothing is shared.
        apart: whether plain rows of two lengths go through the model apart.

    Raises:
        RecipeError: there is no row.
    """
    tokens = computed = weighted = shared_keys = shared_kept_keys = 0.0
    shapes: set[tuple[int, int]] = set()
    num_steps = num_micro = 0
    of_steps: Iterable[Iterable[Sequence[int]]] = repeat(repeat(())) if shared is None else shared
    for micro_batches, prefixes in zip(steps, of_steps, strict=False):
        num_steps += 1
        for lengths, prefix in zip(micro_batches, prefixes, strict=False):
            longest = max(lengths)
            size = num_computed_tokens(lengths, prefix, apart=apart)
            num_micro, tokens, computed = num_micro + 1, tokens + sum(lengths), computed + size
            # Weighted by tokens: attention's cost grows with tokens x length, so long rows count as they cost.
            weighted += size * longest
            met, kept = _shared_keys(lengths, prefix)
            shared_keys, shared_kept_keys = max(shared_keys, met / size), max(shared_kept_keys, kept / size)
            # Shared prefixes and two lengths leave rows of unequal parts: the mean replaces their padded length.
            shapes.add((len(lengths), math.ceil(size / len(lengths))))
    if not computed:
        raise RecipeError("a schedule without rows", expected="at least one", do="check the training data")
    peak, *others = _largest(shapes)
    return Batches(
        peak_rows=peak[0],
        peak_length=peak[1],
        other_peaks=tuple(others),
        num_tokens=tokens / num_steps,
        num_computed=computed / num_steps,
        num_learned=tokens * learned_fraction / num_steps,
        num_micro_batches=num_micro / num_steps,
        length=weighted / computed,
        shared_keys=shared_keys,
        shared_kept_keys=shared_kept_keys,
    )


def blocked_keys(length: float) -> float:
    """Keys that a token meets on average in a row that is computed in blocks: all up to the last one of its block."""
    # Block i (from 1) has B queries that meet i x B keys each; the tokens of a last, partial block meet all of the row.
    whole, rest = divmod(length, BLOCK_TOKENS)
    return (BLOCK_TOKENS**2 * whole * (whole + 1) / 2 + rest * length) / length


def _shared_keys(lengths: Sequence[int], prefixes: Sequence[int]) -> tuple[float, float]:
    """Keys met by all tokens of a micro-batch together, in attention's padding, and those of kept probabilities."""
    if not any(prefixes):
        return 0.0, 0.0
    num_suffixes = len(lengths) // len(prefixes)
    before = max(prefixes)
    # Suffixes are padded to the longest one, and attend to the longest beginning before them.
    own = max(length - prefixes[number // num_suffixes] for number, length in enumerate(lengths))
    first = len(prefixes) * before * blocked_keys(before)
    others = len(lengths) * own * (before + own)
    kept = first * (before <= KEPT_MAX_TOKENS) + others * (before + own <= KEPT_MAX_TOKENS)
    return float(first + others), float(kept)


def _largest(shapes: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Rows and length of the micro-batch with the most tokens, then of each that is longer than all before it."""
    found: list[tuple[int, int]] = []
    for rows, length in sorted(shapes, key=lambda shape: (shape[0] * shape[1], shape[1]), reverse=True):
        if not found or length > found[-1][1]:
            found.append((rows, length))
    return found


def resolve_batch_size(
    recipe: Recipe,
    method: MethodPlan,
    objective: ObjectivePlan,
    data: DataPlan,
    device: str,
    sources: Provenance,
    *,
    num_processes: int = 1,
) -> int:
    """The number of examples a step: requested, derived from a number of tokens, or the default.

    A number of tokens is divided by the mean tokens of an example and rounded to the nearest number of examples that
    the processes can share evenly, at least one each. All steps of a run then have the same number of examples, so
    that the tokens of a single step vary with the lengths of its rows.

    Args:
        recipe: the request.
        method: as it is resolved.
        objective: as it is resolved.
        data: of the plan.
        device: that it trains on, by torch's name.
        sources: takes where the value comes from.
        num_processes: that share each step.

    Raises:
        RecipeError: A number of tokens beside a number of examples or replayed rows, or with answers that are drawn.
    """
    asked, name = recipe.training or TrainingRecipe(), "training.global_batch_size"
    if asked.global_batch_tokens is None:
        usual = usual_batch_size(recipe, method, objective, data, device, num_processes=num_processes)
        return sources.pick(name, asked.global_batch_size, usual)
    came = f"training.global_batch_tokens {asked.global_batch_tokens:,}"
    if asked.global_batch_size is not None:
        raise RecipeError(
            f"{came} with {name} {asked.global_batch_size:,}",
            expected="one of the two: both say how much a step learns from",
            do="remove one of them",
        )
    if data.replay is not None:
        raise RecipeError(
            f"{came} with data.replay",
            expected="a step of a known number of examples, of which the replayed ones are a share",
            do=f"set {name} in its place",
        )
    if objective.draws:
        raise RecipeError(
            f"{came} with objective {objective.name}",
            expected="rows whose tokens are known before training: this objective learns from answers that it draws",
            do=f"set {name} in its place, a number of prompts",
        )
    # Of examples, not of sequences: both answers of a pair count, and every sequence of a cut conversation.
    num_tokens = data.train.num_tokens / data.train.num_examples
    size = max(1, round(asked.global_batch_tokens / (num_tokens * num_processes))) * num_processes
    unit = "a block" if data.train.packed else "an example"
    why = f"{asked.global_batch_tokens:,} tokens / {num_tokens:,.1f} tokens of {unit} on average"
    if data.stream is not None:
        why += " among the first rows"
    if num_processes > 1:
        why += f", as a multiple of {num_processes} processes"
    sources.note(name, "derived", f"training.global_batch_tokens in the recipe: {why}")
    return size


def usual_batch_size(
    recipe: Recipe,
    method: MethodPlan,
    objective: ObjectivePlan,
    data: DataPlan,
    device: str,
    *,
    num_processes: int = 1,
) -> tuple[int, str]:
    """The default number of examples per step, and why.

    Smaller steps of the same number of rows end at a lower loss (Marek et al., 2025, "Small Batch Size Training for
    Language Models", arXiv:2507.07101); here they are taken where they were measured to cost no time, and where the
    processes that train can share them evenly.

    Args:
        recipe: the request.
        method: as it is resolved.
        objective: as it is resolved.
        data: of the plan.
        device: that it trains on, by torch's name.
        num_processes: that share each step.
    """
    usual, asked = defaults.GLOBAL_BATCH_SIZE, recipe.training or TrainingRecipe()
    # For a given number of steps, smaller ones would show the model fewer rows.
    is_measured = device == "cpu" and method.name == "lora" and objective.name == "sft"
    is_plain = data.replay is None and data.stream is None and not data.train.packed
    if not (is_measured and is_plain) or asked.max_steps is not None:
        return usual
    if defaults.SMALL_BATCH_SIZE[0] % num_processes:
        return usual
    epochs = defaults.EPOCHS[0] if asked.epochs is None else asked.epochs
    num_steps = epochs * math.ceil(data.train.num_examples / usual[0])
    return defaults.SMALL_BATCH_SIZE if num_steps < defaults.FEW_STEPS else usual


def num_replayed_per_step(recipe: Recipe) -> tuple[int, int]:
    """Replayed examples a step, and the examples of a step in all.

    The nearest whole number to the share that was requested, at least one where it is above 0.

    Raises:
        RecipeError: no example of the task would be left.
    """
    asked, training = recipe.data.replay, recipe.training or TrainingRecipe()
    size = training.global_batch_size or defaults.GLOBAL_BATCH_SIZE[0]
    if asked is None:
        return 0, size
    fraction = defaults.REPLAY_FRACTION[0] if asked.fraction is None else asked.fraction
    num = max(1, round(fraction * size)) if fraction else 0
    if num >= size:
        raise RecipeError(
            f"data.replay.fraction {fraction:g} makes {num} of the {size} examples of a step",
            expected="room for at least one example of the task in each step",
            do="raise training.global_batch_size, or lower data.replay.fraction",
        )
    return num, size


def num_replayed(data: DataPlan, objective: ObjectivePlan) -> int:
    """Replayed examples a step.

    Raises:
        RecipeError: objectives that do not learn from the answers of rows.
    """
    num = data.replay.num_per_step if data.replay else 0
    if num and (objective.draws or rules_of(objective.name).rows_per_unit != 1):
        raise RecipeError(
            f"data.replay with objective {objective.name}",
            expected="an objective that learns from the answers of single rows, such as sft",
            do="remove data.replay",
        )
    return num
