"""A form with files that is sent twice does its work once, as `platform.ui.forms` has it for forms without files.

The body of such a form goes to the disk as it comes, so the middleware cannot compare it. Here it is compared when it
is whole: the same session, address, token, fields, and names and digests of the files are one submission.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy

from fastapi import Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from luthier.core.ids import sha256_document
from luthier.platform.files.service import IncomingFile
from luthier.platform.http.multipart import FilesForm
from luthier.platform.ui.forms import FIELD, SubmissionCache, has_failed_since, leads_on, submission_key


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
        again.raw_headers = list(kept.raw_headers)  # what is behind this adds headers of its own
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
