"""Use cases: the links that raters come in by. Each holds 256 random bits, of which only the digest is kept."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Final

from luthier.core.access import Caller
from luthier.core.errors import RequestError
from luthier.core.ids import new_id
from luthier.core.results.human_eval import Rater, RatingPanel
from luthier.platform.audit_log.service import make_audit_event
from luthier.platform.auth.service import digest_of
from luthier.platform.home.context import Context

_NUM_TOKEN_BYTES: Final = 32
_MAX_NAME_CHARACTERS: Final = 100


@dataclass(frozen=True, slots=True)
class RaterLink:
    """A rater and the secret that lets them in, which is shown only once.

    Attributes:
        rater: The rater.
        token: 256 random bits, URL-safe.
    """

    rater: Rater
    token: str

    @property
    def path(self) -> str:
        """The address of the page, without the server's."""
        return f"/rate/{self.token}"


def new_link(panel_id: str, name: str) -> RaterLink:
    """A rater who is not kept yet, with a link. Raises RequestError for a name that cannot be."""
    name = name.strip()
    if not name or len(name) > _MAX_NAME_CHARACTERS or not name.isprintable():
        raise RequestError(
            f"the name {name[: _MAX_NAME_CHARACTERS + 1]!r} for a rater",
            expected=f"1 to {_MAX_NAME_CHARACTERS} printable characters",
            do="choose such a name",
        )
    rater = Rater(rater_id=new_id("rater"), panel_id=panel_id, name=name)
    # 256 bits from the operating system; only the digest is stored, so the link cannot be shown a second time.
    return RaterLink(rater, secrets.token_urlsafe(_NUM_TOKEN_BYTES))


def add_rater(context: Context, caller: Caller, panel_id: str, name: str) -> RaterLink:
    """Have one more person rate. Raises NotFoundError, ConflictError (name taken, panel closed), RequestError."""
    panel = context.rating_panels.get(caller.project_id, panel_id)
    made = new_link(panel.panel_id, name)
    audit_event = make_audit_event(
        caller, "rater.created", made.rater.rater_id, {"panel": panel_id, "name": made.rater.name}
    )
    return RaterLink(context.rating_panels.add_rater(made.rater, digest_of(made.token), audit_event), made.token)


def renew_link(context: Context, caller: Caller, panel_id: str, rater_id: str) -> RaterLink:
    """Another link for a rater, who goes on where they stopped; the one before lets nobody in any more.

    Raises NotFoundError, ConflictError where the panel is closed.
    """
    panel = context.rating_panels.get(caller.project_id, panel_id)
    token = secrets.token_urlsafe(_NUM_TOKEN_BYTES)
    audit_event = make_audit_event(caller, "rater.link_renewed", rater_id, {"panel": panel_id})
    return RaterLink(context.rating_panels.change_link(panel.panel_id, rater_id, digest_of(token), audit_event), token)


def revoke_link(context: Context, caller: Caller, panel_id: str, rater_id: str) -> Rater:
    """Let a rater in no longer; what they said stays. Raises NotFoundError."""
    panel = context.rating_panels.get(caller.project_id, panel_id)
    audit_event = make_audit_event(caller, "rater.link_revoked", rater_id, {"panel": panel_id})
    return context.rating_panels.change_link(panel.panel_id, rater_id, None, audit_event)


def rater_of_token(context: Context, token: str) -> tuple[Rater, RatingPanel] | None:
    """Whom a link lets in, and to which panel; None for a link that lets nobody in."""
    # Looked up by digest: the comparison in the database leaks no timing about the token itself.
    return context.rating_panels.by_link(digest_of(token))
