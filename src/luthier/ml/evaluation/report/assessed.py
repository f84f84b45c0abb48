"""Suites and safety checks of a run, as its report shows them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from luthier.core.results.task_result import GateOutcome, SafetyResult, SuiteResult
from luthier.ml.charts.judged_rows import Tone, concerns_in_words, tone_of


@dataclass(frozen=True, slots=True)
class AssessedLine:
    """One result in short.

    Attributes:
        result_id: id of the result.
        title: what was assessed.
        word: its verdict.
        tone: colour of the word.
        headline: the verdict as a sentence.
        lines: what it rests on.
        page: file beside the report that has all of it.
    """

    result_id: str
    title: str
    word: str
    tone: Tone
    headline: str
    lines: tuple[str, ...]
    page: str


@dataclass(frozen=True, slots=True)
class Assessed:
    """All results of a run.

    Attributes:
        results: one line each.
        gate: what the project's gate says; None where there is no gate.
    """

    results: tuple[AssessedLine, ...]
    gate: GateOutcome | None = None

    def as_json(self) -> dict[str, Any]:
        """For report.json: which results they are, and the gate."""
        gate = None if self.gate is None else self.gate.model_dump(mode="json")
        return {"results": [one.result_id for one in self.results], "gate": gate}


def assessed_of(
    suites: Sequence[SuiteResult], safety: SafetyResult | None, gate: GateOutcome | None
) -> Assessed | None:
    """The lines of a run's results; None where it has none."""
    lines = [_suite(one) for one in suites] + ([] if safety is None else [_safety(safety)])
    return Assessed(tuple(lines), gate) if lines else None


def _suite(result: SuiteResult) -> AssessedLine:
    verdict = result.verdict
    return AssessedLine(
        result_id=result.result_id,
        title=f"Suite {result.suite}",
        word="no verdict" if verdict is None else verdict.word,
        tone=tone_of(None if verdict is None else verdict.word),
        headline="" if verdict is None else verdict.headline,
        lines=() if verdict is None else (*verdict.details, *verdict.caveats),
        page=f"suite-{re.sub(r'[^a-z0-9_]', '_', result.suite)}.html",
    )


def _safety(result: SafetyResult) -> AssessedLine:
    num = len(result.concerns)
    return AssessedLine(
        result_id=result.result_id,
        title="Safety",
        word=concerns_in_words(num),
        tone="bad" if num else "quiet",
        headline=result.headline,
        lines=result.concerns,
        page="safety.html",
    )
