"""Intervals hold the truth and equal systems stay equal: a small benchmarks/statistics_truth.py."""

import importlib.util
import math
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[4] / "benchmarks" / "statistics_truth.py"
# By design wider than 95%: a spread that two or three trainings tell of is hardly known, and F1 over labels is bent.
# Where McNemar's exact test is not sure, an interval of a difference of shares reaches to 0, as that test's own does.
CAUTIOUS = ("seeds", "macro F1", "equal shares")


@pytest.fixture(scope="module")
def truth():
    spec = importlib.util.spec_from_file_location("statistics_truth", BENCHMARK)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def check(found, num_studies, low, high, false):
    """Each share within 3 standard errors of its bounds."""
    for field, least, most in (("coverage", low, high), ("settled", 0.0, false), ("better", 0.0, false)):
        if field in found:
            slack = 3 * math.sqrt(0.05 * 0.95 / num_studies)
            assert least - slack <= found[field] <= most + slack, (found["case"], found["rows"], field, found[field])


@pytest.mark.parametrize(
    "name",
    [
        "share right, 0.9",
        "mean of skewed values (exponential)",
        "perplexity",
        "micro F1",
        "equal shares, 20% of rows differ",
        "equal means, skewed differences",
        "equal systems, permutation test",
        "mean score, rows of one source alike",
    ],
)
def test_300_studies_of_few_rows(truth, name):
    case = next(case for case in truth.cases() if case.name == name and case.rows >= 30)
    check(truth.simulate(case, 300), 300, 0.93, 0.97, 0.05)


def test_holm_keeps_five_metrics_of_equal_systems_equal(truth):
    case = next(case for case in truth.cases() if case.name == "5 metrics of equal systems, Holm")
    check(truth.simulate(case, 100), 100, 0.0, 1.0, 0.05)


def test_what_a_plain_bootstrap_gets_wrong_is_seen(truth):
    case = next(case for case in truth.cases() if case.name == "mean score, rows of one source alike")
    assert truth.simulate(case, 100)["plain"] < 0.8


@pytest.mark.drill
def test_2000_studies_of_every_case(truth):
    for case in truth.cases():
        is_cautious = any(word in case.name for word in CAUTIOUS)
        check(truth.simulate(case, 2_000), 2_000, 0.93, 1.0 if is_cautious else 0.97, 0.05)


def test_the_picture_is_drawn(truth, tmp_path):
    found = [{"case": "a", "rows": 20, "coverage": 0.95, "plain": 0.9}, {"case": "b", "rows": 20, "settled": 0.04}]
    truth.draw(found, 2_000, tmp_path / "deep" / "truth.svg")
    assert "a, 20" in (tmp_path / "deep" / "truth.svg").read_text()
