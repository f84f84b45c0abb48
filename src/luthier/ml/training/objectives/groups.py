"""Answers to one prompt, what each is worth beside the others, and how they go into micro-batches."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import torch
from torch import Tensor

from luthier.core.dataset import TokenisedExample
from luthier.core.ports import Grade
from luthier.ml.training.objective_protocol import Batch, Unit
from luthier.ml.training.objectives.sampling import Sample

# Added to a group's spread, so that rewards which hardly differ are not blown up to any size.
MIN_SPREAD: Final = 1e-4


@dataclass(slots=True, eq=False)
class Answer:
    """One drawn answer with its grade.

    Attributes:
        is_idle: its whole group is worth the same, so nothing is learned from it.
        reference: log-probabilities of its tokens by the model as it was at first.
    """

    sample: Sample
    grade: Grade
    advantage: float = 0.0
    is_idle: bool = False
    reference: Tensor | None = None

    @property
    def row(self) -> TokenisedExample:
        """Prompt and answer as tokens."""
        return self.sample.tokens


@dataclass(frozen=True, slots=True)
class Group:
    """All answers to one prompt.

    Attributes:
        spread: standard deviation of their rewards, of a sample (n - 1).
    """

    answers: tuple[Answer, ...]
    spread: float

    @classmethod
    def of(cls, answers: Sequence[Answer], *, divide_by_spread: bool) -> Group:
        """The group with an advantage for each answer: reward less mean, over the spread if `divide_by_spread`.

        Without the division, as Liu et al., 2025, "Understanding R1-Zero-Like Training", arXiv:2503.20783, section 3.2.
        """
        rewards = [answer.grade.reward for answer in answers]
        mean, spread = statistics.fmean(rewards), statistics.stdev(rewards)
        # By value, with no threshold: rewards that differ at all are a signal.
        is_idle = max(rewards) == min(rewards)
        for answer, reward in zip(answers, rewards, strict=True):
            scale = spread + MIN_SPREAD if divide_by_spread else 1.0
            answer.advantage = 0.0 if is_idle else (reward - mean) / scale
            answer.is_idle = is_idle
        return cls(tuple(answers), 0.0 if is_idle else spread)

    @property
    def has_signal(self) -> bool:
        """Whether any answer is worth more than another."""
        return not self.answers[0].is_idle


@dataclass(frozen=True, slots=True)
class Step:
    """All groups of a step, and the figures reported about them.

    Attributes:
        with_idle: groups without signal are computed, too.
    """

    groups: tuple[Group, ...]
    with_idle: bool = False
    answers: dict[str, Answer] = field(init=False)

    def __post_init__(self) -> None:
        found = {answer.row.id: answer for group in self.groups for answer in group.answers}
        object.__setattr__(self, "answers", found)

    @property
    def num_computed_tokens(self) -> int:
        """Learned tokens that go through the model."""
        computed = [group for group in self.groups if self.with_idle or group.has_signal]
        return sum(answer.row.num_trained_tokens for group in computed for answer in group.answers)

    def weight(self, of: Callable[[Sequence[Unit]], float]) -> float:
        """The weight of the whole step, as the objective computes it."""
        return of([(answer.row,) for answer in self.answers.values()])

    def measures(self, answers: Sequence[Answer], weight: float, device: torch.device) -> dict[str, Tensor]:
        """What a micro-batch of these answers adds to the step's measures, each a mean over answers or over groups.

        Args:
            weight: of the whole step, by which all is divided in the end.
        """
        share = weight / len(self.answers)
        sums = {
            "reward": sum(answer.grade.reward for answer in answers),
            "reward_spread": len(answers) * statistics.fmean(group.spread for group in self.groups),
            "no_signal_fraction": len(answers) * statistics.fmean(not group.has_signal for group in self.groups),
            "completion_tokens": sum(answer.sample.attempt.num_new_tokens for answer in answers),
            "truncated_fraction": sum(not answer.sample.attempt.ended for answer in answers),
        }
        if len(answers[0].grade.parts) > 1:
            for name in answers[0].grade.parts:
                sums[f"reward_{name}"] = sum(answer.grade.parts[name] for answer in answers)
        return {name: torch.tensor(value * share, dtype=torch.float64, device=device) for name, value in sums.items()}


def make_batches(groups: Sequence[Group], *, micro_batch_tokens: int, shares_prefix: bool) -> list[Batch]:
    """Micro-batches of whole groups, each prompt computed once for its answers where that is shared.

    Groups without signal are kept apart, since they may be left out.

    Args:
        micro_batch_tokens: most tokens of a micro-batch, padding included; a group that is larger is cut, and a longer
            answer is a group of its own.
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
    """Prompts and answers one after another without padding: as many whole groups as fit, or a part of one."""
    made: list[Batch] = []
    current: list[Group] = []
    for group in groups:
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
            made.append([])
            size = prompt
        made[-1].append((answer.row,))
        size += answer.row.num_trained_tokens
    # A single answer has no one to share its prompt with: it goes as a plain row.
    return [(units, (prompt,) if len(units) > 1 else ()) for units in made]
