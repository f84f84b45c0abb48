"""The samples of an evaluation row by row, what all systems wrote for each side by side; chosen and put in order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

from luthier.core.evaluation import Evaluation, Sample
from luthier.ml.evaluation.roles import Roles

Better = Literal["", "candidate", "baseline", "neither"]
Kind = Literal["", "changed", "same", "empty", "cut off", "failed"]
Order = Literal["worst", "best", "file"]
BETTER: Final[tuple[Better, ...]] = get_args(Better)
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
ORDERS: Final[tuple[Order, ...]] = get_args(Order)


@dataclass(frozen=True, slots=True)
class SampleRow:
    """One held-out row.

    Attributes:
        row_id: id of the row.
        prompt: the question.
        reference: the row's own answer.
        samples: by the names of the systems, in their order; a system may lack one.
        gain: the candidate's score less that of the baseline, or the score alone where there is no baseline, turned
            round where lower is better: more is better. None where one has no such score.
    """

    row_id: str
    prompt: str
    reference: str
    samples: dict[str, Sample]
    gain: float | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """Which rows, and in which order. Empty words, kinds and ends ask for nothing.

    Attributes:
        words: all of them occur in the prompt, the reference or an answer, whatever their case.
        metric: the metric of gain and score; None where there is none.
        better: which side has the better score.
        low: least score of the candidate.
        high: largest score of the candidate.
        order: by gain, the worst or the best first, or as in the file.
        kind: of the candidate's answer; `changed` and `same` compare it with the baseline's.
    """

    metric: str | None = None
    words: str = ""
    better: Better = ""
    kind: Kind = ""
    low: float | None = None
    high: float | None = None
    order: Order = "worst"


def scored_metrics(evaluation: Evaluation) -> list[str]:
    """The metrics that have scores for single rows, that of the verdict first."""
    names = dict.fromkeys(n for system in evaluation.systems for s in system.samples[:50] for n in s.scores)
    first = evaluation.verdict.metric if evaluation.verdict is not None else ""
    return sorted(names, key=lambda name: name != first)


def choose_rows(evaluation: Evaluation, roles: Roles, choice: Choice) -> list[SampleRow]:
    """The rows that fit, in order; those without a gain come last where it is what orders them."""
    found = [row for row in _rows(evaluation, roles, choice.metric) if _fits(row, roles, choice)]
    # Rows are in the order of the file already.
    if choice.order == "file" or choice.metric is None:
        return found
    sign = 1.0 if choice.order == "worst" else -1.0
    return sorted(found, key=lambda row: (row.gain is None, sign * (row.gain or 0.0)))


def _rows(evaluation: Evaluation, roles: Roles, metric: str | None) -> list[SampleRow]:
    by_row: dict[str, dict[str, Sample]] = {}
    for system in evaluation.systems:
        for sample in system.samples:
            by_row.setdefault(sample.row_id, {})[system.name] = sample
    sign = _sign(evaluation, metric)
    rows = []
    for row_id, samples in by_row.items():
        # Prompt and reference are the same for all systems.
        one = samples.get(roles.candidate) or next(iter(samples.values()))
        rows.append(SampleRow(row_id, one.prompt, one.reference, samples, _gain(samples, roles, metric, sign)))
    return rows


def _sign(evaluation: Evaluation, metric: str | None) -> float:
    found = next((system.metrics[metric] for system in evaluation.systems if metric in system.metrics), None)
    return -1.0 if found is not None and not found.higher_is_better else 1.0


def _gain(samples: dict[str, Sample], roles: Roles, metric: str | None, sign: float) -> float | None:
    after = _score(samples.get(roles.candidate), metric)
    if after is None or roles.baseline is None:
        return None if after is None else sign * after
    before = _score(samples.get(roles.baseline), metric)
    return None if before is None else sign * (after - before)


def _score(sample: Sample | None, metric: str | None) -> float | None:
    return None if sample is None or metric is None else sample.scores.get(metric)


def _fits(row: SampleRow, roles: Roles, choice: Choice) -> bool:
    mine = row.samples.get(roles.candidate)
    score = _score(mine, choice.metric)
    if choice.low is not None and (score is None or score < choice.low):
        return False
    if choice.high is not None and (score is None or score > choice.high):
        return False
    if choice.better and (roles.baseline is None or _who_is_better(row) != choice.better):
        return False
    if choice.kind and (mine is None or not _is_kind(mine, row.samples.get(roles.baseline or ""), choice.kind)):
        return False
    return not choice.words or _has_words(row, choice.words.casefold().split())


def _who_is_better(row: SampleRow) -> Better:
    if row.gain is None:
        return ""
    return "candidate" if row.gain > 0 else "baseline" if row.gain < 0 else "neither"


def _is_kind(mine: Sample, other: Sample | None, kind: Kind) -> bool:
    if kind in ("changed", "same"):
        return other is not None and (mine.output != other.output) == (kind == "changed")
    if kind == "empty":
        return not mine.output.strip()
    return mine.finish_reason == ("length" if kind == "cut off" else "error")


def _has_words(row: SampleRow, words: Sequence[str]) -> bool:
    texts = [row.row_id, row.prompt, row.reference, *(sample.output for sample in row.samples.values())]
    whole = "\n".join(texts).casefold()
    return all(word in whole for word in words)
