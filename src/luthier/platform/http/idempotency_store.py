"""Answers by idempotency key: of several equal requests one is carried out, and all get its answer.

The first to insert the row does the work. A row without an answer that is older than `TAKE_OVER_SECONDS` belongs to a
process that died at it: the next request takes it over, and the time in the row, which changes by that, is what turns
the first one's late answer away. One that is from the future was made before the clock was set back, and is taken over
at once: a server knows by itself what it is at.
"""

from __future__ import annotations

from typing import Final, Literal

from sqlalchemy import ColumnElement, delete, insert, select, update

from luthier.core.frozen_model import FrozenModel
from luthier.core.system.clock_jump import SLACK_SECONDS
from luthier.platform.db.store import Store
from luthier.platform.db.tables import idempotency_keys as table

KEPT_SECONDS: Final = 24 * 3600.0
TAKE_OVER_SECONDS: Final = 60.0
"""Longer than any work that is done behind such a key may take."""


class Turn(FrozenModel):
    """What a request with an idempotency key has to do.

    Attributes:
        kind: "work": it is the first, does the work and then calls `finish` or `forget`. "replay": it gets the stored
            answer. "wait": the first is still at work. "other": the key came with another request before.
        ticket: Of "work": the time of the row, which proves that the row is still its own.
        status: Of "replay": the HTTP status of the first answer.
        answer: Of "replay": the body of the first answer.
        seconds: Of "wait": seconds until the row can be taken over.
    """

    kind: Literal["work", "replay", "wait", "other"]
    ticket: float = 0.0
    status: int = 0
    answer: str = ""
    seconds: float = 0.0


class IdempotencyStore(Store):
    """The idempotency keys of one database."""

    def begin(self, project_id: str, key: str, request_sha256: str) -> Turn:
        """Ask whose turn it is."""
        with self._write() as connection:
            now = self._database.clock(connection)
            is_it = _is(project_id, key)
            row = connection.execute(select(table).where(is_it)).mappings().first()
            mine = Turn(kind="work", ticket=now)
            if row is None:
                values = {"project_id": project_id, "key": key, "request_sha256": request_sha256, "created_at": now}
                connection.execute(insert(table).values(**values))
                return mine
            age = now - row["created_at"]
            is_over = age > (TAKE_OVER_SECONDS if row["status"] is None else KEPT_SECONDS)
            if row["status"] is None and age < -SLACK_SECONDS:
                is_over = True  # the clock was set back since: its own time to be taken over is hours away
            if row["request_sha256"] != request_sha256 and not is_over:
                return Turn(kind="other")
            if is_over:
                # The new time is the new ticket: the one who held it before can neither finish nor forget the row now.
                values = {"request_sha256": request_sha256, "created_at": now, "status": None, "answer": None}
                connection.execute(update(table).where(is_it).values(**values))
                return mine
            if row["status"] is None:
                return Turn(kind="wait", seconds=TAKE_OVER_SECONDS - age)
            return Turn(kind="replay", status=row["status"], answer=row["answer"])

    def finish(self, project_id: str, key: str, ticket: float, *, status: int, answer: str) -> None:
        """Keep the answer; without effect where another has taken the work over."""
        is_it = _is(project_id, key) & (table.c.created_at == ticket)
        with self._write() as connection:
            connection.execute(update(table).where(is_it).values(status=status, answer=answer))

    def forget(self, project_id: str, key: str, ticket: float) -> None:
        """Let the next request with this key do the work: this one failed and has changed nothing."""
        # status NULL: an answer that was stored is never forgotten.
        is_it = _is(project_id, key) & (table.c.created_at == ticket) & table.c.status.is_(None)
        with self._write() as connection:
            connection.execute(delete(table).where(is_it))

    def sweep(self) -> int:
        """Remove the keys that are older than `KEPT_SECONDS`; returns how many."""
        with self._write() as connection:
            oldest = self._database.clock(connection) - KEPT_SECONDS
            return connection.execute(delete(table).where(table.c.created_at < oldest)).rowcount


def _is(project_id: str, key: str) -> ColumnElement[bool]:
    return (table.c.project_id == project_id) & (table.c.key == key)
