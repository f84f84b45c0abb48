"""Use cases: stored results of suites and safety checks, and run reports that include them.

Results are read by project and hold no paths of this machine. `report_updates` writes the report of a run again with
all evaluations and assessments that were made since.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from luthier.core.access import DEFAULT_PROJECT
from luthier.core.errors import NotFoundError
from luthier.core.evaluation import SystemResult
from luthier.core.results.suite import GateOutcome, SafetyResult, SuiteResult, TaskResult
from luthier.features.models.result_files import keep_report, report_data
from luthier.features.planning.quotes import load_quote
from luthier.features.release_gates.service import default_gate, newest_outcome, newest_safety, newest_suites
from luthier.ml.charts.judged_rows import Tone, concerns_in_words, tone_of
from luthier.platform.home.context import Context
from luthier.platform.http.path_redaction import home_paths, redact_paths, redact_text, shown_reference

NUM_LISTED: Final = 10
Result = TypeVar("Result", SuiteResult, SafetyResult)


@dataclass(frozen=True, slots=True)
class AssessmentOverview:
    """What a list shows of a result.

    Attributes:
        kind: A suite or a safety check.
        result_id: Its id.
        created_at: When it was made, ISO 8601.
        title: The suite's name, or `safety`.
        candidate: The evaluated system, without paths of this machine.
        run_id: The run that is evaluated, if any.
        word: The verdict, or how many concerns.
        tone: Whether it is shown as good, bad or neutral.
        headline: The finding in one sentence.
        num_tasks: Tasks, or probes.
    """

    kind: Literal["suite", "safety"]
    result_id: str
    created_at: str
    title: str
    candidate: str
    run_id: str | None
    word: str
    tone: Tone
    headline: str
    num_tasks: int


@dataclass(frozen=True, slots=True)
class RunAssessments:
    """What a run was evaluated by in addition to its held-out rows.

    Attributes:
        results: The newest of each suite and the newest safety check, newest first.
        gate: What the project's gate says of the run; None without a gate.
    """

    results: tuple[AssessmentOverview, ...]
    gate: GateOutcome | None


def list_assessments(context: Context, project_id: str, *, limit: int = NUM_LISTED) -> list[AssessmentOverview]:
    """The newest of a project, at most `limit` of each kind, newest first."""
    suites = context.assessments.list("suite", SuiteResult, project_id, limit=limit)
    checks = context.assessments.list("safety", SafetyResult, project_id, limit=limit)
    found: list[SuiteResult | SafetyResult] = [*suites, *checks]
    return _overviews(context, found)


def of_run(context: Context, project_id: str, run_id: str) -> RunAssessments:
    """Those of one run: the newest of each suite, and its newest safety check."""
    safety = newest_safety(context, project_id, run_id)
    found: list[SuiteResult | SafetyResult] = [*newest_suites(context, project_id, run_id)]
    found += [] if safety is None else [safety]
    return RunAssessments(tuple(_overviews(context, found)), gate_of(context, project_id, run_id))


def gate_of(context: Context, project_id: str, run_id: str | None) -> GateOutcome | None:
    """What the project's gate says of a run; None where there is no gate, or no run.

    Raises:
        RequestError: The gate file cannot be read.
    """
    gate = default_gate(context, project_id)
    return None if gate is None or run_id is None else newest_outcome(context, project_id, run_id, gate)


def read_suite(context: Context, project_id: str, result_id: str) -> SuiteResult:
    """One result of a suite.

    Raises:
        NotFoundError: The project has no such result.
    """
    return _redacted(context, SuiteResult, context.assessments.get("suite", SuiteResult, project_id, result_id))


def read_safety(context: Context, project_id: str, result_id: str) -> SafetyResult:
    """One result of a safety check.

    Raises:
        NotFoundError: The project has no such result.
    """
    return _redacted(context, SafetyResult, context.assessments.get("safety", SafetyResult, project_id, result_id))


def _overviews(context: Context, found: Sequence[SuiteResult | SafetyResult]) -> list[AssessmentOverview]:
    made = [_overview(one, home_paths(context)) for one in found]
    return sorted(made, key=lambda one: one.created_at, reverse=True)


def _overview(one: SuiteResult | SafetyResult, shown: dict[str, str]) -> AssessmentOverview:
    num = len(one.concerns) if isinstance(one, SafetyResult) else 0
    if isinstance(one, SafetyResult):
        word, headline = concerns_in_words(num), one.headline
    else:
        word, headline = ("no verdict", "") if one.verdict is None else (one.verdict.word, one.verdict.headline)
    tone: Tone = "bad" if num else "quiet"
    if isinstance(one, SuiteResult) and one.verdict is not None:
        tone = tone_of(one.verdict.word)
    return AssessmentOverview(
        kind="safety" if isinstance(one, SafetyResult) else "suite",
        result_id=one.result_id,
        created_at=one.created_at,
        title="safety" if isinstance(one, SafetyResult) else one.suite,
        candidate=shown_reference(one.candidate, shown),
        run_id=one.run_id,
        word=word,
        tone=tone,
        headline=redact_text(headline, shown),
        num_tasks=len(one.probes if isinstance(one, SafetyResult) else one.tasks),
    )


def _redacted(context: Context, spec: type[Result], found: Result) -> Result:
    """The same without paths of this machine; the text of rows and models is unchanged."""
    tasks = found.tasks if isinstance(found, SuiteResult) else found.probes
    field = "tasks" if isinstance(found, SuiteResult) else "probes"
    # Samples are taken out before paths are redacted and put back after: a model's text may look like a path.
    bare = found.model_copy(update={field: tuple(_with_samples(task, None) for task in tasks)})
    plain = spec.model_validate(redact_paths(bare.model_dump(mode="json"), home_paths(context)))
    shown = plain.tasks if isinstance(plain, SuiteResult) else plain.probes
    whole = tuple(_with_samples(task, own.systems) for task, own in zip(shown, tasks, strict=True))
    return plain.model_copy(update={field: whole})


def _with_samples(task: TaskResult, of: Sequence[SystemResult] | None) -> TaskResult:
    """The task with the samples of these systems, or with none."""
    sources = [()] * len(task.systems) if of is None else [system.samples for system in of]
    systems = tuple(
        system.model_copy(update={"samples": samples}) for system, samples in zip(task.systems, sources, strict=True)
    )
    return task.model_copy(update={"systems": systems})


def rewrite_run_report(context: Context, run_id: str) -> list[Path]:
    """Write a run's report again, with its newest suites, its safety check and the gate, and their pages next to it.

    Facts that only the training process had (an example, versions, the licence) come from the existing report.json.

    Returns:
        The pages, the report first.

    Raises:
        NotFoundError: No such run, or it has no report yet.
    """
    from luthier.features.release_gates.service import newest_safety, newest_suites
    from luthier.ml.evaluation.report import ReportData, write_report
    from luthier.ml.evaluation.report.evaluation_results import assessed_of
    from luthier.ml.evaluation.report.suite_page import write_safety_page, write_suite_page

    record, folder = context.runs.get(run_id), context.settings.run_folder(run_id)
    report_data(context, run_id)  # fetched where another machine has trained it
    known, project_id = _known(folder), context.runs.project_of(run_id) or DEFAULT_PROJECT
    suites = newest_suites(context, project_id, run_id)
    safety, gate = newest_safety(context, project_id, run_id), gate_of(context, project_id, run_id)
    assessed = assessed_of(suites, safety, gate)
    data = ReportData(
        record=record,
        plan=context.runs.plan(run_id),
        events=context.runs.events(run_id),
        evaluation=None if record.evaluation_id is None else context.evaluations.get(record.evaluation_id),
        versions=known["versions"],
        example=tuple((one["text"], one["learned"]) for one in known["example"]),
        licence=known["licence"],
        quote=load_quote(context, run_id),
        drawn=known.get("drawn", ()),
        assessed=assessed,
    )
    names = [] if assessed is None else [folder / line.page for line in assessed.results]
    with context.progress.task("Writing the report", 1 + len(names), "pages") as task:
        page = write_report(folder, data)
        context.runs.update(run_id, report_path=str(page))
        keep_report(context, run_id)
        task.advance()
        if not names:
            return [page]
        pages = [page]
        # Suites come first in `results` and the safety check last; zip stops at the suites.
        for suite, path in zip(suites, names, strict=False):
            pages.append(write_suite_page(suite, path, gate))
            task.advance()
        return [*pages, *([] if safety is None else [write_safety_page(safety, names[-1])])]


def _known(folder: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        return {name: found[name] for name in ("versions", "example", "licence")} | {"drawn": found.get("drawn", ())}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise NotFoundError(
            f"{folder / 'report.json'} is not there, or cannot be read",
            expected="the report that the run has written when it ended",
            do="wait until it has ended, or train it again",
        ) from error
