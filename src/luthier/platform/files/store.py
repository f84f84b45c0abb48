"""Files of projects: records and store; a row each, the content shared among all that have the same.

The quota of a project counts its files of any purpose, rows of datasets and results of jobs among them, and what
uploads in parts have announced. Each file counts in full, also where its content is shared. What a client brings is
refused beyond the quota; results of jobs are not: the work is done by then.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final, Literal, get_args

from sqlalchemy import Column, ColumnElement, Connection, Row, Select, delete, func, or_, select, update

from luthier.core.errors import ConflictError, FileQuotaError
from luthier.core.frozen_model import FrozenModel
from luthier.core.ids import is_id, new_id
from luthier.core.system.artifact_transfer import ArtifactReader
from luthier.core.text.byte_sizes import size
from luthier.platform.db.database import Database
from luthier.platform.db.store import Missing, RecordTable, Store, not_in_list
from luthier.platform.db.tables import dataset_versions, datasets, files, projects, uploads
from luthier.platform.files.artifacts import ArtifactStore

UploadPurpose = Literal["assistants", "batch", "fine-tune", "vision", "user_data", "evals"]
"""What a client may say that a file is for."""
Purpose = Literal[UploadPurpose, "assistants_output", "batch_output", "fine-tune-results"]
UPLOAD_PURPOSES: Final[tuple[UploadPurpose, ...]] = get_args(UploadPurpose)
PURPOSES: Final[tuple[Purpose, ...]] = (*UPLOAD_PURPOSES, "assistants_output", "batch_output", "fine-tune-results")
FileStatus = Literal["uploaded", "processed", "error"]
UploadStatus = Literal["pending", "completed", "cancelled", "expired"]

MIN_EXPIRY_SECONDS: Final = 3600
MAX_EXPIRY_SECONDS: Final = 2592000
"""How long after its making a file may expire: an hour to thirty days."""


class StoredFile(FrozenModel):
    """A file as its project knows it. Times are seconds since 1970 by the database's clock.

    Attributes:
        file_id: Its id, `file-...`.
        project_id: The project that it belongs to.
        filename: Its name for people; never part of a path.
        purpose: What it is for.
        sha256: The digest of its content, which names the artifact.
        num_bytes: Its size.
        status: `processed` as soon as it exists.
        status_details: Why its status is `error`.
        created_at: When it was made.
        expires_at: When it is deleted; None for never.
    """

    file_id: str
    project_id: str
    filename: str
    purpose: Purpose
    sha256: str
    num_bytes: int
    status: FileStatus = "processed"
    status_details: str | None = None
    created_at: float = 0.0
    expires_at: float | None = None


class Upload(FrozenModel):
    """A file that comes in parts. Times are seconds since 1970 by the database's clock.

    Attributes:
        upload_id: Its id, `upload-...`.
        project_id: The project that it belongs to.
        filename: The name of the file for people.
        purpose: What the file is for.
        mime_type: As the client announced it.
        num_bytes: The size of the whole file, as announced.
        status: Whether it still takes parts, or how it ended.
        created_at: When it began.
        expires_at: When it can no longer be completed.
        file_expires_after_seconds: The lifetime of the file that is made of it; None forever.
        file_id: The file that was made of it; None before it is completed.
    """

    upload_id: str
    project_id: str
    filename: str
    purpose: UploadPurpose
    mime_type: str
    num_bytes: int
    status: UploadStatus
    created_at: float
    expires_at: float
    file_expires_after_seconds: int | None = None
    file_id: str | None = None


class UploadPart(FrozenModel):
    """One part of an upload.

    Attributes:
        part_id: Its id, `part-...`.
        upload_id: The upload that it belongs to.
        sha256: The digest of its content.
        num_bytes: Its size.
        created_at: Seconds since 1970 by the database's clock.
    """

    part_id: str
    upload_id: str
    sha256: str
    num_bytes: int
    created_at: float


TRACE_SECONDS: Final = 24 * 3600.0
"""How long a deleted file keeps its place in lists: a client that pages through one may delete at the same time."""
_DELETED: Final = "deleted"
FILES: Final = RecordTable(
    files,
    StoredFile,
    key="file_id",
    missing=Missing(
        "no such file: {key!r}",
        "the id of a file of this project, such as file-20261125-093000-1f2e3d",
        "list them: GET /v1/files; one that has expired must be uploaded again",
    ),
)
"""The files of all projects, those that were deleted or have expired among them."""


class FileStore(Store):
    """What projects have. A file of another project, or one that has expired, is as one that is not there.

    Every method but `add` is one short transaction, and what it removes is deleted once it has ended.
    """

    def __init__(self, database: Database, artifacts: ArtifactStore) -> None:
        super().__init__(database)
        self._artifacts = artifacts

    def add(
        self,
        project_id: str,
        partial: Path,
        sha256: str,
        *,
        filename: str,
        purpose: Purpose,
        expires_after_seconds: int | None = None,
        is_result: bool = False,
    ) -> StoredFile:
        """Store a finished file of `ArtifactStore.incoming`, which is moved away from there.

        Args:
            project_id: The project that the file belongs to.
            partial: The received file.
            sha256: Its digest, in hexadecimal.
            filename: Its name for people; not a path.
            purpose: What it may be used for.
            expires_after_seconds: How long it is kept; None for no limit.
            is_result: Whether a job has made it: such a file is kept whatever the quota.

        Raises:
            FileQuotaError: The files of the project would take more than they may.
        """
        made: list[StoredFile] = []

        def insert_row(connection: Connection) -> None:
            now = self._database.clock(connection)
            if not is_result:
                check_quota(connection, self._database, project_id, num_bytes)
            file = StoredFile(
                file_id=unused_id(connection, files.c.file_id, "file"),
                project_id=project_id,
                filename=filename,
                purpose=purpose,
                sha256=sha256,
                num_bytes=num_bytes,
                created_at=now,
                expires_at=None if expires_after_seconds is None else now + expires_after_seconds,
            )
            made.append(FILES.insert(connection, file))

        num_bytes = partial.stat().st_size
        self._artifacts.adopt(partial, sha256, "file", insert_row)
        return made[-1]

    def get(self, project_id: str, file_id: str) -> StoredFile:
        """One file.

        Raises:
            NotFoundError: The project has no such file, or it has expired.
        """
        with self._database.read() as connection:
            return self._found(connection, project_id, file_id)

    def used_bytes(self) -> Mapping[str, int]:
        """The bytes of the files of all projects that have some, by project."""
        with self._database.read() as connection:
            return used_bytes(connection, self._database)

    def check_room(self, project_id: str, num_bytes: int = 1, *, freed_bytes: int = 0) -> None:
        """Refuse, before it is brought, what the files of a project have no room for; by default where they are full.

        Args:
            project_id: The project.
            num_bytes: Of what is brought.
            freed_bytes: Of files of the project that are deleted for it, and are still there.

        Raises:
            FileQuotaError: The files of the project would take more than they may.
        """
        with self._database.read() as connection:
            check_quota(connection, self._database, project_id, num_bytes, freed_bytes=freed_bytes, locks=False)

    def names(self, project_id: str, file_ids: Iterable[str]) -> dict[str, str]:
        """The names of files by their ids, in one statement; those that the project does not have are left out."""
        # Text that is not an id is not looked up: PostgreSQL refuses zero bytes in a query.
        ids = {file_id for file_id in file_ids if is_id(file_id, "file")}
        where = (files.c.project_id == project_id, files.c.file_id.in_(ids), is_there(self._database))
        found = self._rows(select(files.c.file_id, files.c.filename).where(*where)) if ids else ()
        return {row["file_id"]: row["filename"] for row in found}

    def list(
        self,
        project_id: str,
        *,
        purpose: str | None = None,
        after: str | None = None,
        limit: int = 10_000,
        order: Literal["asc", "desc"] = "desc",
    ) -> tuple[list[StoredFile], bool]:
        """One page of a project's files, and whether more follow.

        Args:
            project_id: The project.
            purpose: Only files of this purpose; None for all. An unknown one has no files.
            after: The id of the file before the page, which may have been deleted since; None begins at the first.
            limit: The most files.
            order: `asc` for the oldest first, `desc` for the newest.

        Raises:
            UnsupportedError: `after` was never a file of this project.
        """
        if purpose is not None and purpose not in PURPOSES:
            return [], False
        place, where = files.c.number, [is_there(self._database)]
        with self._database.snapshot():
            if after is not None:
                number = self._number(project_id, after)
                where.append(place > number if order == "asc" else place < number)
            by = [place.asc() if order == "asc" else place.desc()]
            # One more than requested shows whether a further page exists.
            found = self._list(FILES, *where, order=by, limit=limit + 1, project_id=project_id, purpose=purpose)
        return found[:limit], len(found) > limit

    def open(self, file: StoredFile) -> ArtifactReader:
        """Its content as a stream; the reader has to prove the digest."""
        return self._artifacts.open(file.sha256)

    def delete(self, project_id: str, file_id: str) -> StoredFile:
        """Delete a file, and its content where no other file has the same.

        Raises:
            NotFoundError: The project has no such file.
            ConflictError: It holds the rows of a dataset.
        """
        with self._write() as connection:
            found = self._found(connection, project_id, file_id)
            self._check_is_free(connection, file_id)
            # Nobody is shown the time of a deleted file: from here on it counts the day of its trace.
            FILES.change(connection, file_id, {"status": _DELETED, "created_at": self._database.clock(connection)})
        # After the commit, in a separate transaction that checks whether another file has the same content.
        self._artifacts.forget_unused([found.sha256])
        return found

    def sweep(self) -> int:
        """Delete what has expired, and the traces of what was deleted a day ago; returns how many files expired."""
        with self._write() as connection:
            now = self._database.clock(connection)
            has_expired = (files.c.status != _DELETED) & (files.c.expires_at <= now)
            to_trace = update(files).where(has_expired).values(status=_DELETED, created_at=now)
            num_expired = connection.execute(to_trace).rowcount
            is_trace = (files.c.status == _DELETED) & (files.c.created_at <= now - TRACE_SECONDS)
            connection.execute(delete(files).where(is_trace))
        # Outside the transaction above: removing files may take long, and other writers wait meanwhile. All that nobody
        # has, not these alone: a kill may have come between a file's row and its content before.
        self._artifacts.forget_unused()
        return num_expired

    def _check_is_free(self, connection: Connection, file_id: str) -> None:
        holding = (
            select(datasets.c.name, datasets.c.dataset_id, dataset_versions.c.number)
            .join(datasets, datasets.c.dataset_id == dataset_versions.c.dataset_id)
            .where(dataset_versions.c.file_id == file_id)
        )
        if (held := connection.execute(holding.limit(1)).first()) is not None:
            raise ConflictError(
                f"version {held.number} of the dataset {held.name!r} is made of the file {file_id}",
                expected="a file that no dataset needs",
                do=f"remove the dataset first, on its page /datasets/{held.dataset_id}",
            )

    def _found(self, connection: Connection, project_id: str, file_id: str) -> StoredFile:
        # Text that is not an id is not looked up: PostgreSQL refuses zero bytes in a query.
        where, found = (files.c.file_id == file_id, is_there(self._database)), None
        if is_id(file_id, "file"):
            found = FILES.first(connection, *where, project_id=project_id)
        if found is None:
            raise FILES.not_found(connection, file_id)
        return found

    def _number(self, project_id: str, file_id: str) -> int:
        is_it = (files.c.project_id == project_id) & (files.c.file_id == file_id)
        # Deleted files count: a client may delete while it pages through the list.
        number = self._scalar(select(files.c.number).where(is_it)) if is_id(file_id, "file") else None
        if number is None:
            raise not_in_list(file_id, "the id of a file in it")
        return int(number)


def unused_id(connection: Connection, column: Column[str], kind: str) -> str:
    """A new id that no row has, within a transaction that writes: of those of one second some would be equal.

    Args:
        connection: Of the transaction.
        column: The column of ids.
        kind: The prefix of the id, such as `file`.
    """
    while True:
        made = new_id(kind)
        if connection.execute(select(column).where(column == made)).first() is None:
            return made


def is_there(database: Database) -> ColumnElement[bool]:
    """Of a row of files: that it was neither deleted nor has expired."""
    is_fresh = or_(files.c.expires_at.is_(None), files.c.expires_at > database.now)
    return (files.c.status != _DELETED) & is_fresh


def hold_file(connection: Connection, database: Database, project_id: str, file_id: str) -> None:
    """Let a file never expire, within the transaction that makes something depend on it.

    Args:
        connection: Of the transaction.
        database: Whose clock decides whether the file has expired.
        project_id: The project of the file.
        file_id: The file.

    Raises:
        NotFoundError: The project has no such file.
    """
    is_it = (files.c.project_id == project_id) & (files.c.file_id == file_id)
    if connection.execute(update(files).where(is_it, is_there(database)).values(expires_at=None)).rowcount == 0:
        raise FILES.not_found(connection, file_id)


def used_bytes(connection: Connection, database: Database) -> Mapping[str, int]:
    """The bytes of the files of all projects that have some, by project.

    Args:
        connection: An open transaction.
        database: Whose clock decides what has expired.
    """
    found: dict[str, int] = {}
    for project_id, num_bytes in _sums(connection, database):
        found[project_id] = found.get(project_id, 0) + int(num_bytes)
    return found


def check_quota(
    connection: Connection,
    database: Database,
    project_id: str,
    num_bytes: int,
    *,
    freed_bytes: int = 0,
    locks: bool = True,
) -> None:
    """Refuse what the files of a project have no room for, within the transaction that adds it.

    Args:
        connection: A transaction.
        database: Whose clock decides what has expired.
        project_id: The project.
        num_bytes: Of what is added.
        freed_bytes: Of files that are deleted for it, and are still there.
        locks: Whether no other transaction may add to the project until this one ends.

    Raises:
        FileQuotaError: The files would take more than they may.
    """
    limit = select(projects.c.max_file_bytes).where(projects.c.project_id == project_id)
    if connection.execute(limit).scalar() is None:
        return
    # Of two transactions of PostgreSQL that add at once the second one waits, and counts what the first has added.
    most = connection.execute(limit.with_for_update(key_share=True) if locks else limit).scalar()
    used = sum(int(row[1]) for row in _sums(connection, database, project_id)) - freed_bytes
    if most is not None and used + num_bytes > most:
        raise FileQuotaError(
            f"{size(num_bytes)} for the files of the project {project_id}, which take {size(used)}",
            expected=f"at most {size(most)} in all",
            do="delete files or datasets that are not needed, or ask an administrator of the server to raise the "
            "limit: luthier projects quota",
        )


def _sums(connection: Connection, database: Database, project_id: str | None = None) -> list[Row[str, int]]:
    is_open = (uploads.c.status == "pending") & (uploads.c.expires_at > database.now)
    return [
        *connection.execute(_sum(files.c.project_id, files.c.num_bytes, is_there(database), project_id)),
        *connection.execute(_sum(uploads.c.project_id, uploads.c.num_bytes, is_open, project_id)),
    ]


def _sum(
    owner: ColumnElement[str], num_bytes: ColumnElement[int], where: ColumnElement[bool], project_id: str | None
) -> Select[str, int]:
    query = select(owner, func.coalesce(func.sum(num_bytes), 0)).where(where).group_by(owner)
    return query if project_id is None else query.where(owner == project_id)
