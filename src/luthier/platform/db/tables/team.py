"""Tables of a team: invitations to a project, and who does what of the inbox."""

from __future__ import annotations

from sqlalchemy import Column, Double, ForeignKey, Index, String, Table, UniqueConstraint

from luthier.platform.db.tables.base import metadata, number, project_id

# Links that make a member. digest: SHA-256 of the link's 256 random bits.
invitations = Table(
    "invitations",
    metadata,
    number(),
    Column("invitation_id", String(64), nullable=False),
    project_id(),
    Column("digest", String(64), nullable=False),
    Column("role", String(20), nullable=False),
    Column("recipient", String(100), nullable=False),
    Column("created_by", String(200), nullable=False),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double, nullable=False),
    Column("accepted_at", Double),
    Column("accepted_by", String(100)),  # the name of the member
    Column("revoked_at", Double),
    UniqueConstraint("invitation_id"),
    UniqueConstraint("digest"),
    Index(None, "project_id"),
    sqlite_autoincrement=True,
)

# What people have decided about an entry of the inbox; an entry without a row is unassigned and open. item_id: a digest
# of what the entry is about. done_mark: the state of that at the time; another state opens the entry again.
inbox_items = Table(
    "inbox_items",
    metadata,
    Column("project_id", String(64), ForeignKey("projects.project_id", ondelete="CASCADE"), primary_key=True),
    Column("item_id", String(64), primary_key=True),
    Column("assignee_id", String(64), ForeignKey("members.member_id", ondelete="SET NULL")),
    Column("assigned_by", String(200), nullable=False),
    Column("due_at", Double),
    Column("snoozed_until", Double),
    Column("done_at", Double),
    Column("done_by", String(200), nullable=False),
    Column("done_mark", String(64), nullable=False),
    Column("updated_at", Double, nullable=False),
)
