"""What engines wrote, by the digest of all that decides it, so that the same request is never paid for twice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

from sqlalchemy import ColumnElement, func, insert, select

from luthier.core.ids import sha256_document
from luthier.core.ports import Generation
from luthier.platform.db.database import Database
from luthier.platform.db.store import Store
from luthier.platform.db.tables import generations

# SQLite takes 999 variables in one statement at the least.
_KEYS_A_QUERY: Final = 500


class GenerationStore(Store):
    """Generations by key. A key once taken keeps its generation: a second one for it is dropped.

    Projects do not share them: the time of an answer would show what another project has asked.

    Args:
        database: Of the home.
        project_id: The project whose generations are found and kept; None keeps such that belong to no project, and
            finds those and what was stored before projects had their own.
    """

    def __init__(self, database: Database, project_id: str | None = None) -> None:
        super().__init__(database)
        self._project_id = project_id

    def of_project(self, project_id: str) -> GenerationStore:
        """The generations of one project, with those from before it had its own, where no other project was there."""
        return GenerationStore(self._database, project_id)

    def find(self, keys: Sequence[str]) -> dict[str, Generation]:
        """The generations that are there; a key that is absent from the answer was never kept."""
        by_stored = {self._stored(key): key for key in keys}
        found = {by_stored[stored]: made for stored, made in self._found(list(by_stored), ()).items()}
        if self._project_id is not None:
            is_own = (generations.c.project_id == self._project_id,)
            found |= self._found([key for key in keys if key not in found], is_own)
        return found

    def _found(self, keys: Sequence[str], where: Sequence[ColumnElement[bool]]) -> dict[str, Generation]:
        found: dict[str, Generation] = {}
        with self._database.read() as connection:
            for start in range(0, len(keys), _KEYS_A_QUERY):
                part = keys[start : start + _KEYS_A_QUERY]
                query = select(generations.c.key, generations.c.document).where(generations.c.key.in_(part), *where)
                for key, document in connection.execute(query):
                    found[key] = Generation.model_validate_json(document)
        return found

    def _stored(self, key: str) -> str:
        """The primary key of a generation: two projects may have one for the same request."""
        if self._project_id is None:
            return key
        return sha256_document({"key": key, "project_id": self._project_id})

    def keep(self, new: Mapping[str, Generation], *, engine: str) -> None:
        """Store generations, all in one transaction. One that is stored already stays as it is.

        Args:
            new: By the digest of all that decides them.
            engine: That wrote them, for people who read the table.
        """
        if not new:
            return
        now = datetime.now(UTC).isoformat(timespec="seconds")
        with self._write() as connection:
            # First writer wins: a generation that was handed out once must stay the same for all later readers.
            known: set[str] = set()
            stored = {self._stored(key): generation for key, generation in new.items()}
            keys = list(stored)
            for start in range(0, len(keys), _KEYS_A_QUERY):
                part = keys[start : start + _KEYS_A_QUERY]
                query = select(generations.c.key).where(generations.c.key.in_(part))
                known |= set(connection.execute(query).scalars())
            rows = [
                {
                    "key": key,
                    "engine": engine,
                    "document": generation.model_dump_json(),
                    "created_at": now,
                    "project_id": self._project_id,
                }
                for key, generation in stored.items()
                if key not in known
            ]
            if rows:
                connection.execute(insert(generations), rows)

    def count(self) -> int:
        """How many generations are kept."""
        return int(self._scalar(select(func.count()).select_from(generations)) or 0)
