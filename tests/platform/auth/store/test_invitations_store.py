"""Invitations on both databases: one member a link, whoever comes first."""

from __future__ import annotations

import pytest

from luthier.core.errors import ConflictError, NotFoundError
from luthier.platform.auth.invitations_store import Invitation, InvitationStore
from luthier.platform.auth.store import AccessStore
from luthier.platform.db.database import Database

PROJECT, OTHER = "default", "proj-other"


def test_a_link_is_used_once_and_projects_are_apart(database: Database) -> None:
    AccessStore(database).add_project(OTHER, "other")
    store = InvitationStore(database)
    asked = Invitation(invitation_id="invitation-1", project_id=PROJECT, role="viewer", created_by="Ada")
    made = store.add(asked, "digest-1", seconds=60.0)
    assert made.expires_at == made.created_at + 60.0
    assert store.of_link("digest-1") == made
    assert store.of_link("digest-2") is None
    assert store.list(OTHER) == []
    with pytest.raises(NotFoundError):
        store.revoke(OTHER, "invitation-1")
    assert store.accept("digest-1", "Ben").accepted_by == "Ben"
    with pytest.raises(ConflictError, match="accepted already"):
        store.accept("digest-1", "Cleo")
    with pytest.raises(NotFoundError):
        store.accept("digest-2", "Cleo")
    with pytest.raises(ConflictError, match="was accepted by Ben"):
        store.revoke(PROJECT, "invitation-1")
    late = store.add(asked.model_copy(update={"invitation_id": "invitation-2"}), "digest-2", seconds=-1.0)
    assert late.state(late.created_at) == "expired"
    with pytest.raises(ConflictError, match="has expired"):
        store.accept("digest-2", "Cleo")
    assert [one.invitation_id for one in store.list(PROJECT)] == ["invitation-2", "invitation-1"]
    assert made.state(made.created_at - 3600) == "expired", "the clock was set back since it was made"
