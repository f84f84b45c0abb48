"""Can a model's confidence be believed? Expected calibration error, Brier score, reliability bins.

The confidence in each label is the softmax of the labels' log-likelihoods: the model's belief, given that the answer is
one of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from luthier.core.results.task_result import ReliabilityBin
from luthier.ml.evaluation.metrics.classification import Labelling
from luthier.ml.evaluation.metrics.fraction import ratio
from luthier.ml.evaluation.metrics.protocol import Array, Observations


@dataclass(frozen=True)
class CalibrationError:
    """Mean distance of confidence and accuracy over bins of equal width, weighted by their rows.

    Source: Guo et al., "On Calibration of Modern Neural Networks", 2017, equation 3 (after Naeini et al., "Obtaining
    Well Calibrated Probabilities Using Bayesian Binning", 2015); bins are [low, high), the last one closed.
    """

    labelling: Labelling
    num_bins: int = 10
    name: ClassVar[str] = "calibration_error"
    title: ClassVar[str] = "expected calibration error"
    unit: ClassVar[str] = "0 to 1"
    lower: ClassVar[float] = 0.0
    upper: ClassVar[float] = 1.0
    higher_is_better: ClassVar[bool] = False
    needs: ClassVar[Literal["options"]] = "options"
    has_sample_values: ClassVar[bool] = False

    def statistics(self, observed: Observations) -> Array:
        """[rows, 2 * bins]: in the row's bin a one, and right (1 or 0) minus confidence."""
        confidence, right = confidences(self.labelling, observed)
        stats = np.zeros((len(confidence), 2 * self.num_bins))
        rows, bins = np.arange(len(confidence)), bins_of(confidence, self.num_bins)
        # One-hot in the row's bin, so that the sums over any resample hold each bin's count and gap.
        stats[rows, bins] = 1.0
        stats[rows, self.num_bins + bins] = right - confidence
        return stats

    def aggregate(self, sums: Array) -> Array:
        """[..., 2 * bins] -> [...]: the sum over bins of |right - confidence|, by rows."""
        counts, gaps = np.split(sums, 2, axis=-1)
        return ratio(np.abs(gaps).sum(axis=-1), counts.sum(axis=-1))


@dataclass(frozen=True)
class BrierScore:
    """Mean squared distance of the confidences from the truth, summed over all labels: 0 (sure and right) to 2.

    Source: Brier, "Verification of Forecasts Expressed in Terms of Probability", 1950, equation 2. For two labels it is
    twice what libraries call the Brier score of the second one.
    """

    labelling: Labelling
    name: ClassVar[str] = "brier"
    title: ClassVar[str] = "Brier score"
    unit: ClassVar[str] = "0 to 2"
    lower: ClassVar[float] = 0.0
    upper: ClassVar[float] = 2.0
    higher_is_better: ClassVar[bool] = False
    needs: ClassVar[Literal["options"]] = "options"
    has_sample_values: ClassVar[bool] = True

    def statistics(self, observed: Observations) -> Array:
        """[rows, 2]: the row's squared distance, one."""
        probabilities = softmax(self.labelling.log_likelihoods(observed))
        truth = self.labelling.true(observed)[:, None] == np.arange(len(self.labelling.labels))
        distances = ((probabilities - truth) ** 2).sum(axis=1)
        return np.stack([distances, np.ones(len(distances))], axis=1)

    def aggregate(self, sums: Array) -> Array:
        """[..., 2] -> [...]."""
        return ratio(sums[..., 0], sums[..., 1])


def reliability(labelling: Labelling, observed: Observations, num_bins: int) -> tuple[ReliabilityBin, ...]:
    """The bins that have rows, from low to high confidence."""
    confidence, right = confidences(labelling, observed)
    bins = bins_of(confidence, num_bins)
    return tuple(
        ReliabilityBin(
            low=place / num_bins,
            high=(place + 1) / num_bins,
            num_rows=int((bins == place).sum()),
            confidence=float(confidence[bins == place].mean()),
            accuracy=float(right[bins == place].mean()),
        )
        for place in np.unique(bins).tolist()
    )


def confidences(labelling: Labelling, observed: Observations) -> tuple[Array, Array]:
    """Of each row the probability of its likeliest label, and 1 where that label is right: both [rows]."""
    probabilities = softmax(labelling.log_likelihoods(observed))
    right = labelling.true(observed) == probabilities.argmax(axis=1)
    return probabilities.max(axis=1), right.astype(np.float64)


def softmax(log_likelihoods: Array) -> Array:
    """Probabilities of the options of each row: [rows, options] -> [rows, options]."""
    # Less the maximum, so that the largest exponent is 0: whole answers reach -1000 nats and would underflow.
    shifted = np.exp(log_likelihoods - log_likelihoods.max(axis=1, keepdims=True))
    result: Array = shifted / shifted.sum(axis=1, keepdims=True)
    return result


def bins_of(confidence: Array, num_bins: int) -> NDArray[np.int64]:
    """The place of each row's bin."""
    # A confidence of 1 falls into the last bin, which is closed.
    return np.minimum((confidence * num_bins).astype(np.int64), num_bins - 1)
