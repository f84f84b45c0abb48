"""BLEU: n-gram precision of a whole corpus, with a penalty for being short."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np

from luthier.ml.evaluation.metrics.protocol import Array, Observations

_MAX_ORDER = 4


class Bleu:
    """Corpus BLEU as sacrebleu computes it by default: 13a tokenizer, case kept, orders 1 to 4, exponential smoothing.

    0 to 100. Counts are summed over the corpus before any ratio is taken, so single samples have no BLEU here.
    Sources: Papineni, Roukos, Ward, Zhu, "BLEU: a Method for Automatic Evaluation of Machine Translation", 2002,
    equations 1 to 3; Post, "A Call for Clarity in Reporting BLEU Scores", 2018, arXiv:1804.08771.
    """

    name: ClassVar[str] = "bleu"
    title: ClassVar[str] = "BLEU"
    unit: ClassVar[str] = "0 to 100"
    lower: ClassVar[float] = 0.0
    upper: ClassVar[float] = 100.0
    higher_is_better: ClassVar[bool] = True
    needs: ClassVar[Literal["likelihood", "text", "pairs"]] = "text"
    has_sample_values: ClassVar[bool] = False

    def statistics(self, observed: Observations) -> Array:
        """[num_samples, 10]: length of the output and of the reference, then matches and n-grams of each order."""
        import sacrebleu

        scorer = sacrebleu.BLEU(effective_order=True)
        rows = []
        for output, reference in zip(observed.outputs, observed.references, strict=True):
            # Only its counts are used: sacrebleu's corpus score sums the same counts.
            score = scorer.sentence_score(output, [reference])
            rows.append([score.sys_len, score.ref_len, *score.counts, *score.totals])
        return np.array(rows, dtype=np.float64)

    def aggregate(self, sums: Array) -> Array:
        """[..., 10] -> [...]."""
        length, reference_length = sums[..., 0], sums[..., 1]
        matches, totals = sums[..., 2 : 2 + _MAX_ORDER], sums[..., 2 + _MAX_ORDER :]
        # The k-th order without a match counts as if it had 1 / 2^k matches.
        num_smoothed = np.cumsum(matches == 0, axis=-1)
        smoothed = np.where(matches > 0, matches, 0.5**num_smoothed)
        # An order without any n-gram makes the whole score 0, as does an output without any match.
        possible = (totals > 0).all(axis=-1) & (matches > 0).any(axis=-1)
        precisions = smoothed / np.maximum(totals, 1.0)
        penalty = np.exp(np.minimum(0.0, 1.0 - reference_length / np.maximum(length, 1.0)))
        result: Array = np.where(possible, 100.0 * penalty * np.exp(np.log(precisions).mean(axis=-1)), 0.0)
        return result
