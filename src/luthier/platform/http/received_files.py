"""The form of a page with files: their bytes go to the disk as they come, and what is not kept is removed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager

from starlette.requests import Request

from luthier.platform.files.service import IncomingFile, incoming_file
from luthier.platform.home.context import Context
from luthier.platform.http.multipart import FilesForm, read_files_form


@asynccontextmanager
async def received_files(
    request: Request, context: Context, *, file_fields: frozenset[str], fields: frozenset[str], most_files: int
) -> AsyncIterator[tuple[list[IncomingFile], FilesForm]]:
    """The files of a form and the rest of it, while the block runs; files that it has not kept are removed behind it.

    Args:
        request: The request of the form.
        context: The home.
        file_fields: The names of the fields with files.
        fields: The names of the other fields that are allowed.
        most_files: The most files.

    Raises:
        FormError: The body is not such a form.
        ClientDisconnect: The client is gone.
    """
    with ExitStack() as stack:
        incoming: list[IncomingFile] = []

        def new_file() -> IncomingFile:
            incoming.append(stack.enter_context(incoming_file(context)))
            return incoming[-1]

        form = await read_files_form(
            request.stream(),
            request.headers,
            new_file,
            file_fields=file_fields,
            fields=fields,
            most_bytes=context.settings.max_file_bytes,
            most_files=most_files,
        )
        yield incoming, form
