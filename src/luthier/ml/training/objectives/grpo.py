"""GRPO, reinforcement learning with graders: groups of sampled answers, their rewards and advantages.

The advantage of an answer is its reward minus the mean of its group, divided by the group's standard deviation; it
weights every token of the answer. Answers are sampled with the weights that the step then updates. With one update a
step the ratio of new to old probabilities is 1, and clipping would have no effect: it is omitted. With several
(`num_iterations`) the old probabilities are those that training computes before the first of them, and the loss is the
clipped one of equation 3.

The divergence from the model before its first step is estimated as in equation 4 (Schulman's k3). That model takes no
second copy in memory: only the initial values of the trained weights are stored and temporarily restored.

A few answers of each step are saved in the run's folder, so that a person can see what is rewarded. A step repeated
after a kill writes the same bytes again.

    samples/step-00000040.jsonl     all answers to the first two prompts of step 40, one per line

Sources: Shao et al., 2024, "DeepSeekMath", arXiv:2402.03300, section 4.1.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Final

import torch
from torch import Tensor

from luthier.core.dataset import TokenisedExample
from luthier.core.errors import RequestError
from luthier.core.plan import ObjectivePlan
from luthier.core.ports import Grade, Progress
from luthier.core.system.files import replace_text
from luthier.ml.inference.accelerator import widest_float
from luthier.ml.inference.models.templates.chat_template import ChatTemplate
from luthier.ml.training.model import MicroBatch, TrainableModel, collate
from luthier.ml.training.objective_protocol import NO_TOOLS, Batch, Losses, PlainObjective, Tools, Unit, rows_of
from luthier.ml.training.objectives.first_weights import FirstWeights
from luthier.ml.training.objectives.sampling import Sample, draw_samples

# Added to a group's standard deviation, so that nearly equal rewards do not produce huge advantages.
MIN_SPREAD: Final = 1e-4


@dataclass(slots=True, eq=False)
class Answer:
    """One sampled answer with its reward.

    Attributes:
        sample: the answer with its tokens.
        grade: its reward and the parts of it.
        advantage: its reward less the mean of its group, in standard deviations of the group unless the plan says
            otherwise.
        is_idle: all answers of its group have the same reward, so nothing is learned from it.
        is_masked: it was cut and is left out of the loss; its reward counts in its group.
        reference: log-probabilities of its tokens under the initial model.
        old: those before the first update with it; None where a step has one update, or has not begun.
    """

    sample: Sample
    grade: Grade
    advantage: float = 0.0
    is_idle: bool = False
    is_masked: bool = False
    reference: Tensor | None = None
    old: Tensor | None = None

    @property
    def row(self) -> TokenisedExample:
        """Prompt and answer as tokens."""
        return self.sample.tokens


@dataclass(frozen=True, slots=True)
class Group:
    """All answers to one prompt.

    Attributes:
        spread: sample standard deviation (n - 1) of their rewards.
    """

    answers: tuple[Answer, ...]
    spread: float

    @classmethod
    def of(cls, answers: Sequence[Answer], *, divide_by_spread: bool) -> Group:
        """The group with an advantage for each answer: reward minus mean, over the spread if `divide_by_spread`.

        Without the division, as Liu et al., 2025, "Understanding R1-Zero-Like Training", arXiv:2503.20783, section 3.2.
        """
        rewards = [answer.grade.reward for answer in answers]
        mean, spread = statistics.fmean(rewards), statistics.stdev(rewards)
        # By value, without a threshold: any difference in rewards is a signal.
        is_idle = max(rewards) == min(rewards)
        for answer, reward in zip(answers, rewards, strict=True):
            scale = spread + MIN_SPREAD if divide_by_spread else 1.0
            answer.advantage = 0.0 if is_idle else (reward - mean) / scale
            answer.is_idle = is_idle
        return cls(tuple(answers), 0.0 if is_idle else spread)

    @property
    def has_signal(self) -> bool:
        """Whether any answer has a higher reward than another."""
        return not self.answers[0].is_idle


@dataclass(frozen=True, slots=True)
class Step:
    """All groups of a step and their reported metrics.

    Attributes:
        with_idle: whether groups without signal are computed as well.
        may_fail: whether models or code grade, so that some answers may have no score of theirs.
    """

    groups: tuple[Group, ...]
    with_idle: bool = False
    may_fail: bool = False
    answers: dict[str, Answer] = field(init=False)

    def __post_init__(self) -> None:
        found = {answer.row.id: answer for group in self.groups for answer in group.answers}
        object.__setattr__(self, "answers", found)

    @property
    def num_computed_tokens(self) -> int:
        """Number of learned tokens that the model processes."""
        computed = [group for group in self.groups if self.with_idle or group.has_signal]
        return sum(answer.row.num_trained_tokens for group in computed for answer in group.answers)

    def measures(self, answers: Sequence[Answer], share: float, device: torch.device) -> dict[str, Tensor]:
        """The contribution of a micro-batch of these answers to the step's measures, each a mean over answers or
        groups.

        Args:
            answers: of the micro-batch.
            share: weight of the step for each of its answers: everything is finally divided by the weight of the step,
                and a sum over answers then becomes their mean.
            device: of the tensors.
        """
        sums = {
            "reward": sum(answer.grade.reward for answer in answers),
            "reward_spread": len(answers) * statistics.fmean(group.spread for group in self.groups),
            "no_signal_fraction": len(answers) * statistics.fmean(not group.has_signal for group in self.groups),
            "completion_tokens": sum(answer.sample.attempt.num_new_tokens for answer in answers),
            "truncated_fraction": sum(not answer.sample.attempt.ended for answer in answers),
        }
        if self.may_fail:
            sums["ungraded_fraction"] = sum(answer.grade.is_ungraded for answer in answers)
        if len(answers[0].grade.parts) > 1:
            for name in answers[0].grade.parts:
                sums[f"reward_{name}"] = sum(answer.grade.parts[name] for answer in answers)
        kind = widest_float(device)
        return {name: torch.tensor(value * share, dtype=kind, device=device) for name, value in sums.items()}


def make_batches(groups: Sequence[Group], *, micro_batch_tokens: int, shares_prefix: bool) -> list[Batch]:
    """Micro-batches of whole groups; each prompt is computed once for its answers where prefixes are shared.

    Groups without signal are batched separately, since they may be skipped.

    Args:
        groups: the answers to a prompt each.
        micro_batch_tokens: maximum tokens of a micro-batch, padding included; a larger group is split, and a longer
            answer becomes a micro-batch by itself.
        shares_prefix: whether a prompt is computed once for its answers.
    """
    made: list[Batch] = []
    for part in ([g for g in groups if g.has_signal], [g for g in groups if not g.has_signal]):
        made += (_shared if shares_prefix else _plain)(part, micro_batch_tokens)
    return made


def _plain(groups: Sequence[Group], micro_batch_tokens: int) -> list[Batch]:
    """Rows side by side, padded to the longest, the longest first."""
    rows = sorted((answer.row for group in groups for answer in group.answers), key=lambda row: -row.num_tokens)
    made: list[list[Unit]] = []
    for row in rows:
        # Sorted, so the first row of a micro-batch is the longest: all others are padded to it.
        if not made or made[-1][0][0].num_tokens * (len(made[-1]) + 1) > micro_batch_tokens:
            made.append([])
        made[-1].append((row,))
    return [(units, ()) for units in made]


def _shared(groups: Sequence[Group], micro_batch_tokens: int) -> list[Batch]:
    """Prompts and answers concatenated without padding: as many whole groups as fit, or a part of one."""
    made: list[Batch] = []
    current: list[Group] = []
    for group in groups:
        # Without padding, so the cost of a micro-batch is the sum of its tokens, each prompt counted once.
        if current and sum(map(_size, [*current, group])) > micro_batch_tokens:
            made.append(_together(current))
            current = []
        if _size(group) > micro_batch_tokens:
            made += _cut(group, micro_batch_tokens)
        else:
            current.append(group)
    return [*made, _together(current)] if current else made


def _size(group: Group) -> int:
    prompt = group.answers[0].sample.num_prompt_tokens
    # All answers of a group share the prompt, whose keys and values are computed once.
    return prompt + sum(answer.row.num_trained_tokens for answer in group.answers)


def _together(groups: Sequence[Group]) -> Batch:
    units = [(answer.row,) for group in groups for answer in group.answers]
    return units, tuple(group.answers[0].sample.num_prompt_tokens for group in groups)


def _cut(group: Group, micro_batch_tokens: int) -> list[Batch]:
    prompt = group.answers[0].sample.num_prompt_tokens
    made: list[list[Unit]] = []
    size = 0
    for answer in group.answers:
        if not made or size + answer.row.num_trained_tokens > micro_batch_tokens:
            # Each part of a group that was cut computes the prompt again.
            made.append([])
            size = prompt
        made[-1].append((answer.row,))
        size += answer.row.num_trained_tokens
    # A single answer shares its prompt with no other: it becomes a plain row.
    return [(units, (prompt,) if len(units) > 1 else ()) for units in made]


FOLDER: Final = "samples"
NUM_PROMPTS: Final = 2


def keep_samples(folder: Path, step: int, groups: Sequence[Group], template: ChatTemplate) -> None:
    """Write the answers to the first prompts of a step.

    Args:
        folder: the run's.
        step: of the answers.
        groups: the prompts of the step with their graded answers.
        template: decodes the prompts.

    Raises:
        StorageFullError: the disk has no room.
    """
    lines = []
    for group in groups[:NUM_PROMPTS]:
        first = group.answers[0]
        ids = first.row.input_ids[: first.sample.num_prompt_tokens].tolist()
        prompt = template.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        for answer in group.answers:
            line = {
                "step": step,
                "row_id": answer.sample.row_id,
                "prompt": prompt,
                "output": answer.sample.attempt.text,
                "reward": answer.grade.reward,
                "parts": answer.grade.parts,
                "advantage": answer.advantage,
                "num_new_tokens": answer.sample.attempt.num_new_tokens,
                "finish_reason": "stop" if answer.sample.attempt.ended else "length",
            }
            if answer.grade.is_ungraded:
                line["is_ungraded"] = True
            if answer.sample.attempt.tool_calls:
                line["tool_calls"] = answer.sample.attempt.tool_calls
            lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    replace_text(folder / FOLDER / f"step-{step:08d}.jsonl", "".join(lines))


class Grpo(PlainObjective):
    """Maximise the reward of sampled answers. A unit is a prompt when given and an answer once sampled.

    Attributes:
        drawn: the answers of the most recently sampled step.
        validated: those of the last validation, by their rows' ids.

    Raises:
        RequestError: the run provides no template or no grading.
    """

    loss_tells_overfitting: ClassVar[bool] = False

    def __init__(self, plan: ObjectivePlan, tools: Tools = NO_TOOLS) -> None:
        super().__init__(plan, tools)
        if tools.template is None or tools.grade is None:
            raise RequestError(
                "objective grpo without a template or without rewards",
                expected="what ends an answer, and what it is worth",
                do="name objective.rewards in the recipe",
            )
        self._template: ChatTemplate = tools.template
        self._grade = tools.grade
        self._num_samples, self._max_new_tokens = int(plan.num_samples or 0), int(plan.max_new_tokens or 0)
        self._temperature, self._kl_weight = float(plan.temperature or 1.0), float(plan.kl_weight or 0.0)
        self._is_reused = int(plan.num_iterations or 1) > 1
        self._range = (1.0 - float(plan.clip_ratio_low or 0.0), 1.0 + float(plan.clip_ratio_high or 0.0))
        """The ratios of new to old probability between which a step may move a token."""
        self._may_fail = any(reward.judges or reward.code for reward in plan.rewards or ())
        self.drawn = Step(())
        self._left_out: frozenset[str] = frozenset()
        """Ids of masked answers, which the divisor does not count; empty where there are no others."""
        self._totals: dict[str, float] = {}
        """Weight, answers and computed tokens of the step, of all processes."""
        self.validated: dict[str, Answer] = {}
        self._first: FirstWeights | None = None
        self._folder: Path | None = None

    def prepare(self, model: TrainableModel, units: Sequence[Unit], folder: Path, progress: Progress) -> None:  # noqa: ARG002
        """Store the initial trained weights if the loss includes a divergence from them."""
        self._folder = folder
        if self._kl_weight:
            self._first = FirstWeights(model)

    def draw(self, model: TrainableModel, step: int, batches: Sequence[Batch]) -> Sequence[Batch]:
        """Answers to the prompts of the step, graded, in micro-batches of whole groups."""
        answers = self._answers(model, batches, self._num_samples, self._temperature, step)
        groups = [Group.of(group, divide_by_spread=self.plan.divide_by_spread is not False) for group in answers]
        self.drawn = Step(tuple(groups), with_idle=self._kl_weight > 0, may_fail=self._may_fail)
        self.validated = {}
        for answer in self.drawn.answers.values():
            answer.is_masked = bool(self.plan.mask_truncated) and not answer.sample.attempt.ended
        rows: list[Unit] = [(answer.row,) for group in groups for answer in group.answers]
        self._left_out = frozenset(name for name, answer in self.drawn.answers.items() if answer.is_masked)
        own = {"weight": self.weight(rows), "answers": len(rows), "computed_tokens": self.drawn.num_computed_tokens}
        # Processes have answers of different lengths: with their own weights alone, reported means would not be those
        # over all answers.
        self._totals = self.tools.over_ranks(own)
        if not self._totals["weight"]:  # on all ranks: every answer was cut, and the loss is 0 by any divisor
            self._left_out = frozenset()
            self._totals = self.tools.over_ranks(own | {"weight": self.weight(rows)})
        if self._folder is not None and self.tools.writes_files:
            keep_samples(self._folder, step + 1, groups, self._template)
        made = make_batches(groups, micro_batch_tokens=model.micro_batch_tokens, shares_prefix=model.shares_prefix)
        if self._kl_weight:
            self._add_reference(model, made)
        return made

    def draw_validation(self, model: TrainableModel, batches: Sequence[Batch]) -> Sequence[Batch]:
        """The greedy answer to each prompt: validation measures its reward."""
        answers = [group[0] for group in self._answers(model, batches, 1, 0.0, 0)]
        self.validated = {answer.row.id: answer for answer in answers}
        # Micro-batches as they were given: each holds rows of one source, whose rewards are reported apart.
        ready = iter(answers)
        return [([(next(ready).row,) for _ in rows_of(units)], ()) for units, _ in batches]

    def weight(self, units: Sequence[Unit]) -> float:
        """All trained tokens of the answers, or the number of answers, depending on the plan's loss weighting."""
        rows = rows_of(units)
        if rows and rows[0].id in self.validated:
            return float(len(rows))
        if self.plan.loss_weighting == "token":
            return super().weight([(row,) for row in rows if row.id not in self._left_out])
        return float(len(rows)) * (self._max_new_tokens if self.plan.loss_weighting == "fixed" else 1)

    def losses(self, model: TrainableModel, units: Sequence[Unit], batch: MicroBatch) -> Losses:
        """The loss of equation 3 of the paper, clipped where answers are used again; in validation the negative reward.

        Answers of a group with equal rewards contribute nothing and are not computed.
        """
        rows = rows_of(units)
        if rows[0].id in self.validated:
            answers = [self.validated[row.id] for row in rows]
            return _validated(answers, batch.targets.device, may_fail=self._may_fail)
        answers = [self.drawn.answers[row.id] for row in rows]
        scale = self._totals["weight"]
        share = scale / self._totals["answers"]
        if not self._kl_weight and all(answer.is_idle for answer in answers):
            # A leaf that requires a gradient, so that the caller's backward() succeeds.
            nothing = torch.zeros((), device=batch.targets.device, requires_grad=True)
            return Losses(nothing, self.drawn.measures(answers, share, nothing.device))
        # N: the learned tokens of all answers of the micro-batch, one after the other.
        logits = model.logit_rows(batch)
        new = logits.token_log_probabilities(batch.targets, self._temperature)  # [N]
        counts = torch.tensor(batch.learned, device=new.device)
        advantage = _of_tokens([answer.advantage for answer in answers], counts, new)
        old = _old_of(answers, new, batch.learned) if self._is_reused else new.detach()
        # In the first update the ratio is 1 in value; its gradient is that of log p, so this is the policy gradient.
        ratio = (new - old).exp()
        loss = -advantage * ratio
        entropy = logits.detach().entropy_sum(self._temperature)
        sums = {"entropy": entropy, "sampling_gap": self._gap(answers, old)}
        if self._is_reused:
            clipped = -advantage * ratio.clamp(*self._range)
            # Where the clipped loss is above the other one it has no gradient: the token has moved far enough.
            sums["clipped_fraction"] = (clipped.detach() > loss.detach()).to(new.dtype).sum()
            loss = torch.maximum(loss, clipped)
        if self._kl_weight:
            further = torch.cat([answer.reference for answer in answers if answer.reference is not None]).to(new) - new
            # k3: with r = log(reference / new), exp(r) - r - 1 is never negative and has KL(new || reference) as mean.
            divergence = further.exp() - further - 1
            loss = loss + self._kl_weight * divergence
            sums["kl"] = divergence.detach().sum()
        if any(answer.is_masked for answer in answers):
            loss = loss * _of_tokens([float(not answer.is_masked) for answer in answers], counts, new)
        if self.plan.loss_weighting == "sample":
            loss = loss / _of_tokens(counts.tolist(), counts, new)
        measures = self.drawn.measures(answers, share, new.device)
        # The loop divides by `scale`; these sums are means over the computed tokens.
        measures |= {name: value * (scale / self._totals["computed_tokens"]) for name, value in sums.items()}
        return Losses(loss.sum(), measures)

    def _answers(
        self, model: TrainableModel, batches: Sequence[Batch], num_samples: int, temperature: float, step: int
    ) -> list[list[Answer]]:
        rows = [row for units, _ in batches for row in rows_of(units)]
        groups = draw_samples(
            model,
            self._template,
            rows,
            num_samples=num_samples,
            max_new_tokens=self._max_new_tokens,
            temperature=temperature,
            seed=f"{self.tools.seed} {step}",
            prompts=self.tools.prompts,
        )
        grades: list[Grade] = self._grade([sample.attempt for group in groups for sample in group])
        ready = iter(grades)
        return [[Answer(sample, next(ready)) for sample in group] for group in groups]

    def _gap(self, answers: Sequence[Answer], old: Tensor) -> Tensor:
        """Difference of training and sampling log-probabilities of one answer, summed over its tokens."""
        drawn = [value for answer in answers for value in answer.sample.log_probabilities]
        return (old - torch.tensor(drawn, dtype=old.dtype, device=old.device)).abs().sum()

    @torch.no_grad()
    def _add_reference(self, model: TrainableModel, batches: Sequence[Batch]) -> None:
        """The log-probabilities of all answers under the initial model."""
        assert self._first is not None
        model.module.eval()
        with self._first.restored(model):
            for units, prefix_lengths in batches:
                rows = rows_of(units)
                batch = collate(rows, model.pad_id, model.device, prefix_lengths=prefix_lengths)
                found = model.log_probabilities(batch, self._temperature)
                for row, part in zip(rows, found.split(batch.learned), strict=True):
                    self.drawn.answers[row.id].reference = part


def _old_of(answers: Sequence[Answer], new: Tensor, lengths: Sequence[int]) -> Tensor:
    """The log-probabilities before the first update with these answers, which is the one that finds none there."""
    for answer, part in zip(answers, new.detach().split(list(lengths)), strict=True):
        if answer.old is None:
            answer.old = part
    return torch.cat([answer.old for answer in answers if answer.old is not None])


def _of_tokens(values: Sequence[float], counts: Tensor, like: Tensor) -> Tensor:
    """The value of each answer, repeated for each of its tokens."""
    return torch.tensor(values, dtype=like.dtype, device=like.device).repeat_interleave(counts)


def _validated(answers: Sequence[Answer], device: torch.device, *, may_fail: bool) -> Losses:
    sums = {
        "reward": sum(answer.grade.reward for answer in answers),
        "completion_tokens": sum(answer.sample.attempt.num_new_tokens for answer in answers),
        "truncated_fraction": sum(not answer.sample.attempt.ended for answer in answers),
    }
    if may_fail:
        sums["ungraded_fraction"] = sum(answer.grade.is_ungraded for answer in answers)
    kind = widest_float(device)
    measures = {name: torch.tensor(float(value), dtype=kind, device=device) for name, value in sums.items()}
    return Losses(-measures["reward"], measures)
