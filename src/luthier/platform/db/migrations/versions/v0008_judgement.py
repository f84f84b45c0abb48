"""Results of suites, safety checks and calibrations; panels of people who rate answers."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "assessments",
        sa.Column("number", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("assessment_id", sa.String(64), nullable=False),
        sa.Column("project_id", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(20), nullable=False),
        sa.Column("subject", sa.String(255), nullable=False),
        sa.Column("run_id", sa.String(64)),
        sa.Column("document", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_assessments"),
        _belongs("assessments", "project_id", "projects"),
        _belongs("assessments", "run_id", "runs"),
        sa.UniqueConstraint("assessment_id", name="uq_assessments_assessment_id"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_assessments_kind_subject", "assessments", ["kind", "subject"])
    _make_panels()


def _make_panels() -> None:
    op.create_table(
        "rating_panels",
        sa.Column("number", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("panel_id", sa.String(64), nullable=False),
        sa.Column("project_id", sa.String(64), nullable=False),
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("closed_at", sa.Double()),
        sa.PrimaryKeyConstraint("number", name="pk_rating_panels"),
        _belongs("rating_panels", "project_id", "projects"),
        sa.UniqueConstraint("panel_id", name="uq_rating_panels_panel_id"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "rating_items",
        sa.Column("panel_id", sa.String(64), nullable=False),
        sa.Column("item", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("panel_id", "item", name="pk_rating_items"),
        _belongs("rating_items", "panel_id", "rating_panels"),
    )
    op.create_table(
        "raters",
        sa.Column("number", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("rater_id", sa.String(64), nullable=False),
        sa.Column("panel_id", sa.String(64), nullable=False),
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_raters"),
        _belongs("raters", "panel_id", "rating_panels"),
        sa.UniqueConstraint("rater_id", name="uq_raters_rater_id"),
        sa.UniqueConstraint("digest", name="uq_raters_digest"),
        sa.UniqueConstraint("panel_id", "name", name="uq_raters_panel_id_name"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "ratings",
        sa.Column("panel_id", sa.String(64), nullable=False),
        sa.Column("item", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("rater_id", sa.String(64), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.Column("rated_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("panel_id", "item", "rater_id", name="pk_ratings"),
        _belongs("ratings", "rater_id", "raters"),
        sa.ForeignKeyConstraint(
            ["panel_id", "item"],
            ["rating_items.panel_id", "rating_items.item"],
            name="fk_ratings_panel_id",
            ondelete="CASCADE",
        ),
    )


def _belongs(table: str, column: str, other: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint([column], [f"{other}.{column}"], name=f"fk_{table}_{column}", ondelete="CASCADE")
