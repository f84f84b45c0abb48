"""Use case: have a suite judge a deployed model at intervals, by jobs; `suite_signals` reads the results.

watching.look -> begin_due -> a job of the kind `evaluation` -> its result -> suite_signals, at the next look

An unchanged model answers a suite alike each time. What it finds is what has changed besides: who answers after a
promotion or a rollback, the files on the disk, the libraries.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from luthier.core.access import Caller
from luthier.core.errors import ConflictError, NotFoundError, RequestError
from luthier.core.frozen_model import FrozenModel
from luthier.core.ids import new_id
from luthier.core.records.deployment import Share
from luthier.core.records.monitor_settings import WatchSettings
from luthier.features.evaluation_orders.records import EvaluationOrder
from luthier.features.evaluation_orders.service import ASKED, OPERATORS_KINDS
from luthier.platform.home.context import Context
from luthier.platform.jobs.records import ENDED, Job

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
    """Raises NotFoundError, or RequestError for a suite that is wrong, or that no job carries out by itself."""
    from luthier.features.suites.file import load_suite

    # Checked when it is named, so that an impossible suite fails before the server's first attempt at night.
    for task in load_suite(path).tasks:
        if task.kind in OPERATORS_KINDS or getattr(task, "entailment", False):
            raise RequestError(
                f"task {task.name} of {path} is of the kind {task.kind}, which runs code, or asks a judge",
                expected="tasks that need neither, when nobody is there who has allowed it",
                do=f"leave it out, or run it yourself: luthier eval MODEL --suite {path}",
            )


def state_of(context: Context, project_id: str, model: str) -> SuiteState:
    """How far the suite of a model is; as `SuiteState` begins where none was begun."""
    document = context.watches.get(project_id, _SUITE, model)
    return SuiteState() if document is None else SuiteState.model_validate_json(document)


def begin_due(context: Context, project_id: str, model: str, settings: WatchSettings) -> Job | None:
    """Have the suite begin where its time has come and the last one has ended; the job, None where it has not.

    Raises NotFoundError where the target of the name is gone, ConflictError where it cannot be judged.
    """
    if settings.suite is None:
        return None
    every, now = settings.suite_every_hours * _HOUR_SECONDS, context.access.now()
    state = state_of(context, project_id, model)
    if not _is_due(context, project_id, state, every, now):
        return None
    order = EvaluationOrder(
        kind="suite",
        result_id=new_id("suite"),
        candidate=_candidate(context, project_id, model),
        suite_file=settings.suite,
        label=Path(settings.suite).name,
    )
    document = {ASKED: order.model_dump(mode="json")}
    job = Job(job_id=new_id("job"), kind="evaluation", document=document, run_id="", project_id=project_id)
    # The claim names a job that does not exist yet. If submit fails, `_is_due` finds no such job after the
    # interval and begins again; the other order could start a suite twice.
    if not _claim(context, project_id, model, SuiteState(next_at=now + every, job_id=job.job_id), seen=state):
        return None
    return context.jobs.submit(job)


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
    shares = (Share(target=model, fraction=1),) if deployment is None else deployment.revision.shares
    # The target with the largest share answers for the name; smaller shares are A/B variants or canaries.
    judged = judged_behind(context, Caller(project_id=project_id), max(shares, key=lambda one: one.fraction))
    if (found := judged.run_id or judged.base) is None:
        raise ConflictError(
            f"{model} cannot be judged by a suite: {' '.join(judged.set_aside)}",
            expected="a deployment of a run or of a base model",
            do="deploy what came out of the run in the end, or take the suite away: luthier monitor NAME --suite none",
        )
    return found
