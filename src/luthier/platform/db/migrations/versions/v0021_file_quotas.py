"""How many bytes the files of a project may take."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0021"
down_revision = "0020"


def upgrade() -> None:
    """Add the column; no project has a limit yet."""
    with op.batch_alter_table("projects") as projects:
        projects.add_column(sa.Column("max_file_bytes", sa.BigInteger()))
