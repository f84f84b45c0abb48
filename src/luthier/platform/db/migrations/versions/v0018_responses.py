"""Stored answers of the Responses API."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"


def upgrade() -> None:
    """Add the table."""
    project = sa.ForeignKey("projects.project_id", ondelete="CASCADE")
    op.create_table(
        "stored_responses",
        sa.Column("number", sa.Integer(), primary_key=True, autoincrement=True),
        sa.Column("response_id", sa.String(64), nullable=False),
        sa.Column("project_id", sa.String(64), project, nullable=False),
        sa.Column("model", sa.String(255), nullable=False),
        sa.Column("user_digest", sa.String(64), nullable=False),
        sa.Column("earlier_ids", sa.Text(), nullable=False),
        sa.Column("labels", sa.Text(), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.UniqueConstraint("response_id"),
        sqlite_autoincrement=True,
    )
    name = op.f("ix_stored_responses_project_id_created_at")
    op.create_index(name, "stored_responses", ["project_id", "created_at"])
