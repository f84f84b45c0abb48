"""Signals against a reference: the traffic against the training rows, and judged answers against earlier ones.

Traffic is hardly ever exactly like the training data, so a test of "the same" would show nothing. Reported is a PSI
of lengths, languages or topics that is above 0.25 with certainty: with an interval so wide that steady traffic crosses
it no more often than any other signal does.

Of the scores that a judge gave to samples of answers, a difference is reported if steady traffic gives it no more
often than any other signal: Welch's interval at that level.

Source: Welch, 1947, "The Generalization of 'Student's' Problem when Several Different Population Variances are
Involved".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from scipy.special import stdtrit

from luthier.core.records.bounds import Bounds
from luthier.core.records.monitoring import Signal
from luthier.core.text.counted import counted
from luthier.ml.drift.evidence import MUCH, Apart, Floats, binned, matched, psi
from luthier.ml.drift.signals.columns import NO_TEXT, Checks, Rows
from luthier.ml.drift.signals.signal_test import MAX_EXAMPLES, TAIL
from luthier.ml.drift.thresholds import FALSE_ALARMS_A_MONTH, FEWEST_TEXTS
from luthier.ml.drift.topics import find_topics

NAMES: Final = ("prompt_length_psi", "prompt_language_psi", "prompt_topic_psi", "answer_length_psi")
LOOKS_A_MONTH: Final = 720
_TITLES: Final = (
    "Length of prompts against training",
    "Languages of prompts against training",
    "Topics of prompts against training",
    "Length of answers against training",
)
_DO: Final = (
    "Train on rows like the traffic: `luthier retrain MODEL --from-traffic --review`; evaluate the model on some first."
)
_NO_PROFILE: Final = "the training data is not available"


@dataclass(frozen=True, slots=True)
class Profile:
    """What a model was trained on: prompts and answers of some of its rows, drawn by lot.

    Rows of reinforcement may have no answers of their own: there is none to compare with.
    """

    prompts: Sequence[str]
    answers: Sequence[str]


def training_signals(rows: Rows, profile: Profile | None, checks: Checks, num_signals: int) -> list[Signal]:
    """The signals against the training data, unknown without a profile.

    Args:
        rows: the exchanges.
        profile: of the training rows; None where they are unknown.
        checks: of texts.
        num_signals: of the model in all.
    """
    asked = [text for text, is_now in zip(rows.prompts, rows.is_now, strict=True) if is_now and text is not None]
    said = [text for text, is_now in zip(rows.answers, rows.is_now, strict=True) if is_now and text is not None]
    lacks = NO_TEXT if not asked else _NO_PROFILE if profile is None else ""
    if profile is not None and not lacks:
        few = min(len(asked), len(profile.prompts))
        lacks = f"{counted(few, 'text')} to compare; {FEWEST_TEXTS} are needed" if few < FEWEST_TEXTS else ""
    if lacks or profile is None:
        return [_signal(name, title, None, lacks) for name, title in zip(NAMES, _TITLES, strict=True)]
    found = (
        psi(*binned(_lengths(profile.prompts), _lengths(asked))),
        _languages(profile.prompts, asked, checks),
        _topics(profile.prompts, asked, checks),
        # Not where most answers only call tools: their texts are few.
        psi(*binned(_lengths(profile.answers), _lengths(said)))
        if min(len(said), len(profile.answers)) >= FEWEST_TEXTS
        else None,
    )
    # One-sided, since only an index above the limit is reported; shared out over looks and signals (Bonferroni).
    tail = FALSE_ALARMS_A_MONTH / (LOOKS_A_MONTH * num_signals)
    shown = [place for place in rows.of_prompts()[::-1] if rows.is_now[place]][:MAX_EXAMPLES]
    examples, ids = tuple(rows.ids[place] for place in shown), zip(NAMES, _TITLES, strict=True)
    return [_signal(*named, one, "", tail, examples) for named, one in zip(ids, found, strict=True)]


def _signal(
    name: str, title: str, apart: Apart | None, lacks: str, tail: float = TAIL, examples: tuple[str, ...] = ()
) -> Signal:
    if apart is None:
        sentence = f"Unknown: {lacks or 'no text in which this could be measured'}."
        return Signal(name=name, title=title, group="input", unit="PSI", value=None, reference=0.0, sentence=sentence)
    # Two intervals: 95% for the reader, and a wider one that decides.
    low, high = apart.ends(TAIL)
    for_sure = apart.ends(tail)[0]
    shared: dict[str, Any] = {
        "name": name,
        "title": title,
        "group": "output" if name.startswith("answer") else "input",
        "unit": "PSI",
    }
    shared |= {"value": apart.value, "low": low, "high": high, "reference": 0.0}
    if for_sure > MUCH:
        return Signal(**shared, state="changed", examples=examples, sentence=f"{title}: above {MUCH} for sure.", do=_DO)
    if apart.value > MUCH:
        return Signal(**shared, sentence=f"Unknown: above {MUCH}, but too few exchanges to be certain.")
    return Signal(**shared, state="steady", sentence=f"{title}: not above {MUCH}.")


def _lengths(texts: Sequence[str]) -> Floats:
    return np.array([len(text) for text in texts], dtype=np.float64)


def _languages(before: Sequence[str], now: Sequence[str], checks: Checks) -> Apart | None:
    found = [[one for one in checks.languages(texts) if one is not None] for texts in (before, now)]
    names = {name: place for place, name in enumerate(sorted({*found[0], *found[1]}))}
    if min(map(len, found)) < FEWEST_TEXTS:
        return None
    counted = [np.array([names[one] for one in several], dtype=np.float64) for several in found]
    return psi(*matched(counted[0], counted[1], len(names)))


def _topics(before: Sequence[str], now: Sequence[str], checks: Checks) -> Apart | None:
    """By the topics of half of the training rows, with the other half to compare: what was fitted looks nearer."""
    topics = find_topics(checks.words(before[::2]))
    if topics is None:
        return None
    # Every second row: the halves are similar for any order of the file.
    found = [topics.nearest(checks.words(texts))[0] for texts in (before[1::2], now)]
    kept = [one[np.isfinite(one)] for one in found]
    return psi(*matched(kept[0], kept[1], len(topics.centres))) if min(map(len, kept)) else None


FEWEST: Final = 20
"""Scores of each side; with fewer nothing is reported."""
_STEP: Final = 1.0
_SCORES: Final = Bounds(1.0, 5.0)
_DO_JUDGED: Final = "Read the examples: a judge is only one opinion. Have people rate them: luthier human-eval create."


@dataclass(frozen=True, slots=True)
class Scored:
    """Samples that were judged.

    Attributes:
        scores: by criterion, 1 to 5, in the order of `ids`.
        num_asked: including those without a verdict.
    """

    ids: Sequence[str]
    scores: Mapping[str, Sequence[int]]
    num_asked: int


def judged_signals(judge: str, before: Scored, now: Scored, num_signals: int) -> tuple[Signal, ...]:
    """One signal for each criterion.

    Args:
        judge: the name of the judge.
        before: scores of answers before the window.
        now: scores of answers in the window.
        num_signals: of the model in all, which the bound on false alarms is shared to.
    """
    # Two-sided: scores may fall or rise.
    tail = FALSE_ALARMS_A_MONTH / (2 * LOOKS_A_MONTH * num_signals)
    return tuple(_judged_signal(judge, criterion, before, now, tail) for criterion in now.scores)


def unjudged_signals(judge: str, criteria: Sequence[str]) -> tuple[Signal, ...]:
    """The same of a judge that could not be asked: unknown, since a signal that is missing would count as steady."""
    sentence = "Unknown: the judge could not be asked."
    return tuple(Signal(**_named(judge, one), value=None, sentence=sentence) for one in criteria)


def _named(judge: str, criterion: str) -> dict[str, Any]:
    title = f"{criterion.capitalize()} of answers, by {judge}"
    return {"name": f"judged_{criterion}", "title": title, "group": "quality", "unit": "1 to 5"}


def _judged_signal(judge: str, criterion: str, before: Scored, now: Scored, tail: float) -> Signal:
    old, new = (np.array(side.scores[criterion], dtype=float) for side in (before, now))
    shared = _named(judge, criterion) | {
        "value": float(new.mean()) if len(new) else None,
        "reference": float(old.mean()) if len(old) else None,
    }
    title = shared["title"]
    if min(len(old), len(new)) < FEWEST:
        of = f"judged before {len(old)} of {before.num_asked} answers, now {len(new)} of {now.num_asked}"
        return Signal(**shared, sentence=f"Unknown: {of}; {FEWEST} of each are needed.")
    quantile, margin = -float(stdtrit(len(new) - 1, TAIL)), _SCORES.width / (4 * len(new))
    low, high = _SCORES.around(float(new.mean()), _error(new)[0], quantile, margin=margin)
    shared |= {"low": low, "high": high}
    apart, sure = float(new.mean() - old.mean()), _half_width(old, new, tail)
    if abs(apart) <= sure:
        sentence = f"{title}: no certain difference; one of {sure:.1f} points would be certain."
        return Signal(**shared, state="steady", sentence=sentence)
    # Examples of the change: the worst answers where scores fell, the best where they rose.
    order = np.argsort(new if apart < 0 else -new, kind="stable")[:MAX_EXAMPLES]
    return Signal(
        **shared,
        state="changed",
        examples=tuple(now.ids[place] for place in order),
        sentence=f"{title}: {new.mean():.2f} now ({counted(len(new), 'answer')}), {old.mean():.2f} before "
        f"({len(old)}).",
        do=_DO_JUDGED if apart < 0 else "",
    )


def _half_width(old: Floats, new: Floats, tail: float) -> float:
    """Of Welch's interval of the difference of two means, its degrees of freedom by Satterthwaite."""
    (a, a_square), (b, b_square) = _error(old), _error(new)
    freedom = (a_square + b_square) ** 2 / (a_square**2 / (len(old) - 1) + b_square**2 / (len(new) - 1))
    return math.hypot(a, b) * -float(stdtrit(freedom, tail))


def _error(scores: Floats) -> tuple[float, float]:
    """The standard error of a mean, and its square.

    Where all are equal, as if one had differed by a point: whole points
    show no smaller difference.
    """
    square = max(float(scores.var(ddof=1)), _STEP / len(scores)) / len(scores)
    return math.sqrt(square), square
