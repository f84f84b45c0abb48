"""The probability of the word list: which finds reach the threshold, and that the stated figures are still true."""

from __future__ import annotations

import importlib.util
from collections import Counter
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from tests.vacuous import nonempty

from luthier.ml.data.text.toxicity import CLASSES, INTERCEPT, MEASURED, THRESHOLD, WEIGHTS, probability_of, toxicity_of

BENCHMARK = Path(__file__).parents[4] / "benchmarks" / "toxicity.py"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("toxicity_benchmark", BENCHMARK)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("text", "is_toxic"),
    [
        ("The lid is stupid and ugly, what garbage.", False),
        ("A fine pan, I would buy it again.", False),
        ("shut up and take my money", False),
        ("This is bullshit.", True),
        ("Go kill yourself.", True),
        ("You bitch.", True),
    ],
)
def test_one_strong_word_is_enough_and_mild_words_are_not(text: str, is_toxic: bool) -> None:
    assert (toxicity_of(text).probability >= THRESHOLD) == is_toxic


def test_more_finds_never_lower_the_probability() -> None:
    for kind in nonempty(CLASSES):
        ladder = [probability_of(Counter({kind: num})) for num in range(6)]
        assert ladder == sorted(ladder)
        assert ladder[3] == ladder[5]
    assert 0 < probability_of(Counter()) < 0.05


@pytest.mark.shared_data
def test_the_figures_are_those_of_the_data(benchmark: ModuleType, shared_data: Path) -> None:
    parameters = np.array([INTERCEPT, *(WEIGHTS[kind] for kind in CLASSES)])
    inputs, labels, is_train = benchmark.davidson(shared_data / "davidson_hate" / "labeled_data.csv")
    assert np.allclose(np.round(benchmark.fit(inputs[is_train], labels[is_train]), 3), parameters, atol=0.002)
    measured = benchmark.measured(parameters, inputs[~is_train], labels[~is_train])
    stated = MEASURED["davidson_2017_other_40_percent"]
    for name in ("num", "precision", "recall", "false_alarms", "precision_if_toxic_are", "calibration_error"):
        assert measured[name] == pytest.approx(stated[name], abs=0.0002), name
    assert stated["calibration_error"] < 0.02
    assert stated["precision"][1] >= 0.95
    found = benchmark.hatecheck(shared_data / "hatecheck" / "test_suite_cases.csv", parameters)
    for name, accuracy in nonempty(MEASURED["hatecheck_2021_accuracy"].items()):
        assert found[name]["accuracy"] == pytest.approx(accuracy, abs=0.0002), name
