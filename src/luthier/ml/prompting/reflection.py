"""New instructions for a prompt, which a reflection model writes from mistakes on training rows.

An instruction answers a few training rows. The reflection model reads these rows with the answers, and writes another
instruction. It is kept if it does better on the same rows, and then answers the validation rows as well. The next
instructions start from those that are the best on some validation row, however they do on the others: each of them
knows something that the rest do not (a Pareto front over rows).

A round makes several proposals, so that base model and reflection model are loaded once a round and not once a
proposal. The budget counts the tokens of both, and no request is sent that could exceed it.

Source: Agrawal et al., "GEPA: Reflective Prompt Evolution Can Outperform Reinforcement Learning", 2025,
arXiv:2507.19457, algorithms 1 and 2. Merging two instructions is left out: it combines the parts of prompts that have
several.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Final, NamedTuple

import numpy as np

from luthier.core.conversation import Conversation, Message
from luthier.core.errors import LuthierError
from luthier.core.ports import Generation, Progress, Prompt
from luthier.ml.evaluation.metrics.protocol import Array, MetricDefinition, Observations
from luthier.ml.evaluation.systems import SystemUnderTest
from luthier.ml.prompting.search import generation_tokens, max_cost

REFLECTION_SHARE: Final = 2 / 3
"""Of the budget of a search: for new instructions, where a model writes some."""
MINIBATCH: Final = 4
"""Training rows that a proposal is made from, and held against."""
NUM_PROPOSALS: Final = 3
"""Of a round."""
MAX_INSTRUCTION_TOKENS: Final = 512
"""That the reflection model may write, a thought before the instruction included."""
MAX_INSTRUCTION_CHARACTERS: Final = 2_000
MAX_ROUNDS: Final = 20
_MAX_IDLE_ROUNDS: Final = 3
"""Rounds in a row without a new instruction, after which nothing is expected of further ones."""
_LEAST_ROWS: Final = 8
_FULL_ANSWERS: Final = 6
"""This many instructions should be able to answer all validation rows that are used."""
_SHOWN_PROMPT, _SHOWN_ANSWER = 1_200, 400
"""Characters of a row that the reflection model reads; the middle of longer texts is left out."""
_WRITTEN: Final = re.compile(r"<instruction>\s*(.*?)\s*(?:</instruction>|\Z)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Reflector:
    """A model that writes instructions.

    Attributes:
        name: of the model.
        write: answers prompts, in their order; None for one that is over its context.
        count: tokens that a conversation takes, or a number that is not smaller.
        context_length_tokens: that it reads and writes at most; None where it is not known.
    """

    name: str
    write: Callable[[Sequence[Prompt]], Sequence[Generation | None]]
    count: Callable[[Conversation], int]
    context_length_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Instructed:
    """The base model with an instruction in its prompts.

    Attributes:
        instruction: its text; empty for none.
        feedback: with the training rows that mistakes are learned from.
        validation: with the rows that instructions are chosen by.
    """

    instruction: str
    feedback: SystemUnderTest
    validation: SystemUnderTest


@dataclass(frozen=True, slots=True)
class Reflected:
    """The outcome.

    Attributes:
        instruction: the best one; that of the start where none is better.
        figure: its figure on the validation rows; the best of several, so too good.
        num_rows: validation rows that were used.
        num_tokens: read and written by both models.
        num_writer_tokens: of these the ones of the reflection model.
        num_written: different instructions that the reflection model wrote and that could be tried.
        num_kept: of these the ones that did better on their training rows and answered the validation rows.
        stopped: why the reflection model gave no more answers; empty where it did.
    """

    instruction: str
    figure: float
    num_rows: int
    num_tokens: int
    num_writer_tokens: int
    num_written: int
    num_kept: int
    stopped: str = ""


def reflect(
    start: Instructed,
    build: Callable[[str], Instructed | None],
    reflector: Reflector,
    metric: MetricDefinition,
    *,
    budget_tokens: int,
    known: Sequence[str] = (),
    seed: int = 0,
    is_required: bool = False,
    progress: Progress,
) -> Reflected:
    """Improve an instruction until the budget is spent or nothing new comes.

    Args:
        start: the instruction to begin with.
        build: the same model with another instruction; None where that does not fit into its context.
        reflector: writes instructions.
        metric: a metric of texts.
        budget_tokens: that both models may read and write in all.
        known: answers of the start to the first validation rows, which are not asked again.
        seed: of the choice of training rows, and of the reflection model.
        is_required: whether a failure of the reflection model is raised; else it ends the work, and the outcome says
            why.
        progress: shows the answers.

    Raises:
        LuthierError: the reflection model cannot answer, and `is_required` is set.
    """
    work = _Reflection(build, reflector, metric, budget_tokens, seed, progress)
    work.begin(start, known)
    idle = 0
    for _ in range(MAX_ROUNDS):
        try:
            num_new = work.round()
        except _ReflectionFailedError as failed:
            if is_required:
                raise failed.error from None
            return work.outcome(failed.error.came)
        if num_new is None:
            break
        idle = 0 if num_new else idle + 1
        if idle == _MAX_IDLE_ROUNDS:
            break
    return work.outcome()


def pareto_weights(scores: Array) -> list[int]:
    """How many rows each candidate is the best on, 0 for those that others cover.

    Args:
        scores: [candidates, rows], larger is better.

    Returns:
        One number a candidate: its chance of being chosen is in proportion to it.
    """
    is_best = np.isclose(scores, scores.max(axis=0))
    kept = set(range(len(scores)))
    # The worst on average goes first, if another one is as good on each of its rows.
    for place in np.argsort(scores.mean(axis=1), kind="stable").tolist():
        others = sorted(kept - {place})
        if others and bool(is_best[others].any(axis=0)[is_best[place]].all()):
            kept.remove(place)
    return [int(is_best[place].sum()) if place in kept else 0 for place in range(len(scores))]


def written_instruction(text: str) -> str:
    """The instruction in an answer of the reflection model; empty where there is none that could be used."""
    found = _WRITTEN.findall(text)
    instruction = (found[-1] if found else text).strip()
    return instruction if len(instruction) <= MAX_INSTRUCTION_CHARACTERS else ""


class Case(NamedTuple):
    """A training row as the reflection model reads it."""

    prompt: str
    output: str
    expected: str
    is_right: bool


def reflection_text(instruction: str, cases: Sequence[Case]) -> str:
    """The prompt of the reflection model."""
    shown = [
        f"Case {number}\nInput:\n{_clipped(case.prompt, _SHOWN_PROMPT)}\n"
        f"Answer of the model:\n{_clipped(case.output, _SHOWN_ANSWER) or '(nothing)'}\n"
        + ("This is right." if case.is_right else f"Expected answer:\n{_clipped(case.expected, _SHOWN_ANSWER)}")
        for number, case in enumerate(cases, start=1)
    ]
    current = f"The instruction so far:\n{instruction}" if instruction else "So far there is no instruction."
    return "\n\n".join(
        (
            "A language model answers inputs of one kind. Before each it reads an instruction. Write a better one.",
            current,
            *shown,
            "Find out from the cases what is asked for, in which form the answer is expected, and which rules or facts "
            "the model does not know. Say so in general terms, for new inputs of this kind: do not quote the cases. "
            "The input follows the instruction by itself.",
            "Write nothing but the instruction, between <instruction> and </instruction>.",
        )
    )


class _ReflectionFailedError(Exception):
    """The reflection model gave no answer."""

    def __init__(self, error: LuthierError) -> None:
        super().__init__(error.came)
        self.error = error


@dataclass(frozen=True, slots=True)
class _Tried:
    """An instruction that has answered the validation rows; scores: [rows], larger is better."""

    own: Instructed
    scores: Array
    figure: float


@dataclass(slots=True)
class _Proposal:
    """A new instruction before its evaluation: its parent, the training rows for it, and the answers to them."""

    parent: _Tried
    places: tuple[int, ...]
    outputs: list[str] = field(default_factory=list)


class _Reflection:
    """What was tried so far, and what it has taken."""

    def __init__(
        self,
        build: Callable[[str], Instructed | None],
        reflector: Reflector,
        metric: MetricDefinition,
        budget_tokens: int,
        seed: int,
        progress: Progress,
    ) -> None:
        self._build, self._reflector, self._metric, self._progress = build, reflector, metric, progress
        self._budget, self._seed, self._random = budget_tokens, seed, random.Random(seed)  # noqa: S311 - no secret
        self._tried: list[_Tried] = []
        self._instructions: set[str] = set()
        self._queue: list[int] = []
        self._num_rows = self._num_asked = self._num_written = 0
        self._num_tokens = self._num_writer_tokens = 0

    def begin(self, start: Instructed, known: Sequence[str]) -> None:
        """Take the first instruction, and decide how many validation rows are used."""
        num = len(start.validation.row_ids)
        each = max(1, max_cost(start.validation, range(num)) // num)
        self._num_rows = min(num, max(_LEAST_ROWS, self._budget // (_FULL_ANSWERS * each)))
        if not self._fits(max_cost(start.validation, range(len(known), self._num_rows))):
            self._num_rows = len(known)
        self._instructions.add(start.instruction)
        self._try(start, list(known[: self._num_rows]))

    def round(self) -> int | None:
        """Make some proposals; how many new instructions were written, and None where the budget holds no round."""
        proposals = self._begun()
        if not proposals:
            return None
        for one, outputs in zip(proposals, self._answers([(p.parent.own, p.places) for p in proposals]), strict=True):
            one.outputs = outputs
        written = self._written(proposals)
        # Long instructions cost more than their parents did: what does not fit any more is left out from the end.
        while written and not self._fits(sum(max_cost(child.feedback, one.places) for one, child in written)):
            written.pop()
        answers = self._answers([(child, one.places) for one, child in written])
        for (one, child), outputs in zip(written, answers, strict=True):
            before = self._scores(one.parent.own.feedback, one.places, one.outputs).sum()
            after = self._scores(child.feedback, one.places, outputs).sum()
            if after > before and self._fits(max_cost(child.validation, range(self._num_rows))):
                self._try(child, [])
        return len(written)

    def outcome(self, stopped: str = "") -> Reflected:
        """The best instruction; of equal ones the one with shorter prompts, then the first."""
        sign = -1 if self._metric.higher_is_better else 1
        best = min(self._tried, key=lambda one: (sign * one.figure, sum(one.own.validation.prompt_tokens)))
        return Reflected(
            instruction=best.own.instruction,
            figure=best.figure,
            num_rows=self._num_rows,
            num_tokens=self._num_tokens,
            num_writer_tokens=self._num_writer_tokens,
            num_written=self._num_written,
            num_kept=len(self._tried) - 1,
            stopped=stopped,
        )

    def _begun(self) -> list[_Proposal]:
        """As many proposals as a round can end with, by what their parents cost."""
        weights = pareto_weights(np.stack([one.scores for one in self._tried]))
        parents = self._random.choices(self._tried, weights, k=NUM_PROPOSALS)
        proposals = [_Proposal(parent, self._minibatch(parent.own.feedback)) for parent in parents]
        while proposals and not self._fits(sum(map(self._round_cost, proposals)) + self._full_cost(proposals[0])):
            proposals.pop()
        return proposals

    def _round_cost(self, one: _Proposal) -> int:
        """Parent and child answer the training rows, which the reflection model reads, too."""
        return 3 * max_cost(one.parent.own.feedback, one.places) + MAX_INSTRUCTION_TOKENS

    def _full_cost(self, one: _Proposal) -> int:
        return max_cost(one.parent.own.validation, range(self._num_rows))

    def _minibatch(self, feedback: SystemUnderTest) -> tuple[int, ...]:
        """The next training rows; all are used before one comes again."""
        num = len(feedback.row_ids)
        while len(self._queue) < min(MINIBATCH, num):
            self._queue += self._random.sample(range(num), num)
        chosen = tuple(self._queue[:MINIBATCH])
        del self._queue[:MINIBATCH]
        # At the seam of two passes a row could be there twice.
        return tuple(dict.fromkeys(chosen))

    def _written(self, proposals: Sequence[_Proposal]) -> list[tuple[_Proposal, Instructed]]:
        """The proposals with an instruction that the reflection model wrote, that is new and that fits.

        Raises:
            _ReflectionFailedError: the reflection model gave no answer.
        """
        asked: list[tuple[_Proposal, Prompt]] = []
        cost = 0
        for one in proposals:
            prompt, tokens = self._reflection_prompt(self._cases(one), one.parent.own.instruction)
            if prompt is not None and self._fits(cost + tokens):
                asked.append((one, prompt))
                cost += tokens
        if not asked:
            return []
        try:
            answers = self._reflector.write([prompt for _, prompt in asked])
        except LuthierError as error:
            raise _ReflectionFailedError(error) from error
        found = []
        for (one, _), answer in zip(asked, answers, strict=True):
            if answer is None:
                continue
            self._num_tokens += generation_tokens(answer)
            self._num_writer_tokens += generation_tokens(answer)
            instruction = written_instruction(answer.text)
            if not instruction or instruction in self._instructions:
                continue
            self._instructions.add(instruction)
            if (child := self._build(instruction)) is not None:
                found.append((one, child))
        self._num_written += len(found)
        return found

    def _cases(self, one: _Proposal) -> list[Case]:
        """The rows of a proposal with their answers, mistakes first; empty where there are none."""
        feedback = one.parent.own.feedback
        references = [feedback.references[at] for at in one.places]
        # An answer is right where it is worth as much as the row's own would be.
        is_right = self._scores(feedback, one.places, one.outputs) >= self._scores(feedback, one.places, references)
        cases = [
            Case(feedback.prompt_texts[at], output, reference, bool(right))
            for at, output, reference, right in zip(one.places, one.outputs, references, is_right, strict=True)
        ]
        return [] if all(is_right) else sorted(cases, key=lambda case: case.is_right)

    def _reflection_prompt(self, cases: Sequence[Case], instruction: str) -> tuple[Prompt | None, int]:
        """The request with as many cases as fit, and the tokens that it takes at most; None where not one fits."""
        for num in range(len(cases), 0, -1):
            text = reflection_text(instruction, cases[:num])
            conversation = Conversation(messages=(Message(role="user", content=text),))
            tokens, room = self._reflector.count(conversation), self._reflector.context_length_tokens
            if room is None or tokens + MAX_INSTRUCTION_TOKENS <= room:
                self._num_asked += 1
                prompt = Prompt(
                    conversation=conversation,
                    max_new_tokens=MAX_INSTRUCTION_TOKENS,
                    max_thinking_tokens=0,
                    temperature=1.0,
                    # Another seed each time: equal questions are to get different answers.
                    seed=self._seed + self._num_asked,
                )
                return prompt, tokens + MAX_INSTRUCTION_TOKENS
        return None, 0

    def _try(self, own: Instructed, outputs: list[str]) -> None:
        """Have an instruction answer the validation rows that it has not answered."""
        rest = tuple(range(len(outputs), self._num_rows))
        if rest:
            outputs = outputs + self._generate([(own.validation, rest)])[0]
        places = range(self._num_rows)
        figure = float(self._metric.aggregate(self._statistics(own.validation, places, outputs).sum(axis=0)))
        self._tried.append(_Tried(own, self._scores(own.validation, places, outputs), figure))

    def _answers(self, asked: Sequence[tuple[Instructed, Sequence[int]]]) -> list[list[str]]:
        return self._generate([(own.feedback, places) for own, places in asked])

    def _generate(self, asked: Sequence[tuple[SystemUnderTest, Sequence[int]]]) -> list[list[str]]:
        """The answers of each system to the rows at these places, all in one call, so that the engine can batch."""
        if not asked:
            return []
        requests = list(chain.from_iterable((system.prompts[at] for at in places) for system, places in asked))
        written = asked[0][0].engine.generate(requests, self._progress)
        self._num_tokens += sum(map(generation_tokens, written))
        texts = iter([one.text for one in written])
        return [list(islice(texts, len(places))) for _, places in asked]

    def _statistics(self, system: SystemUnderTest, places: Sequence[int], outputs: Sequence[str]) -> Array:
        compared = system.compared(outputs)
        return self._metric.statistics(
            Observations(
                outputs=compared,
                references=system.compared([system.references[at] for at in places]),
                prompts=[system.prompt_texts[at] for at in places],
                first_outputs=compared,
            )
        )

    def _scores(self, system: SystemUnderTest, places: Sequence[int], outputs: Sequence[str]) -> Array:
        """The metric of each row alone: [rows], larger is better."""
        values = self._metric.aggregate(self._statistics(system, places, outputs))
        return values if self._metric.higher_is_better else -values

    def _fits(self, cost: int) -> bool:
        return self._num_tokens + cost <= self._budget


def _clipped(text: str, most: int) -> str:
    text = text.strip()
    half = most // 2
    return text if len(text) <= most else f"{text[:half]} [...] {text[-half:]}"
