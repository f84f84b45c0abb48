"""Is the traffic like what the model was trained on? PSI of lengths, languages and topics, against the training rows.

Traffic is hardly ever just like the training data, so that a test of "the same" would tell nothing. Told is a PSI that
is above 0.25 for sure: with an interval so wide that steady traffic crosses it at most as seldom as all other signals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from luthier.core.results.signal import Signal
from luthier.ml.drift.drift.evidence import FALSE_ALARMS_A_MONTH
from luthier.ml.drift.drift.psi import MUCH, Apart, binned, matched, psi
from luthier.ml.drift.drift.ranks import Floats
from luthier.ml.drift.drift.topics import find_topics
from luthier.ml.drift.signals.column import Checks, Rows
from luthier.ml.drift.signals.columns import NO_TEXT
from luthier.ml.drift.signals.signal_test import MAX_EXAMPLES, TAIL

NAMES: Final = ("prompt_length_psi", "prompt_language_psi", "prompt_topic_psi", "answer_length_psi")
LOOKS_A_MONTH: Final = 720
_TITLES: Final = (
    "Length of prompts against training",
    "Languages of prompts against training",
    "Topics of prompts against training",
    "Length of answers against training",
)
_FEWEST: Final = 200
_DO: Final = (
    "Train on rows like the traffic: `luthier retrain MODEL --from-traffic --review`; judge the model on some first."
)
_NO_PROFILE: Final = "the training data is not at hand"


@dataclass(frozen=True, slots=True)
class Profile:
    """What a model was trained on: prompts and answers of some of its rows, drawn by lot."""

    prompts: Sequence[str]
    answers: Sequence[str]


def training_signals(rows: Rows, profile: Profile | None, checks: Checks, num_signals: int) -> list[Signal]:
    """The signals against the training data, unknown without a profile.

    Args:
        num_signals: of the model in all.
    """
    asked = [text for text, is_now in zip(rows.prompts, rows.is_now, strict=True) if is_now and text is not None]
    said = [text for text, is_now in zip(rows.answers, rows.is_now, strict=True) if is_now and text is not None]
    lacks = NO_TEXT if not asked else _NO_PROFILE if profile is None else ""
    if profile is not None and not lacks:
        few = min(len(asked), len(said), len(profile.prompts), len(profile.answers))
        lacks = f"{few} texts to compare; {_FEWEST} are needed" if few < _FEWEST else ""
    if lacks or profile is None:
        return [_signal(name, title, None, lacks) for name, title in zip(NAMES, _TITLES, strict=True)]
    found = (
        psi(*binned(_lengths(profile.prompts), _lengths(asked))),
        _languages(profile.prompts, asked, checks),
        _topics(profile.prompts, asked, checks),
        psi(*binned(_lengths(profile.answers), _lengths(said))),
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
        sentence = f"Unknown: {lacks or 'no text of which this could be told'}."
        return Signal(name=name, title=title, group="input", unit="PSI", value=None, reference=0.0, sentence=sentence)
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
        return Signal(**shared, sentence=f"Unknown: above {MUCH}, but too few exchanges to be sure of it.")
    return Signal(**shared, state="steady", sentence=f"{title}: not above {MUCH}.")


def _lengths(texts: Sequence[str]) -> Floats:
    return np.array([len(text) for text in texts], dtype=np.float64)


def _languages(before: Sequence[str], now: Sequence[str], checks: Checks) -> Apart | None:
    found = [[one for one in checks.languages(texts) if one is not None] for texts in (before, now)]
    names = {name: place for place, name in enumerate(sorted({*found[0], *found[1]}))}
    if min(map(len, found)) < _FEWEST:
        return None
    counted = [np.array([names[one] for one in several], dtype=np.float64) for several in found]
    return psi(*matched(counted[0], counted[1], len(names)))


def _topics(before: Sequence[str], now: Sequence[str], checks: Checks) -> Apart | None:
    """By the topics of half of the training rows, with the other half to compare: what was fitted looks nearer."""
    topics = find_topics(checks.words(before[::2]))
    if topics is None:
        return None
    # Every second row: the halves are alike whatever order the file has.
    found = [topics.nearest(checks.words(texts))[0] for texts in (before[1::2], now)]
    kept = [one[np.isfinite(one)] for one in found]
    return psi(*matched(kept[0], kept[1], len(topics.centres))) if min(map(len, kept)) else None
