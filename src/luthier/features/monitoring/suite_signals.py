"""Quality as suites have judged it: the newest result of a suite against the one before, on the same fixed rows.

`scheduled_suites` has it run again and again; whoever runs it besides (`luthier eval --suite`) is read here, too.
"""

from __future__ import annotations

import math
from typing import Any, Final

from luthier.core.access import Caller
from luthier.core.errors import ConflictError, NotFoundError
from luthier.core.evaluation import Metric
from luthier.core.records.deployment import Share
from luthier.core.results.signal import Signal
from luthier.core.results.task_result import SuiteResult, TaskResult
from luthier.platform.home.context import Context

_MAX_RESULTS: Final = 50
_WIDER: Final = 2.0
"""A change is told where it leaves an interval twice as wide as that of 95%: of many looks, few are wrong."""
_DO: Final = "See the suite's page for the rows that were answered worse; roll back, or train again."


def suite_signals(context: Context, project_id: str, target: str) -> tuple[Signal, ...]:
    """The signals of every task of every suite that has judged what answers; none where none has."""
    from luthier.features.release_gates.service import judged_behind

    if not target:
        return ()
    try:
        judged = judged_behind(context, Caller(project_id=project_id), Share(target=target, fraction=1))
    except (NotFoundError, ConflictError):
        return ()
    subject = judged.run_id or judged.base
    if subject is None:
        return ()
    # Bounded: the newest two results of each suite are searched for among the last fifty.
    listed = context.assessments.list("suite", SuiteResult, project_id, subject=subject, limit=_MAX_RESULTS)
    newest: dict[str, list[SuiteResult]] = {}
    for one in listed:
        kept = newest.setdefault(one.suite, [])
        # Newest first. Only results with the newest one's fingerprint (suite and its files) compare with it.
        if not kept or (len(kept) == 1 and one.fingerprint == kept[0].fingerprint):
            kept.append(one)
    # General tasks measure forgetting by training, which no change of a deployment touches.
    return tuple(
        _signal(results, task) for results in newest.values() for task in results[0].tasks if not task.is_general
    )


def _signal(results: list[SuiteResult], task: TaskResult) -> Signal:
    """Of one task: its primary metric now, and in the result before."""
    now = _metric(results[0], task)
    before = None
    if len(results) > 1:
        same = next((one for one in results[1].tasks if one.name == task.name), None)
        before = None if same is None else _metric(results[1], same)
    name, title = f"suite_{results[0].suite}_{task.name}", f"{results[0].suite}: {task.name}, {task.primary}"
    unit = "" if now is None else now.unit
    if now is None or before is None:
        value = None if now is None else now.value
        sentence = "Unknown: the suite has judged this model once, so there is nothing to compare with."
        return Signal(name=name, title=title, group="quality", unit=unit, value=value, sentence=sentence)
    # Half the 95% interval of the difference of two independent results: half-widths add in quadrature.
    half = math.hypot(now.high - now.low, before.high - before.low) / 2
    apart = now.value - before.value
    shared: dict[str, Any] = {"name": name, "title": title, "group": "quality", "unit": unit, "value": now.value}
    shared |= {"low": now.low, "high": now.high, "reference": before.value}
    if abs(apart) <= _WIDER * half:
        return Signal(**shared, state="steady", sentence=f"{title}: as in the result before, as far as it can tell.")
    # Lower is worse where higher is better, higher is worse where it is not.
    is_worse = (apart < 0) == now.higher_is_better
    word = "worse" if is_worse else "better"
    return Signal(
        **shared,
        state="changed",
        sentence=f"{title}: {word} than in the result before.",
        do=_DO if is_worse else "",
    )


def _metric(result: SuiteResult, task: TaskResult) -> Metric | None:
    found = next((one for one in task.systems if one.name == result.candidate), None)
    return None if found is None else found.metrics.get(task.primary)
