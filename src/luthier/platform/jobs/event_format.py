"""The messages of a job's events, by its kind: those of training are the ones of OpenAI's API."""

from __future__ import annotations

from typing import Final

from luthier.platform.jobs.records import JobKind, JobStatus, Lane

_CALLED: Final[dict[JobKind, str]] = {
    "train": "Fine-tuning job",
    "export": "Export",
    "evaluation": "Evaluation",
}
_ENDS: Final[dict[JobStatus, str]] = {
    "succeeded": "The job has successfully completed",
    "failed": "The job has failed",
}


def created(kind: JobKind, job_id: str) -> str:
    """A job was queued."""
    return f"Created {'fine-tuning job' if kind == 'train' else kind}: {job_id}"


def started(kind: JobKind, lane: Lane) -> tuple[str, str]:
    """The code and the words of a first attempt in a lane."""
    return ("validating", "Validating the files") if lane == "validate" else ("started", f"{_CALLED[kind]} started")


def goes_on(kind: JobKind) -> str:
    """Another attempt has begun."""
    return "Fine-tuning job goes on from its last checkpoint" if kind == "train" else f"{_CALLED[kind]} begins again"


def picked_up(kind: JobKind) -> str:
    """What becomes of a job that has crashed, as the end of a sentence."""
    return "it is taken up again from the last checkpoint" if kind == "train" else "it begins again"


def resumed(kind: JobKind) -> str:
    """A job that had ended or rested is queued again."""
    return f"{_CALLED[kind]} resumed"


def ended(kind: JobKind, status: JobStatus) -> str:
    """A job has ended without an error, or rests."""
    return _ENDS.get(status) or f"{_CALLED[kind]} {status}"
