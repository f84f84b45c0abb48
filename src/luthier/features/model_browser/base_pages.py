"""/models/check and /models/removal: try a base model in all its parts; remove it from this machine."""

from __future__ import annotations

import threading
from typing import Annotated, Any, Final
from urllib.parse import quote

from fastapi import APIRouter, Form, Query, Request
from starlette.responses import Response

from luthier.core.access import Caller
from luthier.core.errors import BusyError, ConflictError, LuthierError, NotFoundError, StoppedError
from luthier.core.text.byte_sizes import size
from luthier.features.model_browser.removal import base_uses, remove_base
from luthier.features.model_cards.service import find_base
from luthier.features.model_checks.service import check_model
from luthier.features.model_checks.stored import store_check
from luthier.platform.home.context import Context
from luthier.platform.http.path_redaction import home_paths, redacted_errors
from luthier.platform.ui.errors import status_of
from luthier.platform.ui.page_work import Led, page_work
from luthier.platform.ui.render import render
from luthier.platform.ui.visitor import Admin, HomeContext, Trainer

router = APIRouter(prefix="/models")

_REMOVAL: Final = "/models/removal"
_checking: Final = threading.Lock()
"""Held while a model is checked: two copies of a model are in memory then, and two checks may take all of it."""
_Name = Annotated[str, Form(max_length=1024)]


@router.post("/check")
def check(request: Request, context: HomeContext, caller: Trainer, name: _Name = "") -> Response:
    """Try a base model on this machine as `luthier models check` does, and lead back to its page with the result."""
    base = find_base(context, name, caller.project_id)
    if not base.is_here:
        raise NotFoundError(
            f"the base model {base.name!r} is not on this machine",
            expected="a base model that was downloaded",
            do="download it first",
        )
    page = f"/models/{quote(base.name, safe='')}"

    stop = threading.Event()

    def work() -> Led:
        if not _checking.acquire(blocking=False):
            raise BusyError(
                "another model is being checked", expected="one check at a time", do="try again when it is done"
            )
        try:
            with redacted_errors(home_paths(context)):
                found = check_model(
                    context, base.model.name, stop_requested=lambda: "cancelled" if stop.is_set() else None
                )
                store_check(context, base.model.sha256 or "", found)
        except StoppedError as error:
            raise ConflictError(
                f"the check of {base.name!r} was cancelled",
                expected="the result of every part",
                do="check it again when it is wanted",
            ) from error
        finally:
            _checking.release()
        notice = "Every part works." if found.works else "Not every part works: the table shows which."
        return Led(f"{page}#check", notice)

    return page_work(request).answer(
        request, "The model is being checked, for 10 minutes at most", work, back=page, stop=stop
    )


@router.get("/removal")
def show_removal(
    request: Request, context: HomeContext, caller: Admin, name: Annotated[str, Query(max_length=1024)] = ""
) -> Response:
    """What depends on a base model, and the button that removes it."""
    return _removal_page(request, context, caller, name)


@router.post("/removal")
def remove(request: Request, context: HomeContext, caller: Admin, name: _Name = "") -> Response:
    """Remove a base model from this machine, unless a deployment or a run needs it."""
    back = f"{_REMOVAL}?name={quote(name, safe='')}"

    def work() -> Led:
        removed = remove_base(context, caller, name)
        notice = f"{name} is removed. Its folder stays as it is."
        if removed.source != "folder":
            notice = f"{name} is removed: {size(removed.num_bytes or 0)} are free again."
        return Led("/models?show=base", notice)

    try:
        return page_work(request).answer(request, "The model is being removed", work, back=back)
    except ConflictError as error:
        return _removal_page(request, context, caller, name, error)


def _removal_page(
    request: Request, context: Context, caller: Caller, name: str, error: LuthierError | None = None
) -> Response:
    base, uses = base_uses(context, caller, name)
    values: dict[str, Any] = {"base": base, "uses": uses, "error": error, "own_id": caller.project_id}
    return render(request, "model_browser/removal.html", values, status=200 if error is None else status_of(error))
