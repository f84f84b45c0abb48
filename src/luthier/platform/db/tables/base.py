"""What all tables share: how constraints are named, and columns that many have."""

from __future__ import annotations

from sqlalchemy import Column, ForeignKey, Integer, MetaData, String

# Fixed names for constraints: a later migration can only drop or change what it can name on both databases.
metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def run_id(*, is_key: bool = False, is_optional: bool = False) -> Column[str]:
    """The run that a row goes with."""
    target = ForeignKey("runs.run_id", ondelete="CASCADE")
    return Column("run_id", String(64), target, primary_key=is_key, nullable=is_optional)


def number() -> Column[int]:
    """The order in which rows were made."""
    return Column("number", Integer, primary_key=True, autoincrement=True)


def project_id() -> Column[str]:
    """The project that a row goes with."""
    return Column("project_id", String(64), ForeignKey("projects.project_id", ondelete="CASCADE"), nullable=False)
