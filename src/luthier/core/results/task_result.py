"""What came of judging by tasks: a suite's results, a safety check's, and what a gate makes of them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from luthier.core.evaluation import Comparison, SystemResult, VerdictWord
from luthier.core.frozen_model import FrozenModel


class Confusion(FrozenModel):
    """Which label was given for which.

    The last column counts answers that are none of the labels.

    Attributes:
        labels: the true labels, in order.
        counts: a row for each true label, a column for each given one.
    """

    labels: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]


class ReliabilityBin(FrozenModel):
    """Rows whose confidence lies in [low, high).

    Attributes:
        low: lower end, included.
        high: upper end, not included.
        num_rows: rows in it.
        confidence: their mean confidence.
        accuracy: the fraction of them that was right.
    """

    low: float
    high: float
    num_rows: int
    confidence: float
    accuracy: float


class TaskFigures(FrozenModel):
    """What is drawn of one system's answers to a task, where its kind has something to draw.

    Attributes:
        confusion: labels against given labels; None where it does not apply.
        reliability: bins of confidence; empty where there is none.
    """

    confusion: Confusion | None = None
    reliability: tuple[ReliabilityBin, ...] = ()


class TaskResult(FrozenModel):
    """One task: all systems on the same rows, by all of its metrics.

    Attributes:
        name: the name of the task.
        kind: its kind.
        data_file: the file of its rows.
        data_sha256: its digest.
        num_rows: rows that were judged.
        num_clusters: sources that the rows come from, where rows of one source count together.
        num_leaked: rows that a judged run was trained on.
        primary: the metric that sums it up.
        systems: all systems by its metrics.
        comparisons: pairs of systems on the same rows.
        figures: by the name of the system.
        judges: the judge's name by the metric that it gave the figures of.
        cautions: what the figures do not tell, and known weaknesses of the measure; shown wherever the figures are.
        is_general: a task of general ability, which rides along to see what tuning cost.
    """

    name: str
    kind: str
    data_file: str
    data_sha256: str
    num_rows: int
    num_clusters: int | None = None
    num_leaked: int = 0
    primary: str
    systems: tuple[SystemResult, ...]
    comparisons: tuple[Comparison, ...]
    figures: dict[str, TaskFigures] = Field(default_factory=dict)
    judges: dict[str, str] = Field(default_factory=dict)
    cautions: tuple[str, ...] = ()
    is_general: bool = False


class TasksVerdict(FrozenModel):
    """The answer over several tasks, as text: at most two sentences that anybody understands, then the details.

    Attributes:
        word: the answer in a word.
        headline: at most two sentences that anybody understands.
        details: the figures behind it.
        caveats: what it rests on and what it does not show.
    """

    word: VerdictWord
    headline: str
    details: tuple[str, ...] = ()
    caveats: tuple[str, ...] = ()


class SuiteResult(FrozenModel):
    """All tasks of a suite.

    Attributes:
        result_id: its id.
        created_at: UTC, ISO 8601.
        suite: the name of the suite.
        fingerprint: of the suite and its files.
        run_id: its run, if any.
        candidate: the name of the system that the verdict is about.
        systems: the names of all systems.
        num_seeds: trainings that each tuned system's figures are the mean of.
        tasks: the tasks.
        verdict: the answer over all tasks; None where there was nothing to compare.
        seconds: wall time.
    """

    result_id: str
    created_at: str
    suite: str
    fingerprint: str
    run_id: str | None = None
    candidate: str
    systems: tuple[str, ...]
    num_seeds: int = 1
    tasks: tuple[TaskResult, ...]
    verdict: TasksVerdict | None = None
    seconds: float


class SafetyResult(FrozenModel):
    """What tuning did to safety: every probe on the base and on the tuned model.

    Attributes:
        result_id: its id.
        created_at: UTC, ISO 8601.
        suite: which probes were run.
        fingerprint: digest of the probes and their files.
        run_id: the run that was judged; None for a model without one.
        candidate: the name of the tuned model.
        base: the name of the base model; None where there is nothing to compare with.
        probes: the probes.
        headline: at most two sentences.
        concerns: one sentence for each probe that got worse, or is bad in itself.
        left_out: one sentence for each probe that could not be run, with the reason.
        seconds: wall time.
    """

    result_id: str
    created_at: str
    suite: Literal["default", "full"]
    fingerprint: str
    run_id: str | None = None
    candidate: str
    base: str | None = None
    probes: tuple[TaskResult, ...]
    headline: str
    concerns: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    seconds: float


class RuleOutcome(FrozenModel):
    """One rule of a gate.

    Attributes:
        rule: the rule in short.
        passed: whether it was met.
        found: the figure that was compared with the bound; None where there is none.
        sentence: the outcome for people.
    """

    rule: str
    passed: bool
    found: float | None = None
    sentence: str


class GateOutcome(FrozenModel):
    """Whether a model may be deployed.

    Attributes:
        passed: whether all rules were met.
        gate_sha256: of the gate's file.
        outcomes: each rule with its outcome.
        results: ids of the results it rests on.
    """

    passed: bool
    gate_sha256: str
    outcomes: tuple[RuleOutcome, ...]
    results: tuple[str, ...] = ()
