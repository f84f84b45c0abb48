"""/v1/uploads: a large file in parts, which may be sent again, in any order and after a break."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, BeforeValidator, Field
from starlette.concurrency import run_in_threadpool

from luthier.core.frozen_model import StrictModel
from luthier.features.files.api import FileObject, file_object
from luthier.platform.files.service import incoming_file
from luthier.platform.files.store import (
    MAX_EXPIRY_SECONDS,
    MIN_EXPIRY_SECONDS,
    StoredFile,
    Upload,
    UploadPurpose,
    UploadStatus,
)
from luthier.platform.files.uploads import (
    MAX_PART_BYTES,
    cancel_upload,
    complete_upload,
    create_upload,
    keep_part,
    pending_upload,
)
from luthier.platform.http.authentication import HomeContext, Trainer
from luthier.platform.http.errors import ApiError, documented
from luthier.platform.http.routes import read_form

router = APIRouter(prefix="/v1/uploads", tags=["uploads"])

_PART_BODY: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["data"],
                    "additionalProperties": False,
                    "properties": {"data": {"type": "string", "format": "binary"}},
                }
            }
        },
    }
}


def _as_number(value: object) -> object:
    # bool is an int in Python, and lax mode would parse strings: both are mistakes of the client.
    if isinstance(value, bool | str):
        raise ValueError(f"{value!r} is not a number")
    return value


# JSON has one kind of number: 5.0 is 5, but "5" is not.
_IS_NUMBER: Final = BeforeValidator(_as_number)


class ExpiresAfter(StrictModel):
    """When the file that an upload becomes expires."""

    anchor: Literal["created_at"]
    seconds: Annotated[int, Field(strict=False, ge=MIN_EXPIRY_SECONDS, le=MAX_EXPIRY_SECONDS), _IS_NUMBER]


class UploadRequest(StrictModel):
    """What is going to be sent."""

    bytes: Annotated[int, Field(strict=False, ge=1), _IS_NUMBER]
    filename: Annotated[str, Field(min_length=1, max_length=1024)]
    mime_type: Annotated[str, Field(min_length=1, max_length=255, pattern=r"^[\x20-\x7e]+$")]
    purpose: UploadPurpose
    expires_after: ExpiresAfter | None = None


class CompleteRequest(StrictModel):
    """The parts in their order, and what the whole must have for an MD5."""

    part_ids: Annotated[list[str], Field(min_length=1, max_length=10_000)]
    md5: Annotated[str, Field(pattern=r"^[0-9a-fA-F]{32}$")] | None = None


class UploadObject(BaseModel):
    """An upload on the wire. Times are seconds since 1970."""

    id: str
    object: Literal["upload"]
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: UploadPurpose
    status: UploadStatus
    file: FileObject | None


class UploadPartObject(BaseModel):
    """A part on the wire."""

    id: str
    object: Literal["upload.part"]
    created_at: int
    upload_id: str


@router.post("", response_model=UploadObject, responses=documented(413))
def create(body: UploadRequest, caller: Trainer, context: HomeContext) -> UploadObject:
    """Begin an upload; it has to be completed within an hour."""
    most = context.settings.max_file_bytes
    if body.bytes > most:
        raise ApiError(
            413,
            f"A file of {body.bytes} bytes; expected: at most {most}; what to do: send a smaller one, or ask the "
            "operator of this server to raise LUTHIER_MAX_FILE_BYTES",
            param="bytes",
            code="file_too_large",
        )
    upload = create_upload(
        context,
        caller.project_id,
        filename=body.filename,
        purpose=body.purpose,
        mime_type=body.mime_type,
        num_bytes=body.bytes,
        file_expires_after_seconds=None if body.expires_after is None else body.expires_after.seconds,
    )
    return _shown(upload, None)


@router.post(
    "/{upload_id}/parts",
    response_model=UploadPartObject,
    responses=documented(404, 409, 413, 503, 507),
    openapi_extra=_PART_BODY,
)
async def add_part(upload_id: str, request: Request, caller: Trainer, context: HomeContext) -> UploadPartObject:
    """Add a part of at most 64 MiB; parts may come at the same time and in any order."""
    # Checked before the body is read: a part for an expired upload is refused without receiving its 64 MiB.
    await run_in_threadpool(pending_upload, context, caller.project_id, upload_id)
    incoming = await run_in_threadpool(incoming_file, context)
    with incoming:
        await read_form(request, incoming, file_field="data", fields=frozenset(), most_bytes=MAX_PART_BYTES)
        part = await run_in_threadpool(keep_part, context, caller.project_id, upload_id, incoming)
    return UploadPartObject(
        id=part.part_id, object="upload.part", created_at=int(part.created_at), upload_id=part.upload_id
    )


@router.post("/{upload_id}/complete", response_model=UploadObject, responses=documented(404, 409, 503, 507))
def complete(upload_id: str, body: CompleteRequest, caller: Trainer, context: HomeContext) -> UploadObject:
    """Put the parts together, in the order given, into a file."""
    return _shown(*complete_upload(context, caller.project_id, upload_id, body.part_ids, body.md5))


@router.post("/{upload_id}/cancel", response_model=UploadObject, responses=documented(404, 409))
def cancel(upload_id: str, caller: Trainer, context: HomeContext) -> UploadObject:
    """Cancel an upload; its parts are deleted."""
    return _shown(cancel_upload(context, caller.project_id, upload_id), None)


def _shown(upload: Upload, file: StoredFile | None) -> UploadObject:
    return UploadObject(
        id=upload.upload_id,
        object="upload",
        bytes=upload.num_bytes,
        created_at=int(upload.created_at),
        expires_at=int(upload.expires_at),
        filename=upload.filename,
        purpose=upload.purpose,
        status=upload.status,
        file=None if file is None else file_object(file),
    )
