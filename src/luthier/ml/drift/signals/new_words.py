"""What people ask about that they did not before: a word that has grown, and the group of prompts that has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from luthier.core.results.signal import Signal
from luthier.ml.drift.drift.evidence import false_alarms_a_month, has_ended
from luthier.ml.drift.drift.keyword_drift import hash_buckets, word_evidence
from luthier.ml.drift.drift.ranks import Flags, Ints, lots
from luthier.ml.drift.drift.topics import TextWords, find_topics
from luthier.ml.drift.signals.column import Checks, Rows
from luthier.ml.drift.signals.columns import NO_TEXT
from luthier.ml.drift.signals.signal_test import MAX_EXAMPLES, TAIL, Tested, slots_for, state_of, too_few

NAME: Final = "prompt_words"
_TITLE: Final = "Prompts with the word that has grown most"
_MAX_GROUPS: Final = 8
_DO: Final = (
    "Read the examples: is it a new subject? Then add rows of it to the training data, and judge the model on some."
)


def new_words_signal(rows: Rows, checks: Checks, num_signals: int) -> Tested:
    """The signal.

    Args:
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
        do=_DO,
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
