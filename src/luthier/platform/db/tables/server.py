"""Tables of the server: projects, keys, members, invitations, inbox, files, models, webhooks, datasets and exports."""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    Table,
    Text,
    UniqueConstraint,
    event,
)

from luthier.platform.db.tables.base import String, metadata, number, project_id

projects = Table(
    "projects",
    metadata,
    number(),
    Column("project_id", String(64), nullable=False),
    Column("name", String(100), nullable=False),
    Column("created_at", Double, nullable=False),
    Column("max_file_bytes", BigInteger),  # of all its files; None for no limit
    UniqueConstraint("project_id"),
    UniqueConstraint("name"),
    sqlite_autoincrement=True,
)


@event.listens_for(projects, "after_create")
def _add_default_project(_table: Table, connection: Connection, **_options: Any) -> None:
    # With the table itself, so that no process ever sees a home without its default project.
    values = {"project_id": "default", "name": "default", "created_at": time.time()}
    connection.execute(projects.insert().values(**values))


api_keys = Table(
    "api_keys",
    metadata,
    number(),
    Column("key_id", String(64), nullable=False),
    project_id(),
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
    number(),
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


@event.listens_for(audit_log, "after_create")
def _make_audit_log_append_only(_table: Table, connection: Connection, **_options: Any) -> None:
    """Triggers that refuse changes: against slips and bugs, not against the owner of the database."""
    if connection.dialect.name == "sqlite":
        for change in ("UPDATE", "DELETE"):
            connection.exec_driver_sql(
                f"CREATE TRIGGER audit_log_no_{change.lower()} BEFORE {change} ON audit_log "
                "BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END"
            )
        return
    connection.exec_driver_sql(
        "CREATE FUNCTION audit_log_refuse() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'the audit log is append-only'; END $$"
    )
    connection.exec_driver_sql(
        "CREATE TRIGGER audit_log_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_log "
        "FOR EACH STATEMENT EXECUTE FUNCTION audit_log_refuse()"
    )


files = Table(
    "files",
    metadata,
    number(),
    Column("file_id", String(64), nullable=False),
    project_id(),
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
    number(),
    Column("upload_id", String(64), nullable=False),
    project_id(),
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
    number(),
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
    number(),
    Column("model_id", String(255), nullable=False),
    project_id(),
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
    number(),
    Column("permission_id", String(64), nullable=False),
    Column("model_id", String(255), ForeignKey("tuned_models.model_id", ondelete="CASCADE"), nullable=False),
    project_id(),
    Column("created_at", Double, nullable=False),
    UniqueConstraint("permission_id"),
    UniqueConstraint("model_id", "project_id"),
    sqlite_autoincrement=True,
)

webhooks = Table(
    "webhooks",
    metadata,
    number(),
    Column("webhook_id", String(64), nullable=False),
    project_id(),
    Column("url", Text, nullable=False),
    Column("secret", Text, nullable=False),  # in clear: a signature cannot be made from a hash of it
    Column("event_types", Text, nullable=False),  # separated by blanks
    Column("created_at", Double, nullable=False),
    UniqueConstraint("webhook_id"),
    Index(None, "project_id"),
    sqlite_autoincrement=True,
)

# Messages to webhooks, delivered or not. Receivers recognise repetitions by `message_id`.
webhook_deliveries = Table(
    "webhook_deliveries",
    metadata,
    number(),
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

# Who is signed in: a member, or the owner of a key, or, with neither, a person at the machine itself.
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
    # That it was begun with; it ends with it. No foreign key: SQLite adds a column with one only by copying the table.
    Column("passkey_id", String(64)),
)

# What members sign in with in place of a password (WebAuthn). credential_id and public_key (COSE) are base64url.
passkeys = Table(
    "passkeys",
    metadata,
    number(),
    Column("passkey_id", String(64), nullable=False),
    Column("member_id", String(64), ForeignKey("members.member_id", ondelete="CASCADE"), nullable=False),
    Column("name", String(100), nullable=False),
    Column("credential_id", String(1400), nullable=False),  # by the authenticator, at most 1,023 bytes
    Column("rp_id", String(255), nullable=False),  # the host that it signs in at
    Column("public_key", Text, nullable=False),
    Column("sign_count", BigInteger, nullable=False),  # of the last sign-in; 0 of authenticators that do not count
    Column("created_at", Double, nullable=False),
    Column("used_at", Double),
    UniqueConstraint("passkey_id"),
    UniqueConstraint("credential_id"),
    Index(None, "member_id"),
    Index(None, "rp_id"),
    sqlite_autoincrement=True,
)

# Links that sign a person at the machine in, once.
sign_in_links = Table(
    "sign_in_links",
    metadata,
    Column("digest", String(64), primary_key=True),
    Column("expires_at", Double, nullable=False),
)

# Groups of an identity provider: who is in one is a member of the project, with the role.
sign_in_groups = Table(
    "sign_in_groups",
    metadata,
    Column("name", String(255), primary_key=True),
    Column("project_id", String(64), ForeignKey("projects.project_id", ondelete="CASCADE"), primary_key=True),
    Column("role", String(20), nullable=False),
    Column("created_at", Double, nullable=False),
)

# Members who sign in by an identity provider: as whom they are known there.
member_identities = Table(
    "member_identities",
    metadata,
    Column("member_id", String(64), ForeignKey("members.member_id", ondelete="CASCADE"), primary_key=True),
    Column("issuer", String(500), nullable=False),
    Column("subject", String(255), nullable=False),
    Index(None, "issuer", "subject"),
)

# Sign-ins that are in progress at an identity provider. digest: SHA-256 of their state, or of what names a choice.
sign_in_flows = Table(
    "sign_in_flows",
    metadata,
    Column("digest", String(64), primary_key=True),
    Column("browser_digest", String(64), nullable=False),  # of the cookie of the browser that began it
    Column("document", Text, nullable=False),
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

# A person's note on a row of a version: the newest counts. row: its place in the file, from 1 on.
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


# Links that make a member. digest: SHA-256 of the link's 256 random bits.
invitations = Table(
    "invitations",
    metadata,
    number(),
    Column("invitation_id", String(64), nullable=False),
    project_id(),
    Column("digest", String(64), nullable=False),
    Column("role", String(20), nullable=False),
    Column("recipient", String(100), nullable=False),
    Column("created_by", String(200), nullable=False),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double, nullable=False),
    Column("accepted_at", Double),
    Column("accepted_by", String(100)),  # the name of the member
    Column("revoked_at", Double),
    UniqueConstraint("invitation_id"),
    UniqueConstraint("digest"),
    Index(None, "project_id"),
    sqlite_autoincrement=True,
)

# What people have decided about an entry of the inbox; an entry without a row is unassigned and open. item_id: a digest
# of what the entry is about. done_mark: the state of that at the time; another state opens the entry again.
inbox_items = Table(
    "inbox_items",
    metadata,
    Column("project_id", String(64), ForeignKey("projects.project_id", ondelete="CASCADE"), primary_key=True),
    Column("item_id", String(64), primary_key=True),
    Column("assignee_id", String(64), ForeignKey("members.member_id", ondelete="SET NULL")),
    Column("assigned_by", String(200), nullable=False),
    Column("due_at", Double),
    Column("snoozed_until", Double),
    Column("done_at", Double),
    Column("done_by", String(200), nullable=False),
    Column("done_mark", String(64), nullable=False),
    Column("updated_at", Double, nullable=False),
)
