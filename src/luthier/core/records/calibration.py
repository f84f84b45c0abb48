"""A judge compared with people: how far it agrees with them, what it is biased by, and whether a gate may use it."""

from __future__ import annotations

from typing import Final, Literal, get_args

from luthier.core.estimate import Estimate
from luthier.core.frozen_model import FrozenModel
from luthier.core.results.suite import Confusion, Criterion

Target = Criterion | Literal["preference"]
"""What a judge is compared with people in: scores for a criterion, or which of two answers is better."""
Measure = Literal["kappa", "quadratic kappa"]
NoVerdictKind = Literal[
    "empty", "refusal", "prose", "incomplete", "out of range", "contradiction", "cut off", "too long", "no answer"
]
"""Why a judge's reply is no verdict.

empty: no text. refusal: it will not judge. prose: text without a verdict. incomplete: a criterion has no score. out of
range: another verdict than those that were requested. contradiction: two verdicts that differ. cut off: it ended at its
limit. too long: the question is longer than the judge's context. no answer: the engine failed, or ran out of time.
"""

LOWEST_KAPPA: Final = 0.4
"""Where the interval of the agreement must begin: at least "moderate" (Landis and Koch, 1977), with 97.5% certainty."""
FEWEST_ITEMS: Final = 50
MAX_NO_VERDICT_FRACTION: Final = 0.1


class JudgeBias(FrozenModel):
    """What influences a judge besides the answers. Every pair is shown in both orders.

    Attributes:
        num_pairs: pairs that were judged.
        num_flipped: pairs whose winner changed with the order.
        flipped: as a fraction of all pairs.
        num_showings: times that a pair was shown with a winner as the outcome.
        first_shown: how often the answer shown first won, of all showings with a winner; 0.5 is fair.
        length: rank correlation of how much longer an answer is with being preferred; None where it cannot be computed.
        people_length: the same for people, who may have reasons for it; None where it cannot be computed.
    """

    num_pairs: int
    num_flipped: int
    flipped: Estimate
    num_showings: int
    first_shown: Estimate | None = None
    length: Estimate | None = None
    people_length: Estimate | None = None


class Calibration(FrozenModel):
    """A judge against people on the same items, in one target.

    Attributes:
        calibration_id: its id.
        created_at: UTC, ISO 8601.
        judge: its name.
        form: digest of the form of its questions, since another form makes another judge.
        target: what the judge is compared with people in.
        source: the file or panel of the ratings.
        num_items: those that people rated and the judge gave a verdict on.
        num_raters: people whose ratings are used.
        num_ratings: their ratings.
        no_verdict: how many it gave none on, by kind, in addition to those.
        measure: the coefficient of agreement.
        agreement: of the judge with the people's consensus; None where both say the same of every item, so that there
            is nothing beyond chance.
        people: of one person with the consensus of the others, by the same measure: what a judge can be expected to
            reach; None where that is not known.
        alpha: Krippendorff's, of the people among themselves.
        correlation: Spearman's, of the judge's scores with the people's mean.
        table: how often people gave each rating (a row each) for each rating of the judge (a column each; the last is:
            no verdict).
        bias: what influences the judge besides the answers; None where it was not measured.
        may_enter_gate: whether its figures may enter a gate.
        reasons: why it may or may not enter a gate, a sentence each.
        cautions: what the figures do not show.
    """

    calibration_id: str
    created_at: str
    judge: str
    form: str
    target: Target
    source: str
    num_items: int
    num_raters: int
    num_ratings: int
    no_verdict: dict[NoVerdictKind, int]
    measure: Measure
    agreement: Estimate | None
    people: Estimate | None = None
    alpha: Estimate | None = None
    correlation: Estimate | None = None
    table: Confusion
    bias: JudgeBias | None = None
    may_enter_gate: bool
    reasons: tuple[str, ...]
    cautions: tuple[str, ...] = ()


def target_of(metric: str) -> Target | None:
    """What a judge must be calibrated in for a metric of the evaluated tasks; None for any other metric."""
    if metric == "win_rate":
        return "preference"
    criteria: tuple[Criterion, ...] = get_args(Criterion)
    return next((criterion for criterion in criteria if metric == f"judge_{criterion}"), None)
