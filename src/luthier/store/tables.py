"""The tables as the code sees them today. How a database gets there is written in migrations/, append-only.

Documents (plans, results, events, evaluations) are JSON text of the core specs: the columns beside them are only what
is searched by. Nothing here is SQLite's own: PostgreSQL has the same tables.
"""

from __future__ import annotations

from sqlalchemy import Column, Double, ForeignKey, Index, Integer, MetaData, String, Table, Text, UniqueConstraint

# The newest migration. A test holds that this is the head of migrations/ and that the tables below are what it makes.
SCHEMA_VERSION = "0003"

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
    Column("num_bytes", Integer, nullable=False),
    Column("created_at", String(40), nullable=False),
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
    UniqueConstraint("job_id"),
    Index(None, "status"),
    sqlite_autoincrement=True,
)
