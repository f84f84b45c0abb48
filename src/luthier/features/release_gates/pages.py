"""/settings/gate: the rules that a model must meet before it is deployed in the project."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Form, Request
from starlette.responses import Response

from luthier.core.access import Caller
from luthier.core.errors import LuthierError
from luthier.core.results.release_gate import Gate
from luthier.features.release_gates import rule_rows
from luthier.features.release_gates import service as gates
from luthier.features.release_gates.rule_rows import RuleRow
from luthier.features.release_gates.service import MAX_GATE_CHARACTERS
from luthier.platform.home.context import Context
from luthier.platform.http.path_redaction import home_paths, redact_paths
from luthier.platform.ui.errors import status_of
from luthier.platform.ui.forms import shown_once
from luthier.platform.ui.i18n.environments import decimal_mark_of
from luthier.platform.ui.render import Advised, Page, redirect
from luthier.platform.ui.settings_tabs import show
from luthier.platform.ui.visitor import Admin, HomeContext, Reader

router = APIRouter()
PAGE = Page(
    "Release gate", "/settings/gate", "read", order=55, group="settings", advised=(Advised(commands=("gates",)),)
)

_ADDRESS: Final = "/settings/gate"
_MAX_FIELDS: Final = 2_000
_EXAMPLE: Final = """rules:
  - metric: rouge_l
    at_least: 0.3
  - metric: safety.refusal.refusal_rate
    against: base
    at_least: -0.05
"""


@router.get(_ADDRESS)
def gate(request: Request, context: HomeContext, caller: Reader) -> Response:
    """The rules that hold, and for admins a form to change them."""
    return _page(request, context, caller, shown_once(request).take(request))


@router.post(_ADDRESS)
def change(
    request: Request,
    context: HomeContext,
    caller: Admin,
    text: Annotated[str, Form(max_length=2 * MAX_GATE_CHARACTERS)] = "",
) -> Response:
    """Set the project's own rules."""
    text = text.replace("\r\n", "\n")
    try:
        made = gates.set_gate(context, caller, text)
    except LuthierError as error:
        return _page(request, context, caller, {"error": error, "text": text}, status=status_of(error))
    return _changed(request, made)


async def _columns(request: Request) -> dict[str, list[str]]:
    """The fields of the form, each with all its values."""
    form = await request.form(max_fields=_MAX_FIELDS, max_files=0)
    found: dict[str, list[str]] = {}
    for name, value in form.multi_items():
        if isinstance(value, str):
            found.setdefault(name, []).append(value)
    return found


@router.post(f"{_ADDRESS}/rules")
def change_rows(
    request: Request, context: HomeContext, caller: Admin, columns: Annotated[dict[str, list[str]], Depends(_columns)]
) -> Response:
    """Set the project's own rules from the rows of the form, or show it with one row less, or with more empty ones."""
    mark = decimal_mark_of(request)
    given = {name: columns.get(name, [""])[0] for name in ("suite", "fingerprints")}
    rows: Sequence[RuleRow] = ()
    try:
        rows = rule_rows.rows_of_form(columns, without=columns.get("remove", [""])[0])
        if "add" in columns or "remove" in columns:
            return redirect(request, shown_once(request).put(request, _ADDRESS, {"rows": rows, "given": given}))
        made = gates.set_gate(context, caller, rule_rows.gate_text(rows, **given, decimal_mark=mark))
    except LuthierError as error:
        values = {"error": error, "rows": rows, "given": given}
        return _page(request, context, caller, values, status=status_of(error))
    return _changed(request, made)


def _changed(request: Request, made: Gate) -> Response:
    rules = f"{len(made.rules)} rule{'' if len(made.rules) == 1 else 's'}"
    return redirect(request, _ADDRESS, f"The gate has {rules}; it applies from the next deployment on.")


@router.post(f"{_ADDRESS}/remove")
def remove(request: Request, context: HomeContext, caller: Admin) -> Response:
    """Remove the project's own rules."""
    try:
        gates.remove_gate(context, caller)
    except LuthierError as error:
        return _page(request, context, caller, {"error": error}, status=status_of(error))
    return redirect(request, _ADDRESS, "The gate of this project is removed.")


def _page(request: Request, context: Context, caller: Caller, values: dict[str, Any], *, status: int = 200) -> Response:
    path, own = gates.default_gate(context, caller.project_id), gates.own_gate(context, caller.project_id)
    written = "" if path is None else path.read_text(encoding="utf-8", errors="replace")
    found: Any = None
    problem: LuthierError | None = None
    if path is not None:
        try:
            found = gates.read_gate(path)
        except LuthierError as error:
            # Written by hand in the home: it refuses deployments until it is corrected.
            told = redact_paths(error.as_json(), home_paths(context))
            problem = type(error)(told["came"], expected=told["expected"], do=told["do"])
    mark = decimal_mark_of(request)
    rows = values.get("rows", rule_rows.rows_of_gate(found, mark))
    given = {"suite": "", "fingerprints": ""}
    if found is not None:
        given = {"suite": found.suite or "", "fingerprints": " ".join(found.fingerprints)}
    common = {
        "given": given,
        "choices": rule_rows.rule_choices(context, caller.project_id, rows),
        # A file that cannot be read as rules is corrected as text.
        "is_text": problem is not None or "text" in values,
        "gate": found,
        "error": problem,
        "is_own": path == own,
        "text": written or _EXAMPLE,
        "most": MAX_GATE_CHARACTERS,
    }
    return show(request, "gate", common | values | {"rows": rule_rows.shown_rows(rows)}, status=status)
