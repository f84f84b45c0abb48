"""Figures by source: paired on the rows of each source, adjusted for their number, none for too few rows."""

from __future__ import annotations

import numpy as np
import pytest
from tests.vacuous import nonempty

from luthier.core.data_sources import SourceFile, SourcePlan
from luthier.core.evaluation import NOT_DISTINGUISHABLE, Comparison, Verdict
from luthier.ml.evaluation.by_source import figures_by_source, source_details, with_sources
from luthier.ml.evaluation.compare import Judged
from luthier.ml.evaluation.metrics.registry import as_definitions

METRIC = as_definitions(["exact_match"])[0]


def judged(before: list[int], after: list[int]) -> Judged:
    """Two systems of which each row is right (1) or wrong (0), as exact match counts."""
    statistics = {
        (name, METRIC.name): np.array([[float(value), 1.0] for value in values])
        for name, values in (("base", before), ("tuned", after))
    }
    return Judged((), (), {}, statistics)


def test_a_gain_on_one_source_may_be_a_loss_on_another() -> None:
    names = ["orders"] * 20 + ["faq"] * 20 + ["rare"] * 2
    before = [0] * 20 + [1] * 20 + [1, 0]
    after = [1] * 20 + [0] * 20 + [1, 0]
    found = figures_by_source(judged(before, after), METRIC, names, baseline="base", candidate="tuned")
    assert [(one.source, one.num_rows) for one in found] == [("orders", 20), ("faq", 20), ("rare", 2)]
    assert [one.comparison and one.comparison.verdict for one in found] == ["better", "worse", None]
    orders = found[0].comparison
    assert orders is not None
    assert orders.difference == 1.0
    assert orders.adjusted_p_value == pytest.approx(2 * orders.p_value), "two sources were tested"
    assert (found[0].baseline and found[0].baseline.value, found[0].candidate and found[0].candidate.value) == (0, 1)
    texts = source_details(found)
    assert texts[0].startswith("Rows of orders: better, ")
    assert texts[2] == "Rows of rare: 2 held-out rows, too few for figures of their own."
    assert all("adjusted for 2 sources" in text for text in nonempty(texts[:2])), "the third was not tested"


def test_a_difference_that_only_one_test_would_show_is_not_claimed_of_many_sources() -> None:
    names = [name for name in "abcdef" for _ in range(12)]
    before = [0] * 72
    after = ([1] * 7 + [0] * 5) + [0] * 60
    alone = figures_by_source(judged(before[:12], after[:12]), METRIC, names[:12], baseline="base", candidate="tuned")
    together = figures_by_source(judged(before, after), METRIC, names, baseline="base", candidate="tuned")
    assert alone[0].comparison is not None
    assert together[0].comparison is not None
    assert alone[0].comparison.verdict == "better"
    assert together[0].comparison.verdict == NOT_DISTINGUISHABLE
    assert (together[0].comparison.low, together[0].comparison.high) == (
        alone[0].comparison.low,
        alone[0].comparison.high,
    )


def test_a_metric_that_only_one_system_has_gives_no_figures() -> None:
    assert figures_by_source(judged([1], [1]), METRIC, ["a"], baseline="teacher", candidate="tuned") == ()


def test_a_source_whose_rows_do_not_count_for_the_metric_has_no_figures() -> None:
    counts = np.array([[1.0, 1.0]] * 10 + [[0.0, 0.0]] * 10)  # such as a metric that looks at some rows alone
    whole = Judged((), (), {}, {(name, METRIC.name): counts for name in ("base", "tuned")})
    found = figures_by_source(whole, METRIC, ["a"] * 10 + ["b"] * 10, baseline="base", candidate="tuned")
    assert [one.comparison is None for one in found] == [False, True]


SEARCH_METRIC = "ndcg_at_10"


def source(name: str, first: int) -> SourcePlan:
    file = SourceFile(name=name, sha256="0" * 64, num_bytes=1, num_rows=20)
    return SourcePlan(split="held_out", name=name, path=name, files=(file,), first_row=first, num_rows=20)


def test_a_query_of_several_rows_counts_once_for_the_source_of_its_first_row() -> None:
    row_ids = [f"mix.jsonl:{line}" for line in (*range(1, 19, 3), *range(21, 39, 3))]
    statistics = {
        (name, SEARCH_METRIC): np.array([[value + 0.01 * row, 1.0] for row in range(len(row_ids))])
        for name, value in (("base", 0.2), ("tuned", 0.7))
    }
    compared = Comparison(
        baseline="base", candidate="tuned", metric=SEARCH_METRIC, difference=0.5, low=0.4, high=0.6, p_value=0.001,
        verdict="better",
    )  # fmt: skip
    words, found = with_sources(
        Verdict(word="better", metric=SEARCH_METRIC, headline="Better."),
        Judged((), (compared,), {}, statistics),
        [compared],
        ("base", "tuned"),
        [source("orders", 1), source("faq", 21)],
        row_ids,
    )
    assert [(one.source, one.num_rows) for one in found] == [("orders", 6), ("faq", 6)]
    assert words is not None
    assert len(words.details) == 2
