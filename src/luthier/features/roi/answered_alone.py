"""What a system answers alone at the accuracy that a case requires, by an evaluation that knows how sure it is."""

from __future__ import annotations

from luthier.core.errors import RequestError
from luthier.core.estimate import Estimate
from luthier.core.evaluation import Evaluation, LabelConfidence, SystemResult
from luthier.core.evaluation_plan import SHARES_OF_CORRECT
from luthier.core.results.roi import Case
from luthier.core.results.roi_result import MeasuredAlone


def tuned_alone(case: Case, evaluation: Evaluation, tuned: SystemResult, *, has_file: bool) -> MeasuredAlone | None:
    """What the tuned model answers alone at the accuracy that the case requires; None where it requires none.

    Args:
        case: with the accuracy.
        evaluation: of the model.
        tuned: the evaluated model.
        has_file: the case is a file, whose keys can be changed; else it was made of three questions.

    Raises:
        RequestError: it has no probabilities of labels.
    """
    asked = case.verdict.alone_at
    if asked is None:
        return None
    known = _confidence(evaluation, tuned)
    if known is None:
        why = evaluation.label_confidence_left_out or "its answers are not labels, or an older version evaluated it"
        raise RequestError(
            f"evaluation {evaluation.evaluation_id} does not say how sure {tuned.name} is of its answers: {why}",
            expected="probabilities of labels, to choose what it answers alone",
            do="evaluate again where answers are labels (docs/baselines.md), or remove verdict.alone_at from the case"
            if has_file
            else "leave the evaluation out: what it answers alone is assumed then",
        )
    found = measured_alone(case, evaluation, tuned)
    if found is not None:
        return found
    # That it answers nothing is a result: people, or today's system, keep all of the work.
    return MeasuredAlone(asked=asked, threshold=None, share=Estimate(value=0.0, low=0.0, high=0.0), accuracy=None)


def _confidence(evaluation: Evaluation, system: SystemResult) -> LabelConfidence | None:
    return next((one for one in evaluation.label_confidence if one.system == system.name), None)


def measured_alone(case: Case, evaluation: Evaluation, system: SystemResult) -> MeasuredAlone | None:
    """What a system answers alone at the accuracy that the case requires; None where it does not, or for nothing."""
    from luthier.ml.evaluation.label_confidence import coverage_at

    asked, known = case.verdict.alone_at, _confidence(evaluation, system)
    if asked is None or known is None:
        return None
    found = coverage_at(known, asked)
    if found.threshold is None or found.accuracy is None or found.low is None or found.high is None:
        return None
    return MeasuredAlone(
        asked=asked,
        threshold=found.threshold,
        share=Estimate(value=found.share, low=found.share_low, high=found.share_high),
        accuracy=Estimate(value=found.accuracy, low=found.low, high=found.high),
    )


def answers_nothing(case: Case, evaluation: Evaluation, system: SystemResult, metric: str) -> bool:
    """Whether a baseline answers no case at the accuracy that the case requires of what is answered alone.

    Without probabilities it answers all of them or none. The tuned model answers a part of them at that accuracy: a
    baseline that answered all of them at a lower one would save more work of people, and be no alternative to it.

    Args:
        case: with the accuracy; none where nothing is answered alone.
        evaluation: of the baseline.
        system: the baseline.
        metric: by which its answers are right.
    """
    asked = case.verdict.alone_at
    if asked is None or measured_alone(case, evaluation, system) is not None:
        return False
    figure = system.metrics.get(metric)
    return figure is None or metric not in SHARES_OF_CORRECT or figure.value < asked
