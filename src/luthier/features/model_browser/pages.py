"""/models: tuned models, deployments and base models; /models/NAME: the card of one model."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Form, Query, Request
from starlette.responses import RedirectResponse, Response

from luthier.core.access import Caller
from luthier.core.errors import LuthierError, RequestError
from luthier.core.records.deployment import NAME
from luthier.core.task_head import readable_task_head_in
from luthier.features.assessments import service as project_assessments
from luthier.features.deployments import service as deployments
from luthier.features.evaluations.view import in_language
from luthier.features.exports import requests as server_exports
from luthier.features.exports.pages import export_page
from luthier.features.lineage.service import lineage_svg, model_lineage, project_lineage
from luthier.features.model_browser.removal import may_remove_base
from luthier.features.model_cards import service as project_models
from luthier.features.model_checks.stored import StoredCheck, stored_check
from luthier.features.release_gates.service import default_gate
from luthier.features.run_drafts import choices as draft_choices
from luthier.features.serving.head_answers import example_request
from luthier.features.serving.targets import EXPORT
from luthier.platform.home.context import Context
from luthier.platform.http.path_redaction import home_paths, redact_text
from luthier.platform.jobs.twins import is_joined
from luthier.platform.ui.errors import status_of
from luthier.platform.ui.human_names import HumanNames
from luthier.platform.ui.i18n.environments import words
from luthier.platform.ui.render import Advised, Page, page_language, redirect, render
from luthier.platform.ui.visitor import HomeContext, Reader, Trainer, one_state

router = APIRouter()
PAGE = Page(
    "Models",
    "/models",
    "read",
    order=70,
    key="m",
    group="use",
    # Not `models pull`: no page fetches a model.
    advised=(
        Advised(commands=("models list", "models show", "models rm", "export"), calls=("models", "fine_tuning")),
        Advised(commands=("export benchmark",), title="Compare formats", address="/exports/benchmarks"),
    ),
    elsewhere=("/exports",),
)
DEPLOYMENTS = Page(
    "Deployments",
    "/deployments",
    "read",
    order=75,
    key="y",
    group="use",
    advised=(Advised(commands=("deployments", "deploy", "promote", "rollback"), calls=("deployments",)),),
)

_MAX: Final = 20
Tab = Literal["tuned", "deployments", "base", "lineage"]


@router.get("/models")
@one_state
def models(
    request: Request,
    context: HomeContext,
    caller: Reader,
    show: Tab = "tuned",
    after: Annotated[str | None, Query(max_length=64)] = None,
) -> Response:
    """The models of the project, and those of the machine."""
    return _list(request, context, caller, show, after)


@router.get("/deployments")
@one_state
def names(request: Request, context: HomeContext, caller: Reader) -> Response:
    """The deployments of the project."""
    return _list(request, context, caller, "deployments", None)


def _list(request: Request, context: Context, caller: Caller, show: Tab, after: str | None) -> Response:
    values: dict[str, Any] = {"show": show}
    if show == "tuned":
        views, has_more = project_models.list_tuned(context, caller, limit=_MAX, after=after)
        names = context.run_labels.names([view.record.run_id for view in views])
        values |= {"views": views, "has_more": has_more, "is_first": after is None, "run_names": names}
    elif show == "deployments":
        listed = deployments.list_deployments(context, caller)
        routed = [share.target for one in listed for share in one.deployment.revision.shares]
        values |= {
            "deployments": listed,
            "target_names": project_models.target_names(context, caller.project_id, routed),
        }
    elif show == "base":
        values |= {"bases": project_models.list_bases(context, caller.project_id)}
    else:
        lineage = project_lineage(context, caller)
        word = words(page_language(request, "model_browser/list.html"))
        values |= {"lineage": lineage, "drawing": lineage_svg(lineage, word=word) if lineage.nodes else None}
    return render(request, "model_browser/list.html", values)


_Text = Annotated[str, Form(max_length=1024)]
_Reason = Annotated[str, Form(max_length=2_000)]
_MAX_OVER_BASE: Final = 20


@router.get("/models/{name:path}")
@one_state
def model(request: Request, context: HomeContext, caller: Reader, name: str) -> Response:
    """A tuned model by its name or its run, a base model, or, where it is a deployment's name, the way to that."""
    return _page(request, context, caller, name)


@router.post("/exports")
def start_export(
    request: Request, context: HomeContext, caller: Trainer, source: _Text = "", form: _Text = "", rows: _Text = ""
) -> Response:
    """Queue an export. form: `FORMAT` or `FORMAT:PRECISION`. rows: the file that it is proved on; empty: the run's."""
    to, _, precision = form.partition(":")
    began = context.access.now()
    try:
        made = server_exports.start(context, caller, source, to, precision or None, file_id=rows or None, joins=True)
    except LuthierError as error:
        return _page(request, context, caller, source, {"export_error": error, "form": form, "rows": rows})
    notice = "The export is queued: a worker of this server will run it."
    if is_joined(context.jobs.get(made.job_id), began):
        notice = "The same export was requested before and has not ended; it is shown here."
    return redirect(request, f"/exports/{made.export_id}", notice)


@router.post("/deployments")
def deploy(
    request: Request,
    context: HomeContext,
    caller: Trainer,
    name: _Text = "",
    target: _Text = "",
    source: _Text = "",
    override: _Reason = "",
) -> Response:
    """Give a target a name that is free. source: the model whose page has the form."""
    reason = override.strip() or None
    try:
        # Revision 0: the form makes new names only. A taken one is an error, not a silent takeover of its users.
        made = deployments.deploy(context, caller, name.strip(), target, expected_revision=0, override=reason)
    except LuthierError as error:
        if target.startswith(EXPORT):
            # Its own page, and not that of its model: the form there deploys the model in place of the export.
            values = {"error": error, "given": {"name": name.strip(), "override": override}}
            return export_page(request, context, caller, target.removeprefix(EXPORT), values)
        given = {"deploy_error": error, "name": name.strip(), "override": override}
        return _page(request, context, caller, source or target, given)
    target_name = project_models.target_names(context, caller.project_id, [target]).get(target, target)
    notice = f"{target_name} answers as {made.name} now."
    return redirect(request, f"/deployments/{made.name}", notice)


def _page(
    request: Request, context: Context, caller: Caller, name: str, given: dict[str, Any] | None = None
) -> Response:
    """given: what a form held that could not be done, and why."""
    run_id, tuned = project_models.run_of(context, caller, name)
    values: dict[str, Any] = {"given": given or {}, "formats": server_exports.formats(), "base_url": _base_url(request)}
    errors = [value for value in values["given"].values() if isinstance(value, LuthierError)]
    status = status_of(errors[0]) if errors else 200
    values["export_files"] = draft_choices.file_choices(context, caller)
    values["is_gated"] = default_gate(context, caller.project_id) is not None
    names = context.deployments.list(caller.project_id)
    if run_id is None:
        # Only after runs and tuned models: a deployment cannot have such a name.
        if NAME.fullmatch(name) and context.deployments.find(caller.project_id, name) is not None:
            return RedirectResponse(f"/deployments/{name}", status_code=303)
        base = project_models.find_base(context, name, caller.project_id)
        views = project_models.tuned_over(context, caller, base, limit=_MAX_OVER_BASE)
        values |= {
            "base": base,
            "views": views,
            "run_names": context.run_labels.names([view.record.run_id for view in views]),
            "exports": server_exports.list_exports(context, caller, sources=[base.name]),
            "names": [one.name for one in names],
            "deployments": [one.name for one in names if one.revision.share_of(base.name) is not None],
            "checked": _checked(context, base),
            "may_remove": base.is_here and may_remove_base(caller),
        }
        return render(request, "model_browser/base.html", values, status=status)
    # A checkpoint that another project has permitted: it may be used, but its run is not shown.
    if tuned is not None and tuned.project_id != caller.project_id:
        head = readable_task_head_in(tuned.adapter_path)
        values |= {
            "tuned": tuned,
            "gives": "" if head is None else head.facts["gives"],
            "example": example_request(tuned.model_id, head),
        }
        return render(request, "model_browser/permitted.html", values, status=status)
    details = project_models.show_tuned(context, caller, run_id)
    judged = details.facts.evaluation or details.view.evaluation
    if judged is not None:
        names_of_runs = HumanNames(context, caller.project_id).read(system.name for system in judged.systems)
        judged = in_language(names_of_runs.within(judged), page_language(request, "model_browser/tuned.html"))
    here = tuned.model_id if tuned is not None and tuned.step is not None else f"model {run_id}"
    values |= {
        "details": details,
        "judged": judged,
        "formats": server_exports.formats(None if details.view.head is None else details.view.head.kind),
        "view": details.view,
        "checkpoint": tuned if tuned is not None and tuned.step is not None else None,
        "drawing": lineage_svg(
            model_lineage(context, caller, run_id),
            here=here,
            word=words(page_language(request, "model_browser/tuned.html")),
        ),
        "exports": server_exports.list_exports(context, caller, sources=[run_id]),
        "names": [one.name for one in names],
        "run_names": context.run_labels.names([run_id]),
        **_assessed(context, caller, run_id),
    }
    return render(request, "model_browser/tuned.html", values, status=status)


def _checked(context: Context, base: project_models.BaseView) -> StoredCheck | None:
    """The newest check of a base model, without places of this machine; None where there is none."""
    found = None if base.model.sha256 is None else stored_check(context, base.model.sha256)
    if found is None:
        return None
    places = home_paths(context) | {f"{base.model.path}/": ""}
    checks = tuple(
        one.model_copy(update={"reason": redact_text(one.reason, places), "remedy": redact_text(one.remedy, places)})
        for one in found.check.checks
    )
    return replace(found, check=found.check.model_copy(update={"checks": checks}))


def _assessed(context: Context, caller: Caller, run_id: str) -> dict[str, Any]:
    """What the run was evaluated by in addition to its held-out rows, with the gate; or why the gate cannot be read."""
    try:
        found = project_assessments.of_run(context, caller.project_id, run_id)
        names = HumanNames(context, caller.project_id).read(one.headline for one in found.results)
        return {"assessed": names.within(found), "gate_error": None}
    except RequestError as error:
        return {"assessed": project_assessments.RunAssessments((), None), "gate_error": error}


def _base_url(request: Request) -> str:
    """Where OpenAI's clients find this server, as the browser has found it."""
    return f"{str(request.base_url).rstrip('/')}/v1"
