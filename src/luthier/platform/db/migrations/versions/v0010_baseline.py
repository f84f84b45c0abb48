"""The tables of 0.1.0: where migrations begin.

The revision keeps the number of the last of the ten migrations that it replaced, so that a database which they made is
at the baseline already. New databases get the tables of the code and the newest revision: none is made by this file.
"""

from __future__ import annotations

revision = "0010"
down_revision = None


def upgrade() -> None:
    """Nothing to do: see above."""
