"""A form with files that is sent twice does its work once, as `platform.ui.forms` has it for forms without files.

The body of such a form goes to the disk as it comes, so the middleware cannot compare it. Here it is compared when it
is whole: the same session, address, token, fields, and names and digests of the files are one submission.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from functools import partial
from typing import Final

from fastapi import Request
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from luthier.core.errors import LuthierError
from luthier.core.ids import sha256_document
from luthier.platform.files.service import IncomingFile
from luthier.platform.home.context import Context
from luthier.platform.http.multipart import FilesForm, FormError, received_files
from luthier.platform.ui.errors import status_of
from luthier.platform.ui.forms import FIELD, SubmissionCache, has_failed_since, leads_on, submission_key

ONE_FILE: Final = frozenset({"file"})
"""The field of forms with one file."""

Take = Callable[[list[IncomingFile], FilesForm], Response]
"""Does the work of a form, in a thread: with its files, which are removed behind it, and the rest of it."""
Refuse = Callable[[LuthierError, int, Mapping[str, str]], Response]
"""Shows a form again, in a thread: with why it was refused, the status for that, and what its fields had."""


async def take_files(
    request: Request,
    context: Context,
    take: Take,
    refuse: Refuse,
    *,
    file_fields: frozenset[str] = ONE_FILE,
    fields: frozenset[str] = frozenset(),
    most_files: int = 1,
) -> Response:
    """Receive a form with files, do its work once, and show it again with the reason where it is refused.

    For coroutines, since the body comes piece by piece.

    Args:
        request: The request of the form.
        context: The home.
        take: Does its work. Files that it has not kept are removed.
        refuse: Shows the form again.
        file_fields: The names of the fields with files.
        fields: The names of the other fields that are allowed, the token left out.
        most_files: The most files.
    """
    given: Mapping[str, str] = {}
    try:
        async with received_files(
            request, context, file_fields=file_fields, fields=fields | {FIELD}, most_files=most_files
        ) as (incoming, form):
            # Each page has its own token.
            given = {name: value for name, value in form.fields.items() if name != FIELD}
            return await answer_once(request, incoming, form, partial(take, incoming, form))
    # Leaving the `with` above has removed what had been received and was not kept.
    except ClientDisconnect:
        return Response(status_code=400)  # the client is gone
    except LuthierError as error:
        status = error.status if isinstance(error, FormError) else status_of(error)
        return await run_in_threadpool(refuse, error, status, given)


async def answer_once(
    request: Request, incoming: Sequence[IncomingFile], form: FilesForm, answer: Callable[[], Response]
) -> Response:
    """Answer a form with files; one that is sent again gets the answer of the first, and waits for it.

    Only an answer that leads on is kept: after an error, also one of the work that it has led to, the same form does
    its work again. A form without a token is answered each time.

    Args:
        request: The request of the form.
        incoming: Its files, received.
        form: The rest of it.
        answer: Does the work, in a thread.

    Raises:
        LuthierError: The work of the form failed.
        StorageFullError: The disk has no room for a file.
    """
    if not form.fields.get(FIELD):
        return await run_in_threadpool(answer)
    answers: SubmissionCache[Response] = request.app.state.upload_answers
    content = await run_in_threadpool(_content_of, incoming, form)
    key = submission_key(request.scope, request.headers, content)
    kept = await answers.find(key, lambda known: has_failed_since(request.scope, known.headers))
    if kept is not None:
        again = copy(kept)
        again.raw_headers = list(kept.raw_headers)  # what is behind this adds its own headers
        return again
    begun = answers.begin(key)
    new: Response | None = None
    try:
        made = await run_in_threadpool(answer)
        if leads_on(made.status_code, made.headers, len(made.body)):
            new = made
        return made
    finally:
        answers.settle(key, begun, new)


def _content_of(incoming: Sequence[IncomingFile], form: FilesForm) -> bytes:
    digests = [one.finish() for one in incoming]
    return sha256_document([form.fields, form.filenames, digests]).encode()
