"""Scores that a judge gave to samples of answers, of a window and of the time before it, and whether they differ.

Told is a difference that steady traffic gives at most as seldom as all other signals: Welch's interval ("The
Generalization of 'Student's' Problem when Several Different Population Variances are Involved", 1947) at that level.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from scipy.special import stdtrit

from luthier.core.records.bounds import Bounds
from luthier.core.results.signal import Signal
from luthier.ml.drift.drift.evidence import FALSE_ALARMS_A_MONTH
from luthier.ml.drift.drift.ranks import Floats
from luthier.ml.drift.signals.signal_test import MAX_EXAMPLES, TAIL
from luthier.ml.drift.signals.training import LOOKS_A_MONTH

FEWEST: Final = 20
"""Scores of each side; below them nothing is said."""
_STEP: Final = 1.0
_SCORES: Final = Bounds(1.0, 5.0)
_DO: Final = "Read the examples: a judge's opinion is one. Have people rate them: luthier human-eval create."


@dataclass(frozen=True, slots=True)
class Scored:
    """Samples that were judged.

    Attributes:
        scores: by criterion, 1 to 5, in the order of `ids`.
        num_asked: with those of which there is no verdict.
    """

    ids: Sequence[str]
    scores: Mapping[str, Sequence[int]]
    num_asked: int


def judged_signals(judge: str, before: Scored, now: Scored, num_signals: int) -> tuple[Signal, ...]:
    """One signal for each criterion.

    Args:
        num_signals: of the model in all, which the bound on false alarms is shared to.
    """
    tail = FALSE_ALARMS_A_MONTH / (2 * LOOKS_A_MONTH * num_signals)
    return tuple(_signal(judge, criterion, before, now, tail) for criterion in now.scores)


def _signal(judge: str, criterion: str, before: Scored, now: Scored, tail: float) -> Signal:
    old, new = (np.array(side.scores[criterion], dtype=float) for side in (before, now))
    title = f"{criterion.capitalize()} of answers, by {judge}"
    shared: dict[str, Any] = {
        "name": f"judged_{criterion}",
        "title": title,
        "group": "quality",
        "unit": "1 to 5",
        "value": float(new.mean()) if len(new) else None,
        "reference": float(old.mean()) if len(old) else None,
    }
    if min(len(old), len(new)) < FEWEST:
        of = (
            f"{len(old)} verdicts on answers before, of {before.num_asked} asked, and {len(new)} of {now.num_asked} now"
        )
        return Signal(**shared, sentence=f"Unknown: {of}; {FEWEST} of each are needed.")
    quantile, margin = -float(stdtrit(len(new) - 1, TAIL)), _SCORES.width / (4 * len(new))
    low, high = _SCORES.around(float(new.mean()), _error(new)[0], quantile, margin=margin)
    shared |= {"low": low, "high": high}
    apart, sure = float(new.mean() - old.mean()), _half_width(old, new, tail)
    if abs(apart) <= sure:
        sentence = f"{title}: no difference that is sure; one of {sure:.1f} points would be."
        return Signal(**shared, state="steady", sentence=sentence)
    # Examples of the change: the worst answers where scores fell, the best where they rose.
    order = np.argsort(new if apart < 0 else -new, kind="stable")[:MAX_EXAMPLES]
    return Signal(
        **shared,
        state="changed",
        examples=tuple(now.ids[place] for place in order),
        sentence=f"{title}: {new.mean():.2f} now ({len(new)} answers), {old.mean():.2f} before ({len(old)}).",
        do=_DO if apart < 0 else "",
    )


def _half_width(old: Floats, new: Floats, tail: float) -> float:
    """Of Welch's interval of the difference of two means, its degrees of freedom by Satterthwaite."""
    (a, a_square), (b, b_square) = _error(old), _error(new)
    freedom = (a_square + b_square) ** 2 / (a_square**2 / (len(old) - 1) + b_square**2 / (len(new) - 1))
    return math.hypot(a, b) * -float(stdtrit(freedom, tail))


def _error(scores: Floats) -> tuple[float, float]:
    """The standard error of a mean, and its square. Where all are equal, as if one had been a point off: whole points
    cannot tell less."""
    square = max(float(scores.var(ddof=1)), _STEP / len(scores)) / len(scores)
    return math.sqrt(square), square
