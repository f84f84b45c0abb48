"""Names that route to models, and who asked what how much."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Double, ForeignKey, Integer, String, Table, Text, UniqueConstraint

from luthier.platform.db.tables.base import metadata, number, project_id

deployments = Table(
    "deployments",
    metadata,
    number(),
    Column("deployment_id", String(64), nullable=False),
    project_id(),
    Column("name", String(64), nullable=False),
    Column("revision", Integer, nullable=False),  # the newest
    Column("created_at", Double, nullable=False),
    UniqueConstraint("deployment_id"),
    UniqueConstraint("project_id", "name"),
    sqlite_autoincrement=True,
)

deployment_revisions = Table(
    "deployment_revisions",
    metadata,
    Column("deployment_id", String(64), ForeignKey("deployments.deployment_id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("document", Text, nullable=False),
)

# What was asked of models on a day (UTC, ISO 8601). key_id: empty for who asked on the machine itself, without a key.
model_usage = Table(
    "model_usage",
    metadata,
    Column("project_id", String(64), ForeignKey("projects.project_id", ondelete="CASCADE"), primary_key=True),
    Column("key_id", String(64), primary_key=True),
    Column("day", String(10), primary_key=True),
    Column("model", String(255), primary_key=True),  # as it was asked for
    Column("target", String(255), primary_key=True),  # what has answered
    Column("num_requests", BigInteger, nullable=False),
    Column("num_prompt_tokens", BigInteger, nullable=False),
    Column("num_new_tokens", BigInteger, nullable=False),
    Column("cost_usd", Double),  # None where no prices were set
)
