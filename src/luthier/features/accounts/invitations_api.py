"""/api/v1/invitations: for administrators of a project: invite people by links."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from luthier.core.frozen_model import ClosedModel
from luthier.platform.auth import invitations as invites
from luthier.platform.auth.invitations_store import Invitation, InvitationState
from luthier.platform.auth.members_store import Role
from luthier.platform.auth.public_address import link_root
from luthier.platform.http.authentication import Admin, HomeContext
from luthier.platform.http.errors import documented
from luthier.platform.http.routes import Id, ListObject

router = APIRouter(prefix="/api/v1/invitations", tags=["access"])


class InvitationRequest(ClosedModel):
    """The invitation to make. recipient: for whom, for the list. expires_in_seconds: a week where it is left out."""

    role: Role
    recipient: Annotated[str, Field(max_length=100)] = ""
    expires_in_seconds: Annotated[int, Field(ge=60, le=int(invites.LONGEST_SECONDS))] = int(invites.USUAL_SECONDS)


class InvitationView(BaseModel):
    """An invitation, without its link. accepted_by: the name of the member that it made."""

    id: str
    object: Literal["invitation"] = "invitation"
    role: Role
    recipient: str
    status: InvitationState
    created_by: str
    created_at: int
    expires_at: int
    accepted_at: int | None
    accepted_by: str | None
    revoked_at: int | None


class NewInvitationView(InvitationView):
    """An invitation that was made just now. url: its link, which is never shown again."""

    url: str


class InvitationList(ListObject[InvitationView]):
    """The invitations of the project, newest first."""


@router.post("", status_code=201, summary="Invite somebody", responses=documented())
def create(request: Request, context: HomeContext, caller: Admin, asked: InvitationRequest) -> NewInvitationView:
    """A link that makes one member of the project. It begins with the project's address of links (`LUTHIER_PUBLIC_URL`
    where it is set), or with that of this request."""
    made = invites.invite(
        context, caller, asked.role, recipient=asked.recipient, seconds=float(asked.expires_in_seconds)
    )
    root = link_root(context, caller.project_id, f"{request.url.scheme}://{request.url.netloc}")
    view = _view(made.invitation, made.invitation.created_at)
    return NewInvitationView(**view.model_dump(), url=f"{root}{made.path}")


@router.get("", summary="List invitations", responses=documented())
def list_all(context: HomeContext, caller: Admin) -> InvitationList:
    """Those that were accepted, withdrawn or have expired, too."""
    now = context.access.now()
    return InvitationList(data=[_view(one, now) for one in invites.list_invitations(context, caller)])


@router.delete("/{invitation_id}", summary="Withdraw an invitation", responses=documented(404, 409))
def revoke(context: HomeContext, caller: Admin, invitation_id: Id) -> InvitationView:
    """Its link is no longer valid; a second time changes nothing."""
    return _view(invites.revoke_invitation(context, caller, invitation_id), context.access.now())


def _view(found: Invitation, now: float) -> InvitationView:
    return InvitationView(
        id=found.invitation_id,
        role=found.role,
        recipient=found.recipient,
        status=found.state(now),
        created_by=found.created_by,
        created_at=int(found.created_at),
        expires_at=int(found.expires_at),
        accepted_at=None if found.accepted_at is None else int(found.accepted_at),
        accepted_by=found.accepted_by,
        revoked_at=None if found.revoked_at is None else int(found.revoked_at),
    )
