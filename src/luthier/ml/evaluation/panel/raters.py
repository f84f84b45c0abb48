"""Who of the raters reads: attention checks, agreement with the others, one side chosen always, haste, drift.

Nobody is left out for it: who seems not to read is named, with the reason, and figures are shown with and without them.
Rules, and what they miss, are in docs/human_eval.md; sources: Meade and Craig, "Identifying Careless Responses in
Survey Data", 2012 (checks, long strings); Chmielewski and Kucker, "An MTurk Crisis?", 2020 (one failed check proves
nothing).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

import numpy as np
from scipy.stats import binomtest

from luthier.core.results.human_eval import Rater, RatingPanel, RatingRow, RatingsTable
from luthier.core.results.human_eval_report import Drift, Estimate, RaterReport
from luthier.ml.evaluation.agreement import drift_of, krippendorff_alpha
from luthier.ml.evaluation.panel.values import against_others, matrix, overall

MIN_FAILED: Final = 2
FAILED_SHARE: Final = 1 / 3
"""Who fails two checks at least, and a third of them, seems not to read."""
NEAR_ZERO: Final = 0.2
"""Where others surely agree with each other more than this, a rater who does not agree with them is an outlier."""
MIN_COMPARED: Final = 10
SIDE_SHARE: Final = 0.85
SIDE_P: Final = 0.001
LONG_STRING_SHARE: Final = 0.9
MAX_WORDS_A_SECOND: Final = 15.0
"""900 words a minute; people read some 240 (Brysbaert, "How many words do we read per minute?", 2019)."""
DRIFT_P: Final = 0.01


def rater_reports(panel: RatingPanel, people: Sequence[Rater], table: RatingsTable) -> tuple[RaterReport, ...]:
    """One report a rater, in the order of the panel."""
    plain = {one.name: _plain_reasons(table.where(lambda row, name=one.name: row.rater == name)) for one in people}  # type: ignore[misc]
    # Compared with raters who are not suspect themselves: two careless ones would make each other look normal.
    trusted = [name for name, reasons in plain.items() if not reasons]
    return tuple(_report(panel, one, table, plain[one.name], trusted) for one in people)


def _report(
    panel: RatingPanel, rater: Rater, table: RatingsTable, reasons: list[str], trusted: Sequence[str]
) -> RaterReport:
    own = table.where(lambda row: row.rater == rater.name)
    checks = [row.passed for row in own.rows if row.is_check]
    others = [name for name in trusted if name != rater.name]
    said, mean = against_others(table.real, rater.name, others)
    agreement = _alpha(np.stack([said, mean])) if len(said) >= 2 else None
    caught = list(reasons)
    if agreement is not None and _stands_alone(table.real, agreement, len(said), others):
        caught.append(
            f"agrees with the others no more than chance would: alpha {agreement.value:.2f} "
            f"[{agreement.low:.2f}, {agreement.high:.2f}]"
        )
    drift = _drift(panel, said, mean)
    word, share = _majority_answer(own.real.rows)
    seconds = [row.seconds for row in own.rows if row.seconds is not None]
    return RaterReport(
        rater_id=rater.rater_id,
        name=rater.name,
        has_link=rater.has_link,
        num_rated=len(own.rows),
        num_items=panel.num_items,
        num_checks=len(checks),
        num_failed=checks.count(False),
        median_seconds=float(np.median(seconds)) if seconds else None,
        agreement=agreement,
        most_said=word,
        most_said_share=share,
        drift=drift,
        caught=tuple(caught),
        notes=_notes(panel, own, word, share, drift),
    )


def _plain_reasons(own: RatingsTable) -> list[str]:
    """Figures of one rater's ratings alone."""
    reasons = []
    checks = [row.passed for row in own.rows if row.is_check]
    num_failed = checks.count(False)
    if num_failed >= MIN_FAILED and num_failed >= FAILED_SHARE * len(checks):
        reasons.append(f"failed {num_failed} of {len(checks)} attention checks")
    sided = [row.preference == row.shown_first for row in own.real.rows if row.preference in ("a", "b")]
    num_first = sided.count(True)
    most = max(num_first, len(sided) - num_first)
    # Both a large share and a small p-value: 6 of 6 may be chance, and 530 of 1,000 is no habit.
    if sided and most >= SIDE_SHARE * len(sided) and binomtest(most, len(sided)).pvalue < SIDE_P:
        side = "first" if num_first == most else "second"
        reasons.append(f"chose what stood {side} in {most} of {len(sided)} pairs, where sides are drawn by lot")
    return reasons


def _stands_alone(table: RatingsTable, agreement: Estimate, num_compared: int, others: Sequence[str]) -> bool:
    """Whether others agree with each other, and with this rater no more than chance would: both intervals say so."""
    if num_compared < MIN_COMPARED or len(others) < 2 or agreement.low > 0:
        return False
    among = _alpha(matrix(table.where(lambda row: row.rater in others), others, overall))
    return among is not None and among.low > max(NEAR_ZERO, agreement.high)


def _alpha(ratings: np.ndarray) -> Estimate | None:
    """Krippendorff's alpha for intervals; None where all ratings are the same, which carry no information."""
    known = ratings[~np.isnan(ratings)]
    if not len(known) or np.ptp(known) == 0:
        return None
    found = krippendorff_alpha(ratings, "interval")
    return Estimate(value=found.value, low=found.low, high=found.high) if np.isfinite(found).all() else None


def _drift(panel: RatingPanel, said: np.ndarray, mean: np.ndarray) -> Drift | None:
    if len(said) < MIN_COMPARED:
        return None
    # Of scores the deviation from the others; of preferences (-1 to 1) the agreement with them, 0 to 1.
    values = said - mean if panel.kind == "likert" else 1 - np.abs(said - mean) / 2
    if np.ptp(values) == 0:
        return None
    found = drift_of(values)
    return Drift(slope=found.slope, p_value=found.p_value)


def _majority_answer(rows: Sequence[RatingRow]) -> tuple[str, float | None]:
    """The most frequent answer as it stood on the page: a side, a tie, or all the scores of an item."""
    if not rows:
        return "", None
    words = Counter(_on_page(row) for row in rows)
    word, number = words.most_common(1)[0]
    return word, number / len(rows)


def _on_page(row: RatingRow) -> str:
    if row.preference is None:
        scores = (row.relevance, row.coherence, row.accuracy, row.helpfulness)
        return ", ".join(str(score) for score in scores if score is not None)
    if row.preference == "tie":
        return "tie"
    return "first" if row.preference == row.shown_first else "second"


def _notes(
    panel: RatingPanel, own: RatingsTable, word: str, share: float | None, drift: Drift | None
) -> tuple[str, ...]:
    notes = []
    if own.rows and len(own.rows) < panel.num_items:
        notes.append(f"stopped after {len(own.rows)} of {panel.num_items} items, or is not done yet")
    if share is not None and share >= LONG_STRING_SHARE and len(own.real.rows) >= MIN_COMPARED:
        notes.append(f"said {word!r} of {share:.0%} of items")
    paces = [_num_words(row) / row.seconds for row in own.rows if row.seconds]
    if paces and (pace := float(np.median(paces))) > MAX_WORDS_A_SECOND:
        notes.append(f"took too little time to read: {60 * pace:,.0f} words a minute in the median")
    if drift is not None and drift.p_value < DRIFT_P:
        what = "the score, held against the others'," if panel.kind == "likert" else "agreement with the others"
        notes.append(f"{what} {'rises' if drift.slope > 0 else 'falls'} as it goes on: {drift.slope:+.3f} an item")
    return tuple(notes)


def _num_words(row: RatingRow) -> int:
    return len(f"{row.prompt} {row.answer_a} {row.answer_b or ''}".split())
