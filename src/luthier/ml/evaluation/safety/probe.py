"""The probe type, and the two common forms of its metrics: a mean over some rows, and a contrast.

Both are functions of sums over rows, so the bootstrap of `evaluate.compare` gives their intervals and differences.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from luthier.core.conversation import Conversation, Message
from luthier.core.dataset import Example
from luthier.core.results.suite import TaskCommon, TaskFigures
from luthier.ml.evaluation.metrics.protocol import Array, MetricDefinition, Needs, Observations, ratio
from luthier.ml.evaluation.tasks.protocol import Resources, TaskRow

RowValues = Callable[[Observations], Sequence[float | None]]
"""One value per row; None for rows that a metric ignores."""


@dataclass(frozen=True, slots=True)
class Probe:
    """A test for one kind of harm. The first metric is its summary.

    Attributes:
        name: key in results.
        title: display name.
        metrics: its metrics, the main one first.
        max_new_tokens: maximum tokens of an answer.
        rows: examples with a prompt are answered; plain text is continued, and `rest` of the item is the actual
            continuation.
        options: answers whose likelihoods are compared, or whole texts for plain text; one tuple per row, empty if
            unused.
        has_clusters: rows of one group (`Example.group`) count together.
        cautions: limitations of the figures and of the method.
        source: the origin of the rows.
    """

    name: str
    title: str
    source: str
    rows: tuple[TaskRow, ...]
    metrics: tuple[MetricDefinition, ...]
    cautions: tuple[str, ...]
    options: tuple[tuple[str, ...], ...] = ()
    has_clusters: bool = False
    max_new_tokens: int = 32

    @property
    def rests(self) -> tuple[str, ...]:
        """The continuation of each text; empty if the rows are conversations."""
        if any(row.example.conversation is not None for row in self.rows):
            return ()
        return tuple(str(row.item["rest"]) for row in self.rows)


@dataclass(frozen=True, slots=True)
class RowMean:
    """The mean of a value over the rows that have one.

    Attributes:
        name: key in results.
        title: display name.
        unit: unit of the value.
        higher_is_better: direction of the figure.
        needs: required inputs.
        values: the value of each row, None for rows that do not count.
        lower: minimum possible value; by default that of a share.
        upper: maximum possible value.
        of_no_row: the figure of a resample without values; only relevant if few rows have values.
        has_sample_values: true only if every row has a value.
    """

    name: str
    title: str
    unit: str
    higher_is_better: bool
    needs: Needs
    values: RowValues = field(repr=False)
    of_no_row: float = 0.0
    has_sample_values: bool = False
    lower: float = 0.0
    upper: float = 1.0

    def __post_init__(self) -> None:
        if self.unit != "fraction" and (self.lower, self.upper) == (0.0, 1.0):
            raise ValueError(f"{self.name}: a figure in {self.unit} needs its range, lower and upper")

    def statistics(self, observed: Observations) -> Array:
        """[num_samples, 2]: the value and one, or two zeros."""
        return _sums(self.values(observed))

    def aggregate(self, sums: Array) -> Array:
        """[..., 2] -> [...]."""
        return ratio(sums[..., 0], sums[..., 1], of_nothing=self.of_no_row)


@dataclass(frozen=True, slots=True)
class Contrast:
    """The mean of a value over some rows minus that over control rows, such as training rows minus held-out rows.

    Attributes:
        name: key in results.
        title: display name.
        unit: what the values are counted in.
        higher_is_better: direction of the figure.
        needs: required inputs.
        values: the value of each row of the first kind, None elsewhere.
        control: the value of each control row, None elsewhere.
        has_sample_values: false, since a single row has no contrast.
        lower: minimum possible difference; by default that of shares.
        upper: maximum possible difference.
    """

    name: str
    title: str
    unit: str
    higher_is_better: bool
    needs: Needs
    values: RowValues = field(repr=False)
    control: RowValues = field(repr=False)
    has_sample_values: bool = False
    lower: float = -1.0
    upper: float = 1.0

    def statistics(self, observed: Observations) -> Array:
        """[num_samples, 4]: value and one of the rows, value and one of the control rows."""
        return np.concatenate([_sums(self.values(observed)), _sums(self.control(observed))], axis=1)

    def aggregate(self, sums: Array) -> Array:
        """[..., 4] -> [...]."""
        difference: Array = ratio(sums[..., 0], sums[..., 1]) - ratio(sums[..., 2], sums[..., 3])
        return difference


class ProbeKind:
    """A probe as a task kind, with its options, metrics and cautions."""

    def __init__(self, probe: Probe) -> None:
        self._probe = probe
        ids = [row.example.id for row in probe.rows]
        self._options = dict(zip(ids, probe.options, strict=True)) if probe.options else {}

    def check(self, task: TaskCommon, rows: Sequence[TaskRow]) -> None:
        """Nothing: a probe is created with suitable rows."""

    def options(self, task: TaskCommon, row: TaskRow) -> tuple[str, ...]:  # noqa: ARG002
        """Those of the row; empty if a probe has none."""
        return self._options.get(row.example.id, ())

    def metrics(self, task: TaskCommon, rows: Sequence[TaskRow], resources: Resources) -> list[MetricDefinition]:  # noqa: ARG002
        """The probe's."""
        return list(self._probe.metrics)

    def figures(self, task: TaskCommon, observed: Observations) -> TaskFigures | None:  # noqa: ARG002
        """No charts."""
        return None

    def cautions(self, task: TaskCommon) -> tuple[str, ...]:  # noqa: ARG002
        """The probe's."""
        return self._probe.cautions


def _sums(values: Sequence[float | None]) -> Array:
    # A row that does not count adds nothing to the sum or the count.
    pairs = [(0.0, 0.0) if value is None else (float(value), 1.0) for value in values]
    return np.asarray(pairs, dtype=np.float64).reshape(len(pairs), 2)


def empty_answers() -> RowMean:
    """Share of empty answers: a model without output looks harmless but is useless."""

    def values(observed: Observations) -> list[float | None]:
        return [float(not output.strip()) for output in observed.outputs]

    return RowMean("empty_answers", "empty answers", "fraction", False, "text", values)


def asked(row_id: str, prompt: str, *, reference: str = "") -> Example:
    """A prompt of one user turn with its answer for the table of samples."""
    turns = (Message(role="user", content=prompt), Message(role="assistant", content=reference))
    return Example(id=row_id, conversation=Conversation(messages=turns))
