"""Which sentences the corpus says."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from luthier.ml.evaluation.grounding.claims import THRESHOLD, claim_findings, claims
from luthier.ml.evaluation.grounding.corpus import Corpus

ROOT = Path(__file__).resolve().parents[4]
CORPUS = Corpus(
    {"a": "W.C.A. § 21-4-12. Notice. The employee shall tell the employer of the accident within thirty days."},
    forms=("state_statute", "us_case"),
)


@pytest.mark.parametrize(
    ("sentence", "is_supported"),
    [
        ("The employee must tell the employer of an accident within 30 days.", True),
        ("The employee must tell the employer of an accident within 40 days.", False),
        ("Cats are nice animals indeed.", False),
        ("The employee must tell the newspapers and the county court.", False),
    ],
)
def test_words_and_numbers_decide(sentence: str, is_supported: bool) -> None:
    (one,) = claim_findings(sentence, CORPUS)
    assert one.is_supported is is_supported
    assert (one.passage is None) is ("Cats" in sentence)


def test_a_number_that_is_not_there_is_told() -> None:
    (one,) = claim_findings("Within forty days the employee shall tell the employer of the accident.", CORPUS)
    assert one.numbers == ("forty",)


def test_courtesies_claim_nothing_and_citations_end_no_sentence() -> None:
    said = claims("Yes. Sure thing! See Harrow v. Mills, 31 Pelm. App. 204 (2019), on notice. Yes.", CORPUS)
    assert said == ("See Harrow v. Mills, 31 Pelm. App. 204 (2019), on notice.",)
    assert claims("", CORPUS) == ()


def test_a_sentence_that_never_ends_is_one_claim() -> None:
    assert len(claim_findings("employee tells the employer " * 3_000, CORPUS)) == 1


def test_the_threshold_is_the_best_of_the_measured_curve() -> None:
    curve = runpy.run_path(str(ROOT / "benchmarks" / "claim_threshold.py"))["curve"]()
    best = max(curve, key=lambda point: point["balanced_accuracy"])
    assert best["threshold"] == THRESHOLD
    taken = {sort: best[sort] for sort in ("close", "free", "other", "twisted")}
    assert taken == {"close": 23, "free": 0, "other": 0, "twisted": 11}  # what the task's cautions say
