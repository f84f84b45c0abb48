"""What all tables share: how constraints are named, and columns that many have."""

from __future__ import annotations

from typing import Any

import sqlalchemy
from sqlalchemy import Column, Dialect, ForeignKey, Integer, MetaData, TypeDecorator

from luthier.core.errors import RequestError

_SHOWN_CHARACTERS = 60
# Fixed names for constraints: a later migration can only drop or change what it can name on both databases.
metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)


class String(TypeDecorator[str]):
    """Text of at most so many characters. SQLite itself would keep any length, where PostgreSQL fails.

    Names have stricter limits where people give them; this is the last check, the same for both databases. What is
    only looked for may be of any length.
    """

    impl = sqlalchemy.String
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:  # noqa: ARG002
        """The value that is written.

        Raises:
            RequestError: it is longer than the column.
        """
        most = self.impl_instance.length  # type: ignore[attr-defined]
        num = 0 if value is None else len(value)
        if value is not None and most is not None and num > most:
            shown = value[:_SHOWN_CHARACTERS]
            raise RequestError(
                f"a name of {num:,} characters: {shown!r} ...",
                expected=f"at most {most:,} characters",
                do="choose a shorter name",
            )
        return value

    def coerce_compared_value(self, op: Any, value: Any) -> Any:  # noqa: ARG002
        """The type of what a column is compared with."""
        return sqlalchemy.String()


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
