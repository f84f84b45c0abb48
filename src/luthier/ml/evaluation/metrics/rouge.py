"""ROUGE: how much of the reference's words, pairs and sequence the output has, and how little else."""

from __future__ import annotations

from typing import ClassVar, Literal

from luthier.ml.evaluation.metrics.protocol import Array, Observations, mean_of_sums, mean_statistics


class _Rouge:
    """The part that ROUGE-1, 2 and L have in common: the mean over samples of one F1 of `rouge_score`."""

    unit: ClassVar[str] = "F1, 0 to 1"
    lower: ClassVar[float] = 0.0
    upper: ClassVar[float] = 1.0
    higher_is_better: ClassVar[bool] = True
    needs: ClassVar[Literal["likelihood", "text", "pairs"]] = "text"
    has_sample_values: ClassVar[bool] = True
    _kind: ClassVar[str]

    def statistics(self, observed: Observations) -> Array:
        """[num_samples, 2]: F1, one."""
        from rouge_score.rouge_scorer import RougeScorer  # a second of imports that a plan has no use for

        scorer = RougeScorer([self._kind], use_stemmer=True)
        pairs = zip(observed.outputs, observed.references, strict=True)
        return mean_statistics([scorer.score(reference, output)[self._kind].fmeasure for output, reference in pairs])

    def aggregate(self, sums: Array) -> Array:
        """[..., 2] -> [...]."""
        return mean_of_sums(sums)


class Rouge1(_Rouge):
    """ROUGE-1: F1 of single words, Porter stemmer on, words of letters a-z and digits only, case ignored.

    Source: Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", 2004, section 2.
    """

    name: ClassVar[str] = "rouge_1"
    title: ClassVar[str] = "ROUGE-1"
    _kind: ClassVar[str] = "rouge1"


class Rouge2(_Rouge):
    """ROUGE-2: F1 of pairs of neighbouring words, words made as for ROUGE-1.

    Source: Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", 2004, section 2.
    """

    name: ClassVar[str] = "rouge_2"
    title: ClassVar[str] = "ROUGE-2"
    _kind: ClassVar[str] = "rouge2"


class RougeL(_Rouge):
    """ROUGE-L: F1 of the longest common subsequence of words over the whole text, words made as for ROUGE-1.

    Source: Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", 2004, section 3.1.
    """

    name: ClassVar[str] = "rouge_l"
    title: ClassVar[str] = "ROUGE-L"
    _kind: ClassVar[str] = "rougeL"
