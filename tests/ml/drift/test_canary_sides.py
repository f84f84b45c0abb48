"""Both sides of a canary: values found by hand, intervals that hold what they claim, and what is missing."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from tests.vacuous import nonempty

from luthier.core.records.deployment import CanaryMeasure
from luthier.ml.drift.canary_sides import FEWEST_ANSWERS, both_sides, summary_of


def frame(num: int, *, seed: int = 0, slower: float = 1.0, failing: float = 0.02, rated: int = 0) -> pl.DataFrame:
    """Exchanges of as many users, every second one of the canary. slower: the canary's factor of seconds."""
    random = np.random.default_rng(seed)
    is_canary = np.arange(num) % 2 == 1
    seconds = random.lognormal(0.0, 0.5, num) * np.where(is_canary, slower, 1.0)
    failed = random.random(num) < np.where(is_canary, failing, 0.02)
    bad = [float(number % 4 == 0) if number < rated else None for number in range(num)]
    return pl.DataFrame(
        {
            "unit": [f"user {number}" for number in range(num)],
            "is_canary": is_canary,
            "failed": failed.astype(float),
            "seconds": [None if fails else float(one) for one, fails in zip(seconds, failed, strict=True)],
            "bad": bad,
            "score": [None if one is None else 1 - one for one in bad],
            "judged": [None] * num,
        },
        schema_overrides=dict.fromkeys(("failed", "seconds", "bad", "score", "judged"), pl.Float64()),
    )


def of(measures: tuple[CanaryMeasure, ...], name: str) -> CanaryMeasure:
    return next(one for one in measures if one.name == name)


def test_values_are_those_of_the_frame() -> None:
    rows = frame(400, seed=1)
    found = of(both_sides(rows), "seconds_p95")
    canary = rows.filter(rows["is_canary"])["seconds"].drop_nulls().to_numpy()
    assert found.canary is not None
    assert found.rest is not None
    assert found.canary.value == pytest.approx(np.quantile(canary, 0.95))
    assert found.canary.low <= found.canary.value <= found.canary.high
    assert found.difference == pytest.approx(found.canary.value - found.rest.value)
    assert (found.canary.num, found.canary.num_users) == (len(canary), len(canary))
    failures = of(both_sides(rows), "failures")
    assert failures.canary is not None
    assert failures.canary.value == pytest.approx(float(rows.filter(rows["is_canary"])["failed"].mean()))  # type: ignore[arg-type]


def test_a_slower_and_failing_canary_is_worse_and_the_sentence_says_in_what() -> None:
    measures = both_sides(frame(1_000, slower=1.6, failing=0.2))
    assert [of(measures, name).finding for name in ("failures", "seconds_p50", "seconds_p95")] == ["worse"] * 3
    assert of(measures, "thumbs").missing == "needs 20 more ratings of the canary and 20 more ratings of the rest"
    words = summary_of(measures)
    assert words.startswith("The canary is worse in: failed requests; time to the end of the answer, median")
    better = of(both_sides(frame(1_000, slower=0.6)), "seconds_p50")
    assert (better.finding, better.high is not None and better.high < 0) == ("better", True)


def test_the_same_on_both_sides_is_hardly_ever_told_apart() -> None:
    # 5% over all measures together: more than 4 of 20 pages would come once in 300 times; so would fewer than 16 of 20
    # intervals that hold no difference.
    pages = [both_sides(frame(300, seed=seed)) for seed in range(20)]
    num_wrong = sum(any(one.finding in ("better", "worse") for one in page) for page in nonempty(pages))
    assert num_wrong <= 4
    held = [of(page, "seconds_p50") for page in nonempty(pages)]
    assert sum(one.low is not None and one.high is not None and one.low <= 0 <= one.high for one in held) >= 16


def test_little_traffic_says_what_is_missing() -> None:
    measures = both_sides(frame(60))
    found = of(measures, "failures")
    assert found.finding == "too few"
    num = FEWEST_ANSWERS - 30
    assert found.missing == f"needs {num} more answers of the canary and {num} more answers of the rest"
    assert summary_of(measures) == "There is too little traffic yet to distinguish the canary from the rest."
    empty = both_sides(frame(60).head(0))
    assert {one.finding for one in nonempty(empty)} == {"too few"}
    alone = frame(200).filter(pl.col("is_canary"))
    found = of(both_sides(alone), "seconds_p50")
    assert (found.rest, found.difference, found.missing) == (
        None,
        None,
        f"needs {FEWEST_ANSWERS} more answers of the rest",
    )


def test_few_users_are_too_few_whatever_they_ask() -> None:
    rows = frame(400).with_columns(unit=pl.Series([f"user {number % 8}" for number in range(400)]))
    found = of(both_sides(rows), "failures")
    assert found.missing == "needs 1 more user of the canary and 1 more user of the rest"


def test_a_score_is_better_where_it_is_higher() -> None:
    rows = frame(400, rated=400).with_columns(
        score=pl.when(pl.col("is_canary")).then(0.9).otherwise(0.4) + 0.05 * (pl.col("bad") - 0.5)
    )
    found = of(both_sides(rows), "score")
    assert (found.finding, found.is_better_high) == ("better", True)
    assert summary_of((found,)) == "The canary is better in: mean score of people."


def test_users_who_all_give_one_score_are_no_proof_of_it() -> None:
    """Of 20 ratings of as many users on each side: an interval with a width, and more ratings make it narrower."""

    def scored(num: int, canary: float, rest: float) -> CanaryMeasure:
        rows = frame(num, rated=num)
        score = pl.when(pl.col("is_canary")).then(canary).otherwise(rest)
        return of(both_sides(rows.with_columns(score=score)), "score")

    few, many = scored(40, 1.0, 1.0), scored(4_000, 1.0, 1.0)
    assert few.canary is not None
    assert many.canary is not None
    assert few.canary.value == few.canary.high == 1.0
    assert 0.5 < few.canary.low < 0.95 < many.canary.low < 1.0
    assert few.finding == "not distinguishable"
    assert few.low is not None
    assert few.high is not None
    assert few.low < 0 < few.high
    assert scored(40, 0.8, 0.75).finding == "not distinguishable"
    assert scored(4_000, 0.5, 1.0).finding == "worse"
