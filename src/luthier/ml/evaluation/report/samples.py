"""Ten samples, chosen by a stated rule, without cherry-picking."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from luthier.core.digest import sha256_bytes
from luthier.core.evaluation import Evaluation, Sample, SystemResult
from luthier.ml.charts.metric_titles import metric_title, start
from luthier.ml.evaluation.roles import Roles, metric_names

NUM_BEST: Final = 3
NUM_WORST: Final = 3
NUM_RANDOM: Final = 4

BySystem = dict[str, dict[str, Sample]]
Kind = Literal["best", "worst", "random"]


@dataclass(frozen=True, slots=True)
class Choice:
    """One row with what every system made of it.

    Attributes:
        kind: why it is shown.
        row_id: id of the row.
        prompt: the question.
        reference: the row's own answer.
        gain: candidate minus baseline, positive is better; None where it is not scored.
        outputs: each system with what it wrote.
    """

    kind: Kind
    row_id: str
    prompt: str
    reference: str
    gain: float | None
    outputs: tuple[tuple[SystemResult, Sample], ...]


@dataclass(frozen=True, slots=True)
class Choices:
    """The chosen rows.

    Attributes:
        rule: how they were chosen, as text.
        metric: what ranked them; None where all were drawn at random.
        chosen: the rows in the order in which they are shown.
        num_rows: rows that they were chosen from.
    """

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
    gains = _gains(evaluation, by_system, roles, metric) if metric is not None else {}
    kinds = _kinds(evaluation, list(candidate), gains)
    chosen = tuple(_choice(evaluation, by_system, candidate[row], kind, gains.get(row)) for row, kind in kinds)
    rule = _rule(evaluation, roles, metric, len(candidate), len(candidate) - len(gains))
    return Choices(rule, metric, chosen, len(candidate))


def _lot(evaluation: Evaluation, row_id: str) -> str:
    return sha256_bytes(f"{evaluation.evaluation_id}\n{row_id}".encode())


def _ranking_metric(evaluation: Evaluation, by_system: BySystem, roles: Roles) -> str | None:
    names = metric_names(evaluation)
    return next((name for name in names if _gains(evaluation, by_system, roles, name)), None)


def _gains(evaluation: Evaluation, by_system: BySystem, roles: Roles, metric: str) -> dict[str, float]:
    """The gain of each row that both sides have a score for."""
    found = next(system.metrics[metric] for system in evaluation.systems if metric in system.metrics)
    sign = 1.0 if found.higher_is_better else -1.0
    before = _scores(by_system, roles.baseline, metric)
    after = _scores(by_system, roles.candidate, metric)
    if roles.baseline is None:
        return {row: sign * score for row, score in after.items()}
    return {row: sign * (score - before[row]) for row, score in after.items() if row in before}


def _scores(by_system: BySystem, name: str | None, metric: str) -> dict[str, float]:
    samples = by_system.get(name, {}) if name is not None else {}
    return {row: sample.scores[metric] for row, sample in samples.items() if metric in sample.scores}


def _kinds(evaluation: Evaluation, rows: Sequence[str], gains: Mapping[str, float]) -> list[tuple[str, Kind]]:
    """Which rows are shown: best first, then worst (worst first), then random ones, scored or not."""
    ranked = sorted(gains, key=lambda row: (-gains[row], _lot(evaluation, row)))
    # With few rows the two halves share them, so that no row is both best and worst.
    num_best = min(NUM_BEST, (len(ranked) + 1) // 2)
    num_worst = min(NUM_WORST, len(ranked) - num_best)
    best, worst = ranked[:num_best], ranked[len(ranked) - num_worst :]
    rest = sorted(set(rows) - set(best) - set(worst), key=lambda row: _lot(evaluation, row))
    # Without scores the random ones fill all ten places.
    num_random = NUM_RANDOM if ranked else NUM_BEST + NUM_WORST + NUM_RANDOM
    kinds: list[tuple[str, Kind]] = [(row, "best") for row in best]
    kinds += [(row, "worst") for row in reversed(worst)]
    return kinds + [(row, "random") for row in rest[:num_random]]


def _choice(evaluation: Evaluation, by_system: BySystem, sample: Sample, kind: Kind, gain: float | None) -> Choice:
    row = sample.row_id
    outputs = tuple((s, by_system[s.name][row]) for s in evaluation.systems if row in by_system.get(s.name, {}))
    return Choice(kind, row, outputs[0][1].prompt, sample.reference, gain, outputs)


def _rule(evaluation: Evaluation, roles: Roles, metric: str | None, num_rows: int, num_unscored: int) -> str:
    how_drawn = f"drawn by the evaluation's id ({evaluation.evaluation_id}), not by hand"
    if metric is None:
        return f"No metric scores single rows here, so all samples are random, {how_drawn}."
    score = f"the row's own {metric_title(metric)}"
    if roles.baseline is not None:
        score = f"{score}, {roles.candidate} minus {roles.baseline}"
    words = f"Of {num_rows:,} held-out rows: the 3 best and the 3 worst by {score}, and 4 random ones of the rest."
    if num_rows <= NUM_BEST + NUM_WORST + NUM_RANDOM:
        words = f"All {num_rows} held-out rows; best and worst are meant by {score}."
    if num_unscored:
        words = f"{words} {num_unscored:,} rows have no such score and stand among the random ones."
    unranked = ""
    if evaluation.verdict is not None and evaluation.verdict.metric != metric:
        title = start(metric_title(evaluation.verdict.metric))
        unranked = f" ({title}, the metric of the verdict, has no score for single rows.)"
    return f"{words} Ties and random rows are {how_drawn}.{unranked}"
