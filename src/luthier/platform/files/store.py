"""Files of projects: a row each, the content shared among all that have the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Literal

from sqlalchemy import Column, ColumnElement, Connection, RowMapping, delete, insert, or_, select, update

from luthier.core.errors import ConflictError, NotFoundError, RequestError
from luthier.core.ids import is_id, new_id
from luthier.core.system.artifact_transfer import ArtifactReader
from luthier.platform.db.database import Database
from luthier.platform.db.tables import dataset_versions, datasets, files
from luthier.platform.files.artifacts import ArtifactStore
from luthier.platform.files.records import PURPOSES, Purpose, StoredFile

TRACE_SECONDS: Final = 24 * 3600.0
"""How long a deleted file is still known by its place in lists: who walks through one may delete as they go."""
_DELETED: Final = "deleted"


class FileStore:
    """What projects have. A file of another project, or one that has expired, is as one that is not there.

    Every method but `add` is one short transaction, and what it removes is gone once it has ended.
    """

    def __init__(self, database: Database, artifacts: ArtifactStore) -> None:
        self._database, self._artifacts = database, artifacts

    def add(
        self,
        project_id: str,
        partial: Path,
        sha256: str,
        *,
        filename: str,
        purpose: Purpose,
        expires_after_seconds: int | None = None,
    ) -> StoredFile:
        """Keep a finished file of `ArtifactStore.incoming`, which is moved away from there."""
        made: list[StoredFile] = []

        def insert_row(connection: Connection) -> None:
            now = self._database.clock(connection)
            made.append(
                insert_file(
                    connection,
                    StoredFile(
                        file_id=unused_id(connection, files.c.file_id, "file"),
                        project_id=project_id,
                        filename=filename,
                        purpose=purpose,
                        sha256=sha256,
                        num_bytes=num_bytes,
                        created_at=now,
                        expires_at=None if expires_after_seconds is None else now + expires_after_seconds,
                    ),
                )
            )

        num_bytes = partial.stat().st_size
        self._artifacts.adopt(partial, sha256, "file", insert_row)
        return made[-1]

    def get(self, project_id: str, file_id: str) -> StoredFile:
        """One file. Raises NotFoundError."""
        with self._database.read() as connection:
            return _file(self._row(connection, project_id, file_id))

    def list(
        self,
        project_id: str,
        *,
        purpose: str | None = None,
        after: str | None = None,
        limit: int = 10_000,
        order: Literal["asc", "desc"] = "desc",
    ) -> tuple[list[StoredFile], bool]:
        """At most `limit` files behind the one with id `after`, newest first or oldest first, and whether more follow.

        Raises RequestError where `after` was never a file of this project.
        """
        query = select(files).where(files.c.project_id == project_id, self._is_there())
        if purpose is not None:
            if purpose not in PURPOSES:
                return [], False
            query = query.where(files.c.purpose == purpose)
        with self._database.read() as connection:
            if after is not None:
                number = self._number(connection, project_id, after)
                query = query.where(files.c.number > number if order == "asc" else files.c.number < number)
            ordered = query.order_by(files.c.number.asc() if order == "asc" else files.c.number.desc())
            found = [_file(row) for row in connection.execute(ordered.limit(limit + 1)).mappings()]
        return found[:limit], len(found) > limit

    def open(self, file: StoredFile) -> ArtifactReader:
        """Its content as a stream; the reader has to prove the digest."""
        return self._artifacts.open(file.sha256)

    def delete(self, project_id: str, file_id: str) -> StoredFile:
        """Forget a file, and its content where nobody else has the same.

        Raises NotFoundError, and ConflictError for one that holds the rows of a dataset.
        """
        with self._database.write() as connection:
            row = self._row(connection, project_id, file_id)
            self._check_is_free(connection, file_id)
            connection.execute(update(files).where(files.c.number == row["number"]).values(status=_DELETED))
        self._artifacts.forget_unused([row["sha256"]])
        return _file(row)

    def sweep(self) -> int:
        """Delete what has expired, and the traces of what was deleted a day ago; returns how many files expired."""
        with self._database.write() as connection:
            now = self._database.clock(connection)
            has_expired = (files.c.status != _DELETED) & (files.c.expires_at <= now)
            expired = connection.execute(select(files.c.number, files.c.sha256).where(has_expired)).all()
            if expired:
                connection.execute(update(files).where(has_expired).values(status=_DELETED))
            is_trace = (files.c.status == _DELETED) & (files.c.created_at <= now - TRACE_SECONDS)
            connection.execute(delete(files).where(is_trace))
        if expired:
            self._artifacts.forget_unused(row.sha256 for row in expired)
        return len(expired)

    def _check_is_free(self, connection: Connection, file_id: str) -> None:
        holding = (
            select(datasets.c.name, datasets.c.dataset_id, dataset_versions.c.number)
            .join(datasets, datasets.c.dataset_id == dataset_versions.c.dataset_id)
            .where(dataset_versions.c.file_id == file_id)
        )
        if (held := connection.execute(holding.limit(1)).first()) is not None:
            raise ConflictError(
                f"the file {file_id} holds the rows of version {held.number} of the dataset {held.name!r}",
                expected="a file that no dataset needs",
                do=f"remove the dataset first, on its page /datasets/{held.dataset_id}",
            )

    def _is_there(self) -> ColumnElement[bool]:
        return is_there(self._database)

    def _row(self, connection: Connection, project_id: str, file_id: str) -> RowMapping:
        is_it = (files.c.project_id == project_id) & (files.c.file_id == file_id)
        row = None
        if is_id(file_id, "file"):
            row = connection.execute(select(files).where(is_it, self._is_there())).mappings().first()
        if row is None:
            raise no_such_file(file_id)
        return row

    def _number(self, connection: Connection, project_id: str, file_id: str) -> int:
        is_it = (files.c.project_id == project_id) & (files.c.file_id == file_id)
        number = None
        if is_id(file_id, "file"):
            number = connection.execute(select(files.c.number).where(is_it)).scalar()
        if number is None:
            raise RequestError(
                f"after={file_id!r} is not in this list",
                expected="the id of a file in it",
                do="begin again without `after`",
            )
        return int(number)


def unused_id(connection: Connection, column: Column[str], kind: str) -> str:
    """A new id that no row has, within a transaction that writes: of those of one second some would be equal."""
    while True:
        made = new_id(kind)
        if connection.execute(select(column).where(column == made)).first() is None:
            return made


def is_there(database: Database) -> ColumnElement[bool]:
    """Of a row of files: that it was neither deleted nor has expired."""
    is_fresh = or_(files.c.expires_at.is_(None), files.c.expires_at > database.now)
    return (files.c.status != _DELETED) & is_fresh


def hold_file(connection: Connection, database: Database, project_id: str, file_id: str) -> None:
    """Let a file never expire, within the transaction that gives it to who needs it. Raises NotFoundError."""
    is_it = (files.c.project_id == project_id) & (files.c.file_id == file_id)
    if connection.execute(update(files).where(is_it, is_there(database)).values(expires_at=None)).rowcount == 0:
        raise no_such_file(file_id)


def no_such_file(file_id: str) -> NotFoundError:
    """What to tell who asks for a file that the project has not."""
    return NotFoundError(
        f"no such file: {file_id!r}",
        expected="the id of a file of this project, such as file-20261125-093000-1f2e3d",
        do="list what there is: GET /v1/files; one that has expired must be uploaded again",
    )


def insert_file(connection: Connection, file: StoredFile) -> StoredFile:
    """Add a row within a transaction that makes its content known."""
    connection.execute(insert(files).values(**file.model_dump()))
    return file


def _file(row: RowMapping) -> StoredFile:
    values: dict[str, Any] = {name: value for name, value in row.items() if name != "number"}
    return StoredFile(**values)
