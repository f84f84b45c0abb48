"""Names, notes and tags of runs, the values that runs are searched and sorted by, and saved views of their list.

The values of the runs that there are, are taken from their stored plans, results and evaluations.
"""

from __future__ import annotations

import json
from typing import Any

import sqlalchemy as sa
from alembic import op

from luthier.platform.db.run_values import default_name, of_evaluation, of_plan, of_result, rows_of

revision = "0011"
down_revision = "0010"

_BATCH = 200


def upgrade() -> None:
    """Make the tables and fill in the values of the runs that there are."""
    op.create_table(
        "run_labels",
        sa.Column("run_id", sa.String(64), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("note", sa.Text, nullable=False),
        sa.Column("group_name", sa.String(100), nullable=False),
        sa.Column("is_starred", sa.Integer, nullable=False, server_default="0"),
        sa.Column("is_archived", sa.Integer, nullable=False, server_default="0"),
        sa.PrimaryKeyConstraint("run_id", name="pk_run_labels"),
    )
    op.create_table(
        "run_tags",
        sa.Column("run_id", sa.String(64), nullable=False),
        sa.Column("tag", sa.String(50), nullable=False),
        sa.PrimaryKeyConstraint("run_id", "tag", name="pk_run_tags"),
    )
    op.create_index("ix_run_tags_tag", "run_tags", ["tag"])
    values = op.create_table(
        "run_values",
        sa.Column("run_id", sa.String(64), nullable=False),
        sa.Column("key", sa.String(100), nullable=False),
        sa.Column("number", sa.Double),
        sa.Column("text", sa.String(200)),
        sa.ForeignKeyConstraint(["run_id"], ["runs.run_id"], name="fk_run_values_run_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run_id", "key", name="pk_run_values"),
    )
    op.create_index("ix_run_values_key_number", "run_values", ["key", "number"])
    op.create_index("ix_run_values_key_text", "run_values", ["key", "text"])
    op.create_table(
        "run_views",
        sa.Column("number", sa.Integer, autoincrement=True, nullable=False),
        sa.Column("project_id", sa.String(64), nullable=False),
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("query", sa.Text, nullable=False),
        sa.Column("created_by", sa.String(200), nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.ForeignKeyConstraint(
            ["project_id"], ["projects.project_id"], name="fk_run_views_project_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("number", name="pk_run_views"),
        sa.UniqueConstraint("project_id", "name", name="uq_run_views_project_id_name"),
        sqlite_autoincrement=True,
    )
    _fill(op.get_bind(), values)


def _fill(connection: sa.Connection, values: sa.Table) -> None:
    """The values of all stored runs, a batch at a time: documents are large."""
    named = _datasets(connection)
    batches = (
        "SELECT number, run_id, base_model, created_at, result FROM runs WHERE number > :last "
        "ORDER BY number LIMIT :most"
    )
    last = 0
    while rows := connection.execute(sa.text(batches), {"last": last, "most": _BATCH}).mappings().all():
        found: list[dict[str, Any]] = []
        for row in rows:
            found += rows_of(row["run_id"], _values_of(connection, row, named))
        if found:
            connection.execute(sa.insert(values), found)
        last = rows[-1]["number"]


def _values_of(connection: sa.Connection, row: sa.RowMapping, named: dict[tuple[str, str], str]) -> dict[str, Any]:
    key = {"run_id": row["run_id"]}
    plan = json.loads(
        connection.execute(sa.text("SELECT document FROM plans WHERE run_id = :run_id"), key).scalar() or "{}"
    )
    found = dict(of_plan(plan))
    if row["result"]:
        found |= of_result(json.loads(row["result"]))
    query = "SELECT document FROM evaluations WHERE run_id = :run_id ORDER BY number DESC LIMIT 1"
    if (evaluation := connection.execute(sa.text(query), key).scalar()) is not None:
        found |= of_evaluation(json.loads(evaluation))
    train = (plan.get("data") or {}).get("train") or {}
    query = "SELECT project_id FROM jobs WHERE run_id = :run_id ORDER BY number DESC LIMIT 1"
    project = connection.execute(sa.text(query), key).scalar() or "default"
    dataset = named.get((project, str(train.get("sha256", ""))))
    if dataset is not None:
        found["dataset"] = dataset[:200]
    found["name"] = default_name(str(train.get("file", "")), dataset, row["base_model"], row["created_at"])[:200]
    return found


def _datasets(connection: sa.Connection) -> dict[tuple[str, str], str]:
    """The name of the newest dataset of each project that holds a file, by project and digest."""
    query = (
        "SELECT datasets.project_id, files.sha256, datasets.name FROM datasets "
        "JOIN dataset_versions ON dataset_versions.dataset_id = datasets.dataset_id "
        "JOIN files ON files.file_id = dataset_versions.file_id ORDER BY datasets.number"
    )
    return {(row[0], row[1]): row[2] for row in connection.execute(sa.text(query))}
