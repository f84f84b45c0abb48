"""Documents about what is watched: settings, policies, how far a look is, mails that wait."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from sqlalchemy import ColumnElement, Connection, delete, select
from sqlalchemy.exc import IntegrityError

from luthier.platform.db.store import RecordTable, Store
from luthier.platform.db.tables import watches


@dataclass(frozen=True, slots=True)
class WatchDocument:
    """One document about what is watched.

    Attributes:
        project_id: The project.
        kind: The kind of the document.
        name: The model it is about; empty where it is about the whole project.
        document: Its JSON text.
    """

    project_id: str
    kind: str
    name: str
    document: str


_DOCUMENTS: Final = RecordTable(watches, WatchDocument)


class WatchStore(Store):
    """The documents of all projects, one for each project, kind and name."""

    def get(self, project_id: str, kind: str, name: str = "") -> str | None:
        """A document; None where there is none."""
        found = self._find(_DOCUMENTS, project_id=project_id, kind=kind, name=name)
        return None if found is None else found.document

    def list(self, kind: str, project_id: str | None = None) -> list[WatchDocument]:
        """All documents of a kind, of one project or of all, in the order of their names."""
        order = [watches.c.project_id, watches.c.name]
        return self._list(_DOCUMENTS, order=order, kind=kind, project_id=project_id)

    def change(self, project_id: str, kind: str, name: str, change: Callable[[str | None], str | None]) -> str | None:
        """Replace a document by one that is computed from it.

        Args:
            project_id: The project.
            kind: The kind of the document.
            name: The model it is about; empty for the whole project.
            change: Gets the document (None if there is none) and returns the new one (None to remove it). It is called
                again where another process has changed the document meanwhile.

        Returns:
            The current document.
        """
        while True:
            # Optimistic: `change` runs outside the transaction, which holds the comparison and the write alone.
            before = self.get(project_id, kind, name)
            after = change(before)
            try:
                with self._write() as connection:
                    if is_still(connection, project_id, kind, name, before):
                        put(connection, project_id, kind, name, after)
                        return after
            except IntegrityError:
                # Another process inserted the document after it was read as missing: once more. Where nothing has
                # changed, the project is gone, and no later attempt succeeds either.
                if self.get(project_id, kind, name) == before:
                    raise

    def put(self, project_id: str, kind: str, name: str, document: str) -> None:
        """Keep a document in place of the one that was there."""
        self.change(project_id, kind, name, lambda _: document)

    def remove(self, project_id: str, kind: str, name: str = "") -> None:
        """Delete a document; a missing one changes nothing."""
        with self._write() as connection:
            put(connection, project_id, kind, name, None)


def put(connection: Connection, project_id: str, kind: str, name: str, document: str | None) -> None:
    """Store a document in the transaction of a connection.

    Args:
        connection: Of a transaction that writes.
        project_id: The project that it belongs to.
        kind: The kind of document.
        name: Its name within the kind.
        document: As JSON text; None deletes it.
    """
    is_it = _is(project_id, kind, name)
    if document is None:
        connection.execute(delete(watches).where(is_it))
    else:
        _DOCUMENTS.put(connection, WatchDocument(project_id, kind, name, document))


def is_still(connection: Connection, project_id: str, kind: str, name: str, document: str | None) -> bool:
    """Whether a document is unchanged since it was read; its row is locked until the connection's transaction ends.

    Args:
        connection: Of the transaction.
        project_id: The project that it belongs to.
        kind: The kind of document.
        name: Its name within the kind.
        document: The JSON text that was read; None where there was none.
    """
    query = select(watches.c.document).where(_is(project_id, kind, name)).with_for_update()
    return connection.execute(query).scalar() == document


def _is(project_id: str, kind: str, name: str) -> ColumnElement[bool]:
    return (watches.c.project_id == project_id) & (watches.c.kind == kind) & (watches.c.name == name)
