"""Cost of inference beside the steps of a run: the teacher's pass, evaluation on held-out rows.

The teacher takes one forward pass over every row. Answers are written as while a model trains
(ml/planning/rollout_cost.py).

In the evaluation the base, the base with each of its prompts, and the tuned model write an answer a row where a metric
compares texts, and score the row's own answer where one reads likelihoods. Where answers are labels, both also read
each row with each label. The interval reaches from answers as long as the references to answers of full length: a base
model often writes on to `max_new_tokens`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from luthier.core.estimate import Estimate
from luthier.core.plan import Plan
from luthier.core.results.cost import Device
from luthier.ml.evaluation.metrics.registry import needs_of
from luthier.ml.planning.rollout_cost import (
    CACHE_TOKENS,
    ROWS_AT_ONCE,
    Writer,
    generation_seconds,
    key_value_bytes,
    key_value_bytes_of,
)
from luthier.ml.prompting.reflection import MAX_ROUNDS, MINIBATCH, NUM_PROPOSALS, REFLECTION_SHARE

if TYPE_CHECKING:
    from luthier.ml.inference.models.structure import Structure
    from luthier.ml.planning.workload import Workload

Stored = Literal["float32", "bfloat16", "int8", "nf4"]
Compute = Literal["float32", "bfloat16"]


@dataclass(frozen=True, slots=True)
class TeacherPass:
    """A teacher's pass over all rows, forward only.

    Attributes:
        num_tokens: of training, replayed and validation rows together.
        num_learned: of these, the tokens of which states are kept.
        vocabulary_size: of its head, which stays in memory while the student learns.
        hidden_size: of its head.
    """

    num_parameters: int
    vocabulary_size: int
    hidden_size: int
    stored: Stored
    compute: Compute
    num_tokens: float
    num_learned: float

    @property
    def head_parameters(self) -> int:
        """Parameters of its head."""
        return self.vocabulary_size * self.hidden_size


def teacher_pass(plan: Plan) -> TeacherPass | None:
    """The pass of a plan's teacher; None where it has none."""
    teacher, replay = plan.objective.teacher, plan.data.replay
    splits = (plan.data.train, plan.data.validation, replay.rows if replay else None)
    if teacher is None:
        return None
    return TeacherPass(
        num_parameters=teacher.num_parameters,
        vocabulary_size=teacher.vocabulary_size,
        hidden_size=teacher.hidden_size,
        stored=teacher.quantisation or teacher.precision,
        compute=teacher.precision,
        num_tokens=sum(split.num_tokens for split in splits if split is not None),
        num_learned=sum(split.num_trained_tokens for split in splits if split is not None),
    )


LOGIT_ROWS: Final = 256
"""Positions whose logits are held at one time while scoring (ml/inference/likelihood.py; a test holds them equal)."""
_LOGIT_COPIES: Final = 3.0
"""Of such a block: as the head gives it, in fp32, and its log-softmax."""
_CACHE_COPIES: Final = 2.0
"""Prompts are read in parts, each with a separate cache, before all are copied into one
(ml/inference/kv_cache.py)."""
_SCORE_TOKENS: Final = 2048
WORKER_BYTES: Final = 100 << 20
"""Of a forked worker: pages of the interpreter that it has written to, and its own kernels."""
_ADAPTER_CALLS: Final = 2.0
"""An adapter that is not merged adds its own small products to each layer's call while answers are written."""
_LOADING_GB_PER_SECOND: Final = 0.5
_REQUEST_TOKENS: Final = 200.0
"""Of a request for a new instruction, beside the rows that it quotes."""
_INSTRUCTION_TOKENS: Final = 256.0
"""Of a new instruction: half of what a reflection model may write."""


@dataclass(frozen=True, slots=True)
class Judging:
    """The judging of one run.

    Attributes:
        num_rows: held-out rows that are evaluated.
        systems: adapters or not, of each system that is as large as the base (True: with the run's adapter).
        prompt_tokens: of a row, on average.
        reference_tokens: of a row, on average: its learned tokens.
        shot_tokens: of the examples before each prompt of a system; 0 without such a system.
        num_drawn: systems, behind the first, whose examples are the same for all rows and so computed once.
        num_nearest: systems, behind these, with other examples for each row.
        search_tokens: read and written by a search over prompts, those of a reflection model included.
        reflection_share: parameters of the model that writes new instructions for that search, as a share of the
            base's; 0 where a server has it, None without one.
        new_tokens: of an answer and the thought before it, at most.
        longest_tokens: of the longest prompt with examples and answer.
        writes: whether answers are written.
        scores: whether rows are scored.
        num_read: prompts that a task head reads, each once and without writing; 0 without one.
        num_labelled: rows with one label each as the answer, that models read to say how likely the label is.
        num_other_runs: runs that are evaluated with this one.
        teacher_share: parameters of a teacher that is evaluated with them, as a share of the base's; 0 without one.
        measures_kl: whether both models process the rows once more, to measure how far one moved from the other.
        num_loadings: how often weights as large as the base's are loaded, besides those of a teacher and of other runs.
        num_workers: processes that compute batches side by side, on a CPU.
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
    num_read: int = 0
    teacher_share: float = 0.0
    measures_kl: bool = False
    num_loadings: int = 2
    num_drawn: int = 1
    num_nearest: int = 0
    search_tokens: int = 0
    reflection_share: float | None = None
    num_labelled: int = 0
    num_other_runs: int = 0
    num_workers: int = 1

    def shots_of(self, place: int) -> tuple[float, float]:
        """Tokens of the examples of the system at a place: that are computed once, and before each prompt."""
        if 1 <= place <= self.num_drawn:
            return self.shot_tokens, 0.0
        return 0.0, self.shot_tokens if self.num_drawn < place <= self.num_drawn + self.num_nearest else 0.0

    @property
    def rows_at_once(self) -> int:
        """Answers that are written together."""
        fit = max(1, int(CACHE_TOKENS // max(1.0, self.longest_tokens)))
        return max(1, min(ROWS_AT_ONCE, fit, self.num_rows))

    @property
    def num_scored_tokens(self) -> float:
        """Tokens that are scored or read by a task head, as many as the base would have to for the same time."""
        row_tokens = self.prompt_tokens + self.reference_tokens
        tokens = self.num_rows * row_tokens
        read = self.num_read * self.prompt_tokens + self.num_labelled * row_tokens
        for_kl = 2.0 * tokens if self.measures_kl else 0.0
        if not self.scores:
            return read + for_kl
        shots = [self.shots_of(place) for place in range(len(self.systems))]
        # What all rows of a system begin with is computed once.
        added = sum(once + self.num_rows * own for once, own in shots)
        return read + tokens * (len(self.systems) + self.teacher_share) + added + for_kl


def judging_of(plan: Plan, *, base_parameters: int) -> Judging | None:
    """What a plan judges; None where it has no held-out rows."""
    held_out, evaluation = plan.data.held_out, plan.evaluation
    if held_out is None or not held_out.num_examples:
        return None
    count, reference = held_out.num_examples, held_out.num_trained_tokens / held_out.num_examples
    shots = evaluation.few_shot * plan.data.train.mean_tokens
    teacher = plan.objective.teacher
    needs, num_rows = needs_of(evaluation.metrics), min(count, evaluation.max_samples)
    writes = plan.objective.task_head is None
    num_drawn = evaluation.few_shot_draws if evaluation.few_shot else 0
    num_nearest = (evaluation.few_shot_nearest + evaluation.instruction_with_examples) if evaluation.few_shot else 0
    num_prompted = num_drawn + num_nearest + bool(evaluation.instruction) + bool(evaluation.optimised_prompt_tokens)
    is_adapted = plan.method.name != "full"
    # Without its trained embeddings and head a loaded model is not the base, which is loaded again for the KL.
    is_parted = bool(plan.method.modules_to_save) and writes
    other_runs = () if evaluation.reference_run is None else (is_adapted,)
    has_reflection = evaluation.optimised_prompt_tokens and evaluation.reflection_model is not None
    return Judging(
        num_rows=num_rows,
        # A task head reads each prompt once: it neither writes nor scores.
        systems=(False, *((False,) * num_prompted), *other_runs, *((is_adapted,) if writes else ())),
        num_read=0 if writes else num_rows,
        num_labelled=_num_labelled(plan, num_rows),
        num_other_runs=len(other_runs),
        prompt_tokens=max(0.0, held_out.num_tokens / count - reference),
        reference_tokens=reference,
        shot_tokens=shots,
        new_tokens=evaluation.max_new_tokens + evaluation.max_thinking_tokens,
        longest_tokens=held_out.max_tokens + shots + evaluation.max_new_tokens + evaluation.max_thinking_tokens,
        writes="text" in needs,
        scores=bool(needs - {"text"}),
        teacher_share=teacher.num_parameters / base_parameters if teacher and base_parameters else 0.0,
        num_drawn=num_drawn,
        num_nearest=num_nearest,
        search_tokens=evaluation.optimised_prompt_tokens,
        reflection_share=evaluation.reflection_parameters / max(1, base_parameters) if has_reflection else None,
        measures_kl=writes,  # a task head gives no distribution over tokens
        # An adapter is put over the base, which is loaded unless another model was in between, and off for the KL.
        num_loadings=1 + bool(other_runs or teacher) + is_parted if is_adapted else 2 + writes,
        num_workers=evaluation.num_workers,
    )


def _num_labelled(plan: Plan, num_rows: int) -> int:
    """Rows times labels that base and tuned model read, where labels are scored; a task head reads no labels.

    Args:
        plan: with the labels and the bar.
        num_rows: held-out rows that are evaluated.
    """
    from luthier.ml.evaluation.label_confidence import MIN_ROWS, is_accuracy

    num_labels, validation = plan.evaluation.num_scored_labels, plan.data.validation
    if plan.objective.task_head is not None or not num_labels:
        return num_labels * num_rows
    chooses = is_accuracy(plan.evaluation.good_enough)
    num_validation = validation.num_examples if chooses and validation is not None else 0
    return num_labels * (2 * num_rows + (num_validation if num_validation >= MIN_ROWS else 0))


def judging_seconds(
    workload: Workload, device: Device, scoring_seconds: float, factors: dict[str, float], spread: float
) -> Estimate:
    """Seconds of judging.

    Args:
        workload: the run, with what is evaluated of it.
        device: where it runs; several share the rows of training, not those of judging.
        scoring_seconds: of `num_scored_tokens`, forward only.
        factors: of `speed.step_seconds`.
        spread: relative half-width of the interval of what is computed.
    """
    judged = workload.judging
    if judged is None:
        return Estimate(value=0.0, low=0.0, high=0.0)
    alone = device.model_copy(update={"num_devices": 1})  # judging runs in one process
    loading = _loading_seconds(workload) * (judged.num_loadings + judged.teacher_share + judged.num_other_runs)
    ends = [
        loading + scoring_seconds + _writing(workload, alone, judged, factors, min(new, judged.new_tokens))
        # Answers end where the model ends them: from as long as the references to as long as they may be.
        for new in (judged.reference_tokens, (judged.reference_tokens + judged.new_tokens) / 2, judged.new_tokens)
    ]
    return Estimate(value=ends[1], low=ends[0] / (1 + spread), high=max(ends) * (1 + spread))


def _loading_seconds(workload: Workload) -> float:
    """Seconds of loading the base once."""
    return workload.structure.num_parameters * workload.element_bytes / 1e9 / _LOADING_GB_PER_SECOND


def batch_workers(structure: Structure, precision: Compute, num_threads: int, *, free_bytes: float) -> int:
    """How many processes compute batches of a loaded model side by side: one a thread, or one alone.

    Args:
        structure: of the model.
        precision: in which it computes.
        num_threads: that the process may use.
        free_bytes: what may be used besides the model.
    """
    element_bytes = 4.0 if precision == "float32" else 2.0
    cache = CACHE_TOKENS * key_value_bytes_of(structure, element_bytes) * _CACHE_COPIES
    logits = LOGIT_ROWS * structure.vocabulary_size * 4.0 * _LOGIT_COPIES
    prefill = _SCORE_TOKENS * structure.intermediate_size * element_bytes * 4.0
    return num_threads if num_threads * (max(cache, logits) + prefill + WORKER_BYTES) <= free_bytes else 1


def judging_bytes(workload: Workload) -> float:
    """Of one process during evaluation, besides the weights: keys and values of a batch twice, or a block of logits."""
    judged = workload.judging
    if judged is None:
        return 0.0
    cache = judged.rows_at_once * judged.longest_tokens * key_value_bytes(workload) if judged.writes else 0.0
    cache *= _CACHE_COPIES
    # For the distance to the base half as many positions are held of two models (`evaluation/kl_to_base`).
    holds_logits = judged.scores or judged.measures_kl or judged.num_labelled
    logits = LOGIT_ROWS * workload.structure.vocabulary_size * 4.0 * _LOGIT_COPIES if holds_logits else 0.0
    prefill = _SCORE_TOKENS * workload.structure.intermediate_size * workload.element_bytes * 4.0
    return max(cache, logits) + prefill


def _writing(
    workload: Workload, device: Device, judged: Judging, factors: dict[str, float], new_tokens: float
) -> float:
    if not judged.writes:
        return 0.0
    seconds = 0.0
    for place, is_adapted in enumerate(judged.systems):
        once, own = judged.shots_of(place)
        seconds += generation_seconds(
            Writer.of(workload),
            device,
            factors,
            num_answers=judged.num_rows,
            rows_at_once=judged.rows_at_once,
            prompt_tokens=judged.num_rows * (judged.prompt_tokens + own) + once,
            new_tokens=new_tokens,
            held_tokens=judged.prompt_tokens + once + own + new_tokens / 2,
            calls_factor=_ADAPTER_CALLS if is_adapted else 1.0,
        )
    return seconds * (1.0 + judged.teacher_share / len(judged.systems)) + _searching(
        workload, device, judged, factors, new_tokens
    )


def _searching(
    workload: Workload, device: Device, judged: Judging, factors: dict[str, float], new_tokens: float
) -> float:
    """Seconds of a search over prompts, as many answers as its budget holds."""
    read = judged.prompt_tokens + judged.shot_tokens
    shared = _Reflection.of(judged, new_tokens)
    num_answers = shared.base_tokens / max(1.0, read + new_tokens)
    if not num_answers:
        return 0.0
    seconds = generation_seconds(
        Writer.of(workload),
        device,
        factors,
        num_answers=num_answers,
        rows_at_once=judged.rows_at_once,
        prompt_tokens=num_answers * read,
        new_tokens=new_tokens,
        held_tokens=read + new_tokens / 2,
    )
    return seconds + _reflecting(workload, device, shared, factors, judged.reflection_share or 0.0)


class _Reflection(NamedTuple):
    """How the budget of a search is shared by the base and a reflection model.

    Attributes:
        base_tokens: read and written by the base.
        num_proposals: instructions that the reflection model is asked for.
        read_tokens: of one request for an instruction.
    """

    base_tokens: float
    num_proposals: float = 0.0
    read_tokens: float = 0.0

    @classmethod
    def of(cls, judged: Judging, new_tokens: float) -> _Reflection:
        """new_tokens: of an answer of the base.

        As if no new instruction did better: those that do answer further rows, which takes tokens from this model.
        """
        budget = float(judged.search_tokens)
        if judged.reflection_share is None:
            return cls(budget)
        # It reads a few rows with the base's answers and their own; before and after, the base answers these rows.
        read = _REQUEST_TOKENS + MINIBATCH * (judged.prompt_tokens + new_tokens + judged.reference_tokens)
        of_base = 2 * MINIBATCH * (judged.prompt_tokens + judged.shot_tokens + new_tokens)
        for_rounds = REFLECTION_SHARE * budget
        num = min(MAX_ROUNDS * NUM_PROPOSALS, for_rounds / (of_base + read + _INSTRUCTION_TOKENS))
        return cls(budget - for_rounds + num * of_base, num, read)


def _reflecting(
    workload: Workload, device: Device, asked: _Reflection, factors: dict[str, float], share: float
) -> float:
    """Seconds of a reflection model on this machine, which is so many times as large as the base; 0 behind a server."""
    if not share:
        return 0.0
    seconds = generation_seconds(
        Writer.of(workload),
        device,
        factors,
        num_answers=asked.num_proposals,
        rows_at_once=NUM_PROPOSALS,
        prompt_tokens=asked.num_proposals * asked.read_tokens,
        new_tokens=_INSTRUCTION_TOKENS,
        held_tokens=asked.read_tokens + _INSTRUCTION_TOKENS / 2,
    )
    # The two take turns in memory: in each round both are loaded.
    return share * seconds + asked.num_proposals / NUM_PROPOSALS * (1.0 + share) * _loading_seconds(workload)
