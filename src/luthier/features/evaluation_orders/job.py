"""An attempt of an evaluation job: it takes the answers that earlier attempts have stored, and has one result.

Answers are stored batch by batch in a file in the folder of the job, synced to the disk. An attempt after a kill has
the same batches and computes those that are not there; likelihoods, which take one pass, are computed again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Final

from luthier.core.errors import (
    ConflictError,
    LuthierError,
    NotFoundError,
    StorageFullError,
    UnreachableError,
    library_words_hidden,
)
from luthier.core.results.suite import SafetyResult, SuiteResult
from luthier.core.text.counted import counted
from luthier.features.evaluation_orders.service import EvaluationOrder, answers_file, check_suite, judge_of, order_of
from luthier.features.files.references import job_file
from luthier.platform.files import service as files
from luthier.platform.home.context import Context
from luthier.platform.http.path_redaction import home_paths, redact_paths
from luthier.platform.jobs.attempt import JobProgress, exit_on_sigterm, own_copy
from luthier.platform.jobs.records import Job
from luthier.platform.processes.process import Outcome

_SUITE: Final = "suite.yaml"


def carry_out(context: Context, job: Job) -> Outcome:
    """Judge, and keep the result under the id that the order names. What has to be corrected is an outcome, too.

    Raises:
        StorageFullError: The disk is full; the job is tried again.
        UnreachableError: A server or the database cannot be reached; the job is tried again.
    """
    order = order_of(job)
    if not _is_done(context, job, order):  # else the attempt before died between its work and its last word
        context.progress = JobProgress(context, job)
        try:
            # Paths in the words of a library are hidden from network callers; the operator's own suite may show them.
            hidden = contextlib.nullcontext() if order.suite_file else library_words_hidden()
            with exit_on_sigterm(), hidden, _stored_answers(context, job):
                _judge(context, job, order)
        except (StorageFullError, UnreachableError):
            raise  # no fault of the job: it is tried again
        except LuthierError as error:
            # The error is read over the network.
            return Outcome(status="failed", error=redact_paths(error.as_json(), home_paths(context)))
    # The result has them. Of a failed job they stay: one that is run again continues behind them.
    answers_file(context, job.job_id).unlink(missing_ok=True)
    return Outcome(status="succeeded", found={"result_id": order.result_id})


@contextlib.contextmanager
def _stored_answers(context: Context, job: Job) -> Iterator[None]:
    """Have answers stored as they come while the block runs, and report those of earlier attempts."""
    from luthier.ml.inference.stored_answers import AnswerFile

    file = answers_file(context, job.job_id)
    file.parent.mkdir(parents=True, exist_ok=True)
    context.stored_answers = AnswerFile(file)
    if num := context.stored_answers.num_answers:
        with context.progress.task(f"Continuing after {counted(num, 'answer')} of an earlier attempt", None, ""):
            pass
    try:
        yield
    except SystemExit:
        # Told to stop: a job that is cancelled is not run again. Without a database it is unknown, and they stay.
        with contextlib.suppress(LuthierError):
            if context.jobs.get(job.job_id).wish == "cancel":
                file.unlink(missing_ok=True)
        raise
    finally:
        context.stored_answers = None


def _judge(context: Context, job: Job, order: EvaluationOrder) -> None:
    if order.kind == "rows":
        from luthier.features.evaluations.service import evaluate

        evaluate(
            context,
            [order.candidate, *order.against],
            data=own_copy(context, job, str(order.file_id), "rows"),
            max_samples=order.most_rows,
            allow_leakage=order.allow_leakage,
            evaluation_id=order.result_id,
            called=order.label,
        )
    elif order.kind == "safety":
        from luthier.features.suites.safety import check_safety

        check_safety(
            context,
            order.candidate,
            against=next(iter(order.against), None),
            suite=order.probes,
            project_id=job.project_id,
            result_id=order.result_id,
        )
    elif order.kind == "calibration":
        from luthier.features.judges.service import calibrate

        calibrate(context, job.project_id, judge_of(context, job, order), panel=order.panel)
    else:
        from luthier.features.suites.service import run_suite

        run_suite(
            context,
            [order.candidate, *order.against],
            suite=_own_suite(context, job, order),
            allow_leakage=order.allow_leakage,
            project_id=job.project_id,
            result_id=order.result_id,
            # The operator's own names files by paths; one that was uploaded by ids, in itself and in its rows.
            find_file=None if order.suite_file is not None else job_file(context, job),
        )


def _own_suite(context: Context, job: Job, order: EvaluationOrder) -> Path:
    """The operator's own file; else the job's copy of the uploaded one, checked again."""
    if order.suite_file is not None:
        return Path(order.suite_file)
    stored = files.get_file(context, job.project_id, str(order.file_id))
    # Again: files of the project that it names may have been deleted while the job was queued.
    check_suite(context, job.project_id, stored)
    path = context.settings.jobs_folder / job.job_id / "files" / _SUITE
    path.parent.mkdir(parents=True, exist_ok=True)
    # A copy: relative names in a suite would otherwise resolve next to the file cache.
    path.write_bytes(files.local_path(context, stored).read_bytes())
    return path


def _is_done(context: Context, job: Job, order: EvaluationOrder) -> bool:
    if order.kind == "calibration":
        return _is_calibrated(context, job, order)
    try:
        # The result id was fixed with the order, so a result under it is that of an earlier attempt.
        if order.kind == "rows":
            context.evaluations.get(order.result_id)
        elif order.kind == "safety":
            context.assessments.get("safety", SafetyResult, job.project_id, order.result_id)
        else:
            context.assessments.get("suite", SuiteResult, job.project_id, order.result_id)
    except NotFoundError:
        return False
    return True


def _is_calibrated(context: Context, job: Job, order: EvaluationOrder) -> bool:
    """Whether an attempt has stored what the judge and the people of the panel say: one result for each target."""
    from luthier.features.judges.service import calibrations, lasting_name

    try:
        name = lasting_name(context, judge_of(context, job, order))
    except (ConflictError, NotFoundError):  # the model was removed, or another one configured: the attempt says so
        return False
    found = calibrations(context, job.project_id, name)
    since = int(job.created_at)  # those are stored with whole seconds
    of_panel = [one for one in found if one.source == order.panel]
    return any(datetime.fromisoformat(one.created_at).timestamp() >= since for one in of_panel)
