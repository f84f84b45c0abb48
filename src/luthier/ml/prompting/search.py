"""A search for the prompt that a model does best with, over instructions and examples, on rows that are not evaluated.

Successive halving: all prompts answer a few rows, the better half answers as many again, and so on, until one is left
or the budget is spent. Rows are added and never asked twice, and all prompts of a round answer the same ones, so that
they are compared in pairs. The budget holds in the worst case: a round is only begun where it fits even if each answer
is as long as it may be.

The best of many prompts looks better on the rows that it was chosen by than it is. So that figure is only reported as
what it is, and the prompt is evaluated once, on the held-out rows, like any other system. For the same reason a prompt
has to be better by more than one standard error of the paired difference to be preferred to a likelier one: of twenty
prompts on a few rows, the best by chance is often a poor one.

Sources: Jamieson and Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter Optimization", 2016
(successive halving); Pryzant et al., "Automatic Prompt Optimization with 'Gradient Descent' and Beam Search", 2023,
arXiv:2305.03495, section 2.3 (choosing among prompts as a problem of the best arm); Breiman et al., "Classification and
Regression Trees", 1984, section 3.4.3 (one-standard-error rule); Efron and Stein, "The Jackknife Estimate of Variance",
1981.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Final

from luthier.core.errors import RequestError
from luthier.core.ports import Generation, Progress
from luthier.core.text.counted import counted
from luthier.ml.evaluation.metrics.protocol import Array, MetricDefinition, Observations
from luthier.ml.evaluation.systems import SystemUnderTest

MIN_ROWS: Final = 4
"""Rows that a prompt answers at least, before it may be dropped; a smaller budget is refused."""
FIRST_ROWS: Final = 12
"""Rows of the first round where the budget holds them: with fewer, half of all prompts is dropped by chance."""
MIN_PROMPTS: Final = 2


@dataclass(frozen=True, slots=True)
class FoundPrompt:
    """The outcome of a search.

    Attributes:
        place: of the best prompt among those that were given.
        figure: its figure on the rows that the search has asked it; the best of many, so too good.
        num_rows: these rows.
        num_tokens: read and written in all.
        num_tried: prompts that have answered rows.
        outputs: what it answered to these rows.
    """

    place: int
    figure: float
    num_rows: int
    num_tokens: int
    num_tried: int
    outputs: tuple[str, ...] = ()


def least_budget(prompts: Sequence[SystemUnderTest]) -> int:
    """Tokens without which no search begins: four rows of the first two prompts, with answers as long as may be."""
    return sum(max_cost(one, range(min(MIN_ROWS, len(one.row_ids)))) for one in prompts[:MIN_PROMPTS])


def max_cost(system: SystemUnderTest, places: Iterable[int]) -> int:
    """Tokens that a prompt reads and writes at most to answer the rows at these places."""
    read, prompts = system.prompt_tokens, system.prompts
    return sum(read[at] + prompts[at].max_new_tokens + (prompts[at].max_thinking_tokens or 0) for at in places)


def search_prompts(
    prompts: Sequence[SystemUnderTest],
    metric: MetricDefinition,
    *,
    budget_tokens: int,
    progress: Progress,
) -> FoundPrompt:
    """Find the best prompt: the first in the list that is not worse than the best figure by more than a standard error.

    Of prompts that are right and wrong on the same rows the shorter is found.

    Args:
        prompts: one model with the same rows, prompted in several ways, the likelier ones first; where the budget does
            not hold all, the last ones are left out.
        metric: a metric of texts.
        budget_tokens: tokens that may be read and written in all.
        progress: shows the answers.

    Raises:
        RequestError: fewer than two prompts, or a budget that does not hold four rows of two of them.
    """
    search = _Search(prompts, metric, budget_tokens, progress)
    num_first = search.num_first_rows()
    alive = search.affordable(num_first)
    num_tried = len(alive)
    for size in _sizes(len(alive), search.num_rows, num_first):
        # As many rows as surely fit; a round that adds none ends the search.
        if search.ask(alive, size) == 0:
            break
        ranked, preferred = sorted(alive, key=search.rank), search.preferred(alive)
        better = ranked[: max(MIN_PROMPTS, math.ceil(len(alive) / 2))]
        alive = better if preferred in better else [*better[:-1], preferred]
    best = search.preferred(alive)
    outputs = tuple(search.outputs[best])
    return FoundPrompt(best, search.figure(best), len(outputs), search.num_tokens, num_tried, outputs)


def _sizes(num_prompts: int, num_rows: int, num_first: int) -> list[int]:
    """Rows that prompts have answered after each round: doubled, up to all of them."""
    num_rounds = max(1, math.ceil(math.log2(num_prompts)))
    sizes = [max(num_first, math.ceil(num_rows / 2**left)) for left in reversed(range(num_rounds))]
    return sorted(set(sizes))


class _Search:
    """What the prompts have answered so far, and what it has taken."""

    def __init__(
        self, prompts: Sequence[SystemUnderTest], metric: MetricDefinition, budget_tokens: int, progress: Progress
    ) -> None:
        if len(prompts) < MIN_PROMPTS:
            raise RequestError(
                f"{counted(len(prompts), 'prompt')} to choose from",
                expected=f"at least {MIN_PROMPTS}",
                do="leave evaluation.optimised_prompt out",
            )
        self._prompts, self._metric, self._budget, self._progress = prompts, metric, budget_tokens, progress
        self._read = [sum(system.prompt_tokens) for system in prompts]
        self.num_rows = len(prompts[0].row_ids)
        self.outputs: list[list[str]] = [[] for _ in prompts]
        self.num_tokens = 0
        self._known: dict[int, Array] = {}
        """Statistics of the answers of each prompt, as far as they were compared."""

    def num_first_rows(self) -> int:
        """Of the first round: `FIRST_ROWS`, or `MIN_ROWS` where the budget does not hold so many of two prompts."""
        most = min(FIRST_ROWS, self.num_rows)
        cost = sum(max_cost(system, range(most)) for system in self._prompts[:MIN_PROMPTS])
        return most if 1.5 * cost <= self._budget else min(MIN_ROWS, self.num_rows)

    def affordable(self, num_rows: int) -> list[int]:
        """The first prompts, as many as the budget allows for that many rows.

        Raises:
            RequestError: the budget does not cover that many rows with the fewest prompts.
        """
        costs = [max_cost(system, range(num_rows)) for system in self._prompts]
        # A round more of half of them has to fit as well, or the search would stop at a few rows of many prompts.
        num = len(costs)
        while num > MIN_PROMPTS and 1.5 * sum(costs[:num]) > self._budget:
            num -= 1
        if sum(costs[:num]) > self._budget:
            raise RequestError(
                f"a budget of {self._budget:,} tokens for a search over prompts",
                expected=f"at least {sum(costs[:num]):,}: {counted(num_rows, 'row')} with {counted(num, 'prompt')}, "
                "and their answers",
                do="raise evaluation.optimised_prompt.budget_tokens, lower evaluation.max_new_tokens, or leave the "
                "search out",
            )
        return list(range(num))

    def ask(self, alive: Sequence[int], size: int) -> int:
        """Have these prompts answer rows until each has answered `size`, or as many as fit; how many were added."""
        start = len(self.outputs[alive[0]])
        left = self._budget - self.num_tokens
        while size > start and sum(max_cost(self._prompts[place], range(start, size)) for place in alive) > left:
            size -= 1
        if size <= start:
            return 0
        # All prompts in one call, so that the engine can batch those of like length.
        requests = list(chain.from_iterable(self._prompts[place].prompts[start:size] for place in alive))
        written = self._prompts[0].engine.generate(requests, self._progress)
        self.num_tokens += sum(map(generation_tokens, written))
        for number, place in enumerate(alive):
            self.outputs[place] += [one.text for one in written[number * (size - start) :][: size - start]]
        return size - start

    def preferred(self, alive: Sequence[int]) -> int:
        """The first prompt that is within one standard error of the one with the best figure."""
        best = min(alive, key=self.rank)
        for place in sorted(alive):
            error = self._standard_error(best, place)
            # Without an error they do the same on every row, and the shorter one has been ranked first.
            if place == best or (error > 0 and abs(self.figure(best) - self.figure(place)) <= error):
                return place
        return best

    def _standard_error(self, one: int, other: int) -> float:
        """Of the difference of two figures over the same rows, by leaving out each row in turn (jackknife)."""
        num = len(self.outputs[one])
        if one == other or num < 2:
            return 0.0
        without = [
            [float(self._metric.aggregate(stats.sum(axis=0) - row)) for row in stats]
            for stats in (self._statistics(one), self._statistics(other))
        ]
        gaps = [a - b for a, b in zip(*without, strict=True)]
        mean = sum(gaps) / num
        return math.sqrt((num - 1) / num * sum((gap - mean) ** 2 for gap in gaps))

    def figure(self, place: int) -> float:
        """The metric over the rows that a prompt has answered."""
        return float(self._metric.aggregate(self._statistics(place).sum(axis=0)))

    def _statistics(self, place: int) -> Array:
        """What the metric adds up, [rows, statistics]; computed once for the answers of a round."""
        known = self._known.get(place)
        if known is not None and len(known) == len(self.outputs[place]):
            return known
        system = self._prompts[place]
        outputs = system.compared(self.outputs[place])
        num = len(outputs)
        observed = Observations(
            outputs=outputs,
            references=system.compared(system.references[:num]),
            prompts=system.prompt_texts[:num],
            first_outputs=outputs,
        )
        found = self._known[place] = self._metric.statistics(observed)
        return found

    def rank(self, place: int) -> tuple[float, int, int]:
        """Smaller is better: by the figure, then by tokens of the prompts, then by their order."""
        figure = self.figure(place)
        return (-figure if self._metric.higher_is_better else figure, self._read[place], place)


def generation_tokens(one: Generation) -> int:
    """Tokens that were read and written for an answer."""
    return one.num_prompt_tokens + one.num_new_tokens
