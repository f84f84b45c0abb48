"""Searches: studies and their trials."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "studies",
        sa.Column("number", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("study_id", sa.String(64), nullable=False),
        sa.Column("project_id", sa.String(64), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_studies"),
        sa.ForeignKeyConstraint(
            ["project_id"], ["projects.project_id"], name="fk_studies_project_id", ondelete="CASCADE"
        ),
        sa.UniqueConstraint("study_id", name="uq_studies_study_id"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "trials",
        sa.Column("study_id", sa.String(64), nullable=False),
        sa.Column("trial", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("study_id", "trial", name="pk_trials"),
        sa.ForeignKeyConstraint(["study_id"], ["studies.study_id"], name="fk_trials_study_id", ondelete="CASCADE"),
    )
