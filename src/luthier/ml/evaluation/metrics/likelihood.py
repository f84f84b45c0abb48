"""Metrics from likelihoods, without generated text: perplexity, bits per byte, multiple choice, preferences.

Bits per byte do not depend on the tokenizer. The likeliest of several answers is chosen by total likelihood or per byte
(acc and acc_norm of lm-evaluation-harness): the total favours short answers, since every token costs; bytes instead of
tokens make models with different tokenizers comparable. Preference metrics compare the total log-likelihoods of two
completions, as the preference objectives do.

Sources: Gao et al., "A framework for few-shot language model evaluation" (lm-evaluation-harness); Rafailov et al.,
2023, arXiv:2305.18290, section 4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from luthier.ml.evaluation.metrics.protocol import Array, MeanOfRows, Needs, Observations, mean_statistics


class Perplexity:
    """exp(total negative log-likelihood / number of tokens), over the learned tokens of all rows.

    A long row counts for more than a short one. Only models with the same tokenizer and template may be compared by it.
    Source: Jelinek, Mercer, Bahl, Baker, "Perplexity - a measure of the difficulty of speech recognition tasks", 1977.
    """

    name: ClassVar[str] = "perplexity"
    title: ClassVar[str] = "perplexity"
    unit: ClassVar[str] = "per token"
    lower: ClassVar[float] = 1.0
    upper: ClassVar[float] = math.inf
    higher_is_better: ClassVar[bool] = False
    needs: ClassVar[Needs] = "likelihood"
    has_sample_values: ClassVar[bool] = True

    def statistics(self, observed: Observations) -> Array:
        """[num_samples, 2]: nats, learned tokens."""
        return np.array([[score.nll_nats, score.num_tokens] for score in observed.scores], dtype=np.float64)

    def aggregate(self, sums: Array) -> Array:
        """[..., 2] -> [...]."""
        # Exponential of the mean over all tokens, not the mean of perplexities: sums are added over rows before this.
        result: Array = np.exp(sums[..., 0] / sums[..., 1])
        return result


class BitsPerByte:
    """Total negative log-likelihood in bits / UTF-8 bytes of the learned text.

    End-of-turn tokens cost bits but have no bytes, which matters for very short answers.
    Source: Gao et al., "The Pile: An 800GB Dataset of Diverse Text for Language Modeling", 2020, arXiv:2101.00027,
    section 3.1.
    """

    name: ClassVar[str] = "bits_per_byte"
    title: ClassVar[str] = "bits per byte"
    unit: ClassVar[str] = "bits per byte"
    lower: ClassVar[float] = 0.0
    upper: ClassVar[float] = math.inf
    higher_is_better: ClassVar[bool] = False
    needs: ClassVar[Needs] = "likelihood"
    has_sample_values: ClassVar[bool] = True

    def statistics(self, observed: Observations) -> Array:
        """[num_samples, 2]: bits, bytes."""
        # log2(e) bits a nat.
        bits = np.array([score.nll_nats for score in observed.scores], dtype=np.float64) / np.log(2)
        return np.stack([bits, np.asarray(observed.num_bytes, dtype=np.float64)], axis=1)

    def aggregate(self, sums: Array) -> Array:
        """[..., 2] -> [...]."""
        result: Array = sums[..., 0] / sums[..., 1]
        return result


class ChoiceAccuracy(MeanOfRows):
    """Fraction of rows whose likeliest option is the right one.

    Ties share the row: one of two likeliest options counts a half.

    Args:
        right: index of the right option of each row.
    """

    name: ClassVar[str] = "choice_accuracy"
    title: ClassVar[str] = "accuracy of the likeliest option"
    needs: ClassVar[Needs] = "options"

    def __init__(self, right: Sequence[int]) -> None:
        self._right = right

    def statistics(self, observed: Observations) -> Array:
        """[num_samples, 2]: 1 if the right option is the likeliest, one."""
        shares = []
        for place, right in enumerate(self._right):
            losses = self._losses(observed, place)
            # Exact comparison: real ties are those of equal options, and any tolerance would be arbitrary.
            is_best = losses == losses.min()
            shares.append(float(is_best[right]) / int(is_best.sum()))
        return mean_statistics(shares)

    def _losses(self, observed: Observations, row: int) -> Array:
        """Nats of each option of a row."""
        return np.array([score.nll_nats for score in observed.option_scores[row]])


class ChoiceAccuracyPerByte(ChoiceAccuracy):
    """The same by likelihood per UTF-8 byte of an option, so that long options are not at a disadvantage."""

    name: ClassVar[str] = "choice_accuracy_per_byte"
    title: ClassVar[str] = "accuracy of the option likeliest for each byte"

    def _losses(self, observed: Observations, row: int) -> Array:
        # Bytes of UTF-8, which depend on no tokenizer.
        found: Array = super()._losses(observed, row) / np.array(observed.option_bytes[row])
        return found


class RewardAccuracy(MeanOfRows):
    """Share of pairs in which the chosen completion has gained more likelihood than the rejected one has.

    The gain is relative to the first system, the base model; an unchanged pair counts one half, so the first system
    itself has 0.5. Training on pairs should raise it, and it is independent of completion lengths, which are the same
    before and after.
    """

    name: ClassVar[str] = "reward_accuracy"
    title: ClassVar[str] = "reward accuracy"
    needs: ClassVar[Needs] = "pairs"

    def statistics(self, observed: Observations) -> Array:
        """[num_samples, 2]: 1, 0.5 or 0, one."""
        pairs = zip(margins(observed), observed.first_margins, strict=True)
        return mean_statistics([0.5 if now == first else float(now > first) for now, first in pairs])


class PreferenceAccuracy(MeanOfRows):
    """Share of pairs in which the chosen completion is likelier than the rejected one; a tie is a miss.

    The shorter completion is nearly always likelier, so the figure of a base model reflects lengths.
    """

    name: ClassVar[str] = "preference_accuracy"
    title: ClassVar[str] = "preference accuracy"
    needs: ClassVar[Needs] = "pairs"

    def statistics(self, observed: Observations) -> Array:
        """[num_samples, 2]: 1 if the chosen completion is likelier, one."""
        return mean_statistics([margin > 0 for margin in margins(observed)])


class PreferenceMargin(MeanOfRows):
    """Mean of log p(chosen) - log p(rejected), in nats per pair.

    Long completions are less likely than short ones, so the figure of one model means little; its change shows how far
    the model has moved towards the chosen completions.
    """

    name: ClassVar[str] = "preference_margin"
    title: ClassVar[str] = "preference margin"
    unit: ClassVar[str] = "nats a pair"
    lower: ClassVar[float] = -math.inf
    upper: ClassVar[float] = math.inf
    needs: ClassVar[Needs] = "pairs"

    def statistics(self, observed: Observations) -> Array:
        """[num_samples, 2]: the margin, one."""
        return mean_statistics(margins(observed))


def margins(observed: Observations) -> list[float]:
    """log p(chosen) - log p(rejected) of each pair, in nats."""
    pairs = zip(observed.scores, observed.rejected_scores, strict=True)
    # log p is the negative of nats, so that the difference turns around.
    return [rejected.nll_nats - chosen.nll_nats for chosen, rejected in pairs]
