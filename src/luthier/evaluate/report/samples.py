"""Ten samples, chosen by a rule that is told: no picking of pleasant ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from luthier.core.digest import sha256_bytes
from luthier.core.evaluation import Evaluation, Sample, SystemResult
from luthier.evaluate.report.figures import metric_title
from luthier.evaluate.report.roles import Roles, metric_names

NUM_BEST: Final = 3
NUM_WORST: Final = 3
NUM_RANDOM: Final = 4

Kind = Literal["best", "worst", "random"]


@dataclass(frozen=True, slots=True)
class Choice:
    """One row with what every system made of it. `gain`: candidate minus baseline, positive is better, if scored."""

    kind: Kind
    row_id: str
    prompt: str
    reference: str
    gain: float | None
    outputs: tuple[tuple[SystemResult, Sample], ...]


@dataclass(frozen=True, slots=True)
class Choices:
    """The chosen rows, the rule in words, and the metric that ranked them (None: all were drawn at random)."""

    rule: str
    metric: str | None
    chosen: tuple[Choice, ...]
    num_rows: int


def choose_samples(evaluation: Evaluation, roles: Roles) -> Choices:
    """Three rows with the largest gain, three with the smallest, four of the rest at random; all, where there are ten.

    Gain is the per-sample score of the candidate minus that of the baseline (turned round where lower is better). The
    verdict's metric ranks; where it has no per-sample scores, the first metric that has. Ties and the random rows are
    settled by SHA-256 of the evaluation's id and the row's id, so that the same evaluation shows the same rows.
    """
    by_system = {s.name: {sample.row_id: sample for sample in s.samples} for s in evaluation.systems if s.samples}
    candidate = by_system.get(roles.candidate, {})
    if not candidate:
        return Choices("No system wrote text, so there are no samples to show.", None, (), 0)
    metric = _ranking_metric(evaluation, by_system, roles)
    gains = _gains(evaluation, by_system, roles, metric)
    rows = sorted(candidate, key=lambda row: (-gains.get(row, 0.0), _lot(evaluation, row)))
    kinds = _kinds(evaluation, rows, ranked=metric is not None)
    chosen = tuple(_choice(evaluation, by_system, candidate[row], kind, gains.get(row)) for row, kind in kinds)
    return Choices(_rule(evaluation, roles, metric, len(rows)), metric, chosen, len(rows))


def _lot(evaluation: Evaluation, row_id: str) -> str:
    return sha256_bytes(f"{evaluation.evaluation_id}\n{row_id}".encode())


def _ranking_metric(evaluation: Evaluation, by_system: dict[str, dict[str, Sample]], roles: Roles) -> str | None:
    sides = [by_system[name] for name in (roles.candidate, roles.baseline) if name is not None and name in by_system]
    for name in metric_names(evaluation):
        if all(name in sample.scores for side in sides for sample in side.values()):
            return name
    return None


def _gains(
    evaluation: Evaluation, by_system: dict[str, dict[str, Sample]], roles: Roles, metric: str | None
) -> dict[str, float]:
    if metric is None:
        return {}
    found = next(system.metrics[metric] for system in evaluation.systems if metric in system.metrics)
    sign = 1.0 if found.higher_is_better else -1.0
    baseline = by_system.get(roles.baseline, {}) if roles.baseline is not None else {}
    gains = {}
    for row, sample in by_system[roles.candidate].items():
        before = baseline[row].scores[metric] if row in baseline else 0.0
        gains[row] = sign * (sample.scores[metric] - before)
    return gains


def _kinds(evaluation: Evaluation, rows: Sequence[str], *, ranked: bool) -> list[tuple[str, Kind]]:
    """Which rows are shown, `rows` being sorted by gain: best first, then worst (worst first), then random ones."""
    if not ranked:
        drawn = sorted(rows, key=lambda row: _lot(evaluation, row))[: NUM_BEST + NUM_WORST + NUM_RANDOM]
        return [(row, "random") for row in drawn]
    num_best = min(NUM_BEST, (len(rows) + 1) // 2)
    num_worst = min(NUM_WORST, len(rows) - num_best)
    best, worst = rows[:num_best], rows[len(rows) - num_worst :]
    rest = rows[num_best : len(rows) - num_worst]
    drawn = sorted(rest, key=lambda row: _lot(evaluation, row))[:NUM_RANDOM]
    kinds: list[tuple[str, Kind]] = [(row, "best") for row in best]
    kinds += [(row, "worst") for row in reversed(worst)]
    return kinds + [(row, "random") for row in drawn]


def _choice(
    evaluation: Evaluation, by_system: dict[str, dict[str, Sample]], sample: Sample, kind: Kind, gain: float | None
) -> Choice:
    row = sample.row_id
    outputs = tuple((s, by_system[s.name][row]) for s in evaluation.systems if row in by_system.get(s.name, {}))
    return Choice(kind, row, outputs[0][1].prompt, sample.reference, gain, outputs)


def _rule(evaluation: Evaluation, roles: Roles, metric: str | None, num_rows: int) -> str:
    how_drawn = f"drawn by the evaluation's id ({evaluation.evaluation_id}), not by hand"
    if metric is None:
        return f"No metric scores single rows here, so all samples are random, {how_drawn}."
    score = f"the row's own {metric_title(metric)}"
    if roles.baseline is not None:
        score = f"{score}, {roles.candidate} minus {roles.baseline}"
    words = f"Of {num_rows:,} held-out rows: the 3 best and the 3 worst by {score}, and 4 random ones of the rest."
    unranked = (
        ""
        if evaluation.verdict is None or evaluation.verdict.metric == metric
        else (f" ({metric_title(evaluation.verdict.metric)}, the metric of the verdict, has no score for single rows.)")
    )
    return f"{words} Ties and random rows are {how_drawn}.{unranked}"
