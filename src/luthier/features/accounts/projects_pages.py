"""/settings/projects: the project one is in; for admins of `default` all projects by name, and a new one."""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import APIRouter, Form, Request
from starlette.responses import Response

from luthier.core.access import Caller
from luthier.core.errors import LuthierError
from luthier.core.text.byte_sizes import bytes_of, size
from luthier.platform.auth import service as service
from luthier.platform.home.context import Context
from luthier.platform.ui.errors import error_page, status_of
from luthier.platform.ui.forms import shown_once
from luthier.platform.ui.render import Advised, Page, redirect
from luthier.platform.ui.settings_tabs import show
from luthier.platform.ui.visitor import Admin, HomeContext

router = APIRouter()
PAGE = Page(
    "Projects", "/settings/projects", "admin", order=40, group="settings", advised=(Advised(commands=("projects",)),)
)

_ADDRESS: Final = "/settings/projects"


@router.get(_ADDRESS)
def projects(request: Request, context: HomeContext, caller: Admin) -> Response:
    """The projects that the visitor may know of."""
    return _page(request, context, caller, shown_once(request).take(request))


@router.post(_ADDRESS)
def create(
    request: Request, context: HomeContext, caller: Admin, name: Annotated[str, Form(max_length=200)] = ""
) -> Response:
    """Open a project, and lead to where its first key is shown once."""
    try:
        made, _, key = service.open_project(context, caller, name)
    except LuthierError as error:
        # 403 and not the form again: no other input would help this caller.
        if not service.may_open_projects(caller):
            return error_page(request, 403, error)
        return _page(request, context, caller, {"error": error, "name": name}, status=status_of(error))
    return redirect(request, shown_once(request).put(request, _ADDRESS, {"made": made, "secret": key}))


@router.post(f"{_ADDRESS}/rename")
def rename(
    request: Request,
    context: HomeContext,
    caller: Admin,
    project: Annotated[str, Form(max_length=64)] = "",
    name: Annotated[str, Form(max_length=200)] = "",
) -> Response:
    """Give a project another name."""
    try:
        changed = service.rename_project(context, caller, project, name)
    except LuthierError as error:
        typed = {"project": project, "name": name}
        return _page(request, context, caller, {"error": error, "typed": typed}, status=status_of(error))
    return redirect(request, _ADDRESS, f"The project is called {changed.name}.")


@router.post(f"{_ADDRESS}/quota")
def set_quota(
    request: Request,
    context: HomeContext,
    caller: Admin,
    project: Annotated[str, Form(max_length=64)] = "",
    limit: Annotated[str, Form(max_length=40)] = "",
) -> Response:
    """Set how much the files of a project may take; an empty limit is none."""
    try:
        most = bytes_of(limit) if limit.strip() else None
        changed = service.set_file_quota(context, caller, project, most)
    except LuthierError as error:
        typed = {"project": project, "limit": limit}
        return _page(request, context, caller, {"error": error, "typed": typed}, status=status_of(error))
    if most is None:
        return redirect(request, _ADDRESS, f"The files of {changed.name} have no limit.")
    return redirect(request, _ADDRESS, f"The files of {changed.name} may take {size(most)}.")


def _page(request: Request, context: Context, caller: Caller, values: dict[str, Any], *, status: int = 200) -> Response:
    common = {
        "projects": service.known_projects(context, caller),
        "may_open": service.may_open_projects(caller),
        "own_id": caller.project_id,
        "used": context.files.used_bytes(),
        "made": None,
        "name": "",
        "typed": {},
    }
    return show(request, "projects", common | values, status=status)
