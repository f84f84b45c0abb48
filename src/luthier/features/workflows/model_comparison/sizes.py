"""How much of the rows a showdown's budget holds: judged rows first, then as many trained examples for each contender.

A few rows are judged with every contender, and a few steps are trained, before anything is promised: so the budget is
held against this very machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from luthier.core.cost import Estimate
from luthier.core.workflows.showdown import SystemKind
from luthier.features.planning.budgets import BudgetTooSmallError

NUM_PROBED: Final = 8
"""Rows that each contender is asked before sizes are chosen."""

LEAST_JUDGED, LEAST_TRAINED, MOST_EPOCHS = 20, 64, 3.0
KEPT_BACK: Final = 0.1
"""Share of the budget that nothing is planned for: predictions err."""

_MAX_FOR_JUDGING: Final = 0.5
_LOADINGS: Final = 4
"""How often a contender's weights are loaded: to be asked, to be trained, to be asked again, and rows are prepared."""

_JUDGING_ERRS_BY: Final = 1.5


class ShowdownTooSmallError(BudgetTooSmallError):
    """A budget that does not hold the least of a showdown. needed_hours: what would."""

    needed_hours = 0.0


@dataclass(frozen=True, slots=True)
class Pace:
    """What one contender takes. training: hours of one epoch of all rows. judging: seconds a row by kind.

    is_probed: whether real steps on this machine stand behind the hours."""

    label: str
    training: Estimate
    judging: dict[SystemKind, float]
    loading_seconds: float
    is_probed: bool = True

    @property
    def row_seconds(self) -> float:
        """To judge one row in all ways; tuned as without examples."""
        return sum(self.judging.values()) + self.judging["zero-shot"]


@dataclass(frozen=True, slots=True)
class Sizes:
    """What is judged and trained on. planned: hours of all of it, what was spent before included."""

    num_judged: int
    num_examples: int
    planned: Estimate


def choose_sizes(
    paces: Sequence[Pace], *, num_rows: int, num_held_out: int, most_judged: int, hours: float, spent_hours: float
) -> Sizes:
    """The sizes. num_rows, num_held_out: that there are. spent_hours: on finding out the paces.

    Raises ShowdownTooSmallError where not even the least of both fits, with what would.
    """
    row_seconds = sum(pace.row_seconds for pace in paces)
    fixed = sum(pace.loading_seconds for pace in paces) * _LOADINGS
    example_seconds = sum(pace.training.value for pace in paces) * 3600 / num_rows
    there = min(num_held_out, most_judged)
    least_judged, least_trained = min(LEAST_JUDGED, there), min(LEAST_TRAINED, num_rows)
    left = (hours * (1 - KEPT_BACK) - spent_hours) * 3600 - fixed
    for_judging = min(left * _MAX_FOR_JUDGING, left - least_trained * example_seconds)
    num_judged = max(least_judged, min(there, int(for_judging / row_seconds)))
    num_examples = min(int((left - num_judged * row_seconds) / example_seconds), round(MOST_EPOCHS * num_rows))
    if num_examples < least_trained:
        least = (fixed + least_judged * row_seconds + least_trained * example_seconds) / 3600
        raise too_small(hours, (least + spent_hours) / (1 - KEPT_BACK), paces, least_judged, least_trained)
    judging = Estimate(value=1, low=1 / _JUDGING_ERRS_BY, high=_JUDGING_ERRS_BY).times(
        (num_judged * row_seconds + fixed) / 3600
    )
    planned = judging.plus(Estimate(value=spent_hours, low=spent_hours, high=spent_hours))
    for pace in paces:
        planned = planned.plus(pace.training.times(num_examples / num_rows))
    return Sizes(num_judged, num_examples, planned)


def too_small(
    hours: float, needed: float, paces: Sequence[Pace], least_judged: int, least_trained: int
) -> ShowdownTooSmallError:
    """The refusal of a budget that is too small for these contenders."""
    names = ", ".join(pace.label for pace in paces)
    shown = f"{needed * 1.05:.2g}"  # two digits may have rounded it down
    error = ShowdownTooSmallError(
        f"a budget of {hours:.3g} h for {names}: {least_trained} examples trained and {least_judged} rows judged with "
        f"each should take {shown} h",
        expected=f"at least {shown} h",
        do="give it more hours, fewer models or smaller ones",
    )
    error.needed_hours = needed * 1.05
    return error
