"""/datasets/new: add files of any kind. Their bytes go to the disk as they come; documents are then read by a job."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final

from fastapi import APIRouter, Form, Query, Request
from starlette.responses import JSONResponse, Response

from luthier.core.access import Caller
from luthier.core.errors import LuthierError, RequestError
from luthier.core.text.names import distinct_names
from luthier.core.text.written_numbers import typed_whole
from luthier.features.datasets import imports
from luthier.features.datasets import service as dataset_versions
from luthier.features.datasets.columns import need_choice
from luthier.features.datasets.imports import MAX_FILES, PASSAGE_TOKENS, Added
from luthier.platform.files import service as files
from luthier.platform.files.service import IncomingFile
from luthier.platform.home.context import Context
from luthier.platform.http.multipart import FilesForm, FormError
from luthier.platform.http.upload_once import take_files
from luthier.platform.ui.errors import status_of
from luthier.platform.ui.i18n.environments import decimal_mark_of
from luthier.platform.ui.i18n.environments import words as page_words
from luthier.platform.ui.render import page_advice, page_language, redirect, render
from luthier.platform.ui.visitor import HomeContext, Trainer, one_state

router = APIRouter(prefix="/datasets")

_FILE_FIELDS: Final = frozenset({"file", "folder"})
_FIELDS: Final = frozenset({"dataset", "name", "note", "passage_tokens", "assistants"})
_MAX_SHOWN: Final = 100
_Text = Annotated[str, Form(max_length=2000)]


@router.get("/new")
@one_state
def show_upload(
    request: Request, context: HomeContext, caller: Trainer, dataset: Annotated[str, Query(max_length=100)] = ""
) -> Response:
    """The form. dataset: the id of the one that gets a new version."""
    return _form(request, context, caller, {"dataset": dataset})


@router.post("/new")
async def add(request: Request, context: HomeContext, caller: Trainer) -> Response:
    """Take the files and make a version of rows, or a job that reads documents; on any error nothing of them is kept.

    A coroutine, since the body comes piece by piece; its pieces are written in threads. Scripts ask for JSON.
    """
    # The upload script requests JSON to show its progress bar; without scripts the form gets a page.
    wants_json = "application/json" in request.headers.get("accept", "")

    def refuse(error: LuthierError, status: int, given: Mapping[str, str]) -> Response:
        if wants_json:
            say = page_words(page_language(request, "datasets/new.html"))
            shown = {"came": say(error.came), "expected": say(error.expected)}
            document = error.as_json() | shown | {"do": page_advice(say(error.do), say).striptags()}
            return JSONResponse(document, status_code=status)
        return _form(request, context, caller, given, error, status)

    return await take_files(
        request,
        context,
        lambda incoming, form: _added(request, context, caller, incoming, form, wants_json=wants_json),
        refuse,
        file_fields=_FILE_FIELDS,
        fields=_FIELDS,
        most_files=MAX_FILES,
    )


@router.post("/adopt")
def adopt(request: Request, context: HomeContext, caller: Trainer, file: _Text, name: _Text = "") -> Response:
    """Make a dataset of a file that was uploaded by the API."""
    try:
        made = dataset_versions.adopt_file(context, caller, name, file)
    except LuthierError as error:
        given = {"file": file, "adopted_name": name}
        return _form(request, context, caller, given, error, status_of(error))
    return redirect(request, f"/datasets/{made.dataset_id}", "The file is a dataset now.")


def _added(
    request: Request,
    context: Context,
    caller: Caller,
    incoming: list[IncomingFile],
    form: FilesForm,
    *,
    wants_json: bool,
) -> Response:
    address, notice = _add(context, caller, incoming, form, decimal_mark_of(request))
    return JSONResponse({"address": address}, status_code=201) if wants_json else redirect(request, address, notice)


def _add(context: Context, caller: Caller, incoming: list[IncomingFile], form: FilesForm, mark: str) -> tuple[str, str]:
    """Where the form leads, and what is said there."""
    given = form.fields
    if not incoming:
        raise FormError("no file was chosen", expected="at least one file", do="choose files, or drop them on the page")
    made = imports.add(
        context,
        caller,
        list(zip(incoming, form.filenames, strict=True)),
        name=given.get("name", ""),
        dataset_id=given.get("dataset", ""),
        note=given.get("note", ""),
        passage_tokens=_passage_tokens(given.get("passage_tokens", ""), mark),
        assistants=[one.strip() for one in re.split(r"[,;\n]", given.get("assistants", "")) if one.strip()],
    )
    return _leads_to(context, caller, made)


def _leads_to(context: Context, caller: Caller, made: Added) -> tuple[str, str]:
    if made.job is not None:
        return f"/datasets/jobs/{made.job.job_id}", ""
    assert made.version is not None
    page = f"/datasets/{made.version.dataset_id}"
    if need_choice(context, caller, made.version):
        return f"{page}/columns?version={made.version.number}", ""
    return page, f"Version {made.version.number} is kept."


def _passage_tokens(text: str, decimal_mark: str) -> int:
    if not text.strip():
        return PASSAGE_TOKENS
    try:
        number = typed_whole(text, decimal_mark)
    except ValueError:
        number = 0
    if not 16 <= number <= 100_000:
        raise RequestError(
            f"{text[:40]!r} as the longest passage", expected="a whole number of tokens, 16 to 100,000", do="correct it"
        )
    return number


def _form(
    request: Request,
    context: Context,
    caller: Caller,
    given: Mapping[str, str],
    error: LuthierError | None = None,
    status: int = 200,
) -> Response:
    found, _ = files.list_files(context, caller.project_id, purpose="fine-tune", limit=_MAX_SHOWN)
    in_use = context.datasets.files_in_use([file.file_id for file in found])
    fields = ("dataset", "name", "note", "file", "adopted_name", "passage_tokens", "assistants")
    values: dict[str, Any] = {
        "datasets": [dataset for dataset, _ in dataset_versions.list_datasets(context, caller)],
        "files": [file for file in found if file.file_id not in in_use],
        "file_names": distinct_names({file.file_id: file.filename for file in found}),
        "given": {**dict.fromkeys(fields, ""), **given},
        "error": error,
        "suffixes": imports.accepted_suffixes(),
        "names": imports.ACCEPTED_NAMES,
        "max_bytes": context.settings.max_file_bytes,
        "max_files": MAX_FILES,
        "passage_tokens": PASSAGE_TOKENS,
    }
    return render(request, "datasets/new.html", values, status=status)
