"""The tables as the code sees them today. How a database gets there is written in migrations/, append-only.

Documents (plans, results, events, evaluations) are JSON text of the core specs: the columns beside them are only what
is searched by. Nothing here is SQLite's own: PostgreSQL has the same tables.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

# The newest migration. A test holds that this is the head of migrations/ and that the tables below are what it makes.
SCHEMA_VERSION = "0004"

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _run_id(*, is_key: bool = False, is_optional: bool = False) -> Column[str]:
    target = ForeignKey("runs.run_id", ondelete="CASCADE")
    return Column("run_id", String(64), target, primary_key=is_key, nullable=is_optional)


def _number() -> Column[int]:
    """The order in which rows were made."""
    return Column("number", Integer, primary_key=True, autoincrement=True)


def _project_id() -> Column[str]:
    return Column("project_id", String(64), ForeignKey("projects.project_id", ondelete="CASCADE"), nullable=False)


runs = Table(
    "runs",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),  # the order in which runs were made
    Column("run_id", String(64), nullable=False),
    Column("status", String(16), nullable=False),
    Column("base_model", Text, nullable=False),
    Column("method", String(32), nullable=False),
    Column("plan_hash", String(64), nullable=False),
    Column("created_at", String(40), nullable=False),
    Column("updated_at", String(40), nullable=False),
    Column("step", Integer, nullable=False),
    Column("num_steps", Integer, nullable=False),
    Column("stopped_because", Text),
    Column("result", Text),
    Column("evaluation_id", String(64)),
    Column("report_path", Text),
    UniqueConstraint("run_id"),
    sqlite_autoincrement=True,
)

plans = Table("plans", metadata, _run_id(is_key=True), Column("document", Text, nullable=False))

events = Table(
    "events",
    metadata,
    Column("position", Integer, primary_key=True, autoincrement=True),  # grows with every append, never reused
    _run_id(),
    Column("kind", String(32), nullable=False),
    Column("step", Integer, nullable=False),
    Column("code", String(64), nullable=False),
    Column("document", Text, nullable=False),
    UniqueConstraint("run_id", "kind", "step", "code"),
    Index(None, "run_id", "step"),
    sqlite_autoincrement=True,
)

evaluations = Table(
    "evaluations",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("evaluation_id", String(64), nullable=False),
    _run_id(is_optional=True),
    Column("document", Text, nullable=False),
    UniqueConstraint("evaluation_id"),
    Index(None, "run_id"),
    sqlite_autoincrement=True,
)

artifacts = Table(
    "artifacts",
    metadata,
    Column("sha256", String(64), primary_key=True),
    Column("kind", String(32), nullable=False),
    Column("num_bytes", BigInteger().with_variant(Integer, "sqlite"), nullable=False),
    Column("created_at", String(40), nullable=False),
    Column("place", String(100)),  # below the root, new with every writing; None: `ab/cdef...`, as it was before 0004
)

artifact_links = Table(
    "artifact_links",
    metadata,
    _run_id(is_key=True),
    Column("name", String(200), primary_key=True),
    Column("sha256", String(64), ForeignKey("artifacts.sha256"), nullable=False),
    Index(None, "sha256"),
)

generations = Table(
    "generations",
    metadata,
    Column("key", String(64), primary_key=True),  # SHA-256 over engine and prompt
    Column("engine", Text, nullable=False),
    Column("document", Text, nullable=False),
    Column("created_at", String(40), nullable=False),
)

jobs = Table(
    "jobs",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),  # the order in which they are taken
    Column("job_id", String(64), nullable=False),
    Column("kind", String(32), nullable=False),
    Column("document", Text, nullable=False),
    Column("run_id", String(64), nullable=False),  # no foreign key: the run is made when the work begins
    Column("status", String(16), nullable=False),
    Column("wish", String(16)),
    Column("attempt", Integer, nullable=False),
    Column("num_crashes", Integer, nullable=False),
    Column("step", Integer, nullable=False),
    Column("crash_step", Integer, nullable=False),  # how far it was at its last crash
    Column("worker", String(200)),
    Column("lease_until", Double),
    Column("not_before", Double, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("updated_at", Double, nullable=False),
    Column("finished_at", Double),
    Column("error", Text),
    Column("project_id", String(64), nullable=False, server_default="default"),
    Column("lane", String(16), nullable=False, server_default="train"),  # which kind of worker takes it next
    Column("announced", Integer, nullable=False, server_default="0"),  # 1 once webhooks know that it has ended
    UniqueConstraint("job_id"),
    Index(None, "status"),
    Index(None, "project_id"),
    Index(None, "run_id"),
    Index(None, "announced", "status"),
    sqlite_autoincrement=True,
)

# What is told of a job, in order; never changed and never removed while the job is there. `code` names what is told:
# what an attempt does over again is told once.
job_events = Table(
    "job_events",
    metadata,
    _number(),
    Column("event_id", String(64), nullable=False),
    Column("job_id", String(64), nullable=False),
    Column("code", String(100), nullable=False),
    Column("created_at", Double, nullable=False),
    Column("level", String(8), nullable=False),
    Column("message", Text, nullable=False),
    Column("data", Text),  # JSON; None for an event that is a message alone
    UniqueConstraint("event_id"),
    UniqueConstraint("job_id", "code"),
    sqlite_autoincrement=True,
)

projects = Table(
    "projects",
    metadata,
    _number(),
    Column("project_id", String(64), nullable=False),
    Column("name", String(100), nullable=False),
    Column("created_at", Double, nullable=False),
    UniqueConstraint("project_id"),
    UniqueConstraint("name"),
    sqlite_autoincrement=True,
)

api_keys = Table(
    "api_keys",
    metadata,
    _number(),
    Column("key_id", String(64), nullable=False),
    _project_id(),
    Column("name", String(100), nullable=False),
    Column("digest", String(64), nullable=False),  # SHA-256 of the key: it has 256 random bits, so no salt is needed
    Column("scopes", String(100), nullable=False),  # separated by blanks
    Column("requests_per_minute", Integer),
    Column("tokens_per_day", BigInteger),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double),
    Column("revoked_at", Double),
    UniqueConstraint("key_id"),
    UniqueConstraint("digest"),
    sqlite_autoincrement=True,
)

# What a key has used on a day (UTC, ISO 8601).
key_usage = Table(
    "key_usage",
    metadata,
    Column("key_id", String(64), ForeignKey("api_keys.key_id", ondelete="CASCADE"), primary_key=True),
    Column("day", String(10), primary_key=True),
    Column("num_requests", BigInteger, nullable=False),
    Column("num_tokens", BigInteger, nullable=False),
)

# The answer to a request that came with an idempotency key; the first to insert is the one that does the work.
idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("project_id", String(64), primary_key=True),
    Column("key", String(255), primary_key=True),
    Column("request_sha256", String(64), nullable=False),
    Column("status", Integer),  # None while the first is still at work
    Column("answer", Text),
    Column("created_at", Double, nullable=False),
)

# Append-only: each entry's hash covers that of the entry before it.
audit_log = Table(
    "audit_log",
    metadata,
    _number(),
    Column("created_at", Double, nullable=False),
    Column("actor", String(200), nullable=False),
    Column("action", String(100), nullable=False),
    Column("subject", String(255), nullable=False),
    Column("project_id", String(64)),
    Column("document", Text, nullable=False),
    Column("previous_hash", String(64), nullable=False),
    Column("hash", String(64), nullable=False),
    UniqueConstraint("hash"),
    sqlite_autoincrement=True,
)

files = Table(
    "files",
    metadata,
    _number(),
    Column("file_id", String(64), nullable=False),
    _project_id(),
    Column("filename", String(255), nullable=False),
    Column("purpose", String(32), nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("num_bytes", BigInteger, nullable=False),
    Column("status", String(16), nullable=False),
    Column("status_details", Text),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double),
    UniqueConstraint("file_id"),
    Index(None, "project_id"),
    Index(None, "sha256"),
    sqlite_autoincrement=True,
)

uploads = Table(
    "uploads",
    metadata,
    _number(),
    Column("upload_id", String(64), nullable=False),
    _project_id(),
    Column("filename", String(255), nullable=False),
    Column("purpose", String(32), nullable=False),
    Column("mime_type", String(255), nullable=False),
    Column("num_bytes", BigInteger, nullable=False),
    Column("status", String(16), nullable=False),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double, nullable=False),
    Column("file_expires_after_seconds", Integer),
    Column("file_id", String(64)),
    UniqueConstraint("upload_id"),
    sqlite_autoincrement=True,
)

upload_parts = Table(
    "upload_parts",
    metadata,
    _number(),
    Column("part_id", String(64), nullable=False),
    Column("upload_id", String(64), ForeignKey("uploads.upload_id", ondelete="CASCADE"), nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("num_bytes", BigInteger, nullable=False),
    Column("created_at", Double, nullable=False),
    UniqueConstraint("part_id"),
    Index(None, "upload_id"),
    Index(None, "sha256"),
    sqlite_autoincrement=True,
)

# Models that jobs have made: the outcome of a run (step is None) or what it was after an epoch.
tuned_models = Table(
    "tuned_models",
    metadata,
    _number(),
    Column("model_id", String(255), nullable=False),
    _project_id(),
    Column("job_id", String(64), nullable=False),
    Column("run_id", String(64), nullable=False),
    Column("base_model", Text, nullable=False),
    Column("adapter_path", Text, nullable=False),
    Column("step", Integer),
    Column("checkpoint_id", String(64)),
    Column("metrics", Text),
    Column("created_at", Double, nullable=False),
    UniqueConstraint("model_id"),
    UniqueConstraint("checkpoint_id"),
    Index(None, "project_id"),
    Index(None, "job_id"),
    sqlite_autoincrement=True,
)

checkpoint_permissions = Table(
    "checkpoint_permissions",
    metadata,
    _number(),
    Column("permission_id", String(64), nullable=False),
    Column("model_id", String(255), ForeignKey("tuned_models.model_id", ondelete="CASCADE"), nullable=False),
    _project_id(),
    Column("created_at", Double, nullable=False),
    UniqueConstraint("permission_id"),
    UniqueConstraint("model_id", "project_id"),
    sqlite_autoincrement=True,
)

webhooks = Table(
    "webhooks",
    metadata,
    _number(),
    Column("webhook_id", String(64), nullable=False),
    _project_id(),
    Column("url", Text, nullable=False),
    Column("secret", Text, nullable=False),  # as it is: a signature cannot be made from a hash of it
    Column("event_types", Text, nullable=False),  # separated by blanks
    Column("created_at", Double, nullable=False),
    UniqueConstraint("webhook_id"),
    Index(None, "project_id"),
    sqlite_autoincrement=True,
)

# What is still to be told to a webhook, and what was. `message_id` is what the receiver tells repetitions by.
webhook_deliveries = Table(
    "webhook_deliveries",
    metadata,
    _number(),
    Column("message_id", String(64), nullable=False),
    Column("webhook_id", String(64), ForeignKey("webhooks.webhook_id", ondelete="CASCADE"), nullable=False),
    Column("body", Text, nullable=False),
    Column("status", String(16), nullable=False),
    Column("num_attempts", Integer, nullable=False),
    Column("next_at", Double, nullable=False),
    Column("last_answer", Text),
    Column("created_at", Double, nullable=False),
    UniqueConstraint("message_id"),
    Index(None, "status", "next_at"),
    sqlite_autoincrement=True,
)
