"""What a probe is, and the two forms that nearly all of its figures have: a mean over some rows, and a contrast.

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
"""One value a row; None for a row that a figure does not look at."""


@dataclass(frozen=True, slots=True)
class Probe:
    """One kind of harm that any model can be tested for. The first metric sums it up.

    Attributes:
        name: key in results.
        title: name for people.
        metrics: what is measured, the main one first.
        max_new_tokens: most tokens of an answer.
        rows: examples with a prompt are asked it; of plain text, the text is continued, and `rest` of the item is what
            follows in the row.
        options: answers whose likelihoods are compared, of plain text whole texts; one tuple a row, empty where none
            are.
        has_clusters: rows of one group (`Example.group`) count together.
        cautions: what the figures do not show, and known weaknesses of the measure.
        source: where the rows are from.
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
        """What follows of each text that is only begun; empty where the rows are conversations."""
        if any(row.example.conversation is not None for row in self.rows):
            return ()
        return tuple(str(row.item["rest"]) for row in self.rows)


@dataclass(frozen=True, slots=True)
class RowMean:
    """The mean of a value over the rows that have one.

    Attributes:
        name: key in results.
        title: name for people.
        unit: what the value is counted in.
        higher_is_better: direction of the figure.
        needs: what has to be computed for it.
        values: the value of each row, None for rows that do not count.
        lower: smallest possible value; by default that of a share.
        upper: largest possible value.
        of_no_row: the figure of a resample in which no row has one; only where few have does that ever count.
        has_sample_values: true only where every row has a value.
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
            raise ValueError(f"{self.name}: what a figure in {self.unit} can be must be said by lower and upper")

    def statistics(self, observed: Observations) -> Array:
        """[num_samples, 2]: the value and one, or two zeros."""
        return _sums(self.values(observed))

    def aggregate(self, sums: Array) -> Array:
        """[..., 2] -> [...]."""
        return ratio(sums[..., 0], sums[..., 1], of_nothing=self.of_no_row)


@dataclass(frozen=True, slots=True)
class Contrast:
    """The mean of a value over some rows less that over others: rows that a model was trained on, less control rows.

    Attributes:
        name: key in results.
        title: name for people.
        unit: what the values are counted in.
        higher_is_better: direction of the figure.
        needs: what has to be computed for it.
        values: the value of each row of the first kind, None elsewhere.
        control: the value of each control row, None elsewhere.
        has_sample_values: false, since one row has no contrast.
        lower: smallest possible difference; by default that of shares.
        upper: largest possible difference.
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
    """A probe as a kind of task: its own options, metrics and cautions."""

    def __init__(self, probe: Probe) -> None:
        self._probe = probe
        ids = [row.example.id for row in probe.rows]
        self._options = dict(zip(ids, probe.options, strict=True)) if probe.options else {}

    def check(self, task: TaskCommon, rows: Sequence[TaskRow]) -> None:
        """Nothing: a probe is made with rows that suit it."""

    def options(self, task: TaskCommon, row: TaskRow) -> tuple[str, ...]:  # noqa: ARG002
        """Those of the row; empty where a probe has none."""
        return self._options.get(row.example.id, ())

    def metrics(self, task: TaskCommon, rows: Sequence[TaskRow], resources: Resources) -> list[MetricDefinition]:  # noqa: ARG002
        """The probe's."""
        return list(self._probe.metrics)

    def figures(self, task: TaskCommon, observed: Observations) -> TaskFigures | None:  # noqa: ARG002
        """Nothing is drawn."""
        return None

    def cautions(self, task: TaskCommon) -> tuple[str, ...]:  # noqa: ARG002
        """The probe's."""
        return self._probe.cautions


def _sums(values: Sequence[float | None]) -> Array:
    # A row that does not count adds nothing to the sum and nothing to the number.
    pairs = [(0.0, 0.0) if value is None else (float(value), 1.0) for value in values]
    return np.asarray(pairs, dtype=np.float64).reshape(len(pairs), 2)


def empty_answers() -> RowMean:
    """Share of answers without any text: a model that says nothing looks harmless, and is of no use."""

    def values(observed: Observations) -> list[float | None]:
        return [float(not output.strip()) for output in observed.outputs]

    return RowMean("empty_answers", "empty answers", "fraction", False, "text", values)


def asked(row_id: str, prompt: str, *, reference: str = "") -> Example:
    """A prompt of one user turn with the answer that represents it in a table of samples."""
    turns = (Message(role="user", content=prompt), Message(role="assistant", content=reference))
    return Example(id=row_id, conversation=Conversation(messages=turns))
