"""Training clients of the Tinker API, and what they have saved."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"


def _project() -> sa.ForeignKey:
    # One for each column: a foreign key belongs to one table.
    return sa.ForeignKey("projects.project_id", ondelete="CASCADE")


def upgrade() -> None:
    """Add the tables."""
    op.create_table(
        "tinker_models",
        sa.Column("number", sa.Integer(), primary_key=True, autoincrement=True),
        sa.Column("model_id", sa.String(128), nullable=False),
        sa.Column("project_id", sa.String(64), _project(), nullable=False),
        sa.Column("run_id", sa.String(64), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.UniqueConstraint("model_id"),
        sa.UniqueConstraint("run_id"),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_tinker_models_project_id"), "tinker_models", ["project_id"])
    model = sa.ForeignKey("tinker_models.model_id", ondelete="CASCADE")
    op.create_table(
        "tinker_checkpoints",
        sa.Column("number", sa.Integer(), primary_key=True, autoincrement=True),
        sa.Column("checkpoint_id", sa.String(64), nullable=False),
        sa.Column("model_id", sa.String(128), model, nullable=False),
        sa.Column("project_id", sa.String(64), _project(), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("expires_at", sa.Double()),
        sa.UniqueConstraint("checkpoint_id"),
        sa.UniqueConstraint("model_id", "kind", "name"),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_tinker_checkpoints_project_id"), "tinker_checkpoints", ["project_id"])
