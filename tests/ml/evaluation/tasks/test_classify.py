"""Labels written, or the likeliest; each figure against its formula worked out by hand."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.vacuous import nonempty

from luthier.core.errors import DataError, RequestError
from luthier.core.results.suite import ClassifyTask
from luthier.ml.evaluation.metrics.classification import Labelling, MacroF1
from luthier.ml.evaluation.metrics.protocol import Observations
from luthier.ml.evaluation.tasks.choices import Classify

LABELS = ("billing", "delivery", "other")


def task(**settings):
    return ClassifyTask(kind="classify", name="triage", data="rows.jsonl", **settings)


def macro_f1_by_hand(true, given):
    scores = []
    for name in sorted(set(true) | {one for one in given if one in LABELS}):
        both = sum(t == name == g for t, g in zip(true, given, strict=True))
        precision = both / given.count(name) if given.count(name) else 0.0
        recall = both / true.count(name) if true.count(name) else 0.0
        scores.append(2 * precision * recall / (precision + recall) if both else 0.0)
    return sum(scores) / len(scores)


def test_labels_are_read_from_the_first_line_whatever_the_capitals(bench):
    rows = [bench.row(n, answer=a) for n, a in enumerate(["billing", "delivery", "other", "billing"], 1)]
    outputs = [" Billing\nbecause of the invoice", "delivery", "", "it is billing"]
    found = bench.figures(Classify(), task(), rows, outputs)
    # F1: billing 2/3, delivery 1, other 0
    assert found == pytest.approx({"accuracy": 0.5, "macro_f1": 5 / 9, "no_label": 0.5})


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(LABELS), st.sampled_from([*LABELS, "none of them"])), min_size=1))
def test_macro_f1_is_the_mean_of_f1_scores(pairs):
    true, given_labels = (list(side) for side in zip(*pairs, strict=True))
    metric = MacroF1(Labelling(LABELS))
    stats = metric.statistics(Observations(outputs=given_labels, references=true))
    assert float(metric.aggregate(stats.sum(axis=0))) == pytest.approx(macro_f1_by_hand(true, given_labels), abs=1e-9)


def test_likelihoods_give_calibration(bench):
    rows = [bench.row(n, answer=a) for n, a in enumerate(["yes", "yes", "no"], 1)]
    odds = [0.9, 0.6, 0.8]  # of yes
    nats = [(-math.log(p), -math.log(1 - p)) for p in odds]
    found = bench.figures(Classify(), task(labels=("yes", "no"), by="likelihood"), rows, option_nats=nats)
    gaps = abs(1 - 0.9) + abs(1 - 0.6) + abs(0 - 0.8)  # each in a bin of its own
    brier = (2 * 0.1**2 + 2 * 0.4**2 + 2 * 0.8**2) / 3
    expected = {"accuracy": 2 / 3, "macro_f1": (2 * 2 / 5 + 0) / 2, "calibration_error": gaps / 3, "brier": brier}
    assert found == pytest.approx(expected, abs=1e-9)


def test_rows_of_one_bin_are_averaged_before_they_are_compared(bench):
    rows = [bench.row(n, answer=a) for n, a in enumerate(["yes", "no"], 1)]
    nats = [(-math.log(0.5001), -math.log(0.4999))] * 2
    found = bench.figures(Classify(), task(labels=("yes", "no"), by="likelihood"), rows, option_nats=nats)
    assert found["calibration_error"] == pytest.approx(0.0001, abs=1e-9)


def test_what_is_drawn(bench):
    rows = [bench.row(n, answer=a) for n, a in enumerate(["no", "yes", "yes"], 1)]
    drawn = Classify().figures(task(), bench.observed(rows, ["yes", "yes", "who knows"]))
    assert drawn.confusion.labels == ("no", "yes")
    assert drawn.confusion.counts == ((0, 1, 0), (0, 1, 1))
    assert drawn.reliability == ()
    sure = bench.observed(rows, option_nats=[(0.0, 50.0), (50.0, 0.0), (0.0, 50.0)])
    drawn = Classify().figures(task(labels=("no", "yes"), by="likelihood"), sure)
    (only,) = drawn.reliability
    assert (only.low, only.high, only.num_rows) == (0.9, 1.0, 3)
    assert (only.confidence, only.accuracy) == pytest.approx((1.0, 2 / 3))


def test_a_far_likelihood_is_no_nan(bench):
    rows = [bench.row(1, answer="no"), bench.row(2, answer="yes")]
    nats = [(5000.0, 9000.0)] * 2
    found = bench.figures(Classify(), task(labels=("no", "yes"), by="likelihood"), rows, option_nats=nats)
    assert all(nonempty(map(np.isfinite, found.values())))


def test_options_are_the_labels_only_by_likelihood(bench):
    row = bench.row(1, answer="no")
    assert Classify().options(task(labels=("no", "yes")), row) == ()
    assert Classify().options(task(labels=("no", "yes"), by="likelihood"), row) == ("no", "yes")


def test_rows_without_a_label_are_all_named(bench):
    rows = [bench.row(1, answer="billing"), bench.row(2, answer=""), bench.row(3, answer="refund")]
    with pytest.raises(DataError) as caught:
        Classify().check(task(labels=LABELS), rows)
    assert [problem.line for problem in caught.value.problems] == [2, 3]
    with pytest.raises(RequestError, match="at least two"):
        Classify().check(task(), rows[:1])
    with pytest.raises(RequestError, match="names no labels"):
        Classify().check(task(by="likelihood"), rows[:1])
    with pytest.raises(RequestError, match="differ by more"):
        Classify().check(task(labels=("Yes", "yes ")), [bench.row(1, answer="yes")])
