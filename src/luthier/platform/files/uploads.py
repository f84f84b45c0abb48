"""Use cases: upload a file in parts, which may come in any order and over several connections."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

from luthier.core.errors import RequestError, WorkError
from luthier.platform.files.service import IncomingFile, safe_filename
from luthier.platform.files.store import StoredFile, Upload, UploadPart, UploadPurpose
from luthier.platform.home.context import Context

MAX_PART_BYTES: Final = 64 << 20
_BLOCK_BYTES: Final = 1 << 20


def create_upload(
    context: Context,
    project_id: str,
    *,
    filename: str,
    purpose: UploadPurpose,
    mime_type: str,
    num_bytes: int,
    file_expires_after_seconds: int | None = None,
) -> Upload:
    """Begin an upload, which must be complete within an hour.

    Args:
        context: The home.
        project_id: The project that the file will belong to.
        filename: As the client names it; made safe here.
        purpose: What the file may be used for.
        mime_type: Its media type.
        num_bytes: The size of the whole file.
        file_expires_after_seconds: How long the file is kept; None for no limit.

    Raises:
        FileQuotaError: The files of the project would take more than they may.
    """
    return context.uploads.create(
        project_id,
        filename=safe_filename(filename),
        purpose=purpose,
        mime_type=mime_type,
        num_bytes=num_bytes,
        file_expires_after_seconds=file_expires_after_seconds,
    )


def pending_upload(context: Context, project_id: str, upload_id: str) -> Upload:
    """An upload that still takes parts.

    Raises:
        NotFoundError: The project has no such upload.
        ConflictError: It is no longer pending.
    """
    return context.uploads.pending(project_id, upload_id)


def keep_part(context: Context, project_id: str, upload_id: str, incoming: IncomingFile) -> UploadPart:
    """Make a part of all that was written.

    Raises:
        NotFoundError: The project has no such upload.
        ConflictError: The upload is no longer pending.
        RequestError: The part has no bytes, or more than the upload takes.
    """
    if incoming.num_bytes == 0:
        raise RequestError("a part without bytes", expected="at least one byte", do="send the part with its content")
    return context.uploads.add_part(project_id, upload_id, incoming.path, incoming.finish())


def complete_upload(
    context: Context, project_id: str, upload_id: str, part_ids: Sequence[str], md5: str | None = None
) -> tuple[Upload, StoredFile]:
    """Put the parts together. A repeated call returns the same file, since answers get lost.

    Args:
        context: The home.
        project_id: The project.
        upload_id: The upload.
        part_ids: The ids of all parts, in the order of the file.
        md5: The MD5 that the whole file must have, in hexadecimal digits; None for any.

    Raises:
        RequestError: Size or MD5 differ from what was announced, or a part is not of this upload.
        NotFoundError: The project has no such upload.
        ConflictError: It was cancelled or has expired.
    """
    # A client that lost the answer sends the request again: it gets the file and not a conflict.
    if (done := _completed(context, project_id, upload_id)) is not None:
        return done
    try:
        _complete(context, project_id, upload_id, part_ids, md5)
    except (RequestError, WorkError):
        if (done := _completed(context, project_id, upload_id)) is None:
            raise
        return done  # another request has completed it meanwhile, and the parts are gone
    upload = context.uploads.get(project_id, upload_id)
    return upload, context.files.get(project_id, str(upload.file_id))


def cancel_upload(context: Context, project_id: str, upload_id: str) -> Upload:
    """Cancel an upload.

    Raises:
        NotFoundError: The project has no such upload.
        ConflictError: It is no longer pending.
    """
    return context.uploads.cancel(project_id, upload_id)


def _completed(context: Context, project_id: str, upload_id: str) -> tuple[Upload, StoredFile] | None:
    upload = context.uploads.get(project_id, upload_id)
    if upload.status != "completed" or upload.file_id is None:
        return None
    return upload, context.files.get(project_id, upload.file_id)


def _complete(context: Context, project_id: str, upload_id: str, part_ids: Sequence[str], md5: str | None) -> None:
    upload = context.uploads.pending(project_id, upload_id)
    if len(set(part_ids)) != len(part_ids):
        raise RequestError("part_ids names a part twice", expected="each part once", do="correct part_ids")
    parts = context.uploads.parts(upload_id, part_ids)
    # Before anything is copied: the sizes are in the database.
    if (total := sum(part.num_bytes for part in parts)) != upload.num_bytes:
        raise RequestError(
            f"the parts have {total} bytes together",
            expected=f"{upload.num_bytes} bytes, as announced when the upload began",
            do="add what is missing, name all parts in part_ids, or start another upload",
        )
    with IncomingFile(context.artifacts.incoming) as incoming:
        found = _put_together(context, parts, incoming)
        if md5 is not None and md5.lower() != found:
            raise RequestError(
                f"the file has the MD5 {found}",
                expected=f"{md5}, as the request says",
                do="send the damaged part again and name the new one, or correct the order of part_ids",
            )
        context.uploads.complete(upload, incoming.path, incoming.finish())


def _put_together(context: Context, parts: Sequence[UploadPart], incoming: IncomingFile) -> str:
    """Write all parts, each proved by its digest; returns the MD5 of the whole."""
    # The checksum of OpenAI's API. It finds damage alone, and FIPS builds of OpenSSL refuse it without this flag.
    md5 = hashlib.md5(usedforsecurity=False)
    for part in parts:
        sha256 = hashlib.sha256()
        with context.uploads.open_part(part) as reader:
            while block := reader.read(_BLOCK_BYTES):
                sha256.update(block)
                md5.update(block)
                incoming.write(block)
        if sha256.hexdigest() != part.sha256:
            raise WorkError(
                f"the content of {part.part_id} has changed on its disk",
                expected=f"digest {part.sha256}",
                do="check the disk, add the part again and name the new one",
            )
    return md5.hexdigest()
