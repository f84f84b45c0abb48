"""Passkeys of members, and the sessions that were begun with one."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0023"
down_revision = "0022"


def upgrade() -> None:
    """Add the table, and the column; no session of before was begun with a passkey."""
    op.create_table(
        "passkeys",
        sa.Column("number", sa.Integer(), primary_key=True, autoincrement=True),
        sa.Column("passkey_id", sa.String(64), nullable=False),
        sa.Column("member_id", sa.String(64), sa.ForeignKey("members.member_id", ondelete="CASCADE"), nullable=False),
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("credential_id", sa.String(1400), nullable=False),
        sa.Column("rp_id", sa.String(255), nullable=False),
        sa.Column("public_key", sa.Text(), nullable=False),
        sa.Column("sign_count", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("used_at", sa.Double()),
        sa.UniqueConstraint("passkey_id"),
        sa.UniqueConstraint("credential_id"),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_passkeys_member_id"), "passkeys", ["member_id"])
    op.create_index(op.f("ix_passkeys_rp_id"), "passkeys", ["rp_id"])
    with op.batch_alter_table("web_sessions") as sessions:
        sessions.add_column(sa.Column("passkey_id", sa.String(64)))
