"""Label accuracy: for tasks whose answer is one label."""

from __future__ import annotations

from typing import ClassVar, Literal

from luthier.ml.evaluation.metrics.protocol import Array, Observations, mean_of_sums, mean_statistics


class LabelAccuracy:
    """Fraction of outputs whose first line with text names the reference's label; white space and case are ignored.

    What a model writes after that line is not looked at, so one that goes on talking is not punished for it. An output
    without any text is a miss, whatever the reference.
    """

    name: ClassVar[str] = "label_accuracy"
    title: ClassVar[str] = "label accuracy"
    unit: ClassVar[str] = "fraction"
    lower: ClassVar[float] = 0.0
    upper: ClassVar[float] = 1.0
    higher_is_better: ClassVar[bool] = True
    needs: ClassVar[Literal["likelihood", "text", "pairs"]] = "text"
    has_sample_values: ClassVar[bool] = True

    def statistics(self, observed: Observations) -> Array:
        """[num_samples, 2]: 1 where the label is right, one."""
        pairs = zip(observed.outputs, observed.references, strict=True)
        return mean_statistics([bool(label(o)) and label(o) == label(r) for o, r in pairs])

    def aggregate(self, sums: Array) -> Array:
        """[..., 2] -> [...]."""
        return mean_of_sums(sums)


def label(text: str) -> str:
    """The first line with text, stripped and case-folded; empty where there is none."""
    return next((line.strip().casefold() for line in text.splitlines() if line.strip()), "")
