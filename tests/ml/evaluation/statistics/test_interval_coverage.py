"""Few rows, figures near their ends: a small benchmarks/interval_coverage.py."""

import importlib.util
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[4] / "benchmarks" / "interval_coverage.py"


@pytest.fixture(scope="module")
def coverage():
    spec = importlib.util.spec_from_file_location("interval_coverage", BENCHMARK)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def law_of(coverage, name):
    return next(law for law in coverage.LAWS if law.name == name)


@pytest.mark.parametrize("rows", [6, 20])
@pytest.mark.parametrize("name", ["share, 5% right", "ROUGE-like, skewed", "70% of rows 0", "perplexity", "BLEU"])
def test_figures_hold_the_truth_and_stay_inside(coverage, name, rows):
    found = coverage.figure_case(law_of(coverage, name), rows, 150)
    assert found["outside"] == 0
    assert found["coverage"] >= 0.86  # three standard errors of 150 studies below the least of the whole benchmark


@pytest.mark.parametrize("correlation", [0.0, 0.9])
@pytest.mark.parametrize("name", ["share, 5% right", "70% of rows 0", "BLEU"])
def test_differences_stay_inside_and_say_what_their_p_value_says(coverage, name, correlation):
    found = coverage.pair_case(law_of(coverage, name), correlation, 6, 150)
    assert (found["outside"], found["torn"]) == (0, 0)
    assert found["coverage"] >= 0.9
    assert found["settled"] <= 0.1


def test_both_tables_are_written(coverage):
    found = [coverage.figure_case(coverage.LAWS[3], rows, 2) for rows in coverage.SIZES]
    found += [coverage.pair_case(coverage.LAWS[1], 0.5, rows, 2) for rows in coverage.SIZES]
    lines = list(coverage.tables(found))
    assert lines[2].startswith("| all equal | 100.0 (0.39) |")
    assert any(line.startswith("| ROUGE-like, skewed, correlation 0.5 |") for line in lines)
