"""Cost of the answers that a run learns from: writing them, and having models grade them.

A token of a batch reads every weight once for any number of rows, multiplies it with each row, and reads the keys and
values of each row. How long answers and replies will be is not known before: figures are for the longest ones that may
be; the interval reaches down to answers of a tenth of that and to replies of two tokens, a digit and its end.

Source: Pope et al., 2022, "Efficiently Scaling Transformer Inference", arXiv:2211.05102, section 2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from luthier.core.estimate import Estimate
from luthier.core.plan import ObjectivePlan
from luthier.core.results.cost import Device

if TYPE_CHECKING:
    from luthier.ml.inference.models.structure import Structure
    from luthier.ml.planning.workload import Workload

ROWS_AT_ONCE: Final = 32
"""Answers that are written together at most (ml/inference/batch_generate.py; a test holds them equal)."""
CACHE_TOKENS: Final = 16_384
"""Tokens whose keys and values such a batch holds at most: rows x longest (ml/inference/batch_generate.py)."""
SHORTEST_SHARE: Final = 0.1
"""Of the longest answers that may be: the lower end of what is expected."""
JUDGE_SPACE: Final = 1.25
"""Memory of a model that grades, in times of its weights: it stays loaded while another one trains."""
_SHORTEST_REPLY: Final = 2


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
        return _rows_at_once(self.most_tokens, self.num_answers)


def _rows_at_once(longest_tokens: float, num_answers: float) -> int:
    fit = max(1, int(CACHE_TOKENS // max(1.0, longest_tokens)))
    return max(1, min(ROWS_AT_ONCE, fit, math.ceil(num_answers)))


@dataclass(frozen=True, slots=True)
class Writer:
    """A model that writes, as far as its time depends on it.

    Attributes:
        num_parameters: that a token meets, without the output head.
        head_parameters: of the output head.
        key_value_bytes: of one token, in all layers.
        element_bytes: of a weight, and of an activation.
    """

    num_parameters: int
    head_parameters: int
    num_layers: int
    vocabulary_size: int
    key_value_bytes: float
    element_bytes: float
    compute: Literal["float32", "bfloat16"]

    @classmethod
    def of(cls, workload: Workload) -> Writer:
        """The model that a run trains."""
        s = workload.structure
        return cls(
            num_parameters=s.num_active_parameters,
            head_parameters=s.head_parameters,
            num_layers=s.num_layers,
            vocabulary_size=s.vocabulary_size,
            key_value_bytes=key_value_bytes(workload),
            element_bytes=workload.element_bytes,
            compute=workload.compute,
        )


@dataclass(frozen=True, slots=True)
class Grading:
    """What one grader that asks a model takes, all devices together.

    Attributes:
        writer: the model that is asked.
        num_questions: of a step: one about each answer.
        prompt_tokens: of a question, without the answer in it.
        read_tokens: of the answer in a question, as long as it may be.
        new_tokens: of a reply, at most.
    """

    writer: Writer
    num_questions: float
    prompt_tokens: float
    read_tokens: float
    new_tokens: int


def gradings_of(objective: ObjectivePlan, rollouts: Rollouts | None) -> tuple[Grading, ...]:
    """What each grader of a plan that asks a model takes; none where its questions were not counted.

    Args:
        objective: of the plan.
        rollouts: the answers of a step.
    """
    judges = {judge.name: judge for judge in objective.judges or ()}
    if rollouts is None:
        return ()
    found = []
    for load in objective.grading or ():
        judge = judges[load.judge]
        element_bytes = 4.0 if judge.precision == "float32" else 2.0
        head = judge.hidden_size * judge.vocabulary_size
        writer = Writer(
            num_parameters=load.num_active_parameters,
            head_parameters=head,
            num_layers=load.num_layers,
            vocabulary_size=judge.vocabulary_size,
            key_value_bytes=load.key_value_width * element_bytes,
            element_bytes=element_bytes,
            compute=judge.precision,
        )
        found.append(
            Grading(
                writer=writer,
                num_questions=rollouts.num_answers,
                prompt_tokens=load.prompt_tokens,
                read_tokens=float(load.answers_read * rollouts.new_tokens),
                new_tokens=load.new_tokens,
            )
        )
    return tuple(found)


def judges_bytes(objective: ObjectivePlan) -> float:
    """Bytes of the models that grade, which stay loaded while the run trains."""
    from luthier.ml.planning.workload import BYTES

    return sum(
        JUDGE_SPACE * judge.num_parameters * BYTES[judge.quantisation or judge.precision]
        for judge in objective.judges or ()
    )


def cache_bytes(workload: Workload) -> float:
    """Keys and values of all layers for the answers that are written together, as long as they may be."""
    if workload.rollouts is None:
        return 0.0
    return workload.rollouts.rows_at_once * workload.rollouts.most_tokens * key_value_bytes(workload)


def key_value_bytes(workload: Workload) -> float:
    """Of one token, in all layers."""
    return key_value_bytes_of(workload.structure, workload.element_bytes)


def key_value_bytes_of(s: Structure, element_bytes: float) -> float:
    """Of one token, in all layers of a model.

    Args:
        s: of the model.
        element_bytes: of one number.
    """
    return 2.0 * s.num_layers * s.num_kv_heads * s.head_size * element_bytes


def generation_seconds(
    writer: Writer,
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
        writer: the model that writes.
        device: where it runs.
        factors: of `speed.step_seconds`, which turn ideal seconds into real ones.
        num_answers: to be written.
        rows_at_once: answers of one batch.
        prompt_tokens: of all prompts together, computed once each.
        new_tokens: of the longest answer in a batch.
        held_tokens: whose keys and values an answer reads for each of its tokens, on average.
        calls_factor: how many times a layer's call takes what it takes without adapters.
    """
    count = float(device.num_devices)
    rate = (device.float32_tflops if writer.compute == "float32" else device.bfloat16_tflops) * 1e12 * count
    bandwidth = device.memory_gb_per_second * 1e9
    num_new = num_answers * new_tokens
    # Each device writes its share of the batches; a batch takes one call of the model for each new token.
    num_calls = math.ceil(num_answers / rows_at_once / count) * new_tokens
    # A parameter takes a multiply and an add for each token; the head only forms logits of new tokens.
    products = 2.0 * (writer.num_parameters + writer.head_parameters) * num_new / rate
    products += 2.0 * writer.num_parameters * prompt_tokens / rate
    # Decoding is bound by memory: every call reads all weights once for any number of rows.
    weights = num_calls * (writer.num_parameters + writer.head_parameters) * writer.element_bytes / bandwidth
    caches = num_new * held_tokens * writer.key_value_bytes / count / bandwidth
    logits = num_new * writer.vocabulary_size * 4.0 * 4.0 / count / bandwidth  # softmax and draw: a few passes in fp32
    value = factors["products"] * products + factors["traffic"] * (caches + logits) + weights
    return value + factors["calls"] * calls_factor * num_calls * writer.num_layers / 3.0  # forward: a third of calls


def rollout_seconds(workload: Workload, device: Device, factors: dict[str, float], spread: float) -> Estimate:
    """Seconds of drawing in one step.

    Args:
        workload, device: the run and where it runs.
        factors, spread: of `speed.step_seconds`: from ideal seconds to real ones, and how far these may be off.
    """
    rollouts = workload.rollouts
    if rollouts is None:
        return Estimate(value=0.0, low=0.0, high=0.0)
    value = generation_seconds(
        Writer.of(workload),
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


def grading_seconds(workload: Workload, device: Device, factors: dict[str, float], spread: float) -> Estimate:
    """Seconds of grading by models in one step; those of questions that are asked again are not in it.

    Args:
        workload, device: the run and where it runs.
        factors, spread: of `speed.step_seconds`: from ideal seconds to real ones, and how far these may be off.
    """
    value = low = 0.0
    for one in workload.gradings:
        value += _grading_seconds(one, device, factors, one.read_tokens, one.new_tokens)
        shortest = min(_SHORTEST_REPLY, one.new_tokens)
        low += _grading_seconds(one, device, factors, SHORTEST_SHARE * one.read_tokens, shortest)
    return Estimate(value=value, low=low / (1 + spread), high=value * (1 + spread))


def _grading_seconds(
    grading: Grading, device: Device, factors: dict[str, float], read_tokens: float, new_tokens: int
) -> float:
    asked = grading.prompt_tokens + read_tokens
    return generation_seconds(
        grading.writer,
        device,
        factors,
        num_answers=grading.num_questions,
        rows_at_once=_rows_at_once(asked + new_tokens, grading.num_questions),
        prompt_tokens=grading.num_questions * asked,
        new_tokens=new_tokens,
        held_tokens=asked + new_tokens / 2,
    )
