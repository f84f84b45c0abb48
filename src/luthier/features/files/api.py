"""/v1/files: bring a file, list, look at, read and delete."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal
from urllib.parse import quote

from fastapi import APIRouter, Query, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from luthier.platform.files.service import (
    delete_file,
    get_file,
    incoming_file,
    keep_file,
    list_files,
    read_file,
)
from luthier.platform.files.store import (
    MAX_EXPIRY_SECONDS,
    MIN_EXPIRY_SECONDS,
    UPLOAD_PURPOSES,
    FileStatus,
    Purpose,
    StoredFile,
    UploadPurpose,
)
from luthier.platform.http.authentication import HomeContext, Reader, Trainer
from luthier.platform.http.errors import ApiError, documented
from luthier.platform.http.multipart import Form
from luthier.platform.http.routes import ListPage, chosen, read_form

router = APIRouter(prefix="/v1/files", tags=["files"])

_ANCHOR, _SECONDS = "expires_after[anchor]", "expires_after[seconds]"
_MAX_DIGITS: Final = 10
_MOST_AROUND_BYTES: Final = 64 << 10
"""Of the other fields of a form, and of what separates them."""
_FIELDS: Final = frozenset({"purpose", _ANCHOR, _SECONDS})
_EXPIRY: Final = {"type": "integer", "minimum": MIN_EXPIRY_SECONDS, "maximum": MAX_EXPIRY_SECONDS}
_BODY: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "additionalProperties": False,
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "purpose": {"type": "string", "enum": list(UPLOAD_PURPOSES)},
                        _ANCHOR: {"type": "string", "enum": ["created_at"]},
                        _SECONDS: _EXPIRY,
                    },
                    "dependentRequired": {_ANCHOR: [_SECONDS], _SECONDS: [_ANCHOR]},
                }
            }
        },
    }
}


class FileObject(BaseModel):
    """A file on the wire. Times are seconds since 1970."""

    id: str
    object: Literal["file"]
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: Purpose
    status: FileStatus
    status_details: str | None


class FileList(ListPage[FileObject]):
    """A page of files."""

    object: Literal["list"]


class FileDeleted(BaseModel):
    """What is left of a file."""

    id: str
    object: Literal["file"]
    deleted: bool


class _Download(StreamingResponse):
    """The unchanged file; without a media type, so that the document declares JSON for failures."""


@router.post("", response_model=FileObject, responses=documented(413, 503, 507), openapi_extra=_BODY)
async def create_file(request: Request, caller: Trainer, context: HomeContext) -> FileObject:
    """Store a file; its bytes are written as they arrive. The key is checked before any of them is read."""
    # Disk and database calls block, so they leave the event loop; only the reading of the body stays on it.
    await run_in_threadpool(context.files.check_room, caller.project_id, _announced_bytes(request))
    incoming = await run_in_threadpool(incoming_file, context)
    with incoming:
        most = context.settings.max_file_bytes
        # The limit is enforced while bytes arrive: Content-Length may be absent or wrong.
        form = await read_form(request, incoming, file_field="file", fields=_FIELDS, most_bytes=most)
        purpose = _purpose(form)
        life = _life_seconds(form)

        def keep() -> StoredFile:
            return keep_file(
                context,
                caller.project_id,
                incoming,
                filename=form.filename,
                purpose=purpose,
                expires_after_seconds=life,
            )

        return file_object(await run_in_threadpool(keep))


@router.get("", response_model=FileList, responses=documented())
def list_all(
    caller: Reader,
    context: HomeContext,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Literal["asc", "desc"] = "desc",
    purpose: str | None = None,
) -> FileList:
    """The files of the project, newest first by default."""
    found, has_more = list_files(context, caller.project_id, purpose=purpose, after=after, limit=limit, order=order)
    return FileList.of([file_object(file) for file in found], has_more=has_more)


@router.get("/{file_id}", response_model=FileObject, responses=documented(404))
def retrieve(file_id: str, caller: Reader, context: HomeContext) -> FileObject:
    """One file."""
    return file_object(get_file(context, caller.project_id, file_id))


@router.delete("/{file_id}", response_model=FileDeleted, responses=documented(404, 409))
def delete(file_id: str, caller: Trainer, context: HomeContext) -> FileDeleted:
    """Delete a file, unless it holds the rows of a dataset."""
    deleted = delete_file(context, caller.project_id, file_id)
    return FileDeleted(id=deleted.file_id, object="file", deleted=True)


@router.get(
    "/{file_id}/content",
    response_class=_Download,
    responses={
        200: {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}},
        **documented(404, 503),
    },
)
def content(file_id: str, caller: Reader, context: HomeContext) -> StreamingResponse:
    """The bytes of a file; the connection is closed before the last of them if their digest is wrong."""
    file = get_file(context, caller.project_id, file_id)
    headers = {
        # With a fixed length a stream that breaks off is an error to the client, not a short file.
        "Content-Length": str(file.num_bytes),
        # RFC 5987 form: `quote` escapes quotes, line breaks and non-ASCII of a name that a user chose.
        "Content-Disposition": f"attachment; filename*=UTF-8''{quote(file.filename, safe='')}",
    }
    # Streamed: a file may be larger than the memory.
    return _Download(read_file(context, file), headers=headers, media_type="application/octet-stream")


def file_object(file: StoredFile) -> FileObject:
    """A file as the wire has it."""
    return FileObject(
        id=file.file_id,
        object="file",
        bytes=file.num_bytes,
        created_at=int(file.created_at),
        expires_at=None if file.expires_at is None else int(file.expires_at),
        filename=file.filename,
        purpose=file.purpose,
        status=file.status,
        status_details=file.status_details,
    )


def _announced_bytes(request: Request) -> int:
    """The least bytes of the file in the form of a request; 1 where it does not say how long it is."""
    length = request.headers.get("content-length", "")
    return max(1, int(length) - _MOST_AROUND_BYTES) if length.isdecimal() and len(length) <= _MAX_DIGITS + 5 else 1


def _purpose(form: Form) -> UploadPurpose:
    # `chosen` returns str; the search gives the Literal type back without a cast.
    given = chosen(form.fields, "purpose", UPLOAD_PURPOSES)
    return next(purpose for purpose in UPLOAD_PURPOSES if purpose == given)


def _life_seconds(form: Form) -> int | None:
    """After how many seconds the file expires; both fields are there, or none is."""
    if _ANCHOR not in form.fields and _SECONDS not in form.fields:
        return None
    chosen(form.fields, _ANCHOR, ("created_at",))
    given = form.fields.get(_SECONDS, "")
    # The length first: `int` refuses more than 4,300 digits with a different error.
    is_number = given.isascii() and given.isdigit() and len(given) <= _MAX_DIGITS
    if not (is_number and MIN_EXPIRY_SECONDS <= int(given) <= MAX_EXPIRY_SECONDS):
        message = f"{given[:100]!r}; expected: a whole number from {MIN_EXPIRY_SECONDS} to {MAX_EXPIRY_SECONDS}"
        raise ApiError(400, message, param=_SECONDS, code="invalid_value")
    return int(given)
