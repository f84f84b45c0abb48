"""Exact match: the output is the reference, character by character."""

from __future__ import annotations

from typing import ClassVar, Literal

from luthier.ml.evaluation.metrics.protocol import Array, Observations, mean_of_sums, mean_statistics


class ExactMatch:
    """Fraction of outputs equal to their reference; white space at both ends is removed first, nothing else.

    Source: Rajpurkar, Zhang, Lopyrev, Liang, "SQuAD: 100,000+ Questions for Machine Comprehension of Text", 2016,
    arXiv:1606.05250, section 6.1, without its removal of articles and punctuation.
    """

    name: ClassVar[str] = "exact_match"
    title: ClassVar[str] = "exact match"
    unit: ClassVar[str] = "fraction"
    lower: ClassVar[float] = 0.0
    upper: ClassVar[float] = 1.0
    higher_is_better: ClassVar[bool] = True
    needs: ClassVar[Literal["likelihood", "text", "pairs"]] = "text"
    has_sample_values: ClassVar[bool] = True

    def statistics(self, observed: Observations) -> Array:
        """[num_samples, 2]: 1 where equal, one."""
        pairs = zip(observed.outputs, observed.references, strict=True)
        return mean_statistics([self._normal(output) == self._normal(reference) for output, reference in pairs])

    def aggregate(self, sums: Array) -> Array:
        """[..., 2] -> [...]."""
        return mean_of_sums(sums)

    def _normal(self, text: str) -> str:
        return text.strip()


class ExactMatchIgnoringCase(ExactMatch):
    """Exact match after Unicode case folding; white space at both ends is removed, nothing else."""

    name: ClassVar[str] = "exact_match_ignoring_case"
    title: ClassVar[str] = "exact match ignoring case"

    def _normal(self, text: str) -> str:
        return text.strip().casefold()
