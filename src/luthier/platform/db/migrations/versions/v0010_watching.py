"""Watching: traffic files, feedback and its review, what is watched of models, alerts, and work in stages."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "traffic_files",
        sa.Column("number", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("project_id", sa.String(64), nullable=False),
        sa.Column("day", sa.String(10), nullable=False),
        sa.Column("file", sa.String(255), nullable=False),
        sa.Column("num_exchanges", sa.Integer(), nullable=False),
        sa.Column("num_bytes", sa.BigInteger(), nullable=False),
        sa.Column("first_at", sa.Double(), nullable=False),
        sa.Column("last_at", sa.Double(), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_traffic_files"),
        _of_a_project("traffic_files"),
        sa.UniqueConstraint("project_id", "file", name="uq_traffic_files_project_id_file"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_traffic_files_project_id_last_at", "traffic_files", ["project_id", "last_at"])
    op.create_table(
        "watches",
        sa.Column("project_id", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("project_id", "kind", "name", name="pk_watches"),
        _of_a_project("watches"),
    )
    op.create_table(
        "alerts",
        sa.Column("number", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("alert_id", sa.String(64), nullable=False),
        sa.Column("project_id", sa.String(64), nullable=False),
        sa.Column("model", sa.String(255), nullable=False),
        sa.Column("signal", sa.String(128), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.Column("opened_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_alerts"),
        _of_a_project("alerts"),
        sa.UniqueConstraint("alert_id", name="uq_alerts_alert_id"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_alerts_project_id_status", "alerts", ["project_id", "status"])
    _make_feedback()
    op.create_table(
        "pipelines",
        sa.Column("number", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("pipeline_id", sa.String(64), nullable=False),
        sa.Column("project_id", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_pipelines"),
        _of_a_project("pipelines"),
        sa.UniqueConstraint("pipeline_id", name="uq_pipelines_pipeline_id"),
        sqlite_autoincrement=True,
    )


def _make_feedback() -> None:
    op.create_table(
        "feedback",
        sa.Column("number", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("feedback_id", sa.String(64), nullable=False),
        sa.Column("project_id", sa.String(64), nullable=False),
        sa.Column("exchange_id", sa.String(128), nullable=False),
        sa.Column("author_digest", sa.String(64), nullable=False),
        sa.Column("model", sa.String(255), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_feedback"),
        _of_a_project("feedback"),
        sa.UniqueConstraint("feedback_id", name="uq_feedback_feedback_id"),
        sa.UniqueConstraint(
            "project_id", "exchange_id", "author_digest", name="uq_feedback_project_id_exchange_id_author_digest"
        ),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_feedback_project_id_model_created_at", "feedback", ["project_id", "model", "created_at"])
    op.create_table(
        "review_items",
        sa.Column("number", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("review_id", sa.String(64), nullable=False),
        sa.Column("project_id", sa.String(64), nullable=False),
        sa.Column("model", sa.String(255), nullable=False),
        sa.Column("exchange_id", sa.String(128), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_review_items"),
        _of_a_project("review_items"),
        sa.UniqueConstraint("review_id", name="uq_review_items_review_id"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_review_items_project_id_model_status", "review_items", ["project_id", "model", "status"])


def _of_a_project(table: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        ["project_id"], ["projects.project_id"], name=f"fk_{table}_project_id", ondelete="CASCADE"
    )
