"""Tables of the list of runs: what people write about a run, the values it is searched and sorted by, saved views."""

from __future__ import annotations

from sqlalchemy import Column, Double, Index, Integer, String, Table, Text, UniqueConstraint

from luthier.platform.db.tables.base import metadata, number, project_id, run_id

# No foreign key: a run that waits in the queue has a name and tags before it has a row in `runs`.
run_labels = Table(
    "run_labels",
    metadata,
    Column("run_id", String(64), primary_key=True),
    Column("name", String(200), nullable=False),  # empty: the default name of `run_values`
    Column("note", Text, nullable=False),
    Column("group_name", String(100), nullable=False),
    Column("is_starred", Integer, nullable=False, server_default="0"),
    Column("is_archived", Integer, nullable=False, server_default="0"),  # 2: deleted, and its job is still there
)

run_tags = Table(
    "run_tags",
    metadata,
    Column("run_id", String(64), primary_key=True),
    Column("tag", String(50), primary_key=True),
    Index(None, "tag"),
)

# One row for each value of a run's plan, result and evaluation, and its default name. number: None for text.
run_values = Table(
    "run_values",
    metadata,
    run_id(is_key=True),
    Column("key", String(100), primary_key=True),
    Column("number", Double),
    Column("text", String(200)),
    Index(None, "key", "number"),
    Index(None, "key", "text"),
)

# A filter, columns and an order under a name. query: as the address of the list has it.
run_views = Table(
    "run_views",
    metadata,
    number(),
    project_id(),
    Column("name", String(100), nullable=False),
    Column("query", Text, nullable=False),
    Column("created_by", String(200), nullable=False),
    Column("created_at", Double, nullable=False),
    UniqueConstraint("project_id", "name"),
    sqlite_autoincrement=True,
)
