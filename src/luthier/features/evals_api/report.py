"""The report of a run: a result of a suite with a task for each grader, its figures with 95% intervals."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from luthier.core.errors import NotFoundError
from luthier.core.evaluation import Metric, Sample, SystemResult
from luthier.core.ids import sha256_document
from luthier.core.json_limits import json_text
from luthier.core.records.bounds import UNIT, Bounds
from luthier.core.results.suite import SuiteResult, TaskResult
from luthier.core.text.counted import counted
from luthier.features.evals_api.data import Rows
from luthier.features.evals_api.origin import Origin, origin_of
from luthier.features.evals_api.records import Eval, EvalRun, OutputItem, score_range
from luthier.features.serving.graders import GraderRequest, LabelModelRequest, MultiRequest, ScoreModelRequest
from luthier.platform.home.context import Context

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAX_SAMPLES: Final = 1000
"""Answers that the report shows; the output items have all."""
_ALL: Final = "all_graders"
_SEED: Final = 0
_MAX_DRAWS: Final = 200_000_000
"""Draws of a bootstrap: 10,000 resamples up to 20,000 items, fewer beyond that."""
_NOT_PLAIN: Final = re.compile(r"[^a-z0-9]+")
_MAX_TEXT: Final = 20_000


def keep_report(context: Context, one: Eval, run: EvalRun, rows: Rows) -> None:
    """Store the report under the id that the run names; once, however often an attempt comes here."""
    try:
        context.assessments.get("suite", SuiteResult, run.project_id, run.result_id)
    except NotFoundError:
        origin = origin_of(context, one, run, rows)
        made = report_of(context, one, run, rows, origin)
        # A checkpoint is no outcome of its run, but its result goes with the run.
        context.assessments.save(
            "suite",
            made.result_id,
            made,
            project_id=run.project_id,
            subject=origin.subject,
            run_id=origin.run_id,
        )


def report_of(context: Context, one: Eval, run: EvalRun, rows: Rows, origin: Origin) -> SuiteResult:
    """The figures of all graders over the items that were graded."""
    import numpy as np

    num_graders, num_items = len(one.testing_criteria), rows.num_rows
    # [items, graders]; the column after the last grader is about all of them together.
    scores = np.zeros((num_items, num_graders))
    passed = np.zeros((num_items, num_graders + 1))
    is_graded = np.zeros((num_items, num_graders + 1), dtype=bool)
    shown: list[OutputItem] = []
    for item in context.evals.all_items(run.eval_run_id):
        for place, result in enumerate(item.results):
            scores[item.position, place], passed[item.position, place] = result.score, result.passed
            is_graded[item.position, place] = result.error is None
        passed[item.position, num_graders] = item.status == "pass"
        is_graded[item.position, num_graders] = item.status != "error"
        # The first ones, and not a sample: the output items are in the same order and can be looked up.
        if len(shown) < MAX_SAMPLES:
            shown.append(item)
    system = run.model or "stored answers"
    names = _task_names([grader.name for grader in one.testing_criteria])
    tasks = []
    for place, grader in enumerate(one.testing_criteria):
        graded = is_graded[:, place]
        figures = _figures(passed[graded, place], scores[graded, place], Bounds(*score_range(grader)))
        made = _task(names[place], grader.type, system, figures, _samples(shown, place), rows, int(graded.sum()))
        tasks.append(_with_judges(made, [grader]))
    if num_graders > 1:
        graded = is_graded[:, num_graders]
        figures = _figures(passed[graded, num_graders], None, Bounds(0.0, 1.0))
        made = _task(_ALL, "all graders", system, figures, (), rows, int(graded.sum()))
        tasks.append(_with_judges(made, one.testing_criteria))
    criteria = [grader.model_dump(mode="json") for grader in one.testing_criteria]
    return SuiteResult(
        result_id=run.result_id,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        suite=one.name or one.eval_id,
        # Of graders and rows: reports of two models are comparable where they have the same.
        fingerprint=sha256_document([criteria, rows.sha256]),
        run_id=origin.outcome,
        candidate=system,
        systems=(system,),
        tasks=tuple(_with_origin(task, origin) for task in tasks),
        seconds=max(0.0, time.time() - run.created_at),
    )


def _figures(passed: NDArray[np.float64], scores: NDArray[np.float64] | None, bounds: Bounds) -> dict[str, Metric]:
    """The share of items that pass, and the mean score; none where no item was graded."""
    from luthier.ml.evaluation.metrics.protocol import mean_of_sums, mean_statistics
    from luthier.ml.evaluation.statistics import interval_of, resampled_sums

    if not len(passed):
        return {}
    found = {}
    kinds: list[tuple[str, Any, Bounds]] = [("pass_rate", passed, Bounds(0.0, 1.0))]
    # Of right and wrong the mean score is the share again; 0 and 1 on a scale up to 10 are neither.
    is_scale = math.isfinite(bounds.width) and bounds != UNIT
    if scores is not None and (is_scale or not set(scores.tolist()) <= {0.0, 1.0}):
        kinds.append(("score", scores, bounds))
    for name, values, ends in kinds:
        stats = mean_statistics(values)
        # Memory and time of the bootstrap grow with items times resamples; 500 still give ends of an interval.
        num_resamples = max(500, min(10_000, _MAX_DRAWS // len(stats)))
        sums = resampled_sums(stats, seed=_SEED, num_resamples=num_resamples)
        interval = interval_of(stats.sum(axis=0), sums, mean_of_sums, bounds=ends, rows=stats)
        unit = "fraction" if name == "pass_rate" else "score"
        found[name] = Metric(
            value=interval.value, low=interval.low, high=interval.high, unit=unit, higher_is_better=True
        )
    return found


def _task(
    name: str,
    kind: str,
    system: str,
    figures: dict[str, Metric],
    samples: tuple[Sample, ...],
    rows: Rows,
    num_graded: int,
) -> TaskResult:
    cautions = []
    if num_graded < rows.num_rows:
        cautions.append(
            f"{counted(rows.num_rows - num_graded, 'item has', 'items have')} an error, of {rows.num_rows:,}: not "
            "in these figures."
        )
    if samples and rows.num_rows > len(samples):
        cautions.append(
            f"{counted(len(samples), 'answer is', 'answers are')} shown, the first of {rows.num_rows:,}; the output "
            "items have all."
        )
    judged = SystemResult(
        name=system, model=system, num_samples=num_graded, metrics=figures, samples=samples, seconds=0.0
    )
    return TaskResult(
        name=name,
        kind=kind,
        data_file="data source",
        data_sha256=rows.sha256,
        num_rows=num_graded,
        primary="pass_rate",
        systems=(judged,),
        comparisons=(),
        cautions=tuple(cautions),
    )


def _with_origin(task: TaskResult, origin: Origin) -> TaskResult:
    """The task with what its items have in common with training rows."""
    cautions = (*origin.cautions, *task.cautions)
    return task.model_copy(update={"num_leaked": origin.num_leaked, "cautions": cautions})


def _with_judges(task: TaskResult, graders: Sequence[GraderRequest]) -> TaskResult:
    """The task with the models whose opinion its figures are, so that a gate does not take them for facts."""
    parts = (part for one in graders for part in (one.by_name.values() if isinstance(one, MultiRequest) else (one,)))
    asked = dict.fromkeys(part.model for part in parts if isinstance(part, ScoreModelRequest | LabelModelRequest))
    if not asked:
        return task
    return task.model_copy(update={"judges": dict.fromkeys(task.systems[0].metrics, ", ".join(asked))})


def _samples(items: list[OutputItem], place: int) -> tuple[Sample, ...]:
    found = []
    for item in items:
        result, sample = item.results[place], item.sample
        asked = "\n\n".join(str(one.get("content", "")) for one in sample["input"]) or json_text(item.item)
        written = "\n".join(str(one.get("content", "")) for one in sample["output"])
        reason = sample.get("finish_reason")
        found.append(
            Sample(
                row_id=f"item:{item.position + 1}",
                prompt=asked[:_MAX_TEXT],
                reference="" if result.error is None else f"error: {result.error['message']}"[:_MAX_TEXT],
                output=written[:_MAX_TEXT],
                num_new_tokens=int(sample["usage"]["completion_tokens"]),
                finish_reason="error" if item.status == "error" else "length" if reason == "length" else "stop",
                scores={"score": result.score, "pass_rate": float(result.passed)},
            )
        )
    return tuple(found)


def _task_names(names: list[str]) -> list[str]:
    """A name for each grader that an address can hold, each once."""
    found: list[str] = []
    for number, given in enumerate(names, 1):
        plain = _NOT_PLAIN.sub("_", given.lower()).strip("_")[:48] or f"grader_{number}"
        name, place = plain, number
        while name in (*found, _ALL):
            name, place = f"{plain}_{place}", place + 1
        found.append(name)
    return found
