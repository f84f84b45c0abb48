"""Who works in the pages of the server, and what is made there: datasets in versions, decisions on rows, exports."""

from __future__ import annotations

from sqlalchemy import Column, Double, ForeignKey, ForeignKeyConstraint, Integer, String, Table, Text, UniqueConstraint

from luthier.platform.db.tables.base import metadata, number, project_id

members = Table(
    "members",
    metadata,
    number(),
    Column("member_id", String(64), nullable=False),
    project_id(),
    Column("name", String(100), nullable=False),
    Column("password", String(255), nullable=False),  # Argon2id, as a PHC string with its own salt
    Column("role", String(20), nullable=False),
    Column("created_at", Double, nullable=False),
    UniqueConstraint("member_id"),
    UniqueConstraint("name"),
    sqlite_autoincrement=True,
)

# Who is signed in: a member, or whoever holds a key, or, with neither, a person at the machine itself.
web_sessions = Table(
    "web_sessions",
    metadata,
    Column("digest", String(64), primary_key=True),  # SHA-256 of what the cookie holds: 256 random bits
    project_id(),
    Column("member_id", String(64), ForeignKey("members.member_id", ondelete="CASCADE")),
    Column("key_id", String(64), ForeignKey("api_keys.key_id", ondelete="CASCADE")),
    Column("created_at", Double, nullable=False),
    Column("seen_at", Double, nullable=False),
    Column("expires_at", Double, nullable=False),
)

# Links that sign a person at the machine in, once.
sign_in_links = Table(
    "sign_in_links",
    metadata,
    Column("digest", String(64), primary_key=True),
    Column("expires_at", Double, nullable=False),
)

datasets = Table(
    "datasets",
    metadata,
    number(),
    Column("dataset_id", String(64), nullable=False),
    project_id(),
    Column("name", String(100), nullable=False),
    Column("created_at", Double, nullable=False),
    UniqueConstraint("dataset_id"),
    UniqueConstraint("project_id", "name"),
    sqlite_autoincrement=True,
)

# parent: the version that this one was made from. document: a core.dataset_version.DatasetVersion.
dataset_versions = Table(
    "dataset_versions",
    metadata,
    Column("dataset_id", String(64), ForeignKey("datasets.dataset_id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("file_id", String(64), nullable=False),
    Column("document", Text, nullable=False),
)

# What a person said of a row of a version: the newest word counts. row: its place in the file, from 1 on.
row_decisions = Table(
    "row_decisions",
    metadata,
    Column("dataset_id", String(64), primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("row", Integer, primary_key=True, autoincrement=False),
    Column("document", Text, nullable=False),
    ForeignKeyConstraint(
        ["dataset_id", "version"],
        ["dataset_versions.dataset_id", "dataset_versions.number"],
        name="fk_row_decisions_dataset_id",
        ondelete="CASCADE",
    ),
)

# What was exported by way of the server. document: a core.export.Export, None while it is not done.
exports = Table(
    "exports",
    metadata,
    number(),
    Column("export_id", String(64), nullable=False),
    project_id(),
    Column("job_id", String(64), ForeignKey("jobs.job_id", ondelete="CASCADE"), nullable=False),
    Column("source", String(255), nullable=False),
    Column("document", Text),
    Column("created_at", Double, nullable=False),
    UniqueConstraint("export_id"),
    sqlite_autoincrement=True,
)
