"""What engines wrote, by the digest of all that decides it, so that the same request is never paid for twice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

from sqlalchemy import func, insert, select

from luthier.core.ports import Generation
from luthier.platform.db.store import Store
from luthier.platform.db.tables import generations

# SQLite takes 999 variables in one statement at the least.
_KEYS_A_QUERY: Final = 500


class GenerationStore(Store):
    """Generations by key. A key once taken keeps its generation: a second one for it is dropped."""

    def find(self, keys: Sequence[str]) -> dict[str, Generation]:
        """The generations that are there; a key that is absent from the answer was never kept."""
        found: dict[str, Generation] = {}
        with self._database.read() as connection:
            for start in range(0, len(keys), _KEYS_A_QUERY):
                part = keys[start : start + _KEYS_A_QUERY]
                query = select(generations.c.key, generations.c.document).where(generations.c.key.in_(part))
                for key, document in connection.execute(query):
                    found[key] = Generation.model_validate_json(document)
        return found

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
            keys = list(new)
            for start in range(0, len(keys), _KEYS_A_QUERY):
                part = keys[start : start + _KEYS_A_QUERY]
                query = select(generations.c.key).where(generations.c.key.in_(part))
                known |= set(connection.execute(query).scalars())
            rows = [
                {"key": key, "engine": engine, "document": generation.model_dump_json(), "created_at": now}
                for key, generation in new.items()
                if key not in known
            ]
            if rows:
                connection.execute(insert(generations), rows)

    def count(self) -> int:
        """How many generations are kept."""
        return int(self._scalar(select(func.count()).select_from(generations)) or 0)
