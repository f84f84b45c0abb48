"""Use case: suites that evaluate a deployed model at intervals, and the quality signals of their results.

begin_due -> a job of the kind `evaluation` -> its result -> quality signal, at the next check

The newest result of a suite is compared with the last and the best one before on the same fixed rows; results of
`luthier eval --suite` count as well. An unchanged model answers a suite the same way each time, so a difference comes
from what else has changed: the model after a promotion or a rollback, files on the disk, libraries. The operator's
settings of a monitored model are here, too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from luthier.core.access import Caller
from luthier.core.errors import ConflictError, NotFoundError, RequestError
from luthier.core.evaluation import Metric
from luthier.core.frozen_model import FrozenModel
from luthier.core.ids import new_id
from luthier.core.records.deployment import Share
from luthier.core.records.monitoring import SETTINGS_KIND, Signal, WatchSettings
from luthier.core.results.suite import SuiteResult, TaskResult
from luthier.features.evaluation_orders.service import ASKED, EvaluationOrder, needs_operator
from luthier.platform.files import service as files
from luthier.platform.home.context import Context
from luthier.platform.jobs.records import ENDED, Job

SETTINGS: Final = SETTINGS_KIND


def model_settings(context: Context, project_id: str, model: str) -> WatchSettings:
    """The settings of a model; the defaults of `WatchSettings` where none are stored."""
    document = context.watches.get(project_id, SETTINGS, model)
    return WatchSettings() if document is None else WatchSettings.model_validate_json(document)


_SUITE: Final = "suite"
_HOUR_SECONDS: Final = 3600.0


class SuiteState(FrozenModel):
    """The state of a model's scheduled suite.

    Attributes:
        next_at: When it is due, in seconds since 1970.
        job_id: The last job; None before the first.
    """

    next_at: float = 0.0
    job_id: str | None = None


def check_suite_file(path: Path) -> None:
    """Raises NotFoundError for a missing file, RequestError for a wrong suite, or one that no job carries out alone."""
    from luthier.features.suites.definition import load_suite

    # Checked when it is named, so that an impossible suite fails before the server's first attempt at night.
    for task in load_suite(path).tasks:
        if needs_operator(task.model_dump(mode="json")):
            raise RequestError(
                f"task {task.name} of {path} is of the kind {task.kind}, which runs code, or uses a judge",
                expected="tasks that need neither, since no one has allowed it",
                do=f"leave it out, or run it yourself: luthier eval MODEL --suite {path}",
            )


def state_of(context: Context, project_id: str, model: str) -> SuiteState:
    """How far the suite of a model is; as `SuiteState` begins where none was begun."""
    document = context.watches.get(project_id, _SUITE, model)
    return SuiteState() if document is None else SuiteState.model_validate_json(document)


def begin_due(context: Context, project_id: str, model: str, settings: WatchSettings) -> Job | None:
    """Have the suite begin where its time has come and the last one has ended; the job, None where it has not.

    Raises:
        NotFoundError: The target of the name, or the file of the suite, is gone.
        ConflictError: It cannot be evaluated.
    """
    if settings.suite is None and settings.suite_file_id is None:
        return None
    every, now = settings.suite_every_hours * _HOUR_SECONDS, context.access.now()
    state = state_of(context, project_id, model)
    if not _is_due(context, project_id, state, every, now):
        return None
    order = EvaluationOrder(
        kind="suite",
        result_id=new_id("suite"),
        candidate=_candidate(context, project_id, model),
        file_id=settings.suite_file_id,
        suite_file=settings.suite,
        label=_suite_name(context, project_id, settings),
    )
    document = {ASKED: order.model_dump(mode="json")}
    job = Job(job_id=new_id("job"), kind="evaluation", document=document, run_id="", project_id=project_id)
    # The claim names a job that does not exist yet. If submit fails, `_is_due` finds no such job after the
    # interval and begins again; the other order could start a suite twice.
    if not _claim(context, project_id, model, SuiteState(next_at=now + every, job_id=job.job_id), seen=state):
        return None
    return context.jobs.submit(job)


def _suite_name(context: Context, project_id: str, settings: WatchSettings) -> str:
    """What pages call the suite: the name of its file."""
    if settings.suite is not None:
        return Path(settings.suite).name
    return files.get_file(context, project_id, str(settings.suite_file_id)).filename


def _is_due(context: Context, project_id: str, state: SuiteState, every: float, now: float) -> bool:
    # A time that is further off than one round was written before the clock was set back.
    if now < state.next_at <= now + every:
        return False
    try:
        # The last job has to have ended: a suite that takes longer than its interval must not pile up.
        return state.job_id is None or context.jobs.get(state.job_id, project_id).status in ENDED
    except NotFoundError:
        return True


def _claim(context: Context, project_id: str, model: str, state: SuiteState, *, seen: SuiteState) -> bool:
    """Whether the state is still the one that was seen, and is the new one now: two servers may share a database."""
    is_ours = False

    def change(before: str | None) -> str | None:
        nonlocal is_ours
        # Compared with the state that was seen, not with the clock: of two servers only one sees its state unchanged.
        is_ours = (SuiteState() if before is None else SuiteState.model_validate_json(before)) == seen
        return state.model_dump_json() if is_ours else before

    context.watches.change(project_id, _SUITE, model, change)
    return is_ours


def _candidate(context: Context, project_id: str, model: str) -> str:
    """Who answers by this name: a run, or a base model. A canary is no such: it is compared in its own way."""
    from luthier.features.release_gates.service import judged_behind

    deployment = context.deployments.find(project_id, model)
    share = Share(target=model, fraction=1) if deployment is None else deployment.revision.main_share
    judged = judged_behind(context, Caller(project_id=project_id), share)
    if (found := judged.run_id or judged.base) is None:
        raise ConflictError(
            f"{model} cannot be evaluated by a suite: {' '.join(judged.set_aside)}",
            expected="a deployment of a run or of a base model",
            do="deploy the final result of the run, or remove the suite: luthier monitor NAME --suite none",
        )
    return found


_MAX_RESULTS: Final = 50
_MAX_EARLIER: Final = 3
"""Models that answered by the name before, whose results are compared with those of the present one."""
_WIDER: Final = 2.0
"""A change is reported where it leaves an interval twice as wide as that of 95%: of many looks, few are wrong."""
_DO: Final = "See the suite's page for the rows that were answered worse; roll back, or train again."


def suite_signals(context: Context, project_id: str, target: str, model: str = "") -> tuple[Signal, ...]:
    """The signals of every task of every suite that has evaluated what answers; none where none has.

    Args:
        context: The home.
        project_id: The project.
        target: What answers; empty for nothing.
        model: The name that it answers by. What answered by it before is compared, too.
    """
    if not target:
        return ()
    deployment = context.deployments.find(project_id, model) if model else None
    revisions = () if deployment is None else context.deployments.revisions(deployment.deployment_id)
    routed = (one for revision in revisions for one in revision.shares if one.target == target)
    # That of the deployment knows the folder of an export as well.
    subject = _subject(context, project_id, next(routed, Share(target=target, fraction=1)))
    if subject is None:
        return ()
    earlier = (_subject(context, project_id, revision.main_share) for revision in revisions)
    before = [one for one in dict.fromkeys(earlier) if one not in (None, subject)][:_MAX_EARLIER]
    listed = _results_of(context, project_id, subject)
    own = {one.result_id for one in listed}
    listed += [one for name in before if name is not None for one in _results_of(context, project_id, name)]
    newest: dict[str, list[SuiteResult]] = {}
    # Newest first: a sort keeps the order of those of one second.
    for one in sorted(listed, key=lambda one: one.created_at, reverse=True):
        kept = newest.setdefault(one.suite, [])
        # The first is of what answers now. Only results with its fingerprint (suite and its files) compare with it.
        if (one.fingerprint == kept[0].fingerprint) if kept else (one.result_id in own):
            kept.append(one)
    # General tasks measure forgetting by training, which no change of a deployment touches.
    return tuple(
        _signal(results, task)
        for results in newest.values()
        for task in (results[0].tasks if results else ())
        if not task.is_general
    )


def _subject(context: Context, project_id: str, share: Share) -> str | None:
    """The run, checkpoint or base model that results about a target are stored by; None where there is none."""
    from luthier.features.release_gates.service import judged_behind

    try:
        judged = judged_behind(context, Caller(project_id=project_id), share)
    except (NotFoundError, ConflictError):
        return None
    return judged.subject


def _results_of(context: Context, project_id: str, subject: str) -> list[SuiteResult]:
    # Bounded: the results of all suites are among the last fifty.
    return context.assessments.list("suite", SuiteResult, project_id, subject=subject, limit=_MAX_RESULTS)


def _signal(results: list[SuiteResult], task: TaskResult) -> Signal:
    """Of one task: its primary metric now, and in the results before, newest first.

    Worse is what is worse than the last of them or the best: a loss may come little by little, and one that was found
    before is not over because the last result has it, too. Better is what is better than the last of them.
    """
    now, earlier = _metric(results[0], task), _earlier(results[1:], task)
    name, title = f"suite_{results[0].suite}_{task.name}", f"{results[0].suite}: {task.name}, {task.primary}"
    unit = "" if now is None else now.unit
    if now is None or not earlier:
        value = None if now is None else now.value
        sentence = "Unknown: the suite has evaluated this model once, so there is nothing to compare with."
        return Signal(name=name, title=title, group="quality", unit=unit, value=value, sentence=sentence)
    sign, last = (1.0 if now.higher_is_better else -1.0), earlier[0]
    best = max(earlier, key=lambda one: sign * one.value)
    shared: dict[str, Any] = {"name": name, "title": title, "group": "quality", "unit": unit, "value": now.value}
    shared |= {"low": now.low, "high": now.high}
    for other, than in ((last, "in the result before"), (best, f"in the best of the {len(earlier)} results before")):
        if _is_beyond(now, other) and sign * now.value < sign * other.value:
            sentence = f"{title}: worse than {than}."
            return Signal(**shared, reference=other.value, state="changed", sentence=sentence, do=_DO)
    shared["reference"] = last.value
    if _is_beyond(now, last) and sign * now.value > sign * last.value:
        return Signal(**shared, state="changed", sentence=f"{title}: better than in the result before.", do="")
    return Signal(**shared, state="steady", sentence=f"{title}: no change from the previous result was found.")


def _is_beyond(one: Metric, other: Metric) -> bool:
    """Whether two results differ by more than chance would explain."""
    # Half the 95% interval of the difference of two independent results: half-widths add in quadrature.
    half = math.hypot(one.high - one.low, other.high - other.low) / 2
    return abs(one.value - other.value) > _WIDER * half


def _earlier(results: Sequence[SuiteResult], task: TaskResult) -> list[Metric]:
    same = ((result, one) for result in results for one in result.tasks if one.name == task.name)
    return [found for result, one in same if (found := _metric(result, one)) is not None]


def _metric(result: SuiteResult, task: TaskResult) -> Metric | None:
    found = next((one for one in task.systems if one.name == result.candidate), None)
    return None if found is None else found.metrics.get(task.primary)
