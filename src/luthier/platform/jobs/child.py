"""The process that does one attempt of a job: what the worker's guard starts.

    python -m luthier.platform.jobs.child HOME FOLDER

FOLDER is the attempt's own. It holds `job.json`, which says what is to be done; the last act is to write the outcome
into it. Ends as the run ends: paused after SIGTERM, with a checkpoint; what a person has to correct is an outcome, too.
A full disk or an unreachable database is none: then it ends with `NOT_NOW`, and the job continues when there is room.
Nor is too little memory: it counts as a crash, after which the job is tried again a few times.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

from luthier.core.import_string import import_string
from luthier.core.system.files import is_disk_full
from luthier.platform.jobs.kinds import attempt_of
from luthier.platform.jobs.records import Job

if TYPE_CHECKING:
    from luthier.platform.home.context import Context
    from luthier.platform.processes.process import Outcome

JOB_NAME = "job.json"
PRELOADED: Final = (
    # First what is needed by a job that ends with its first answer: these load no torch.
    "luthier.features.training.jobs",
    "luthier.features.training.service",
    "luthier.features.training.recipe_job",
    "luthier.features.finetuning_api.job",
    "luthier.features.batches.job",
    "luthier.features.evals_api.job",
    # What the functions of the modules above import when they are called.
    "luthier.ml.inference.models.sources",
    "luthier.ml.data.rows.formats",
    "luthier.features.planning.objective_inputs",
    "luthier.features.planning.probes",
    "luthier.features.planning.quotes",
    "luthier.features.planning.rehearsal",
    "luthier.ml.planning.quote",
    "luthier.ml.planning.resolve",
    "torch",
    "transformers",
    "peft",
    "scipy.optimize",
    "scipy.special",
    "luthier.ml.data.tokenise.search",
    "luthier.ml.data.tokenise.tokenised_cache",
    "luthier.ml.evaluation.label_confidence",
    "luthier.ml.inference.models.templates.chat_template",
    "luthier.ml.training.loop",
    "luthier.ml.training.methods.lora",
    # What texts are judged with: more than a second of imports, which each job that judges would repeat.
    "luthier.features.evaluations.service",
    "luthier.ml.baselines.learning_curve",
    "luthier.ml.evaluation.compare",
    "luthier.ml.evaluation.metrics.reference_based",
    "sacrebleu",
    "sklearn.feature_extraction.text",
    "sklearn.linear_model",
    "sklearn.svm",
)
"""What a fork server loads for attempts: what most of them need. By name, as in `KINDS`.

In between it forks what waits, so the order counts.

Importing these must start no thread, open no device and draw no random number.
"""
_LEAST_FREE_BYTES: Final = 1 << 20
_PATIENCE_SECONDS: Final = 60.0  # the worker's own ends with the lease


def main(home: Path, folder: Path) -> None:
    """Do the job that `job.json` in the folder describes."""
    from luthier.core.errors import LuthierError, MemoryShortError, StorageFullError, UnreachableError
    from luthier.core.system.process_setup import (
        follow_starter,
        keep_few_kernels,
        lower_session_priority,
        wait_briefly,
    )
    from luthier.platform.home.context import Context
    from luthier.platform.processes.process import NOT_NOW, Outcome, write_outcome

    follow_starter()
    # Both set environment variables that torch reads when it is loaded, so they come before anything that may import
    # it.
    wait_briefly()
    keep_few_kernels()
    job = Job.model_validate_json((folder / JOB_NAME).read_bytes())
    if job.lane in ("infer", "remote"):
        # Live requests go first. The session, which this process leads, holds the engine that it starts as well.
        lower_session_priority()
    try:
        with Context.open(home, database_patience_seconds=_PATIENCE_SECONDS) as context:
            try:
                outcome = _carry_out(context, job)
            # These are caught by the outer handler: the machine is at fault, so no outcome may be written for the job.
            except (StorageFullError, UnreachableError, MemoryShortError):
                raise
            except LuthierError as error:
                if _is_for_want_of_room(error, home):
                    raise
                outcome = Outcome(status="failed", error=error.as_json())
            write_outcome(folder, outcome)
    except (StorageFullError, UnreachableError) as error:
        _end(error, NOT_NOW)
    except MemoryShortError as error:
        # A crash, which is tried again a few times: others may hold the memory now. Its words are the log's last line.
        traceback.print_exception(error)
        _end(error.in_one_line, 1)
    except Exception as error:
        if not _is_for_want_of_room(error, home):
            raise
        _end(error, NOT_NOW)


def _carry_out(context: Context, job: Job) -> Outcome:
    """One attempt of a job of any kind."""
    context.cache_project_id = job.project_id
    outcome: Outcome = import_string(attempt_of(job.kind, job.document))(context, job)
    return outcome


def _is_for_want_of_room(error: BaseException, home: Path) -> bool:
    """Whether the disk was full: libraries wrap that in their own errors, so the free space is checked, too."""
    cause: BaseException | None = error
    while cause is not None:
        if is_disk_full(cause):
            return True
        # Without `raise ... from` a library's wrapper is linked by __context__ alone.
        cause = cause.__cause__ or cause.__context__
    return shutil.disk_usage(home).free < _LEAST_FREE_BYTES


def _end(error: Exception | str, code: int) -> NoReturn:
    """Leave with this very code: on a full disk the log has no room either, and Python would make it another code."""
    with contextlib.suppress(OSError):
        sys.stderr.write(f"{error}\n")
        sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    from luthier.core.system.process_setup import run_to_end

    # The worker takes the next job once this process has ended.
    run_to_end(lambda: main(Path(sys.argv[1]), Path(sys.argv[2])))
