"""The project of a stored generation."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0024"
down_revision = "0023"


def upgrade() -> None:
    """Add the column. Where there is one project alone, all generations are its own; else nobody can know whose."""
    op.add_column("generations", sa.Column("project_id", sa.String(64)))
    connection = op.get_bind()
    projects = connection.execute(sa.text("SELECT project_id FROM projects")).scalars().all()
    if len(projects) == 1:
        connection.execute(sa.text("UPDATE generations SET project_id = :project_id"), {"project_id": projects[0]})
