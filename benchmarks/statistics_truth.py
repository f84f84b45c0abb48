#!/usr/bin/env python3
"""Do our intervals hold the truth, and how often is "better" said where nothing is? Simulated studies with known truth.

    python benchmarks/statistics_truth.py                                2,000 studies a case, JSON to standard output
    python benchmarks/statistics_truth.py --picture build/truth.svg      and the coverage drawn

Each study draws rows from a law whose true figure is known in closed form, and asks the product's own functions for an
interval or a comparison. `coverage`: share of studies whose 95% interval holds the truth; `plain`: the same for a plain
percentile bootstrap of the same resamples. `settled`: share of studies in which two equal systems are called
distinguishable; `better`: in which the second is called better.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from luthier.core.records.bounds import REAL_LINE, UNIT, Bounds
from luthier.ml.evaluation.agreement import cohen_kappa
from luthier.ml.evaluation.metrics.likelihood import Perplexity
from luthier.ml.evaluation.metrics.protocol import mean_of_sums, mean_statistics
from luthier.ml.evaluation.ranking import bradley_terry
from luthier.ml.evaluation.statistics import (
    Difference,
    cluster_sums,
    difference_of,
    difference_over_seeds,
    holm,
    interval_of,
    is_settled,
    over_seeds,
    permutation_test,
    resampled_sums,
)

Array = np.ndarray[Any, np.dtype[np.float64]]
Random = np.random.Generator
RESAMPLES = 500
AT_LEAST_0, PERPLEXITIES = Bounds(0.0, math.inf), Bounds(1.0, math.inf)


class Outcome(NamedTuple):
    """Of one study; None where it is not asked."""

    covered: bool | None = None
    plain: bool | None = None
    settled: bool | None = None
    better: bool | None = None


class Case(NamedTuple):
    """One kind of study, of `rows` rows (or sources), run by `study` with a random source and a seed."""

    name: str
    rows: int
    study: Callable[[Random, int], Outcome]


def main() -> None:
    """Simulate all cases, or those whose name holds --only."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--studies", type=int, default=2_000)
    cli.add_argument("--only", default="", help="part of the names of cases")
    cli.add_argument("--picture", type=Path, help="SVG or PNG file to draw")
    args = cli.parse_args()
    found = []
    for case in cases():
        if args.only in case.name:
            found.append(simulate(case, args.studies))
            print(json.dumps(found[-1]), file=sys.stderr, flush=True)
    print(json.dumps({"studies": args.studies, "resamples": RESAMPLES, "cases": found}, indent=1))
    if args.picture:
        draw(found, args.studies, args.picture)


def simulate(case: Case, num_studies: int) -> dict[str, Any]:
    """Shares over the studies of one case, in its own stream of random numbers."""
    generator = np.random.default_rng([len(case.name), *case.name.encode(), case.rows])
    start = time.perf_counter()
    outcomes = [case.study(generator, study) for study in range(num_studies)]
    found: dict[str, Any] = {"case": case.name, "rows": case.rows}
    for field in Outcome._fields:
        values = [getattr(outcome, field) for outcome in outcomes]
        if values[0] is not None:
            found[field if field != "covered" else "coverage"] = round(sum(values) / num_studies, 4)
    return found | {"seconds": round(time.perf_counter() - start, 1)}


def cases() -> Iterator[Case]:
    """All of them: single figures, differences, families of tests, seeds, agreement, ranking."""
    yield from _figures_and_pairs(20)
    for sources in (15, 30):
        yield Case("mean score, rows of one source alike", sources, _clustered(sources))
    for rows in (30, 100):
        yield Case("5 metrics of equal systems, Holm", rows, _family(rows))
    yield Case("equal systems, permutation test", 30, _swapped(30))
    for seeds in (2, 3, 5):
        for spread in (0.0, 0.05, 0.1):
            yield Case(f"mean of {seeds} seeds, spread {spread:g} of seeds", 40, _seeds(seeds, spread, 40))
        yield Case(f"{seeds} seeds against an equal base", 40, _seeds_pair(seeds, 0.05, 40))
        yield Case(f"{seeds} seeds against an equal base, few rows", 6, _seeds_pair(seeds, 0.0, 6))
        yield Case(f"{seeds} seeds against an equal base, shares", 20, _seeds_of_shares(seeds, 0.05, 20))
    yield Case("Cohen's kappa", 40, _kappa(40))
    yield Case("Bradley-Terry gap, by items", 40, _gap(40))
    yield from _figures_and_pairs(50)
    yield from _figures_and_pairs(200)


def _figures_and_pairs(rows: int) -> Iterator[Case]:
    for name, (law, aggregate, bounds, truth) in FIGURES.items():
        yield Case(name, rows, _figure(law, aggregate, bounds, truth, rows))
    for name, (pair, aggregate, bounds, truth) in PAIRS.items():
        yield Case(name, rows, _pair(pair, aggregate, bounds, truth, rows))


# Laws of single figures: rows -> statistics, the formula, the true figure.


def f1_of_counts(sums: Array) -> Array:
    """Micro F1 from true positives, false positives, false negatives."""
    result: Array = 2 * sums[..., 0] / (2 * sums[..., 0] + sums[..., 1] + sums[..., 2])
    return result


def macro_f1(sums: Array) -> Array:
    """Macro F1 of three labels from their confusion cells."""
    table = sums.reshape(*sums.shape[:-1], 3, 3)
    right = np.diagonal(table, axis1=-2, axis2=-1)
    ends = table.sum(axis=-1) + table.sum(axis=-2)
    result: Array = np.where(ends > 0, 2 * right / np.maximum(ends, 1e-9), 0.0).mean(axis=-1)
    return result


def _share(p: float) -> Callable[[Random, int], Array]:
    return lambda random, rows: mean_statistics(random.random(rows) < p)


def _perplexity(random: Random, rows: int) -> Array:
    """Answers of 3 to 60 tokens; nats a token differ from row to row by half of their mean."""
    tokens = np.round(random.lognormal(2.5, 0.6, rows)) + 2
    return np.stack([tokens * random.gamma(4, 0.25, rows), tokens], axis=1)


def _f1(random: Random, rows: int) -> Array:
    """1 to 5 things to find a row; hard rows have more wrong ones and fewer right ones."""
    wanted, ease = random.integers(1, 6, rows), random.beta(2, 1, rows)
    right = random.binomial(wanted, ease)
    return np.stack([right, random.poisson(1.6 * (1 - ease)), wanted - right], axis=1).astype(np.float64)


_LABELS = np.array([0.5, 0.3, 0.2])


def _labels(random: Random, rows: int) -> Array:
    true = random.choice(3, rows, p=_LABELS)
    given = np.where(random.random(rows) < 0.75, true, random.integers(0, 3, rows))
    cells = np.zeros((rows, 9))
    cells[np.arange(rows), 3 * true + given] = 1
    return cells


_MACRO = float(np.mean(2 * _LABELS * (0.75 + 0.25 / 3) / (_LABELS * 1.75 + 0.25 / 3)))
FIGURES: dict[str, tuple[Callable[[Random, int], Array], Callable[[Array], Array], Bounds, float]] = {
    "share right, 0.7": (_share(0.7), mean_of_sums, UNIT, 0.7),
    "share right, 0.9": (_share(0.9), mean_of_sums, UNIT, 0.9),
    "mean score (beta, many 0 and 1)": (
        lambda r, n: mean_statistics(np.where(r.random(n) < 0.4, r.integers(0, 2, n), r.beta(2, 2, n))),
        mean_of_sums,
        UNIT,
        0.5,
    ),
    "mean of normal values": (lambda r, n: mean_statistics(r.normal(size=n)), mean_of_sums, REAL_LINE, 0.0),
    "mean of skewed values (exponential)": (
        lambda r, n: mean_statistics(r.exponential(size=n)),
        mean_of_sums,
        AT_LEAST_0,
        1.0,
    ),
    "mean of very skewed values (lognormal)": (
        lambda r, n: mean_statistics(r.lognormal(size=n)),
        mean_of_sums,
        AT_LEAST_0,
        math.exp(0.5),
    ),
    "perplexity": (_perplexity, Perplexity().aggregate, PERPLEXITIES, math.e),
    "micro F1": (_f1, f1_of_counts, UNIT, 4 / (4 + 1 + 1.6 / 3)),
    "macro F1 of 3 labels": (_labels, macro_f1, UNIT, _MACRO),
}

# Laws of pairs: rows -> statistics of both systems, the formula, the true difference (second minus first).


def _right_pair(only_first: float, only_second: float) -> Callable[[Random, int], tuple[Array, Array]]:
    def law(random: Random, rows: int) -> tuple[Array, Array]:
        fate = random.choice(4, rows, p=[only_first, only_second, 0.6 - only_first, 0.4 - only_second])
        return mean_statistics(np.isin(fate, (0, 2))), mean_statistics(np.isin(fate, (1, 2)))

    return law


def _score_pair(random: Random, rows: int) -> tuple[Array, Array]:
    hard = random.normal(size=rows)
    return mean_statistics(hard + random.normal(size=rows)), mean_statistics(hard + random.normal(size=rows))


def _skewed_pair(random: Random, rows: int) -> tuple[Array, Array]:
    """Equal means, but what the second gains on few rows it loses on many."""
    hard = random.normal(size=rows)
    return mean_statistics(hard + 1.0), mean_statistics(hard + random.exponential(size=rows))


def _perplexity_pair(random: Random, rows: int) -> tuple[Array, Array]:
    first = _perplexity(random, rows)
    factor = random.gamma(16, 1 / 16, rows)
    return first, np.stack([first[:, 0] * factor, first[:, 1]], axis=1)


Pair = tuple[Callable[[Random, int], tuple[Array, Array]], Callable[[Array], Array], Bounds, float]
PAIRS: dict[str, Pair] = {
    "equal shares, 20% of rows differ": (_right_pair(0.1, 0.1), mean_of_sums, UNIT, 0.0),
    "share 15 points higher": (_right_pair(0.05, 0.2), mean_of_sums, UNIT, 0.15),
    "equal scores": (_score_pair, mean_of_sums, REAL_LINE, 0.0),
    "equal means, skewed differences": (_skewed_pair, mean_of_sums, REAL_LINE, 0.0),
    "equal perplexities": (_perplexity_pair, Perplexity().aggregate, PERPLEXITIES, 0.0),
}


def _figure(law: Any, aggregate: Any, bounds: Bounds, truth: float, rows: int) -> Callable[[Random, int], Outcome]:
    def study(random: Random, seed: int) -> Outcome:
        return _outcome(law(random, rows), aggregate, bounds, truth, seed)

    return study


def _outcome(units: Array, aggregate: Any, bounds: Bounds, truth: float, seed: int) -> Outcome:
    sums, total = resampled_sums(units, seed=seed, num_resamples=RESAMPLES), units.sum(axis=0)
    ours = interval_of(total, sums, aggregate, bounds=bounds, rows=units)
    plain = interval_of(total, sums, aggregate, bounds=bounds)
    return Outcome(ours.low <= truth <= ours.high, plain.low <= truth <= plain.high)


def _pair(law: Any, aggregate: Any, bounds: Bounds, truth: float, rows: int) -> Callable[[Random, int], Outcome]:
    def study(random: Random, seed: int) -> Outcome:
        first, second = law(random, rows)
        found, plain = _compared(first, second, aggregate, bounds, seed)
        covered = found.low <= truth <= found.high
        settled = is_settled(found)
        return Outcome(
            covered,
            plain.low <= truth <= plain.high,
            settled if truth == 0 else None,
            settled and found.difference > 0 if truth == 0 else None,
        )

    return study


def _compared(first: Array, second: Array, aggregate: Any, bounds: Bounds, seed: int) -> tuple[Difference, Difference]:
    """Second minus first: as the product does, and by the plain percentile bootstrap."""
    both, width = np.concatenate([second, first], axis=1), first.shape[1]
    sums, columns = resampled_sums(both, seed=seed, num_resamples=RESAMPLES), (slice(0, width), slice(width, None))
    total = both.sum(axis=0)
    ours = difference_of(total, sums, *columns, aggregate, len(both), bounds=bounds, rows=both)
    return ours, difference_of(total, sums, *columns, aggregate, len(both), bounds=bounds)


def _clustered(sources: int) -> Callable[[Random, int], Outcome]:
    """`plain`: as if each row were a source of its own."""

    def study(random: Random, seed: int) -> Outcome:
        sizes = random.integers(1, 10, sources)
        of_row = np.repeat(np.arange(sources), sizes)
        scores = 0.5 + random.normal(0, 0.2, sources)[of_row] + random.normal(0, 0.2, len(of_row))
        stats = mean_statistics(scores)
        ours = _outcome(cluster_sums(stats, of_row.tolist()), mean_of_sums, REAL_LINE, 0.5, seed)
        return Outcome(ours.covered, _outcome(stats, mean_of_sums, REAL_LINE, 0.5, seed).plain)

    return study


def _family(rows: int) -> Callable[[Random, int], Outcome]:
    """`settled`: any of five metrics of equal systems is, after Holm."""

    def study(random: Random, seed: int) -> Outcome:
        laws = [(law, aggregate, bounds) for law, aggregate, bounds, truth in PAIRS.values() if truth == 0]
        laws.append((lambda r, n: (_f1(r, n), _f1(r, n)), f1_of_counts, UNIT))
        found = [_compared(*law(random, rows), aggregate, bounds, seed)[0] for law, aggregate, bounds in laws]
        adjusted = holm([one.p_value for one in found])
        settled = [is_settled(one._replace(p_value=p)) for one, p in zip(found, adjusted, strict=True)]
        return Outcome(settled=any(settled))

    return study


def _swapped(rows: int) -> Callable[[Random, int], Outcome]:
    def study(random: Random, seed: int) -> Outcome:
        first, second = _score_pair(random, rows)
        p_value = permutation_test(first, second, mean_of_sums, seed=seed, num_permutations=RESAMPLES)
        return Outcome(settled=p_value < 0.05)

    return study


def _trained(random: Random, hard: Array, spread: float) -> Array:
    return mean_statistics(0.6 + hard + random.normal(0, spread) + random.normal(0, 0.2, len(hard)))


def _seeds(seeds: int, spread: float, rows: int) -> Callable[[Random, int], Outcome]:
    """Scores whose rows alone have a standard error of 0.05. `plain`: rows alone, by the first seed."""

    def study(random: Random, seed: int) -> Outcome:
        hard = random.normal(0, 0.25, rows)
        trained = [_trained(random, hard, spread) for _ in range(seeds)]
        found = over_seeds(trained, mean_of_sums, bounds=REAL_LINE, seed=seed, num_resamples=RESAMPLES)
        first = trained[0]
        sums = resampled_sums(first, seed=seed, num_resamples=RESAMPLES)
        plain = interval_of(first.sum(axis=0), sums, mean_of_sums, bounds=REAL_LINE)
        return Outcome(found.low <= 0.6 <= found.high, plain.low <= 0.6 <= plain.high)

    return study


def _seeds_pair(seeds: int, spread: float, rows: int) -> Callable[[Random, int], Outcome]:
    def study(random: Random, seed: int) -> Outcome:
        hard = random.normal(0, 0.25, rows)
        tuned, base = [_trained(random, hard, spread) for _ in range(seeds)], _trained(random, hard, 0.0)
        found = difference_over_seeds(tuned, [base], mean_of_sums, bounds=REAL_LINE, seed=seed, num_resamples=RESAMPLES)
        settled = is_settled(found)
        return Outcome(found.low <= 0 <= found.high, None, settled, settled and found.difference > 0)

    return study


def _seeds_of_shares(seeds: int, spread: float, rows: int) -> Callable[[Random, int], Outcome]:
    """Right or wrong: every row is right with its own probability, which a training moves a little."""

    def study(random: Random, seed: int) -> Outcome:
        easy = random.uniform(0.2, 1.0, rows)

        def trained(moved: float) -> Array:
            return mean_statistics((random.random(rows) < np.clip(easy + random.normal(0, moved), 0, 1)).astype(float))

        tuned, base = [trained(spread) for _ in range(seeds)], trained(0.0)
        found = difference_over_seeds(tuned, [base], mean_of_sums, bounds=UNIT, seed=seed, num_resamples=RESAMPLES)
        settled = is_settled(found)
        return Outcome(found.low <= 0 <= found.high, None, settled, settled and found.difference > 0)

    return study


def _kappa(rows: int) -> Callable[[Random, int], Outcome]:
    def study(random: Random, _seed: int) -> Outcome:
        true = random.integers(0, 2, rows)
        a, b = (np.where(random.random(rows) < 0.85, true, 1 - true) for _ in range(2))
        found = cohen_kappa(a.tolist(), b.tolist())
        return Outcome(found.low <= 0.49 <= found.high)  # (0.85^2 + 0.15^2 - 0.5) / 0.5

    return study


def _gap(rows: int) -> Callable[[Random, int], Outcome]:
    """Three systems, each pair judged once an item."""
    strengths = np.array([0.8, 0.1, -0.9])

    def study(random: Random, _seed: int) -> Outcome:
        tables = np.zeros((rows, 3, 3))
        for one, other in ((0, 1), (0, 2), (1, 2)):
            wins = random.random(rows) < 1 / (1 + math.exp(strengths[other] - strengths[one]))
            tables[:, one, other], tables[:, other, one] = wins, ~wins
        gap = bradley_terry(tables).gap(0, 1)
        return Outcome(gap.low <= 0.7 <= gap.high)

    return study


def draw(found: list[dict[str, Any]], num_studies: int, file: Path) -> None:
    """Coverage of every case, ours filled and the plain bootstrap's hollow; the band is 93 to 97%."""
    rows = [one for one in found if "coverage" in one]
    figure = Figure(figsize=(8.5, 1.4 + 0.21 * len(rows)), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.axvspan(93, 97, color="#eef4f6", lw=0)
    axes.axvline(95, color="#5c5c5c", lw=1)
    for place, one in enumerate(rows):
        coverage = one["coverage"]
        error = 196 * math.sqrt(coverage * (1 - coverage) / num_studies)
        line = [100 * coverage - error, min(100, 100 * coverage + error)]
        axes.plot(line, [place] * 2, color="#1f6f8b", lw=1.4, alpha=0.55)
        axes.plot([100 * coverage], [place], "o", color="#1f6f8b", ms=4.5, label="ours" if place == 0 else None)
        if "plain" in one:
            label = "plain percentile bootstrap" if place == 0 else None
            axes.plot([100 * one["plain"]], [place], "o", mfc="none", color="#b0563b", ms=4.5, label=label)
    axes.set_yticks(range(len(rows)), [f"{one['case']}, {one['rows']}" for one in rows], fontsize=7)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel(f"% of {num_studies:,} studies whose 95% interval holds the truth; band: 93 to 97", fontsize=8)
    axes.grid(axis="x", color="#d9d9d9", lw=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0, labelsize=7)
    axes.legend(fontsize=8, frameon=False, loc="lower left")
    file.parent.mkdir(parents=True, exist_ok=True)
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": file.stem}):  # the same bytes each time
        figure.savefig(file, dpi=130, metadata={"Date": None} if file.suffix == ".svg" else None)


if __name__ == "__main__":
    main()
