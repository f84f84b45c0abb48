"""Are groups of people answered alike? The operator says by which words of a prompt a group is known.

Told is a difference between a group and all others that steady traffic gives at most as seldom as all other signals.
That groups ask for different things is no bias: the examples have to be read.

Source: Newcombe, "Interval estimation for the difference between independent proportions", 1998, method 10.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from luthier.core.results.signal import Signal
from luthier.core.system.bounded_regex import BoundedPattern
from luthier.ml.drift.drift.evidence import FALSE_ALARMS_A_MONTH
from luthier.ml.drift.drift.ranks import Floats
from luthier.ml.drift.signals.column import Checks, Column, Rows
from luthier.ml.drift.signals.columns import NO_TEXT
from luthier.ml.drift.signals.signal_test import MAX_EXAMPLES, TAIL
from luthier.ml.drift.signals.training import LOOKS_A_MONTH

OUTCOMES: Final = ("answer_refusals", "answer_toxic", "answer_cut_off")
_FEWEST: Final = 100
_DO: Final = (
    "Read the examples: do the groups ask for different things? `luthier safety` asks the same with names swapped."
)


def bias_signals(
    rows: Rows, columns: Mapping[str, Column], groups: Mapping[str, str], checks: Checks, num_signals: int
) -> list[Signal]:
    """The signals of all groups.

    Args:
        columns: by name.
        groups: names, and the regular expressions of their prompts.
    """
    # The bound on false alarms is shared out over both ends, all looks of a month and all signals (Bonferroni).
    tail = FALSE_ALARMS_A_MONTH / (2 * LOOKS_A_MONTH * num_signals)
    found = []
    for name, pattern in groups.items():
        group = BoundedPattern(f"group {name}", pattern, ignore_case=True)
        is_in = np.array([bool(text and group.search(text)) for text in rows.prompts])
        for outcome in OUTCOMES:
            found.append(_signal(name, columns[outcome], is_in, rows, checks, tail))
    return found


def _signal(group: str, column: Column, is_in: NDArray[np.bool_], rows: Rows, checks: Checks, tail: float) -> Signal:
    has_prompt = np.zeros(len(rows.at), dtype=bool)
    has_prompt[rows.of_prompts()] = True
    # Rows without words belong to neither side: whether they are of the group is not known.
    usable = np.isfinite(column.values) & rows.is_now & rows.is_tested & has_prompt
    inside, others = column.values[usable & is_in], column.values[usable & ~is_in]
    shared: dict[str, Any] = {
        "name": f"bias_{group}_{column.name}",
        "title": f"{column.title}: {group} less all others",
        "group": "bias",
        "unit": "fraction",
        "reference": 0.0,
    }
    if min(len(inside), len(others)) < _FEWEST:
        lacks = f"{len(inside)} exchanges of the group and {len(others)} others; {_FEWEST} of each are needed"
        return Signal(**shared, value=None, sentence=f"Unknown: {lacks if has_prompt.any() else NO_TEXT}.")
    low, high = _ends(inside, others, checks, TAIL)
    shared |= {"value": float(inside.mean() - others.mean()), "low": low, "high": high}
    sure_low, sure_high = _ends(inside, others, checks, tail)
    if sure_low <= 0 <= sure_high:
        return Signal(**shared, state="steady", sentence=f"{column.title}: no difference that is sure.")
    shows = np.flatnonzero(usable & is_in & (column.values == (1.0 if sure_low > 0 else 0.0)))[::-1]
    return Signal(
        **shared,
        state="changed",
        examples=tuple(rows.ids[place] for place in shows[:MAX_EXAMPLES]),
        sentence=f"{column.title}: {inside.mean():.1%} in the group, {others.mean():.1%} in all others.",
        do=_DO,
    )


def _ends(inside: Floats, others: Floats, checks: Checks, tail: float) -> tuple[float, float]:
    """Newcombe's interval of the difference of two shares, from the interval of each."""
    a, b = float(inside.mean()), float(others.mean())
    # Squared distances to the ends that count add up: inside's lower with others' upper, and the other way round.
    low_a, high_a = checks.share_ends(float(inside.sum()), len(inside), tail)
    low_b, high_b = checks.share_ends(float(others.sum()), len(others), tail)
    return a - b - math.hypot(a - low_a, high_b - b), a - b + math.hypot(high_a - a, b - low_b)
