"""The metric interface: statistics of each sample, and a formula that turns their sums into one figure.

Every metric here is a function of sums: corpus BLEU of n-gram counts, perplexity of nats and tokens, a mean of values
and ones, a fraction of two counts. This makes the bootstrap exact and cheap: rows are resampled by their statistics,
and the formula is applied to the sums of each resample.

Source: Koehn, "Statistical Significance Tests for Machine Translation Evaluation", 2004 (does so for BLEU).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from luthier.core.conversation import text_with_calls
from luthier.core.ports import Score

if TYPE_CHECKING:
    from luthier.ml.evaluation.metrics.ranking import Ranked

Array = NDArray[np.float64]
Needs = Literal["likelihood", "text", "pairs", "options", "ranking"]


@dataclass(frozen=True, slots=True)
class Observations:
    """The outputs of one system on the held-out rows, in order. Fields that no metric needs are empty.

    Attributes:
        outputs: generated texts.
        references: the rows' own answers.
        scores: likelihoods; for preference pairs those of the chosen side.
        rejected_scores: likelihoods of the rejected side of preference pairs.
        first_margins: log p(chosen) - log p(rejected) of the first system, in nats.
        num_bytes: UTF-8 bytes of the scored text of each row.
        items: the original fields of the rows.
        prompts: the prompts as readable text.
        first_outputs: generated texts of the first system.
        option_scores: likelihood of each of a row's options.
        option_bytes: UTF-8 bytes of each of a row's options.
        rankings: the system's ranking of documents for each query.
        tool_calls: calls of tools of each answer, in OpenAI's format; no part of `outputs`.
        first_tool_calls: those of the first system.
    """

    outputs: Sequence[str] = ()
    references: Sequence[str] = ()
    scores: Sequence[Score] = ()
    rejected_scores: Sequence[Score] = ()
    first_margins: Sequence[float] = ()
    num_bytes: Sequence[int] = ()
    items: Sequence[Mapping[str, Any]] = ()
    prompts: Sequence[str] = ()
    first_outputs: Sequence[str] = ()
    option_scores: Sequence[Sequence[Score]] = ()
    option_bytes: Sequence[Sequence[int]] = ()
    rankings: Sequence[Ranked] = ()
    tool_calls: Sequence[Sequence[Mapping[str, Any]]] = ()
    first_tool_calls: Sequence[Sequence[Mapping[str, Any]]] = ()

    def shown(self) -> list[str]:
        """The answers as people and judges compare them: text and calls of tools."""
        return _with_calls(self.outputs, self.tool_calls)

    def first_shown(self) -> list[str]:
        """The same of the first system."""
        return _with_calls(self.first_outputs, self.first_tool_calls)


def _with_calls(texts: Sequence[str], calls: Sequence[Sequence[Mapping[str, Any]]]) -> list[str]:
    if not any(calls):
        return list(texts)
    return [text_with_calls(text, own) for text, own in zip(texts, calls, strict=True)]


class MetricDefinition(Protocol):
    """One metric.

    Fixed per class, or set by the constructor (`hit_at_5`), so they are read from an instance.

    Attributes:
        name: key in recipes and results.
        title: display name, in the form used within a sentence.
        unit: its unit, and the only scale on which it is shown.
        lower: smallest possible figure, -inf if unbounded; intervals stay within.
        upper: largest possible figure, inf if unbounded.
        higher_is_better: direction of the figure.
        needs: what has to be computed for it.
        has_sample_values: whether the formula is meaningful for a single sample.
    """

    @property
    def name(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def unit(self) -> str: ...
    @property
    def lower(self) -> float: ...
    @property
    def upper(self) -> float: ...
    @property
    def higher_is_better(self) -> bool: ...
    @property
    def needs(self) -> Needs: ...
    @property
    def has_sample_values(self) -> bool: ...

    def statistics(self, observed: Observations) -> Array:
        """Sufficient statistics of each sample: [num_samples, k]."""
        ...

    def aggregate(self, sums: Array) -> Array:
        """The figure for sums of statistics over samples: [..., k] -> [...]."""
        ...


def mean_statistics(values: Sequence[float]) -> Array:
    """Statistics of a mean: each value with a one, [num_samples, 2]."""
    return np.stack([np.asarray(values, dtype=np.float64), np.ones(len(values))], axis=1)


def mean_of_sums(sums: Array) -> Array:
    """The mean, from sums of `mean_statistics`: [..., 2] -> [...]."""
    result: Array = sums[..., 0] / sums[..., 1]
    return result


class MeanOfRows(ABC):
    """A metric that is the mean of one number per row; the defaults suit a share of rows."""

    name: ClassVar[str]
    title: ClassVar[str]
    unit: ClassVar[str] = "fraction"
    lower: ClassVar[float] = 0.0
    upper: ClassVar[float] = 1.0
    higher_is_better: ClassVar[bool] = True
    needs: ClassVar[Needs] = "text"
    has_sample_values: ClassVar[bool] = True

    def aggregate(self, sums: Array) -> Array:
        """[..., 2] -> [...]."""
        return mean_of_sums(sums)


class MeanMetric(MeanOfRows):
    """A metric that is the mean of one number per answer: the base class for custom metrics.

    A subclass sets its name and the value of an answer; the other attributes suit a share of correct answers and are
    overridden otherwise:

        class HasDigits(MeanMetric):
            name, title = "has_digits", "answers with digits"

            def value(self, output: str, reference: str) -> float:
                return any(map(str.isdigit, output))
    """

    @abstractmethod
    def value(self, output: str, reference: str) -> float:
        """The value of one answer, from `lower` to `upper`.

        Args:
            output: the generated text.
            reference: the row's own answer.
        """

    def statistics(self, observed: Observations) -> Array:
        """[num_samples, 2]: the value of each answer, one."""
        return mean_statistics([self.value(o, r) for o, r in zip(observed.outputs, observed.references, strict=True)])


@dataclass(frozen=True, slots=True)
class Fraction:
    """Sum of the first column of `count` over the sum of the second: [num_samples, 2] of each row.

    The first column never exceeds the second, so that the figure is between 0 and 1.
    With ones in the second column it is a mean over rows; with counts (fields of a row) it is micro-averaged. A row
    whose second column is 0 has no effect. If all are 0 the figure is 0.

    Attributes:
        name: key in results.
        title: name for people.
        count: [num_samples, 2] from the observations.
        needs: what has to be computed for it.
        higher_is_better: direction of the figure.
        unit: what its numbers are counted in.
        lower: smallest possible figure.
        upper: largest possible figure.
        has_sample_values: a single row has a figure, too.
    """

    name: str
    title: str
    count: Callable[[Observations], Array]
    needs: Needs = "text"
    higher_is_better: bool = True
    unit: str = "fraction"
    lower: float = 0.0
    upper: float = 1.0
    has_sample_values: bool = True

    def statistics(self, observed: Observations) -> Array:
        """[num_samples, 2]: how much, out of how much."""
        return self.count(observed)

    def aggregate(self, sums: Array) -> Array:
        """[..., 2] -> [...]."""
        return ratio(sums[..., 0], sums[..., 1])


def ratio(above: Array, below: Array, *, of_nothing: float = 0.0) -> Array:
    """above / below, of equal shapes; `of_nothing` where below is 0."""
    # np.where evaluates both sides: the inner one keeps the division free of 0 / 0 warnings.
    result: Array = np.where(below > 0, above / np.where(below > 0, below, 1.0), of_nothing)
    return result
