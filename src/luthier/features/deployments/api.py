"""/api/v1/deployments: names that route to models, and how their users are shared out."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Path
from pydantic import BaseModel, Field

from luthier.core.errors import RequestError
from luthier.core.frozen_model import ClosedModel
from luthier.core.records.deployment import MAX_SHARES, Deployment, Revision, RevisionKind
from luthier.core.results.release_gate import MAX_REASON_CHARACTERS, MIN_REASON_CHARACTERS, GatePassage
from luthier.features.deployments import service as deployments
from luthier.features.deployments.service import DeploymentView
from luthier.platform.http.authentication import HomeContext, Reader, Trainer
from luthier.platform.http.errors import documented
from luthier.platform.http.routes import ListObject

router = APIRouter(prefix="/api/v1/deployments", tags=["deployments"])

_Name = Annotated[str, Path(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
_Target = Annotated[str, Field(min_length=1, max_length=200)]
_Part = Annotated[float, Field(gt=0, lt=1)]
_Expected = Annotated[int, Field(ge=0, lt=2**31)]
_Reason = Annotated[str, Field(min_length=MIN_REASON_CHARACTERS, max_length=MAX_REASON_CHARACTERS)]


class DeployBody(ClosedModel):
    """What is to answer by a name: one target, all of it or as a canary, or several.

    target: the id of a run, the name of a tuned model (`ft:...`) or of a base model. canary: the fraction of the users
    that it gets. split: fractions by target, that add up to 1. expected_revision: refused (409) where the deployment
    is at another one; 0 for a new name. override: why it is to answer although the project's gate refuses it (409
    without); goes to the audit log.
    """

    name: Annotated[str, Field(min_length=1, max_length=64)]
    target: _Target | None = None
    canary: _Part | None = None
    split: Annotated[dict[_Target, _Part], Field(min_length=2, max_length=MAX_SHARES)] | None = None
    expected_revision: _Expected | None = None
    override: _Reason | None = None


class PromoteBody(ClosedModel):
    """target: the one that gets all traffic, the canary where none is named. override: as for a deployment."""

    target: _Target | None = None
    expected_revision: _Expected | None = None
    override: _Reason | None = None


class RollbackBody(ClosedModel):
    """expected_revision: the revision that is to be left."""

    expected_revision: _Expected | None = None


class ShareView(BaseModel):
    """A target and the fraction of the users that it answers."""

    target: str
    fraction: float


class GateView(BaseModel):
    """The result of the gates. failed: a sentence for each rule that was not met. override: the reason for an override.

    outcome_sha256: the digest of the gates' full result, as the audit log has it for an override.
    """

    passed: bool
    num_rules: int
    failed: list[str]
    override: str | None
    outcome_sha256: str


class RevisionView(BaseModel):
    """before: the revision that a rollback goes back to. gate: null where none held.

    unjudged: targets without an evaluation or suite result when they were given their share; see the route `deploy`.
    """

    number: int
    kind: RevisionKind
    shares: list[ShareView]
    canary: str | None
    before: int | None
    created_at: int
    gate: GateView | None = None
    unjudged: list[str] = []


class RequestCount(BaseModel):
    """How many requests a target has answered under this name."""

    target: str
    num_requests: int


class DeploymentObject(BaseModel):
    """The current deployment; history: newest first, for a single one."""

    id: str
    object: Literal["deployment"] = "deployment"
    name: str
    created_at: int
    revision: RevisionView
    requests: list[RequestCount] = []
    history: list[RevisionView] | None = None


class DeploymentList(ListObject[DeploymentObject]):
    """The deployments of the project, newest first."""


class DeletedDeployment(BaseModel):
    """What is left of a deployment."""

    id: str
    object: Literal["deployment"] = "deployment"
    name: str
    deleted: Literal[True] = True


@router.post("", status_code=201, summary="Deploy a model", responses=documented(404, 409))
def deploy(context: HomeContext, caller: Trainer, asked: DeployBody) -> DeploymentObject:
    """A new name, or a new revision of an existing one. A later target takes all over, or a canary's part.

    A model without an evaluation is named in `revision.unjudged` and in the audit log; evaluate it by `POST
    /v1/evaluations`.
    """
    # Exactly one of target and split, and a canary only with a target.
    if (asked.target is None) == (asked.split is None) or (asked.split is not None and asked.canary is not None):
        raise RequestError(
            "target, canary and split contradict each other" if asked.split else "neither target nor split",
            expected="a target, with or without canary, or a split",
            do="send one of the two",
        )
    if asked.split is not None:
        made = deployments.split(
            context,
            caller,
            asked.name,
            asked.split,
            expected_revision=asked.expected_revision,
            override=asked.override,
        )
    else:
        made = deployments.deploy(
            context,
            caller,
            asked.name,
            asked.target or "",
            canary=asked.canary,
            expected_revision=asked.expected_revision,
            override=asked.override,
        )
    return _view(made)


@router.get("", summary="List deployments", responses=documented())
def list_all(context: HomeContext, caller: Reader) -> DeploymentList:
    """All of the project."""
    found = deployments.list_deployments(context, caller)
    return DeploymentList(data=[_counted(view) for view in found])


@router.get("/{name}", summary="Show a deployment", responses=documented(404))
def show(context: HomeContext, caller: Reader, name: _Name) -> DeploymentObject:
    """One deployment, with its history."""
    return _counted(deployments.show_deployment(context, caller, name))


@router.post("/{name}/promote", summary="Promote a canary", responses=documented(404, 409))
def promote(context: HomeContext, caller: Trainer, name: _Name, asked: PromoteBody | None = None) -> DeploymentObject:
    """The canary, or the named one of the targets, gets all traffic."""
    given = asked or PromoteBody()
    made = deployments.promote(
        context, caller, name, given.target, expected_revision=given.expected_revision, override=given.override
    )
    return _view(made)


@router.post("/{name}/rollback", summary="Roll back", responses=documented(404, 409))
def rollback(context: HomeContext, caller: Trainer, name: _Name, asked: RollbackBody | None = None) -> DeploymentObject:
    """The revision before this one answers again, from the next request on."""
    given = asked or RollbackBody()
    return _view(deployments.rollback(context, caller, name, expected_revision=given.expected_revision))


@router.delete("/{name}", summary="Remove a deployment", responses=documented(404, 409))
def remove(context: HomeContext, caller: Trainer, name: _Name) -> DeletedDeployment:
    """No model answers by this name any longer; what it routed to stays."""
    found = deployments.remove(context, caller, name)
    return DeletedDeployment(id=found.deployment_id, name=found.name)


def _counted(view: DeploymentView) -> DeploymentObject:
    counts = [RequestCount(target=target, num_requests=count) for target, count in sorted(view.num_requests.items())]
    history = [_revision(one) for one in view.history] or None
    return _view(view.deployment).model_copy(update={"requests": counts, "history": history})


def _view(found: Deployment) -> DeploymentObject:
    return DeploymentObject(
        id=found.deployment_id,
        name=found.name,
        created_at=int(found.created_at),
        revision=_revision(found.revision),
    )


def _revision(revision: Revision) -> RevisionView:
    return RevisionView(
        number=revision.number,
        kind=revision.kind,
        shares=[ShareView(target=share.target, fraction=share.fraction) for share in revision.shares],
        canary=revision.canary,
        before=revision.before,
        created_at=int(revision.created_at),
        gate=None if revision.gate is None else _gate(revision.gate),
        unjudged=list(revision.unjudged),
    )


def _gate(found: GatePassage) -> GateView:
    return GateView(
        passed=found.passed,
        num_rules=sum(len(one.outcome.outcomes) for one in found.checked),
        failed=list(found.failed),
        override=found.override,
        outcome_sha256=found.sha256(),
    )
