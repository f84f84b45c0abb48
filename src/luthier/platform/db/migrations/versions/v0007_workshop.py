"""Members and their sessions, datasets in versions with decisions on rows, and exports made by the server."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Make the tables."""
    _make_members()
    _make_datasets()
    op.create_table(
        "exports",
        sa.Column("number", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("export_id", sa.String(64), nullable=False),
        sa.Column("project_id", sa.String(64), nullable=False),
        sa.Column("job_id", sa.String(64), nullable=False),
        sa.Column("source", sa.String(255), nullable=False),
        sa.Column("document", sa.Text()),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_exports"),
        _belongs("exports", "project_id", "projects"),
        _belongs("exports", "job_id", "jobs"),
        sa.UniqueConstraint("export_id", name="uq_exports_export_id"),
        sqlite_autoincrement=True,
    )


def _make_members() -> None:
    op.create_table(
        "members",
        sa.Column("number", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("member_id", sa.String(64), nullable=False),
        sa.Column("project_id", sa.String(64), nullable=False),
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("password", sa.String(255), nullable=False),
        sa.Column("role", sa.String(20), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_members"),
        _belongs("members", "project_id", "projects"),
        sa.UniqueConstraint("member_id", name="uq_members_member_id"),
        sa.UniqueConstraint("name", name="uq_members_name"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "web_sessions",
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("project_id", sa.String(64), nullable=False),
        sa.Column("member_id", sa.String(64)),
        sa.Column("key_id", sa.String(64)),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("seen_at", sa.Double(), nullable=False),
        sa.Column("expires_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("digest", name="pk_web_sessions"),
        _belongs("web_sessions", "project_id", "projects"),
        _belongs("web_sessions", "member_id", "members"),
        _belongs("web_sessions", "key_id", "api_keys"),
    )
    op.create_table(
        "sign_in_links",
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("expires_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("digest", name="pk_sign_in_links"),
    )


def _make_datasets() -> None:
    op.create_table(
        "datasets",
        sa.Column("number", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("dataset_id", sa.String(64), nullable=False),
        sa.Column("project_id", sa.String(64), nullable=False),
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_datasets"),
        _belongs("datasets", "project_id", "projects"),
        sa.UniqueConstraint("dataset_id", name="uq_datasets_dataset_id"),
        sa.UniqueConstraint("project_id", "name", name="uq_datasets_project_id_name"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "dataset_versions",
        sa.Column("dataset_id", sa.String(64), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("file_id", sa.String(64), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("dataset_id", "number", name="pk_dataset_versions"),
        _belongs("dataset_versions", "dataset_id", "datasets"),
    )
    op.create_table(
        "row_decisions",
        sa.Column("dataset_id", sa.String(64), nullable=False),
        sa.Column("version", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("row", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("dataset_id", "version", "row", name="pk_row_decisions"),
        sa.ForeignKeyConstraint(
            ["dataset_id", "version"],
            ["dataset_versions.dataset_id", "dataset_versions.number"],
            name="fk_row_decisions_dataset_id",
            ondelete="CASCADE",
        ),
    )


def _belongs(table: str, column: str, other: str) -> sa.ForeignKeyConstraint:
    theirs = {"projects": "project_id", "jobs": "job_id", "members": "member_id", "api_keys": "key_id"}
    target = f"{other}.{theirs.get(other, 'dataset_id')}"
    return sa.ForeignKeyConstraint([column], [target], name=f"fk_{table}_{column}", ondelete="CASCADE")
