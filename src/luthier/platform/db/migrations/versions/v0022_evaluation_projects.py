"""The project of an evaluation without a run."""

from __future__ import annotations

import json

import sqlalchemy as sa
from alembic import op

revision = "0022"
down_revision = "0021"


def upgrade() -> None:
    """Add the column, and fill it from the automl runs in which prompting was enough."""
    with op.batch_alter_table("evaluations") as evaluations:
        evaluations.add_column(sa.Column("project_id", sa.String(64)))
    _fill(op.get_bind())


def _fill(connection: sa.Connection) -> None:
    change = sa.text(
        "UPDATE evaluations SET project_id = :project_id WHERE evaluation_id = :evaluation_id AND run_id IS NULL"
    )
    workflows = "SELECT project_id, document FROM pipelines WHERE kind = 'auto' AND project_id <> 'default'"
    for project_id, document in connection.execute(sa.text(workflows)).all():
        for stage in json.loads(document).get("stages", ()):
            if evaluation_id := (stage.get("came") or {}).get("evaluation_id"):
                connection.execute(change, {"project_id": project_id, "evaluation_id": evaluation_id})
