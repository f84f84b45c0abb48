"""Runs with their plans and events, evaluations, and artifacts by digest."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the first tables."""
    op.create_table(
        "runs",
        sa.Column("number", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("run_id", sa.String(64), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("base_model", sa.Text(), nullable=False),
        sa.Column("method", sa.String(32), nullable=False),
        sa.Column("plan_hash", sa.String(64), nullable=False),
        sa.Column("created_at", sa.String(40), nullable=False),
        sa.Column("updated_at", sa.String(40), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("num_steps", sa.Integer(), nullable=False),
        sa.Column("stopped_because", sa.Text()),
        sa.Column("result", sa.Text()),
        sa.Column("evaluation_id", sa.String(64)),
        sa.Column("report_path", sa.Text()),
        sa.PrimaryKeyConstraint("number", name="pk_runs"),
        sa.UniqueConstraint("run_id", name="uq_runs_run_id"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "plans",
        _run_id("plans"),
        sa.Column("document", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("run_id", name="pk_plans"),
    )
    op.create_table(
        "events",
        sa.Column("position", sa.Integer(), autoincrement=True, nullable=False),
        _run_id("events"),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("code", sa.String(64), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("position", name="pk_events"),
        sa.UniqueConstraint("run_id", "kind", "step", "code", name="uq_events_run_id_kind_step_code"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_events_run_id_step", "events", ["run_id", "step"])
    op.create_table(
        "evaluations",
        sa.Column("number", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("evaluation_id", sa.String(64), nullable=False),
        _run_id("evaluations", is_optional=True),
        sa.Column("document", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_evaluations"),
        sa.UniqueConstraint("evaluation_id", name="uq_evaluations_evaluation_id"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_evaluations_run_id", "evaluations", ["run_id"])
    op.create_table(
        "artifacts",
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("num_bytes", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.String(40), nullable=False),
        sa.PrimaryKeyConstraint("sha256", name="pk_artifacts"),
    )
    op.create_table(
        "artifact_links",
        _run_id("artifact_links"),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column(
            "sha256", sa.String(64), sa.ForeignKey("artifacts.sha256", name="fk_artifact_links_sha256"), nullable=False
        ),
        sa.PrimaryKeyConstraint("run_id", "name", name="pk_artifact_links"),
    )
    op.create_index("ix_artifact_links_sha256", "artifact_links", ["sha256"])


def _run_id(table: str, *, is_optional: bool = False) -> sa.Column[str]:
    target = sa.ForeignKey("runs.run_id", ondelete="CASCADE", name=f"fk_{table}_run_id")
    return sa.Column("run_id", sa.String(64), target, nullable=is_optional)
