"""Files that come in parts: what has arrived of each, so that a transfer continues after a restart on either side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

from sqlalchemy import Connection, delete, func, select

from luthier.core.errors import ConflictError, RequestError
from luthier.core.ids import is_id
from luthier.core.system.artifact_transfer import ArtifactReader
from luthier.platform.db.database import Database
from luthier.platform.db.store import Missing, RecordTable, Store
from luthier.platform.db.tables import files, upload_parts, uploads
from luthier.platform.files.artifacts import ArtifactStore
from luthier.platform.files.store import FILES, StoredFile, Upload, UploadPart, UploadPurpose, check_quota, unused_id

LIFE_SECONDS: Final = 3600.0
MAX_PARTS: Final = 10_000
_UPLOADS: Final = RecordTable(
    uploads,
    Upload,
    key="upload_id",
    missing=Missing(
        "no such upload: {key!r}",
        "the id of an upload of this project, such as upload-20261125-093000-1f2e3d",
        "begin one: POST /v1/uploads",
    ),
)
_PARTS: Final = RecordTable(upload_parts, UploadPart)


class UploadStore(Store):
    """What projects are sending. An upload of another project is as one that is not there.

    Methods that take an upload's id raise NotFoundError, and ConflictError where it is no longer pending.
    """

    def __init__(self, database: Database, artifacts: ArtifactStore) -> None:
        super().__init__(database)
        self._artifacts = artifacts

    def create(
        self,
        project_id: str,
        *,
        filename: str,
        purpose: UploadPurpose,
        mime_type: str,
        num_bytes: int,
        file_expires_after_seconds: int | None = None,
    ) -> Upload:
        """Begin an upload; it has to be completed within an hour.

        Args:
            project_id: The project that the file will belong to.
            filename: Its name for people; not a path.
            purpose: What the file may be used for.
            mime_type: Its media type.
            num_bytes: The size of the whole file.
            file_expires_after_seconds: How long the file is kept; None for no limit.

        Raises:
            FileQuotaError: The files of the project would take more than they may.
        """
        with self._write() as connection:
            now = self._database.clock(connection)
            # All of it is reserved: parts and the whole file are not refused any more.
            check_quota(connection, self._database, project_id, num_bytes)
            upload = Upload(
                upload_id=unused_id(connection, uploads.c.upload_id, "upload"),
                project_id=project_id,
                filename=filename,
                purpose=purpose,
                mime_type=mime_type,
                num_bytes=num_bytes,
                status="pending",
                created_at=now,
                expires_at=now + LIFE_SECONDS,
                file_expires_after_seconds=file_expires_after_seconds,
            )
            return _UPLOADS.insert(connection, upload)

    def get(self, project_id: str, upload_id: str) -> Upload:
        """One upload, in any status."""
        with self._database.read() as connection:
            return self._found(connection, project_id, upload_id)

    def pending(self, project_id: str, upload_id: str) -> Upload:
        """One upload that still takes parts."""
        upload = self.get(project_id, upload_id)
        _check_pending(upload)
        return upload

    def add_part(self, project_id: str, upload_id: str, partial: Path, sha256: str) -> UploadPart:
        """Keep a finished file of `ArtifactStore.incoming` as a part.

        Args:
            project_id: The project of the upload.
            upload_id: The upload.
            partial: The received file.
            sha256: Its digest, in hexadecimal.

        Raises:
            NotFoundError: The project has no such upload.
            ConflictError: It is no longer pending.
            RequestError: The parts would have more than twice the announced size (parts may be sent twice), or there
                are too many.
        """
        made: list[UploadPart] = []
        num_bytes = partial.stat().st_size

        def insert_row(connection: Connection) -> None:
            # Checked again within the transaction: the upload may have been cancelled while the bytes came in.
            upload = self._found(connection, project_id, upload_id)
            _check_pending(upload)
            known = select(func.count(), func.coalesce(func.sum(upload_parts.c.num_bytes), 0))
            count, total = connection.execute(known.where(upload_parts.c.upload_id == upload_id)).one()
            if num_bytes > upload.num_bytes or total + num_bytes > 2 * upload.num_bytes or count >= MAX_PARTS:
                raise RequestError(
                    f"a part of {num_bytes} bytes with {count} parts of {total} bytes",
                    expected=f"parts that together have {upload.num_bytes} bytes, some of them perhaps sent twice, and "
                    f"at most {MAX_PARTS} of them",
                    do="begin another upload with the right number of bytes",
                )
            part = UploadPart(
                part_id=unused_id(connection, upload_parts.c.part_id, "part"),
                upload_id=upload_id,
                sha256=sha256,
                num_bytes=num_bytes,
                created_at=self._database.clock(connection),
            )
            made.append(_PARTS.insert(connection, part))

        # The row and the artifact become known in one transaction; where it fails, the received bytes are removed.
        self._artifacts.adopt(partial, sha256, "upload_part", insert_row)
        return made[-1]

    def parts(self, upload_id: str, part_ids: Sequence[str]) -> list[UploadPart]:
        """The parts with these ids, in this order.

        Args:
            upload_id: The upload.
            part_ids: In the order of the file.

        Raises:
            RequestError: A part is not of this upload.
        """
        known = {part.part_id: part for part in self._list(_PARTS, upload_id=upload_id)}
        for part_id in part_ids:
            if part_id not in known:
                raise RequestError(
                    f"the part {part_id!r} is not of upload {upload_id}",
                    expected="ids that adding parts to this upload gave",
                    do="add the part, or correct part_ids",
                )
        return [known[part_id] for part_id in part_ids]

    def open_part(self, part: UploadPart) -> ArtifactReader:
        """The content of a part as a stream."""
        return self._artifacts.open(part.sha256)

    def complete(self, upload: Upload, partial: Path, sha256: str) -> StoredFile:
        """Make the file of all parts put together; the parts are deleted. One of two concurrent calls wins.

        Args:
            upload: The upload.
            partial: The parts as one file, which is moved away.
            sha256: Its digest, in hexadecimal.

        Raises:
            NotFoundError: The upload is gone.
            ConflictError: It is no longer pending.
        """
        made: list[StoredFile] = []

        def insert_rows(connection: Connection) -> None:
            # Of two concurrent requests that complete it the second one finds it completed here, and its copy is
            # removed.
            _check_pending(self._found(connection, upload.project_id, upload.upload_id))
            now, life = self._database.clock(connection), upload.file_expires_after_seconds
            file = StoredFile(
                file_id=unused_id(connection, files.c.file_id, "file"),
                project_id=upload.project_id,
                filename=upload.filename,
                purpose=upload.purpose,
                sha256=sha256,
                num_bytes=upload.num_bytes,
                created_at=now,
                expires_at=None if life is None else now + life,
            )
            made.append(FILES.insert(connection, file))
            forgotten.extend(_close(connection, upload.upload_id, "completed", file.file_id))

        forgotten: list[str] = []
        self._artifacts.adopt(partial, sha256, "file", insert_rows)
        self._artifacts.forget_unused(forgotten)
        return made[-1]

    def cancel(self, project_id: str, upload_id: str) -> Upload:
        """Give an upload up, and forget its parts."""
        with self._write() as connection:
            _check_pending(self._found(connection, project_id, upload_id))
            forgotten = _close(connection, upload_id, "cancelled")
            upload = self._found(connection, project_id, upload_id)
        self._artifacts.forget_unused(forgotten)
        return upload

    def sweep(self) -> int:
        """Give up the uploads whose hour is over, and forget their parts; returns how many they were."""
        with self._write() as connection:
            is_over = (uploads.c.status == "pending") & (uploads.c.expires_at <= self._database.clock(connection))
            over = connection.execute(select(uploads.c.upload_id).where(is_over)).scalars().all()
            forgotten = [digest for upload_id in over for digest in _close(connection, upload_id, "expired")]
        # After the commit, as it removes files: a rollback could not restore them.
        if forgotten:
            self._artifacts.forget_unused(forgotten)
        return len(over)

    def _found(self, connection: Connection, project_id: str, upload_id: str) -> Upload:
        if not is_id(upload_id, "upload"):
            raise _UPLOADS.not_found(connection, upload_id)
        upload = _UPLOADS.get(connection, upload_id, project_id=project_id)
        if upload.status == "pending" and upload.expires_at <= self._database.clock(connection):  # not swept yet
            return upload.model_copy(update={"status": "expired"})
        return upload


def _close(
    connection: Connection,
    upload_id: str,
    status: Literal["completed", "cancelled", "expired"],
    file_id: str | None = None,
) -> list[str]:
    """End an upload; returns the digests of its parts, which it has no longer."""
    of_it = upload_parts.c.upload_id == upload_id
    # Read before the rows go: the caller forgets the contents after the commit.
    digests = list(connection.execute(select(upload_parts.c.sha256).where(of_it)).scalars())
    connection.execute(delete(upload_parts).where(of_it))
    _UPLOADS.change(connection, upload_id, {"status": status, "file_id": file_id})
    return digests


def _check_pending(upload: Upload) -> None:
    if upload.status != "pending":
        raise ConflictError(
            f"upload {upload.upload_id} is {upload.status}",
            expected="a pending one: an upload has an hour to become complete",
            do="begin another: POST /v1/uploads",
        )
