"""The workflow of a job, and jobs of a project by their kind."""

from __future__ import annotations

import json

import sqlalchemy as sa
from alembic import op

revision = "0020"
down_revision = "0019"

_BATCH = 200


def upgrade() -> None:
    """Add the column and the indexes, and fill the column from the orders that jobs carry out."""
    with op.batch_alter_table("jobs") as jobs:
        jobs.add_column(sa.Column("workflow_id", sa.String(64)))
    op.create_index(op.f("ix_jobs_workflow_id"), "jobs", ["workflow_id"])
    op.create_index(op.f("ix_jobs_project_id_kind_number"), "jobs", ["project_id", "kind", "number"])
    _fill(op.get_bind())


def _fill(connection: sa.Connection) -> None:
    """A batch at a time: documents are large."""
    batches = "SELECT number, document FROM jobs WHERE kind = 'workflow' AND number > :last ORDER BY number LIMIT :most"
    change = sa.text("UPDATE jobs SET workflow_id = :workflow_id WHERE number = :number")
    last = 0
    while rows := connection.execute(sa.text(batches), {"last": last, "most": _BATCH}).all():
        for number, document in rows:
            if workflow_id := (json.loads(document).get("workflow") or {}).get("workflow_id"):
                connection.execute(change, {"workflow_id": workflow_id, "number": number})
        last = rows[-1][0]
