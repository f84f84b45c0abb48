"""The figures, from sums."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from luthier.core.errors import WorkError
from luthier.ml.evaluation.grounding.claims import (
    AnswersWithInvented,
    CitationsPerAnswer,
    EntailedClaims,
    Entailment,
    ExpectedCitations,
    Findings,
    GroundedClaims,
    InventedCitations,
    MisnamedCitations,
    UnusableVerdicts,
)
from luthier.ml.evaluation.grounding.corpus import Corpus
from luthier.ml.evaluation.metrics.protocol import MetricDefinition, Observations
from luthier.testing.fake_engine import FakeEngine

CORPUS = Corpus(
    {
        "notice": "W.C.A. § 21-4-12. The employee tells the employer within thirty days.",
        "harrow": "Harrow v. Mills, 31 Pelm. 204 (2019).",
    },
    forms=("us_case", "state_statute"),
)
OUTPUTS = (
    "W.C.A. § 21-4-12 says that the employee tells the employer within thirty days.",
    "W.C.A. § 21-4-12, W.C.A. § 21-4-99 and Ashdown v. Mills, 31 Pelm. 204 (2019) say other things altogether.",
    "I do not know anything.",
    "",
)
REFERENCES = ("W.C.A. § 21-4-12(b).", "Harrow v. Mills, 31 Pelm. 204 (2019).", "W.C.A. § 21-4-12.", "")


def value(metric: MetricDefinition, outputs: Sequence[str] = OUTPUTS) -> float:
    observed = Observations(outputs=outputs, references=REFERENCES[: len(outputs)])
    statistics = metric.statistics(observed)
    assert statistics.shape == (len(outputs), 2)
    return float(metric.aggregate(statistics.sum(axis=0)))


def test_citations_are_counted_over_all_answers() -> None:
    found = Findings(CORPUS)
    assert value(InventedCitations(found)) == pytest.approx(1 / 4)
    assert value(AnswersWithInvented(found)) == pytest.approx(1 / 4)
    assert value(MisnamedCitations(found)) == pytest.approx(1 / 4)
    assert value(CitationsPerAnswer(found)) == pytest.approx(4 / 4)


def test_what_the_rows_own_answers_cite_is_expected() -> None:
    assert value(ExpectedCitations(CORPUS)) == pytest.approx(2 / 3)
    outputs = ("W.C.A. 21-4-12 says so.", "In Harrow v. Mills it held so.", "")
    assert value(ExpectedCitations(CORPUS), outputs) == pytest.approx(2 / 3)


def test_claims_are_counted_over_all_sentences() -> None:
    assert value(GroundedClaims(CORPUS)) == pytest.approx(1 / 2)


def test_a_share_of_nothing_is_0_in_every_resample() -> None:
    for metric in (InventedCitations(Findings(CORPUS)), ExpectedCitations(CORPUS), GroundedClaims(CORPUS)):
        assert value(metric, ["Yes."]) == 0
        assert np.array_equal(metric.aggregate(np.zeros((5, 2))), np.zeros(5))
        assert metric.aggregate(np.array([[1.0, 2.0], [0.0, 0.0]])).tolist() == [0.5, 0.0]


def test_a_judges_unusable_answers_are_counted_apart() -> None:
    # A reply without a verdict is asked for again, with more room.
    replies = iter(['{"supported": true}', "Hm.", '{"supported": false}', "Hm."])
    entailment = Entailment(FakeEngine(lambda prompt: next(replies)), CORPUS)
    outputs = ["The employee tells the employer. The employer tells the employee.", "The employee tells W.C.A. things."]
    assert value(EntailedClaims(entailment), outputs) == pytest.approx(1 / 2)
    assert value(UnusableVerdicts(entailment), outputs) == pytest.approx(1 / 3)


def test_a_judge_that_never_answers_is_an_error() -> None:
    entailment = Entailment(FakeEngine(lambda prompt: "As a model I cannot say."), CORPUS)
    with pytest.raises(WorkError, match="no usable verdict on any of 1 claims"):
        value(EntailedClaims(entailment), ["The employee tells the employer."])
    assert value(EntailedClaims(entailment), [""]) == 0
