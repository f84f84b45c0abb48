"""Conversations of the Responses API, with their items."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0025"
down_revision = "0024"


def upgrade() -> None:
    """Add the two tables."""
    project = sa.ForeignKey("projects.project_id", ondelete="CASCADE")
    op.create_table(
        "conversations",
        sa.Column("number", sa.Integer(), primary_key=True, autoincrement=True),
        sa.Column("conversation_id", sa.String(64), nullable=False),
        sa.Column("project_id", sa.String(64), project, nullable=False),
        sa.Column("labels", sa.Text(), nullable=False),
        sa.Column("locked_by", sa.String(64), nullable=False),
        sa.Column("locked_until", sa.Double(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("updated_at", sa.Double(), nullable=False),
        sa.UniqueConstraint("conversation_id"),
        sqlite_autoincrement=True,
    )
    name = op.f("ix_conversations_project_id_updated_at")
    op.create_index(name, "conversations", ["project_id", "updated_at"])
    conversation = sa.ForeignKey("conversations.conversation_id", ondelete="CASCADE")
    op.create_table(
        "conversation_items",
        sa.Column("number", sa.Integer(), primary_key=True, autoincrement=True),
        sa.Column("conversation_id", sa.String(64), conversation, nullable=False),
        sa.Column("item_id", sa.String(128), nullable=False),
        sa.Column("user_digest", sa.String(64), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.UniqueConstraint("conversation_id", "item_id"),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_conversation_items_user_digest"), "conversation_items", ["user_digest"])
