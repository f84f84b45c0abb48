"""/deployments/NAME: who answers by a name, with a canary, and what it was before."""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import APIRouter, Form, Request
from starlette.responses import Response

from luthier.core.access import Caller, project_option
from luthier.core.errors import ConflictError, LuthierError, NotFoundError, RequestError
from luthier.core.records.deployment import Revision
from luthier.features.deployments import canary_release
from luthier.features.deployments import service as deployments
from luthier.features.model_cards import service as project_models
from luthier.features.release_gates.service import default_gate
from luthier.features.serving.head_answers import example_request
from luthier.features.serving.models import describe_engines, head_of_deployment
from luthier.platform.home.context import Context
from luthier.platform.ui.errors import status_of
from luthier.platform.ui.render import redirect, render
from luthier.platform.ui.visitor import HomeContext, Reader, Trainer

router = APIRouter(prefix="/deployments/{name}")

_Text = Annotated[str, Form(max_length=1024)]
_Reason = Annotated[str, Form(max_length=2_000)]
_Percent = Annotated[float, Form(gt=0, le=100)]
_Revision = Annotated[int, Form(ge=1, lt=2**31)]
_ALL: Final = 100.0


@router.get("")
def show(request: Request, context: HomeContext, caller: Reader, name: str, target: str = "") -> Response:
    """Who answers by it. target: a model that is to be tried here."""
    return _page(request, context, caller, name, {"target": target[:1024]})


@router.post("/deploy")
def deploy(
    request: Request,
    context: HomeContext,
    caller: Trainer,
    name: str,
    expected_revision: _Revision,
    target: _Text = "",
    percent: _Percent = _ALL,
    override: _Reason = "",
) -> Response:
    """Have another model answer a part of the users, or all; or change the part of the canary."""
    # All users is a full deployment, not a canary of 100%.
    canary = None if percent >= _ALL else percent / 100
    given = {"target": target, "percent": percent, "seen": expected_revision, "override": override}
    try:
        made = deployments.deploy(
            context,
            caller,
            name,
            target,
            canary=canary,
            expected_revision=expected_revision,
            override=override.strip() or None,
        )
    except NotFoundError as error:
        # Distinguishes the two NotFoundErrors: of the deployment (raised again here) and of the target.
        context.deployments.get(caller.project_id, name)
        return _page(request, context, caller, name, given | {"error": error})
    except LuthierError as error:
        return _page(request, context, caller, name, given | {"error": error})
    target = _shown(context, caller, made.revision).get(target, target)
    # The page says which of them have not been evaluated, with a link.
    if canary is None:
        notice = f"{target} answers all users of {name} now."
    else:
        notice = f"{target} answers {percent:g}% of the users of {name} now."
    return redirect(request, f"/deployments/{name}", notice)


@router.post("/promote")
def promote(
    request: Request,
    context: HomeContext,
    caller: Trainer,
    name: str,
    expected_revision: _Revision,
    override: _Reason = "",
) -> Response:
    """Give all users to the canary."""
    given = {"seen": expected_revision, "promote_override": override}
    try:
        made = deployments.promote(
            context, caller, name, expected_revision=expected_revision, override=override.strip() or None
        )
    except (ConflictError, RequestError) as error:
        return _page(request, context, caller, name, given | {"error": error})
    (target,) = _shown(context, caller, made.revision).values()
    notice = f"{target} answers all users of {name} now."
    return redirect(request, f"/deployments/{name}", notice)


@router.post("/rollback")
def rollback(
    request: Request, context: HomeContext, caller: Trainer, name: str, expected_revision: _Revision
) -> Response:
    """Go back to the revision before."""
    try:
        made = deployments.rollback(context, caller, name, expected_revision=expected_revision)
    except ConflictError as error:
        return _page(request, context, caller, name, {"error": error, "seen": expected_revision})
    targets = ", ".join(_shown(context, caller, made.revision).values())
    return redirect(request, f"/deployments/{name}", f"Rolled back: {name} goes to {targets} again.")


@router.post("/compare")
def compare(request: Request, context: HomeContext, caller: Trainer, name: str) -> Response:
    """Begin a comparison of the canary with the rest, and lead to where it will be: it reads the traffic."""
    deployment = context.deployments.get(caller.project_id, name)
    if deployment.revision.canary is None:
        error = ConflictError(
            f"{name!r} has no canary", expected="a canary that is being tried", do="deploy one to a share of the users"
        )
        return _page(request, context, caller, name, {"error": error})
    canary_release.start_comparison(context, caller.project_id, name)
    return redirect(request, f"/deployments/{name}")


@router.post("/remove")
def remove(request: Request, context: HomeContext, caller: Trainer, name: str) -> Response:
    """Give the name up."""
    try:
        deployments.remove(context, caller, name)
    except ConflictError as error:
        return _page(request, context, caller, name, {"error": error})
    return redirect(request, "/deployments", f"The deployment {name} is removed; its models stay.")


def _shown(context: Context, caller: Caller, revision: Revision) -> dict[str, str]:
    """What people call the targets of a revision."""
    targets = [share.target for share in revision.shares]
    names = project_models.target_names(context, caller.project_id, targets)
    return dict(zip(targets, targets, strict=True)) | names


def _page(request: Request, context: Context, caller: Caller, name: str, given: dict[str, Any]) -> Response:
    """given: what a form held, and, where it could not be done, why; `seen`: the revision that it was sent from."""
    view = deployments.show_deployment(context, caller, name)
    error = given.get("error")
    choices = project_models.targets(context, caller)
    current = {share.target for share in view.deployment.revision.shares}
    wanted = given.get("target", "")
    if wanted and wanted not in {target for target, _ in choices}:
        # Only the newest targets are listed; one that was named in the address must stay selectable.
        choices.insert(0, (wanted, "as you named it"))
    head = head_of_deployment(context, caller, view.deployment)
    revision = view.deployment.revision
    shares = [share.target for one in view.history for share in one.shares]
    targets = [*shares, *view.num_requests, *(target for target, _ in choices)]
    names = project_models.target_names(context, caller.project_id, targets)
    values = {
        "view": view,
        "deployment": view.deployment,
        "revision": revision,
        "names": names,
        "unjudged": [names.get(target, target) for target in revision.unjudged],
        "engines": {target: describe_engines(each) for target, each in view.engines.items()},
        "authors": deployments.authors_of(context, caller, name),
        **_canary_values(context, caller, name, revision),
        "choices": [(target, about) for target, about in choices if target not in current],
        "given": given,
        "error": error,
        "is_gated": default_gate(context, caller.project_id) is not None,
        "base_url": f"{str(request.base_url).rstrip('/')}/v1",
        "gives": "" if head is None else head.facts["gives"],
        "example": example_request(name, head),
        "project_words": project_option(caller.project_id),
    }
    return render(request, "deployments/show.html", values, status=status_of(error) if error else 200)


def _canary_values(context: Context, caller: Caller, name: str, revision: Revision) -> dict[str, Any]:
    """Both sides of a canary as they were seen last, and who may decide about it; nothing without a canary."""
    if revision.canary is None:
        return {"seen": None, "comparison": None, "deciders": ()}
    seen = canary_release.last_seen(context, caller, name)
    is_same = seen is not None and seen.canary == revision.canary and seen.revision == revision.number
    return {
        "seen": seen if is_same else None,
        "comparison": canary_release.comparison_state(context, caller.project_id, name),
        "deciders": canary_release.who_may_decide(context, caller),
    }
