"""/settings/machine: what the machine of the server can do and what is missing, as `luthier doctor` has it.

The page measures nothing that is measured already: training on the same machine would disturb it, and the rates decide
the precision of the runs to come. Paths of the machine are not shown, as nowhere on the pages.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from luthier.core.errors import NotAllowedError
from luthier.core.system.extras import install_command
from luthier.platform.auth.service import may_open_projects
from luthier.platform.home.context import Context
from luthier.platform.home.permissions import database_files
from luthier.platform.http.path_redaction import redact_text
from luthier.platform.processes.analysis import answer_to
from luthier.platform.ui.forms import shown_once
from luthier.platform.ui.page_work import Led, page_work
from luthier.platform.ui.render import Advised, Page
from luthier.platform.ui.settings_tabs import show
from luthier.platform.ui.visitor import Admin, HomeContext

router = APIRouter()
PAGE = Page(
    "Machine", "/settings/machine", "admin", order=85, group="settings", advised=(Advised(commands=("doctor",)),)
)


@router.get(PAGE.address)
def machine(request: Request, caller: Admin) -> Response:
    """The button, and what was found."""
    values: dict[str, Any] = {"found": None} | shown_once(request).take(request)
    if (found := values["found"]) is not None:
        # As the command shows them: what is there, and what is not.
        values |= {
            "extras": [name for name, is_there in found["extras"].items() if is_there],
            "other_extras": [name for name, is_there in found["extras"].items() if not is_there],
            "lacking": [name for name, is_here in found["facilities"].items() if not is_here],
            "install": install_command("NAME"),
        }
    return show(request, "machine", values | {"is_owner": may_open_projects(caller)})


@router.post(PAGE.address)
def examine(request: Request, context: HomeContext, caller: Admin) -> Response:
    """Examine the machine, and lead to where the result is shown."""
    if not may_open_projects(caller):
        raise NotAllowedError(
            f"{caller.name!r} may not examine the machine: all projects share it",
            expected="an admin of the project that the server is set up in",
            do="ask one of its admins",
        )

    def work() -> Led:
        found = _redacted(context, answer_to(context, "machine", {}))
        return Led(shown_once(request).put(request, PAGE.address, {"found": found}))

    return page_work(request).answer(request, "The machine is being examined", work, back=PAGE.address)


def _redacted(context: Context, found: dict[str, Any]) -> dict[str, Any]:
    """The document without paths of this machine."""
    home = str(context.settings.home)
    places = {str(path): path.name for path in database_files(context.settings)}
    places |= {home: "HOME", f"{home}/": "HOME/"}
    warnings = [{name: redact_text(text, places) for name, text in one.items()} for one in found["warnings"]]
    # Why bubblewrap does not work may begin with its path.
    sandbox = found["sandbox"].partition(": /")[0]
    rest = {name: value for name, value in found.items() if name != "home"}
    return rest | {"warnings": warnings, "sandbox": sandbox}
