"""Invitations by link, and who does what of the inbox."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0011"


def upgrade() -> None:
    """Add the two tables."""
    op.create_table(
        "invitations",
        sa.Column("number", sa.Integer(), primary_key=True, autoincrement=True),
        sa.Column("invitation_id", sa.String(64), nullable=False),
        sa.Column(
            "project_id", sa.String(64), sa.ForeignKey("projects.project_id", ondelete="CASCADE"), nullable=False
        ),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("role", sa.String(20), nullable=False),
        sa.Column("recipient", sa.String(100), nullable=False),
        sa.Column("created_by", sa.String(200), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("expires_at", sa.Double(), nullable=False),
        sa.Column("accepted_at", sa.Double()),
        sa.Column("accepted_by", sa.String(100)),
        sa.Column("revoked_at", sa.Double()),
        sa.UniqueConstraint("invitation_id"),
        sa.UniqueConstraint("digest"),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_invitations_project_id"), "invitations", ["project_id"])
    op.create_table(
        "inbox_items",
        sa.Column(
            "project_id", sa.String(64), sa.ForeignKey("projects.project_id", ondelete="CASCADE"), primary_key=True
        ),
        sa.Column("item_id", sa.String(64), primary_key=True),
        sa.Column("assignee_id", sa.String(64), sa.ForeignKey("members.member_id", ondelete="SET NULL")),
        sa.Column("assigned_by", sa.String(200), nullable=False),
        sa.Column("due_at", sa.Double()),
        sa.Column("snoozed_until", sa.Double()),
        sa.Column("done_at", sa.Double()),
        sa.Column("done_by", sa.String(200), nullable=False),
        sa.Column("done_mark", sa.String(64), nullable=False),
        sa.Column("updated_at", sa.Double(), nullable=False),
    )
