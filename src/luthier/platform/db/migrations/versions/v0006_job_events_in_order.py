"""The newest events of a job are found without looking at the others: clients ask for them all the time."""

from __future__ import annotations

from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Make the index."""
    op.create_index("ix_job_events_job_id_number", "job_events", ["job_id", "number"])
