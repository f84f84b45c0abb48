"""/evaluations/import: an eval of OpenAI's API becomes a suite of the project, as `luthier evals import` makes one."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fastapi import APIRouter, Request
from starlette.responses import Response

from luthier.core.access import Caller
from luthier.core.ports import track
from luthier.core.system.files import scratch_folder
from luthier.core.text.byte_sizes import size
from luthier.core.text.plain_yaml import parse_yaml, write_yaml
from luthier.core.text.utf8 import read_utf8
from luthier.features.evals_api.importer import ImportedEval, import_evals
from luthier.features.evaluation_orders.service import check_is_for_servers, keep_suite
from luthier.platform.files import service as files
from luthier.platform.files.service import IncomingFile
from luthier.platform.home.context import Context
from luthier.platform.http.multipart import FilesForm, FormError
from luthier.platform.http.path_redaction import redacted_errors
from luthier.platform.http.upload_once import take_files
from luthier.platform.ui.forms import shown_once
from luthier.platform.ui.page_work import Led, page_work
from luthier.platform.ui.render import render
from luthier.platform.ui.visitor import HomeContext, Trainer

_ADDRESS: Final = "/evaluations/import"
router = APIRouter(prefix=_ADDRESS)

_MAX_BYTES: Final = 16 << 20
"""Of the eval and of its rows, which are read whole."""


@dataclass(frozen=True, slots=True)
class MadeSuite:
    """A suite of the project that was made of an eval.

    Attributes:
        imported: What the eval has become, with notes on what was left out.
        file_id: The suite, a file of the project.
    """

    imported: ImportedEval
    file_id: str


@router.get("")
def show(request: Request, _caller: Trainer) -> Response:
    """The form, and the suites that were made before."""
    return _page(request, shown_once(request).take(request))


@router.post("")
async def take(request: Request, context: HomeContext, caller: Trainer) -> Response:
    """Make suites of the evals in a file, and lead to where they are shown."""
    return await take_files(
        request,
        context,
        lambda incoming, form: _import(request, context, caller, incoming, form),
        lambda error, status, given: _page(request, {**given, "error": error}, status),
        file_fields=frozenset({"file", "data"}),
        fields=frozenset({"prompt"}),
        most_files=2,
    )


def _import(
    request: Request, context: Context, caller: Caller, incoming: list[IncomingFile], form: FilesForm
) -> Response:
    """Make the suites of a form: its first file holds the evals, the second one rows."""
    if not incoming:
        raise FormError("no file was chosen", expected="the JSON of an eval", do="choose a file")
    for one in incoming:
        if one.num_bytes > _MAX_BYTES:
            raise FormError(
                f"a file of {size(one.num_bytes)}",
                expected=f"at most {size(_MAX_BYTES)}",
                do="import it on the server: luthier evals import FILE",
                status=413,
            )
        one.finish()
    # Read now: the files are removed when this request ends, and the work may take longer.
    with redacted_errors({str(one.path): name for one, name in zip(incoming, form.filenames, strict=True)}):
        text = read_utf8(incoming[0].path, "the JSON of an eval,")
    rows = incoming[1].path.read_bytes() if len(incoming) > 1 else None
    prompt = form.fields.get("prompt", "").strip() or None

    def work() -> Led:
        made = _made(context, caller, text, rows, prompt)
        return Led(shown_once(request).put(request, _ADDRESS, {"made": made}))

    return page_work(request).answer(request, "The eval is being imported", work, back=_ADDRESS)


def _made(context: Context, caller: Caller, text: str, rows: bytes | None, prompt: str | None) -> list[MadeSuite]:
    """The suites of the evals in a text, as files of the project.

    Args:
        context: The home.
        caller: Whose project it is.
        text: JSON with evals, and runs of them.
        rows: JSON lines with items; None for those of a run.
        prompt: The field of an item with the prompt; None for that of a run.

    Raises:
        RequestError: An eval cannot become a suite that a server carries out.
        FileQuotaError: The files of the project would take more than they may.
        StorageFullError: The disk is full.
    """
    with scratch_folder(Path(tempfile.gettempdir()), "luthier-evals-") as work:
        data = None if rows is None else work / "rows.jsonl"
        if data is not None and rows is not None:
            data.write_bytes(rows)
        with redacted_errors({f"{work}/": ""}):
            found = import_evals(text, work / "suites", data=data, prompt=prompt, progress=context.progress)
            suites = [_suite_of(one) for one in found]
            # All of them before the first is stored: a refused one must not leave the others behind.
            for suite in suites:
                check_is_for_servers(suite)
            pairs = list(zip(found, suites, strict=True))
            return [
                _stored(context, caller, *pair) for pair in track(context.progress, "Storing suites", pairs, "suites")
            ]


def _suite_of(one: ImportedEval) -> dict[str, Any]:
    keys, _ = parse_yaml(one.suite.name, read_utf8(one.suite, "the suite"))
    found: dict[str, Any] = keys
    return found


def _stored(context: Context, caller: Caller, one: ImportedEval, suite: dict[str, Any]) -> MadeSuite:
    rows = files.add_file(context, caller.project_id, one.rows, filename=one.rows.name, purpose="user_data")
    tasks = [task | {"data": rows.file_id} for task in suite["tasks"]]
    try:
        kept = keep_suite(context, caller, write_yaml(suite | {"tasks": tasks}), filename=one.suite.name)
    except BaseException:
        files.delete_file(context, caller.project_id, rows.file_id)
        raise
    return MadeSuite(one, kept.file_id)


def _page(request: Request, given: dict[str, Any], status: int = 200) -> Response:
    values = {"made": None, "error": None, "prompt": "", "is_shown_before": False} | given
    values |= {"max_bytes": _MAX_BYTES, "current": "/evaluations"}
    return render(request, "evals_api/import.html", values, status=status)
