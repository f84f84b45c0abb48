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
    """A file as its project knows it. Times are seconds since 1970 by the database's clock.

    Attributes:
        file_id: Its id, `file-...`.
        project_id: The project that it belongs to.
        filename: Its name for people; never part of a path.
        purpose: What it is for.
        sha256: The digest of its content, which names the artifact.
        num_bytes: Its size.
        status: `processed` as soon as it is there.
        status_details: Why its status is `error`.
        created_at: When it was made.
        expires_at: When it is deleted; None for never.
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
    """A file that comes in parts. Times are seconds since 1970 by the database's clock.

    Attributes:
        upload_id: Its id, `upload-...`.
        project_id: The project that it belongs to.
        filename: The name of the file for people.
        purpose: What the file is for.
        mime_type: As the client announced it.
        num_bytes: The size of the whole file, as announced.
        status: Whether it still takes parts, or how it ended.
        created_at: When it began.
        expires_at: When it can no longer be completed.
        file_expires_after_seconds: The lifetime of the file that is made of it; None for ever.
        file_id: The file that was made of it; None before it is completed.
    """

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
    """One part of an upload.

    Attributes:
        part_id: Its id, `part-...`.
        upload_id: The upload that it belongs to.
        sha256: The digest of its content.
        num_bytes: Its size.
        created_at: Seconds since 1970 by the database's clock.
    """

    part_id: str
    upload_id: str
    sha256: str
    num_bytes: int
    created_at: float
