"""What judging a run takes: base, base with examples in its prompt, and tuned model on the held-out rows.

Each system writes an answer a row where a metric compares texts, and scores the row's own answer where one reads
likelihoods. How long answers will be is not known before: a base model often writes on to `max_new_tokens`, a tuned
one about as much as the references. The interval reaches from answers like the references to answers as long as they
may be.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from luthier.core.cost import Device, Estimate
from luthier.core.plan import Plan
from luthier.ml.evaluation.metrics.registry import needs_of
from luthier.ml.planning.rollout_cost import CACHE_TOKENS, ROWS_AT_ONCE, generation_seconds, key_value_bytes

if TYPE_CHECKING:
    from luthier.ml.planning.workload import Workload

LOGIT_ROWS: Final = 256
"""Positions whose logits are held at one time while scoring (ml/inference/likelihood.py; a test holds them equal)."""
_LOGIT_COPIES: Final = 3.0
"""Of such a block: as the head gives it, in fp32, and its log-softmax."""
_CACHE_COPIES: Final = 2.0
"""Prompts go in by parts, each with a cache of its own, before all are laid into one
(ml/inference/preallocated_kv_cache.py)."""
_SCORE_TOKENS: Final = 2048
_ADAPTER_CALLS: Final = 2.0
"""An adapter that is not merged adds its own small products to each layer's call while answers are written."""
_LOADING_GB_PER_SECOND: Final = 0.5


@dataclass(frozen=True, slots=True)
class Judging:
    """The judging of one run.

    Attributes:
        num_rows: held-out rows that are judged.
        systems: adapters or not, of each system that is as large as the base (True: with the run's adapter).
        prompt_tokens, reference_tokens: of a row, on average; the learned ones are the reference.
        shot_tokens: of the examples before each prompt of one system, computed once; 0 without such a system.
        new_tokens: of an answer and the thought before it, at most.
        longest_tokens: of the longest prompt with examples and answer.
        writes, scores: whether answers are written and rows are scored.
        teacher_share: parameters of a teacher that is judged beside them, as a share of the base's; 0 without one.
    """

    num_rows: int
    systems: tuple[bool, ...]
    prompt_tokens: float
    reference_tokens: float
    shot_tokens: float
    new_tokens: int
    longest_tokens: float
    writes: bool
    scores: bool
    teacher_share: float = 0.0

    @property
    def rows_at_once(self) -> int:
        """Answers that are written together."""
        fit = max(1, int(CACHE_TOKENS // max(1.0, self.longest_tokens)))
        return max(1, min(ROWS_AT_ONCE, fit, self.num_rows))

    @property
    def num_scored_tokens(self) -> float:
        """Tokens that are scored, as many as the base would have to for the same time; 0 where nothing is scored."""
        if not self.scores:
            return 0.0
        tokens = self.num_rows * (self.prompt_tokens + self.reference_tokens)
        return tokens * (len(self.systems) + self.teacher_share) + self.shot_tokens  # what all begin with, once


def judging_of(plan: Plan, *, base_parameters: int) -> Judging | None:
    """What a plan judges; None where it has no held-out rows."""
    held_out, evaluation = plan.data.held_out, plan.evaluation
    if held_out is None or not held_out.num_examples:
        return None
    count = held_out.num_examples
    reference = held_out.num_trained_tokens / count
    shots = evaluation.few_shot * plan.data.train.mean_tokens
    teacher = plan.objective.teacher
    needs = needs_of(evaluation.metrics)
    return Judging(
        num_rows=min(count, evaluation.max_samples),
        systems=(False, *((False,) if evaluation.few_shot else ()), plan.method.name != "full"),
        prompt_tokens=max(0.0, held_out.num_tokens / count - reference),
        reference_tokens=reference,
        shot_tokens=shots,
        new_tokens=evaluation.max_new_tokens + evaluation.max_thinking_tokens,
        longest_tokens=held_out.max_tokens + shots + evaluation.max_new_tokens + evaluation.max_thinking_tokens,
        writes="text" in needs,
        scores=bool(needs - {"text"}),
        teacher_share=teacher.num_parameters / base_parameters if teacher and base_parameters else 0.0,
    )


def judging_seconds(
    workload: Workload, device: Device, scoring_seconds: float, factors: dict[str, float], spread: float
) -> Estimate:
    """Seconds of judging.

    Args:
        workload: the run, with what is judged of it.
        device: where it runs; several share the rows of training, not those of judging.
        scoring_seconds: of `num_scored_tokens`, forward only.
        factors: of `speed.step_seconds`.
        spread: relative half-width of the interval of what is computed.
    """
    judged = workload.judging
    if judged is None:
        return Estimate(value=0.0, low=0.0, high=0.0)
    # Judging runs in one process: more devices make it no faster.
    alone = device.model_copy(update={"num_devices": 1})
    loading = workload.structure.num_parameters * workload.element_bytes / 1e9 / _LOADING_GB_PER_SECOND
    loading *= 2.0 + judged.teacher_share  # base and tuned model are loaded one after the other
    ends = [
        loading + scoring_seconds + _writing(workload, alone, judged, factors, min(new, judged.new_tokens))
        # Answers end where the model ends them: from as long as the references to as long as they may be.
        for new in (judged.reference_tokens, (judged.reference_tokens + judged.new_tokens) / 2, judged.new_tokens)
    ]
    return Estimate(value=ends[1], low=ends[0] / (1 + spread), high=max(ends) * (1 + spread))


def judging_bytes(workload: Workload) -> float:
    """Bytes beside the weights while judging: keys and values of a batch twice, or logits of a block of positions."""
    judged = workload.judging
    if judged is None:
        return 0.0
    cache = judged.rows_at_once * judged.longest_tokens * key_value_bytes(workload) if judged.writes else 0.0
    cache *= _CACHE_COPIES
    logits = LOGIT_ROWS * workload.structure.vocabulary_size * 4.0 * _LOGIT_COPIES if judged.scores else 0.0
    prefill = _SCORE_TOKENS * workload.structure.intermediate_size * workload.element_bytes * 4.0
    return max(cache, logits) + prefill


def _writing(
    workload: Workload, device: Device, judged: Judging, factors: dict[str, float], new_tokens: float
) -> float:
    if not judged.writes:
        return 0.0
    seconds = 0.0
    for place, is_adapted in enumerate(judged.systems):
        # The order of `systems`: the base, the base with examples, the tuned model.
        has_shots = judged.shot_tokens > 0 and place == 1
        shots = judged.shot_tokens if has_shots else 0.0
        seconds += generation_seconds(
            workload,
            device,
            factors,
            num_answers=judged.num_rows,
            rows_at_once=judged.rows_at_once,
            prompt_tokens=judged.num_rows * judged.prompt_tokens + shots,
            new_tokens=new_tokens,
            held_tokens=judged.prompt_tokens + shots + new_tokens / 2,
            calls_factor=_ADAPTER_CALLS if is_adapted else 1.0,
        )
    return seconds * (1.0 + judged.teacher_share / len(judged.systems))
