"""Evals with their runs and output items, and stored chat completions."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"


def _project_id() -> sa.Column[str]:
    target = sa.ForeignKey("projects.project_id", ondelete="CASCADE")
    return sa.Column("project_id", sa.String(64), target, nullable=False)


def upgrade() -> None:
    """Add the four tables."""
    op.create_table(
        "evals",
        sa.Column("number", sa.Integer(), primary_key=True, autoincrement=True),
        sa.Column("eval_id", sa.String(64), nullable=False),
        _project_id(),
        sa.Column("document", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("updated_at", sa.Double(), nullable=False),
        sa.UniqueConstraint("eval_id"),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_evals_project_id"), "evals", ["project_id"])
    op.create_table(
        "eval_runs",
        sa.Column("number", sa.Integer(), primary_key=True, autoincrement=True),
        sa.Column("eval_run_id", sa.String(64), nullable=False),
        sa.Column("eval_id", sa.String(64), sa.ForeignKey("evals.eval_id", ondelete="CASCADE"), nullable=False),
        _project_id(),
        sa.Column("job_id", sa.String(64), nullable=False),
        sa.Column("result_id", sa.String(64), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.Column("totals", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.UniqueConstraint("eval_run_id"),
        sa.UniqueConstraint("job_id"),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_eval_runs_eval_id"), "eval_runs", ["eval_id"])
    _create_items()
    op.create_table(
        "stored_completions",
        sa.Column("number", sa.Integer(), primary_key=True, autoincrement=True),
        sa.Column("completion_id", sa.String(64), nullable=False),
        _project_id(),
        sa.Column("model", sa.String(255), nullable=False),
        sa.Column("user_digest", sa.String(64), nullable=False),
        sa.Column("labels", sa.Text(), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.UniqueConstraint("completion_id"),
        sqlite_autoincrement=True,
    )
    name = op.f("ix_stored_completions_project_id_created_at")
    op.create_index(name, "stored_completions", ["project_id", "created_at"])


def _create_items() -> None:
    run = sa.ForeignKey("eval_runs.eval_run_id", ondelete="CASCADE")
    op.create_table(
        "eval_output_items",
        sa.Column("number", sa.Integer(), primary_key=True, autoincrement=True),
        sa.Column("item_id", sa.String(64), nullable=False),
        sa.Column("eval_run_id", sa.String(64), run, nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("status", sa.String(8), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.UniqueConstraint("item_id"),
        sa.UniqueConstraint("eval_run_id", "position"),
        sqlite_autoincrement=True,
    )
    name = op.f("ix_eval_output_items_eval_run_id_status")
    op.create_index(name, "eval_output_items", ["eval_run_id", "status"])
