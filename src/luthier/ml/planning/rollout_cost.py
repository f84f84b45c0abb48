"""Time and memory of drawing answers while training: one token after another, for several rows at a time.

A token of a batch reads every weight once, whatever the number of rows (the decoding side of the roofline: Pope et al.,
2022, "Efficiently Scaling Transformer Inference", arXiv:2211.05102, section 2), multiplies it with each row, and reads
the keys and values of what each row holds. How long answers will be nobody knows before: all figures here are for
answers as long as they may be, and the interval reaches down to what a tenth of that takes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from luthier.core.cost import Device, Estimate

if TYPE_CHECKING:
    from luthier.ml.planning.workload import Workload

ROWS_AT_ONCE: Final = 32
"""Answers that are written together at most (ml/inference/batch_generate.py; a test holds them equal)."""

CACHE_TOKENS: Final = 16_384
"""Tokens whose keys and values such a batch holds at most: rows x longest (ml/inference/batch_generate.py)."""

SHORTEST_SHARE: Final = 0.1
"""Of the longest answers that may be: the lower end of what is expected."""


@dataclass(frozen=True, slots=True)
class Rollouts:
    """Answers drawn in one step, all devices together.

    Attributes:
        num_answers: drawn in a step.
        prompt_tokens: of all its prompts.
        most_tokens: of the longest prompt and its answer.
        new_tokens: of an answer, at most.
        num_validated: answers that one validation writes.
    """

    num_answers: float
    prompt_tokens: float
    new_tokens: int
    most_tokens: int
    num_validated: int = 0

    @property
    def rows_at_once(self) -> int:
        """Answers that are written together."""
        fit = max(1, CACHE_TOKENS // max(1, self.most_tokens))
        return max(1, min(ROWS_AT_ONCE, fit, math.ceil(self.num_answers)))


def cache_bytes(workload: Workload) -> float:
    """Keys and values of all layers for the answers that are written together, as long as they may be."""
    if workload.rollouts is None:
        return 0.0
    return workload.rollouts.rows_at_once * workload.rollouts.most_tokens * key_value_bytes(workload)


def key_value_bytes(workload: Workload) -> float:
    """Of one token, in all layers."""
    s = workload.structure
    return 2.0 * s.num_layers * s.num_kv_heads * s.head_size * workload.element_bytes


def generation_seconds(
    workload: Workload,
    device: Device,
    factors: dict[str, float],
    *,
    num_answers: float,
    rows_at_once: int,
    prompt_tokens: float,
    new_tokens: float,
    held_tokens: float,
    calls_factor: float = 1.0,
) -> float:
    """Seconds of writing answers in batches.

    Args:
        workload: whose model writes.
        device: where it runs.
        factors: of `speed.step_seconds`, by which ideal seconds become real ones.
        num_answers: to be written.
        rows_at_once: answers of one batch.
        prompt_tokens: of all prompts together, computed once each.
        new_tokens: of the longest answer in a batch.
        held_tokens: whose keys and values an answer reads for each of its tokens, on average.
        calls_factor: how many times a layer's call takes what it takes without adapters.
    """
    s, count = workload.structure, float(device.num_devices)
    rate = (device.float32_tflops if workload.compute == "float32" else device.bfloat16_tflops) * 1e12 * count
    bandwidth = device.memory_gb_per_second * 1e9
    num_new = num_answers * new_tokens
    # Each device writes its share of the batches; a batch takes one call of the model for each new token.
    num_calls = math.ceil(num_answers / rows_at_once / count) * new_tokens
    # A parameter takes a multiply and an add for each token; the head only forms logits of new tokens.
    products = 2.0 * (s.num_active_parameters + s.head_parameters) * num_new / rate
    products += 2.0 * s.num_active_parameters * prompt_tokens / rate
    # Decoding is bound by memory: every call reads all weights once, whatever the number of rows.
    weights = num_calls * (s.num_active_parameters + s.head_parameters) * workload.element_bytes / bandwidth
    caches = num_new * held_tokens * key_value_bytes(workload) / count / bandwidth
    logits = num_new * s.vocabulary_size * 4.0 * 4.0 / count / bandwidth  # softmax and draw: a few passes in fp32
    value = factors["products"] * products + factors["traffic"] * (caches + logits) + weights
    # forward alone: a third of a training pass's calls
    return value + factors["calls"] * calls_factor * num_calls * s.num_layers / 3.0


def rollout_seconds(workload: Workload, device: Device, factors: dict[str, float], spread: float) -> Estimate:
    """Seconds of drawing in one step.

    Args:
        factors: of `speed.step_seconds`, by which ideal seconds become real ones.
    """
    rollouts = workload.rollouts
    if rollouts is None:
        return Estimate(value=0.0, low=0.0, high=0.0)
    value = generation_seconds(
        workload,
        device,
        factors,
        num_answers=rollouts.num_answers,
        rows_at_once=rollouts.rows_at_once,
        prompt_tokens=rollouts.prompt_tokens,
        new_tokens=rollouts.new_tokens,
        # The cache grows by a token a call, so a new token meets half of the new ones on average.
        held_tokens=rollouts.most_tokens - rollouts.new_tokens / 2,
    )
    return Estimate(value=value, low=SHORTEST_SHARE * value / (1 + spread), high=value * (1 + spread))
