#!/usr/bin/env python3
"""Few rows, figures near their ends: do intervals hold the truth, how wide are they, and do they stay inside?

    python benchmarks/interval_coverage.py                       2,000 studies a case, JSON to standard output
    python benchmarks/interval_coverage.py --markdown            and the tables of docs/statistics.md to standard error

Each study draws rows from a law whose true figure is known, and asks the product's own functions for the interval of a
figure or of a difference. `coverage`: share of studies whose 95% interval holds the truth; `plain`: of a percentile
bootstrap of the same resamples; `width`: the mean width; `outside`: studies with an interval that leaves what its
metric can be; of differences also `settled`: studies that call two equal systems distinguishable, and `torn`: studies
in which interval and p-value say different things.

Paired rows have a correlation of 0, 0.5 or 0.9 by a Gaussian copula (Nelsen, "An Introduction to Copulas", 2006).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from scipy.special import betaincinv, ndtr
from scipy.stats import binom, gamma

from luthier.core.records.bounds import UNIT, Bounds
from luthier.ml.evaluation.metrics.likelihood import Perplexity
from luthier.ml.evaluation.metrics.protocol import mean_of_sums, mean_statistics
from luthier.ml.evaluation.metrics.reference_based import Bleu
from luthier.ml.evaluation.metrics.registry import bounds_of
from luthier.ml.evaluation.statistics import difference_of, interval_of, is_settled, resampled_sums

Array = np.ndarray[Any, np.dtype[np.float64]]
SIZES = (6, 20, 60, 200)
CORRELATIONS = (0.0, 0.5, 0.9)
RESAMPLES = 500


class Law(NamedTuple):
    """Rows of a metric. statistics: uniform numbers [rows, 3] -> [rows, k]. truth: of the metric over all rows."""

    name: str
    statistics: Callable[[Array], Array]
    aggregate: Callable[[Array], Array]
    bounds: Bounds
    truth: float


def main() -> None:
    """Simulate all cases, or those whose name holds --only."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--studies", type=int, default=2_000)
    cli.add_argument("--only", default="", help="part of the names of cases")
    cli.add_argument("--markdown", action="store_true")
    args = cli.parse_args()
    found = [case for case in simulated(args.studies) if args.only in case["case"]]
    print(json.dumps({"studies": args.studies, "resamples": RESAMPLES, "cases": found}, indent=1))
    if args.markdown:
        print("\n".join(tables(found)), file=sys.stderr)


def simulated(num_studies: int) -> Iterator[dict[str, Any]]:
    """All cases: figures, then differences of equal systems."""
    for law in LAWS:
        for rows in SIZES:
            yield figure_case(law, rows, num_studies)
    for law in LAWS:
        if law.name == "all equal":
            continue
        for correlation in CORRELATIONS:
            for rows in SIZES:
                yield pair_case(law, correlation, rows, num_studies)


def figure_case(law: Law, rows: int, num_studies: int) -> dict[str, Any]:
    """Coverage and width of the interval of one figure."""
    random = np.random.default_rng([len(law.name), *law.name.encode(), rows])
    covered, plain, outside, widths = 0, 0, 0, []
    for study in range(num_studies):
        stats = law.statistics(random.random((rows, 3)))
        sums, total = resampled_sums(stats, seed=study, num_resamples=RESAMPLES), stats.sum(axis=0)
        ours = interval_of(total, sums, law.aggregate, bounds=law.bounds, rows=stats)
        bare = interval_of(total, sums, law.aggregate, bounds=law.bounds)
        covered += ours.low <= law.truth <= ours.high
        plain += bare.low <= law.truth <= bare.high
        outside += not (law.bounds.lower <= ours.low and ours.high <= law.bounds.upper)
        widths.append(ours.high - ours.low)
    shares = {"coverage": covered / num_studies, "plain": plain / num_studies, "outside": outside / num_studies}
    return {"case": law.name, "rows": rows, **shares, "width": float(np.mean(widths))}


def pair_case(law: Law, correlation: float, rows: int, num_studies: int) -> dict[str, Any]:
    """Coverage and width of the difference of two systems that are equal."""
    random = np.random.default_rng([len(law.name), *law.name.encode(), rows, round(10 * correlation)])
    bounds, counts, widths = law.bounds.of_differences, np.zeros(4), []
    for study in range(num_studies):
        shared, own, other = random.standard_normal((3, rows, 3))
        a, b = (
            law.statistics(ndtr(math.sqrt(correlation) * shared + math.sqrt(1 - correlation) * alone))
            for alone in (own, other)
        )
        both, width = np.concatenate([a, b], axis=1), a.shape[1]
        sums, columns = resampled_sums(both, seed=study, num_resamples=RESAMPLES), (slice(0, width), slice(width, None))
        found = difference_of(both.sum(axis=0), sums, *columns, law.aggregate, rows, bounds=law.bounds, rows=both)
        excludes = found.low > 0 or found.high < 0
        counts += (
            not excludes,
            not (bounds.lower <= found.low and found.high <= bounds.upper),
            is_settled(found),
            excludes != (found.p_value < 0.05),
        )
        widths.append(found.high - found.low)
    names = ("coverage", "outside", "settled", "torn")
    shares = dict(zip(names, (counts / num_studies).tolist(), strict=True))
    name = f"{law.name}, correlation {correlation:g}"
    return {"case": name, "rows": rows, **shares, "width": float(np.mean(widths))}


def tables(found: list[dict[str, Any]]) -> Iterator[str]:
    """Coverage in percent and mean width, a row a case, a column a number of rows."""
    for is_pair in (False, True):
        yield "| case | " + " | ".join(f"{rows} rows" for rows in SIZES) + " |"
        yield "|---|" + "---:|" * len(SIZES)
        names = dict.fromkeys(one["case"] for one in found if ("settled" in one) == is_pair)
        for name in names:
            own = {one["rows"]: one for one in found if one["case"] == name}
            cells = [f"{100 * own[rows]['coverage']:.1f} ({own[rows]['width']:.3g})" for rows in SIZES]
            yield f"| {name} | " + " | ".join(cells) + " |"
        yield ""


def _mean(values: Callable[[Array], Array]) -> Callable[[Array], Array]:
    return lambda uniform: mean_statistics(values(uniform[:, 0]).tolist())


def _zero_inflated(uniform: Array) -> Array:
    return np.where(uniform < 0.7, 0.0, betaincinv(2, 3, np.maximum(uniform - 0.7, 0) / 0.3))


def _perplexity(uniform: Array) -> Array:
    """3 to some 60 tokens a row; nats a token are log-normal over rows with a coefficient of variation of a half."""
    tokens = 3 + binom.ppf(uniform[:, 0], 57, 0.25)
    spread = math.sqrt(math.log(1.25))
    rate = np.exp(math.log(2.0) - spread**2 / 2 + spread * _normal(uniform[:, 1]))
    return np.stack([tokens * rate, tokens], axis=1)


def _normal(uniform: Array) -> Array:
    from scipy.special import ndtri

    return ndtri(np.clip(uniform, 1e-12, 1 - 1e-12))


def _bleu(uniform: Array) -> Array:
    """Answers of 8 to 40 words, references as long but for a fifth; a row's n-grams match as readily as it is easy."""
    reference = np.round(8 + 32 * uniform[:, 0])
    length = np.maximum(4, np.round(reference * (0.8 + 0.4 * uniform[:, 1])))
    ease = gamma.ppf(uniform[:, 2], 2, scale=0.15)
    totals = np.stack([length - order for order in range(4)], axis=1)
    shares = np.minimum(1.0, np.stack([ease * 0.75**order for order in range(4)], axis=1) * (0.9, 0.5, 0.3, 0.2))
    return np.concatenate([length[:, None], reference[:, None], np.round(shares * totals), totals], axis=1)


def _over_many(statistics: Callable[[Array], Array], aggregate: Callable[[Array], Array]) -> float:
    """The figure of so many rows that nothing is left to chance."""
    return float(aggregate(statistics(np.random.default_rng(1).random((400_000, 3))).sum(axis=0)))


LAWS = (
    Law("share, 5% right", _mean(lambda u: (u < 0.05).astype(float)), mean_of_sums, UNIT, 0.05),
    Law("ROUGE-like, skewed", _mean(lambda u: betaincinv(1, 5, u)), mean_of_sums, UNIT, 1 / 6),
    Law("70% of rows 0", _mean(_zero_inflated), mean_of_sums, UNIT, 0.3 * 0.4),
    Law("all equal", _mean(lambda u: np.full_like(u, 0.4)), mean_of_sums, UNIT, 0.4),
    Law("perplexity", _perplexity, Perplexity().aggregate, bounds_of(Perplexity()), math.exp(2.0)),
    Law("BLEU", _bleu, Bleu().aggregate, bounds_of(Bleu()), _over_many(_bleu, Bleu().aggregate)),
)

if __name__ == "__main__":
    main()
