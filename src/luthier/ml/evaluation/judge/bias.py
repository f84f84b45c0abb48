"""Position and length bias of a judge, and the cautions shown with each of its figures.

Everything is a formula over sums of row statistics, so that one bootstrap over rows, or their sources, gives the
intervals. Length is the correlation of the logarithm of the ratio of lengths (characters) with the points (1, 0.5, 0).
A judge that prefers long answers may be right, so the same figure of human raters is shown next to it, if there are
any. Cautions also mention replies without a verdict.

Source: Zheng et al., 2023, arXiv:2306.05685, section 3.3 (position).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence

import numpy as np

from luthier.core.errors import WorkError
from luthier.core.estimate import Estimate
from luthier.core.records.bounds import CORRELATION, UNIT, Bounds
from luthier.core.records.calibration import MAX_NO_VERDICT_FRACTION, JudgeBias, NoVerdictKind
from luthier.ml.evaluation.judge.verdicts import POINTS, Pair, PairVerdict
from luthier.ml.evaluation.metrics.protocol import Array
from luthier.ml.evaluation.statistics import bootstrap_interval

# Columns of the statistics: pairs, flips, showings won by the first shown, showings with a winner; then sums for the
# correlation of x (length) and y (points): number, x, y, xy, xx, yy.
_NUM_COLUMNS = 4
_FEWEST_FOR_LENGTH = 3


def pair_statistics(pairs: Sequence[Pair], verdicts: Sequence[PairVerdict]) -> Array:
    """[pairs, 10]. Pairs without a verdict, and pairs of equal answers, which are not judged, are zero."""
    rows = np.zeros((len(pairs), 10))
    for row, pair, verdict in zip(rows, pairs, verdicts, strict=True):
        preference = verdict.preference
        if preference is None or pair.a.strip() == pair.b.strip():
            continue
        row[:_NUM_COLUMNS] = (1, verdict.is_flipped, *verdict.shown_first_won)
        row[_NUM_COLUMNS:] = _length_sums(pair, POINTS[preference])
    return rows


def people_statistics(pairs: Sequence[Pair], points: Sequence[float]) -> Array:
    """[pairs, 6], the statistics of people's length preference.

    Args:
        pairs: the answers.
        points: the points of people for the first answer of each pair: 1, 0.5 or 0.
    """
    return np.array([_length_sums(pair, point) for pair, point in zip(pairs, points, strict=True)]).reshape(-1, 6)


def bias_of(
    stats: Array, *, people: Array | None = None, seed: int = 0, clusters: Sequence[Hashable] | None = None
) -> JudgeBias | None:
    """The bias from `pair_statistics`; None without a pair with a verdict.

    Args:
        stats: [pairs, 10].
        people: [pairs, 6], of the same pairs; None where no people rated them.
        seed: of the resampling.
        clusters: the source of each pair; None where every pair is its own.
    """
    total = stats.sum(axis=0)
    if total[0] == 0:
        return None
    flipped = _estimate(stats, lambda sums: _ratio(sums[..., 1], sums[..., 0], 0.0), UNIT, seed, clusters)
    first = (
        _estimate(stats, lambda sums: _ratio(sums[..., 2], sums[..., 3], 0.5), UNIT, seed, clusters)
        if total[3]
        else None
    )
    # Shares of 0 / 0 in a resample use neutral values: no flip, and one half for the position.
    return JudgeBias(
        num_pairs=int(total[0]),
        num_flipped=int(total[1]),
        flipped=flipped,
        num_showings=int(total[3]),
        first_shown=first,
        length=_length_estimate(stats[:, _NUM_COLUMNS:], seed, clusters),
        people_length=None if people is None else _length_estimate(people, seed, clusters),
    )


def _length_sums(pair: Pair, points: float) -> tuple[float, ...]:
    # One is added to both, so that the logarithm of an empty answer is defined.
    x = math.log((1 + len(pair.a)) / (1 + len(pair.b)))
    return 1.0, x, points, x * points, x * x, points * points


def _length_estimate(sums: Array, seed: int, clusters: Sequence[Hashable] | None) -> Estimate | None:
    """None if lengths or preferences do not vary, or there are too few of them."""
    total = sums.sum(axis=0)
    if total[0] < _FEWEST_FOR_LENGTH or min(_variances(total)) <= 1e-12:
        return None
    return _estimate(sums, _correlation, CORRELATION, seed, clusters)


def _variances(sums: Array) -> tuple[Array, Array]:
    n = np.maximum(sums[..., 0], 1)
    return sums[..., 4] / n - (sums[..., 1] / n) ** 2, sums[..., 5] / n - (sums[..., 2] / n) ** 2


def _correlation(sums: Array) -> Array:
    """Pearson's correlation; 0 for resamples without variance."""
    n = np.maximum(sums[..., 0], 1)
    covariance = sums[..., 3] / n - sums[..., 1] * sums[..., 2] / n**2
    spread = np.sqrt(np.prod(np.maximum(_variances(sums), 0), axis=0))
    return np.clip(_ratio(covariance, spread, 0.0), -1, 1)


def _ratio(above: Array, below: Array, otherwise: float) -> Array:
    """above / below; `otherwise` for 0 / 0."""
    has_any = below > 1e-12
    result: Array = np.where(has_any, above / np.where(has_any, below, 1.0), otherwise)
    return result


def _estimate(
    stats: Array,
    aggregate: Callable[[Array], Array],
    bounds: Bounds,
    seed: int,
    clusters: Sequence[Hashable] | None,
) -> Estimate:
    return Estimate.of(bootstrap_interval(stats, aggregate, bounds=bounds, seed=seed, clusters=clusters))


MAX_LEFT_OUT_FRACTION = 0.5
_KINDS: Mapping[NoVerdictKind, str] = {
    "empty": "nothing",
    "refusal": "a refusal",
    "prose": "words without a verdict",
    "incomplete": "not all of the scores",
    "out of range": "a verdict that was not to choose",
    "contradiction": "two verdicts in one reply",
    "cut off": "no end within its tokens",
    "too long": "a question over its context",
    "no answer": "an error or no answer in time",
}


def missing_sentence(judge: str, num_asked: int, missing: Counter[NoVerdictKind], what: str) -> str | None:
    """A caution about missing verdicts; None if none is missing.

    Args:
        judge: name of the judge.
        num_asked: number of questions.
        missing: questions without a verdict, by kind.
        what: "pairs" or "answers".
    """
    num_missing = missing.total()
    if not num_missing:
        return None
    kinds = ", ".join(f"{_KINDS[kind]} ({count:,})" for kind, count in missing.most_common())
    share = num_missing / num_asked
    sentence = (
        f"{judge} gave no verdict on {num_missing:,} of {num_asked:,} {what} ({share:.0%}), asked twice: {kinds}. They "
        "are left out of the figures"
    )
    if share <= MAX_NO_VERDICT_FRACTION:
        return f"{sentence}."
    return f"{sentence}; that is too many to call the rest a fair sample."


def check_missing(judge: str, num_asked: int, missing: Counter[NoVerdictKind], what: str) -> None:
    """Check that there are enough verdicts for a figure.

    Args:
        judge: name of the judge.
        num_asked: number of questions.
        missing: questions without a verdict, by kind.
        what: "pairs" or "answers".

    Raises:
        WorkError: most of them are missing.
    """
    if missing.total() > MAX_LEFT_OUT_FRACTION * num_asked:
        raise WorkError(
            missing_sentence(judge, num_asked, missing, what) or "",
            expected=f"a verdict on at least {1 - MAX_LEFT_OUT_FRACTION:.0%} of them",
            do="name a judge that follows a form (--judge): a larger model, or a server that knows JSON schemas",
        )


def bias_sentences(judge: str, bias: JudgeBias | None) -> tuple[str, ...]:
    """Sentences on position and length bias; empty without pairs."""
    if bias is None:
        return ()
    found = []
    if bias.first_shown is not None:
        found.append(
            f"{judge} saw each pair in both orders: shown first, an answer won {_percent(bias.first_shown)} of "
            f"{bias.num_showings:,} showings with a winner (50% is fair); {_leaning(bias.first_shown)}."
        )
    if bias.num_flipped:
        found.append(
            f"In {bias.num_flipped:,} of {bias.num_pairs:,} pairs ({bias.flipped.value:.0%}) {judge} preferred another "
            "answer when the order was turned around; they count as ties."
        )
    if bias.length is not None:
        found.append(f"{_length(judge, bias.length)}{_beside_people(bias.people_length)}.")
    return tuple(found)


def _leaning(first_shown: Estimate) -> str:
    if first_shown.low > 0.5:
        return "it leans to the first"
    return "it leans to the second" if first_shown.high < 0.5 else "no leaning to a place is seen"


def _length(judge: str, length: Estimate) -> str:
    figure = f"correlation {length.value:+.2f} [{length.low:+.2f}, {length.high:+.2f}]"
    if length.low > 0:
        return f"{judge} prefers longer answers ({figure})"
    return f"{judge} prefers shorter answers ({figure})" if length.high < 0 else f"No leaning to a length ({figure})"


def _beside_people(length: Estimate | None) -> str:
    return "" if length is None else f"; people: {length.value:+.2f} [{length.low:+.2f}, {length.high:+.2f}]"


def _percent(estimate: Estimate) -> str:
    return f"{estimate.value:.0%} [{estimate.low:.0%}, {estimate.high:.0%}]"
