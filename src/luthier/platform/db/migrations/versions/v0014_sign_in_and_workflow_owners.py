"""Sign-in by an identity provider: groups, identities, sign-ins in progress. The project of a workflow's runs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    """Add the tables, and the column for the project of runs without their own job."""
    with op.batch_alter_table("runs") as runs:
        runs.add_column(sa.Column("project_id", sa.String(64)))
    op.create_table(
        "sign_in_groups",
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("project_id", sa.String(64), nullable=False),
        sa.Column("role", sa.String(20), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("name", "project_id", name="pk_sign_in_groups"),
        sa.ForeignKeyConstraint(
            ["project_id"], ["projects.project_id"], name="fk_sign_in_groups_project_id", ondelete="CASCADE"
        ),
    )
    op.create_table(
        "member_identities",
        sa.Column("member_id", sa.String(64), nullable=False),
        sa.Column("issuer", sa.String(500), nullable=False),
        sa.Column("subject", sa.String(255), nullable=False),
        sa.PrimaryKeyConstraint("member_id", name="pk_member_identities"),
        sa.ForeignKeyConstraint(
            ["member_id"], ["members.member_id"], name="fk_member_identities_member_id", ondelete="CASCADE"
        ),
    )
    op.create_index("ix_member_identities_issuer_subject", "member_identities", ["issuer", "subject"])
    op.create_table(
        "sign_in_flows",
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("browser_digest", sa.String(64), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.Column("expires_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("digest", name="pk_sign_in_flows"),
    )
