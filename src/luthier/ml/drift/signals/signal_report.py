"""All signals of a model in a window of time, among them new words in prompts and differences between groups of people.

New words: a word that has grown more frequent, and the group of prompts that has. Bias: are groups of people treated
equally? The operator defines which words in a prompt identify a group. A difference between a group and all
others is reported if steady traffic gives it no more often than any other signal. That groups ask for different things
is no bias: the examples have to be read.

Source: Newcombe, "Interval estimation for the difference between independent proportions", 1998, method 10.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from luthier.core.records.monitoring import Signal, WatchReport
from luthier.core.system.bounded_regex import BoundedPattern
from luthier.core.text.counted import counted
from luthier.ml.drift.evidence import (
    Flags,
    Floats,
    Ints,
    false_alarms_a_month,
    has_ended,
    lots,
)
from luthier.ml.drift.signals.columns import MAX_AN_HOUR, NO_TEXT, Checks, Column, Rows, columns_of, read_rows
from luthier.ml.drift.signals.signal_test import (
    HOURLY,
    MAX_EXAMPLES,
    TAIL,
    Tested,
    column_signal,
    hour_signals,
    slots_for,
    state_of,
    too_few,
)
from luthier.ml.drift.signals.training import LOOKS_A_MONTH, NAMES, Profile, training_signals
from luthier.ml.drift.thresholds import (
    FALSE_ALARMS_A_MONTH,
    FEWEST_OF_GROUP,
    LOOK_BACK_DAYS,
    RENEWED_DAYS,
    stretch_begins,
)
from luthier.ml.drift.topics import TextWords, find_topics, hash_buckets, word_evidence

NAME: Final = "prompt_words"
_TITLE: Final = "Prompts with the word that has grown most"
_MAX_GROUPS: Final = 8
_DO_NEW_WORDS: Final = (
    "Read the examples: is it a new subject? Then add rows of it to the training data, and evaluate the model on some."
)


def new_words_signal(rows: Rows, checks: Checks, num_signals: int) -> Tested:
    """The signal.

    Args:
        rows: the exchanges.
        checks: of texts.
        num_signals: of the model in all.
    """
    places = rows.of_prompts()
    # The same rows as in the other tests: one user's repeated prompts must not make a word frequent.
    places = places[rows.is_tested[places]]
    nothing = np.empty(0, dtype=np.int64), np.empty(0)
    is_now = rows.is_now[places]
    texts, ids = [rows.prompts[place] or "" for place in places], rows.ids
    words = checks.words(texts)
    drawn = lots([ids[place] for place in places], NAME)
    found = word_evidence(words, rows.hours[places], drawn, slots_for(len(places)))
    shared: dict[str, Any] = {"name": NAME, "title": _TITLE, "group": "input", "unit": "fraction"}
    if found is None or not is_now.any():
        return Tested(Signal(**shared, value=None, sentence=f"Unknown: {NO_TEXT}."), *nothing)
    has = _with_place(words, found.place)
    low, high = checks.share_ends(float(has[is_now].sum()), int(is_now.sum()), TAIL)
    shared |= {"value": float(has[is_now].mean()), "low": low, "high": high}
    shared["reference"] = float(has[~is_now].mean()) if not is_now.all() else None
    chance = false_alarms_a_month(float(found.log_strength[-1]), num_signals)
    num_now, num_before = int(is_now.sum()), int((~is_now).sum())
    state = state_of(chance, num_before, num_now, is_over=has_ended(found.dropped, num_signals))
    if state != "changed":
        is_steady = state == "steady"
        sentence = "No word has become more frequent than chance gives." if is_steady else too_few(num_before, num_now)
        return Tested(Signal(**shared, p_value=chance, state=state, sentence=sentence), found.hours, found.log_strength)
    is_after = rows.hours[places] >= found.began
    word = _name(checks, [texts[place] for place in np.flatnonzero(has & is_after)], found.place)
    shown, grown = _group(words, is_after)
    chosen = places[shown] if len(shown) else places[has & is_after][::-1]
    signal = Signal(
        **shared,
        p_value=chance,
        state=state,
        since=float(rows.at[places[has & is_after][0]]) if (has & is_after).any() else None,
        examples=tuple(ids[place] for place in chosen[:MAX_EXAMPLES]),
        sentence=f"The word {word!r} has become more frequent in prompts. {grown}".strip(),
        do=_DO_NEW_WORDS,
    )
    return Tested(signal, found.hours, found.log_strength)


def _with_place(words: TextWords, place: int) -> Flags:
    """Which texts have a word at a hashed place: [texts]."""
    found = np.zeros(len(words.counts), dtype=np.bool_)
    found[words.texts[hash_buckets(words.hashes) == place]] = True
    return found


def _name(checks: Checks, texts: Sequence[str], place: int) -> str:
    """The commonest word of some texts at a hashed place."""
    counted = Counter(word for text in texts for word in set(text.lower().split()))
    parts = list(counted)
    words = checks.words(parts)
    at = np.unique(words.texts[hash_buckets(words.hashes) == place])
    return max((parts[one] for one in at), key=lambda one: counted[one], default="?").strip(".,;:!?\"'()[]")[:40]


def _group(words: TextWords, is_after: Flags) -> tuple[Ints, str]:
    """The group of newer prompts that has grown most: places of its most typical prompts, and a sentence."""
    after, before = np.flatnonzero(is_after), np.flatnonzero(~is_after)
    topics = find_topics(words.of(after), _MAX_GROUPS)
    if topics is None or not len(before):
        return np.empty(0, dtype=np.int64), ""
    group, near = topics.nearest(words.of(after))
    group_before, _ = topics.nearest(words.of(before))
    shares = [(float((group == one).mean()), float((group_before == one).mean())) for one in range(len(topics.centres))]
    grown = max(range(len(shares)), key=lambda one: shares[one][0] - shares[one][1])
    members = np.flatnonzero(group == grown)
    typical: Ints = after[members[np.argsort(-near[members], kind="stable")]]
    now, then = shares[grown]
    return typical, f"The group of prompts that has grown most holds {now:.0%} of them now, {then:.0%} before."


OUTCOMES: Final = ("answer_refusals", "answer_toxic", "answer_cut_off")
_DO_BIAS: Final = (
    "Read the examples: do the groups ask for different things? `luthier safety` sends them with names swapped."
)


def bias_signals(
    rows: Rows, columns: Mapping[str, Column], groups: Mapping[str, str], checks: Checks, num_signals: int
) -> list[Signal]:
    """The signals of all groups.

    Args:
        rows: the exchanges.
        columns: by name.
        groups: names, and the regular expressions of their prompts.
        checks: of texts.
        num_signals: of the model in all.
    """
    # The bound on false alarms is shared out over both ends, all looks of a month and all signals (Bonferroni).
    tail = FALSE_ALARMS_A_MONTH / (2 * LOOKS_A_MONTH * num_signals)
    found = []
    for name, pattern in groups.items():
        group = BoundedPattern(f"group {name}", pattern, ignore_case=True)
        is_in = np.array([bool(text and group.search(text)) for text in rows.prompts])
        for outcome in OUTCOMES:
            found.append(_bias_signal(name, columns[outcome], is_in, rows, checks, tail))
    return found


def _bias_signal(
    group: str, column: Column, is_in: NDArray[np.bool_], rows: Rows, checks: Checks, tail: float
) -> Signal:
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
    if min(len(inside), len(others)) < FEWEST_OF_GROUP:
        lacks = (
            f"{counted(len(inside), 'exchange')} of the group and {len(others)} others; {FEWEST_OF_GROUP} of each are "
            "needed"
        )
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
        do=_DO_BIAS,
    )


def _ends(inside: Floats, others: Floats, checks: Checks, tail: float) -> tuple[float, float]:
    """Newcombe's interval of the difference of two shares, from the interval of each."""
    a, b = float(inside.mean()), float(others.mean())
    # Squared distances to the ends that count add up: inside's lower with others' upper, and the other way round.
    low_a, high_a = checks.share_ends(float(inside.sum()), len(inside), tail)
    low_b, high_b = checks.share_ends(float(others.sum()), len(others), tail)
    return a - b - math.hypot(a - low_a, high_b - b), a - b + math.hypot(high_a - a, b - low_b)


_NUM_COLUMNS: Final = 14
_MAX_UNTESTED: Final = 0.1


@dataclass(frozen=True, slots=True)
class Compared:
    """What the traffic is compared with, besides earlier traffic.

    Attributes:
        profile: the training data, None where it is not available.
        groups: names, and regular expressions of prompts.
        quality: signals of evaluated suites, made elsewhere.
    """

    profile: Profile | None = None
    groups: Mapping[str, str] = field(default_factory=dict)
    quality: Sequence[Signal] = ()


@dataclass(frozen=True, slots=True)
class Watched:
    """The report, and what its pictures need.

    Attributes:
        rows: all exchanges that were read.
        num_signals: which the bound on false alarms is shared out to.
    """

    report: WatchReport
    tested: tuple[Tested, ...]
    rows: Rows
    num_signals: int


def watch_rows(
    frame: pl.DataFrame,
    *,
    project_id: str,
    model: str,
    since: float,
    until: float,
    checks: Checks,
    compared: Compared,
    num_dropped: int = 0,
    normal_since: float = 0.0,
) -> Watched:
    """The report of a window [since, until), from the exchanges of the period that contains it (`stretch_begins`).

    Args:
        frame: columns of `Exchange`, `messages` as JSON.
        project_id: the project.
        model: the name that clients ask for.
        since: beginning of the window, in seconds since 1970.
        until: end of the window, in seconds since 1970.
        checks: of texts.
        compared: what the window is compared with, such as the training rows' profile.
        num_dropped: exchanges that were not stored.
        normal_since: as in `stretch_begins`.
    """
    # Nothing after `until` takes part, so that a report of the past can be made again.
    rows = read_rows(frame.filter(pl.col("at") < until), since, stretch_begins(until, normal_since))
    num_signals = number_of_signals(compared)
    columns = columns_of(rows, checks)
    tested = [
        *hour_signals(rows, num_signals),
        new_words_signal(rows, checks, num_signals),
        *(column_signal(column, rows, checks, num_signals) for column in columns),
    ]
    by_name = {column.name: column for column in columns}
    signals = (
        *(one.signal for one in tested),
        *training_signals(rows, compared.profile, checks, num_signals),
        *compared.quality,
        *bias_signals(rows, by_name, compared.groups, checks, num_signals),
    )
    order = ("serving", "input", "output", "quality", "bias")
    report = WatchReport(
        project_id=project_id,
        model=model,
        since=since,
        until=until,
        num_exchanges=int(rows.is_now.sum()),
        num_with_text=_num_with_text(rows),
        num_dropped=num_dropped,
        signals=tuple(sorted(signals, key=lambda one: order.index(one.group))),
        cautions=_cautions(rows, num_dropped),
    )
    return Watched(report, tuple(tested), rows, num_signals)


def number_of_signals(compared: Compared) -> int:
    """How many signals share the bound on false alarms: the same number for a model, whatever its traffic contains."""
    return len(HOURLY) + 1 + _NUM_COLUMNS + len(NAMES) + len(compared.quality) + len(OUTCOMES) * len(compared.groups)


def _num_with_text(rows: Rows) -> int:
    return int((rows.is_now & rows.frame["messages"].is_not_null().to_numpy()).sum())


def _cautions(rows: Rows, num_dropped: int) -> tuple[str, ...]:
    found = []
    if num_dropped:
        found.append(
            f"The log had to drop {counted(num_dropped, 'exchange')} of this time, about which nothing is known."
        )
    num_now = int(rows.is_now.sum())
    num_untested = num_now - int((rows.is_now & rows.is_tested).sum())
    if num_now and num_untested > _MAX_UNTESTED * num_now:
        found.append(
            f"{num_untested:,} of {num_now:,} exchanges are in no test: of each user only the first exchange of an "
            f"hour is tested, and at most {MAX_AN_HOUR} exchanges an hour in all."
        )
    if num_now and not _num_with_text(rows):
        found.append("No texts are stored, so nothing is known about prompts and answers.")
    if len(rows.at) and not (~rows.is_now).any():
        found.append(
            f"There were no requests in the {RENEWED_DAYS} to {LOOK_BACK_DAYS} days before: there is nothing to "
            "compare with."
        )
    return tuple(found)
