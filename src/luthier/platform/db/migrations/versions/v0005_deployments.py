"""Deployments with their revisions, and what was asked of models, by key and day."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "deployments",
        sa.Column("number", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("deployment_id", sa.String(64), nullable=False),
        sa.Column("project_id", sa.String(64), nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_deployments"),
        sa.ForeignKeyConstraint(
            ["project_id"], ["projects.project_id"], name="fk_deployments_project_id", ondelete="CASCADE"
        ),
        sa.UniqueConstraint("deployment_id", name="uq_deployments_deployment_id"),
        sa.UniqueConstraint("project_id", "name", name="uq_deployments_project_id_name"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "deployment_revisions",
        sa.Column("deployment_id", sa.String(64), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("deployment_id", "number", name="pk_deployment_revisions"),
        sa.ForeignKeyConstraint(
            ["deployment_id"],
            ["deployments.deployment_id"],
            name="fk_deployment_revisions_deployment_id",
            ondelete="CASCADE",
        ),
    )
    op.create_table(
        "model_usage",
        sa.Column("project_id", sa.String(64), nullable=False),
        sa.Column("key_id", sa.String(64), nullable=False),
        sa.Column("day", sa.String(10), nullable=False),
        sa.Column("model", sa.String(255), nullable=False),
        sa.Column("target", sa.String(255), nullable=False),
        sa.Column("num_requests", sa.BigInteger(), nullable=False),
        sa.Column("num_prompt_tokens", sa.BigInteger(), nullable=False),
        sa.Column("num_new_tokens", sa.BigInteger(), nullable=False),
        sa.Column("cost_usd", sa.Double()),
        sa.PrimaryKeyConstraint("project_id", "key_id", "day", "model", "target", name="pk_model_usage"),
        sa.ForeignKeyConstraint(
            ["project_id"], ["projects.project_id"], name="fk_model_usage_project_id", ondelete="CASCADE"
        ),
    )
