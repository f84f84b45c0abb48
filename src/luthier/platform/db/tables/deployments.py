"""Tables of deployed models: deployments, usage, traffic files, feedback, reviews, alerts, monitoring, workflows."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Double, ForeignKey, Index, Integer, Table, Text, UniqueConstraint

from luthier.platform.db.tables.base import String, metadata, number, project_id

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

# What was asked of models on a day (UTC, ISO 8601). key_id: empty for requests from the machine itself, without a key.
model_usage = Table(
    "model_usage",
    metadata,
    Column("project_id", String(64), ForeignKey("projects.project_id", ondelete="CASCADE"), primary_key=True),
    Column("key_id", String(64), primary_key=True),
    Column("day", String(10), primary_key=True),
    Column("model", String(255), primary_key=True),  # as requested
    Column("target", String(255), primary_key=True),  # what has answered
    Column("num_requests", BigInteger, nullable=False),
    Column("num_prompt_tokens", BigInteger, nullable=False),
    Column("num_new_tokens", BigInteger, nullable=False),
    Column("cost_usd", Double),  # None where no prices were set
)


# One file of exchanges (Parquet). day: UTC, ISO 8601. document: what it holds by model and hour, so that a file need
# not be opened to know whether it is needed.
traffic_files = Table(
    "traffic_files",
    metadata,
    number(),
    project_id(),
    Column("day", String(10), nullable=False),
    Column("file", String(255), nullable=False),
    Column("num_exchanges", Integer, nullable=False),
    Column("num_bytes", BigInteger, nullable=False),
    Column("first_at", Double, nullable=False),
    Column("last_at", Double, nullable=False),
    Column("document", Text, nullable=False),
    UniqueConstraint("project_id", "file"),
    Index(None, "project_id", "last_at"),
    sqlite_autoincrement=True,
)

# document: a core.feedback.Feedback. author_digest: SHA-256 of its author, so that any author fits.
feedback = Table(
    "feedback",
    metadata,
    number(),
    Column("feedback_id", String(64), nullable=False),
    project_id(),
    Column("exchange_id", String(128), nullable=False),
    Column("author_digest", String(64), nullable=False),
    Column("model", String(255), nullable=False),
    Column("document", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    UniqueConstraint("feedback_id"),
    UniqueConstraint("project_id", "exchange_id", "author_digest"),
    Index(None, "project_id", "model", "created_at"),
    sqlite_autoincrement=True,
)

# document: a core.feedback.ReviewItem.
review_items = Table(
    "review_items",
    metadata,
    number(),
    Column("review_id", String(64), nullable=False),
    project_id(),
    Column("model", String(255), nullable=False),
    Column("exchange_id", String(128), nullable=False),
    Column("status", String(16), nullable=False),
    Column("document", Text, nullable=False),
    UniqueConstraint("review_id"),
    Index(None, "project_id", "model", "status"),
    sqlite_autoincrement=True,
)

# What is monitored for a project, and its state. kind: of the document (a policy of traffic, a model's settings,
# what was seen of it last). name: of a model as requested; empty for what applies to the whole project.
watches = Table(
    "watches",
    metadata,
    Column("project_id", String(64), ForeignKey("projects.project_id", ondelete="CASCADE"), primary_key=True),
    Column("kind", String(16), primary_key=True),
    Column("name", String(255), primary_key=True),
    Column("document", Text, nullable=False),
)

# document: a core.alert.Alert.
alerts = Table(
    "alerts",
    metadata,
    number(),
    Column("alert_id", String(64), nullable=False),
    project_id(),
    Column("model", String(255), nullable=False),
    Column("signal", String(128), nullable=False),
    Column("status", String(16), nullable=False),
    Column("document", Text, nullable=False),
    Column("opened_at", Double, nullable=False),
    UniqueConstraint("alert_id"),
    Index(None, "project_id", "status"),
    sqlite_autoincrement=True,
)

# document: a core.pipeline.Pipeline.
pipelines = Table(
    "pipelines",
    metadata,
    number(),
    Column("pipeline_id", String(64), nullable=False),
    project_id(),
    Column("kind", String(16), nullable=False),
    Column("document", Text, nullable=False),
    UniqueConstraint("pipeline_id"),
    sqlite_autoincrement=True,
)
