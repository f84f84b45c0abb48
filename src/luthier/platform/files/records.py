"""A file that a project has brought or been given: rows to train on, results of a job."""

from __future__ import annotations

from typing import Final, Literal, get_args

from luthier.core.frozen_model import FrozenModel

UploadPurpose = Literal["assistants", "batch", "fine-tune", "vision", "user_data", "evals"]
"""What a client may say that a file is for."""
Purpose = Literal[UploadPurpose, "assistants_output", "batch_output", "fine-tune-results"]
UPLOAD_PURPOSES: Final[tuple[UploadPurpose, ...]] = get_args(UploadPurpose)
PURPOSES: Final[tuple[Purpose, ...]] = (*UPLOAD_PURPOSES, "assistants_output", "batch_output", "fine-tune-results")
FileStatus = Literal["uploaded", "processed", "error"]
UploadStatus = Literal["pending", "completed", "cancelled", "expired"]

MIN_EXPIRY_SECONDS: Final = 3600
MAX_EXPIRY_SECONDS: Final = 2592000
"""How long after its making a file may expire: an hour to thirty days."""


class StoredFile(FrozenModel):
    """A file as its project knows it; `sha256` names its content. Times are seconds since 1970.

    filename: for people, and never part of a path.
    """

    file_id: str
    project_id: str
    filename: str
    purpose: Purpose
    sha256: str
    num_bytes: int
    status: FileStatus = "processed"
    status_details: str | None = None
    created_at: float = 0.0
    expires_at: float | None = None


class Upload(FrozenModel):
    """A file that comes in parts. num_bytes: what all of it will have. file: what became of it."""

    upload_id: str
    project_id: str
    filename: str
    purpose: UploadPurpose
    mime_type: str
    num_bytes: int
    status: UploadStatus
    created_at: float
    expires_at: float
    file_expires_after_seconds: int | None = None
    file_id: str | None = None


class UploadPart(FrozenModel):
    """One part of an upload."""

    part_id: str
    upload_id: str
    sha256: str
    num_bytes: int
    created_at: float
