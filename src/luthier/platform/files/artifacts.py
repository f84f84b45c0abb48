"""Files that never change, named by their SHA-256, under one root: a local folder or any fsspec URL.

Each writing gets its own place (`ab/cdef...-1f2e3d4c`) and the database says which place counts. A file is removed
in three steps: its row is marked, its place is cleared, its row is deleted. A writer of the same content in between
loses nothing, and after a kill the next sweep finds what is marked.
"""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, RowMapping, and_, delete, exists, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from luthier.core.errors import NotFoundError, WorkError
from luthier.core.frozen_model import FrozenModel
from luthier.core.ids import sha256_file
from luthier.core.system.artifact_transfer import ArtifactReader, copy_local, copy_to, errors_explained, open_root
from luthier.core.system.files import replace_file, sync
from luthier.platform.db.database import Database
from luthier.platform.db.tables import artifact_links, artifacts, files, upload_parts

READ_BYTES: Final = 4 << 20
"""How much of a remote file is requested together."""
_REMOVED: Final = "removed"
"""The kind of an unused artifact, until its file is gone, too."""


class Artifact(FrozenModel):
    """An immutable file.

    Attributes:
        sha256: The digest of its content, which is its name.
        kind: What it is: adapter, report, dataset.
        num_bytes: Its size.
    """

    sha256: str
    kind: str
    num_bytes: int


class ArtifactStore:
    """Files by digest, and which run made which. All methods raise WorkError where a remote root fails.

    Args:
        database: Knows which place of a file counts, and who uses it.
        root: A local folder (made if missing) or an fsspec URL such as `s3://bucket/luthier`.
        scratch: A local folder for incoming files; None takes one in the root, which must then be local.

    Raises:
        RequestError: No driver knows the URL.
    """

    def __init__(self, database: Database, root: str | Path, scratch: Path | None = None) -> None:
        from fsspec.implementations.local import LocalFileSystem

        self._database = database
        self._files, self._root = open_root(str(root))
        self._is_local = isinstance(self._files, LocalFileSystem)
        self._name = self._root if self._is_local else str(self._files.unstrip_protocol(self._root))
        self._scratch = scratch

    @property
    def incoming(self) -> Path:
        """The local folder for what comes in: `adopt` moves from there into a local root without another copy."""
        if self._is_local or self._scratch is None:
            return Path(self._root) / "incoming"
        return self._scratch

    def put_file(self, path: Path, kind: str, then: Callable[[Connection], None] | None = None) -> Artifact:
        """Keep a copy of a file. Equal content is kept once, under the kind it came with first.

        Args:
            path: The file.
            kind: What it is.
            then: As for `adopt`; without it the artifact has no user, and the next `forget_unused` of all removes it.

        Raises:
            NotFoundError: There is no such file.
        """
        if not path.is_file():
            raise NotFoundError(f"no file {path}", expected="a file that is not empty", do="check the path")
        return self._keep(path, sha256_file(path), kind, may_move=False, then=then or _nothing)

    def num_bytes(self) -> int:
        """What all of them hold together, as the database knows it."""
        with self._database.read() as connection:
            return int(connection.execute(select(func.sum(artifacts.c.num_bytes))).scalar() or 0)

    def adopt(
        self, partial: Path, sha256: str, kind: str, then: Callable[[Connection], None] | None = None
    ) -> Artifact:
        """Keep a finished file of `incoming`: moved where the root is local, and sent otherwise.

        Args:
            partial: The file.
            sha256: The digest of its content.
            kind: What it is.
            then: Done in the transaction that makes the artifact known, so that it is never there without its user. An
                exception undoes both.
        """
        return self._keep(partial, sha256, kind, may_move=True, then=then or _nothing)

    def get(self, sha256: str) -> Artifact:
        """What is known of an artifact.

        Raises:
            NotFoundError: There is no such artifact.
        """
        return _artifact(self._row(sha256))

    def fetch(self, sha256: str, target: Path, *, may_share: bool = False) -> Path:
        """Copy an artifact to `target`, which appears only when its digest was proved.

        Args:
            sha256: The artifact.
            target: Where the copy goes.
            may_share: Whether nothing writes to `target`, so that a local root may hard-link its own file there.

        Returns:
            `target`.

        Raises:
            NotFoundError: There is no such artifact.
            WorkError: Its file is lost or damaged.
        """
        # The row is read first and its file may go before it is copied: that is reported as lost, never as other
        # content.
        row = self._row(sha256)
        partial = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
        try:
            try:
                if not (may_share and self._is_local and _linked(Path(self._place(row)), partial)):
                    with self._explained():
                        self._files.get_file(self._place(row), str(partial))
            except FileNotFoundError as error:
                raise self._damaged(row, "the file is gone") from error
            # Proved on the copy that will be used, not on the original, so that errors of the transfer are found as
            # well.
            if (found := sha256_file(partial)) != sha256:
                raise self._damaged(row, f"its content has digest {found}")
            replace_file(partial, target)
        finally:
            partial.unlink(missing_ok=True)
        return target

    def open(self, sha256: str) -> ArtifactReader:
        """Read an artifact as a stream. The reader has to check its digest; an open stream outlives its removal.

        Raises:
            NotFoundError: There is no such artifact.
            WorkError: Its file is lost.
        """
        row = self._row(sha256)
        try:
            with self._explained():
                file: Any
                if self._is_local:
                    file = Path(self._place(row)).open("rb")  # noqa: SIM115 - the reader closes it
                else:
                    file = self._files.open(self._place(row), "rb", block_size=READ_BYTES)
                return ArtifactReader(file, self._name, is_local=self._is_local)
        except FileNotFoundError as error:
            raise self._damaged(row, "the file is gone") from error

    def look(self) -> None:
        """See whether the place answers; what it holds does not matter."""
        with self._explained():
            self._files.exists(f"{self._root}/.probe")

    def has(self, sha256: str) -> bool:
        """Whether there is such an artifact."""
        return self._find(sha256) is not None

    def forget_unused(self, digests: Iterable[str] | None = None) -> None:
        """Remove artifacts that no run, file or part of an upload has any more.

        Args:
            digests: Which ones are looked at; None for all, with what a kill or a place that did not answer has left.
        """
        removed: list[RowMapping] = []
        with self._database.write() as connection:
            for where in (
                [_UNUSED] if digests is None else [_UNUSED & (artifacts.c.sha256 == one) for one in set(digests)]
            ):
                removed += connection.execute(select(artifacts).where(where)).mappings()
            for row in removed:
                connection.execute(update(artifacts).where(_is_writing(row)).values(kind=_REMOVED))
        # After the commit: were files removed first, a rollback would leave rows without files.
        gone = [row for row in removed if self._remove(self._place(row))]
        if gone:
            with self._database.write() as connection:
                for row in gone:
                    # Another place by now: somebody has brought the same content again.
                    connection.execute(delete(artifacts).where(_is_writing(row), artifacts.c.kind == _REMOVED))

    def link(self, run_id: str, name: str, sha256: str) -> None:
        """Say that a run's `name` ("adapter", "report") is this artifact; a second link of that name replaces it.

        Raises:
            NotFoundError: There is no such run or artifact.
        """
        try:
            with self._database.write() as connection:
                link_artifact(connection, run_id, name, sha256)
        except IntegrityError as error:
            raise NotFoundError(
                f"cannot link {name!r} of run {run_id!r} to artifact {sha256!r}",
                expected="a run and an artifact that are both in this home",
                do="put the file first, and check the run with `luthier runs list`",
            ) from error

    def linked(self, run_id: str) -> dict[str, Artifact]:
        """The artifacts of a run by name; empty where there are none."""
        query = select(artifact_links.c.name, artifacts).join(artifacts).where(artifact_links.c.run_id == run_id)
        with self._database.read() as connection:
            rows = connection.execute(query.order_by(artifact_links.c.name)).mappings().all()
        return {row["name"]: _artifact(row) for row in rows}

    def _keep(
        self, source: Path, sha256: str, kind: str, *, may_move: bool, then: Callable[[Connection], None]
    ) -> Artifact:
        num_bytes = source.stat().st_size
        values = {"sha256": sha256, "kind": kind, "num_bytes": num_bytes, "created_at": _now()}
        this = artifacts.c.sha256 == sha256
        while True:
            # Files are written outside the transaction, since hashing and sending take long; what was seen is compared
            # inside.
            seen = self._find(sha256)
            place = None if seen is not None and self._is_whole(seen) else _new_place(sha256)
            if place is not None:
                self._write(source, place, may_move=may_move)
            unneeded = place
            try:
                with self._database.write() as connection:
                    row = connection.execute(select(artifacts).where(this)).mappings().first()
                    was_removed = row is not None and row["kind"] == _REMOVED
                    if (row is None or was_removed) and place is None:
                        continue  # it was whole a moment ago, and its last user has gone since
                    if row is None:
                        connection.execute(insert(artifacts).values(**values, place=place))
                        unneeded = None
                    elif was_removed:
                        connection.execute(update(artifacts).where(this).values(**values, place=place))
                        unneeded = row["place"] or _old_place(sha256)
                    elif place is not None and seen is not None and row["place"] == seen["place"]:  # damaged: healed
                        connection.execute(update(artifacts).where(this).values(place=place, num_bytes=num_bytes))
                        unneeded = seen["place"] or _old_place(sha256)
                    # In the same transaction: `forget_unused` in another process cannot run between the artifact and
                    # its user.
                    then(connection)
                    kept = _artifact(connection.execute(select(artifacts).where(this)).mappings().one())
            # The transaction was rolled back, so no row names this place.
            except BaseException:
                if place is not None:
                    self._remove(f"{self._root}/{place}")
                raise
            if unneeded is not None:
                self._remove(f"{self._root}/{unneeded}")
            return kept

    def _find(self, sha256: str) -> RowMapping | None:
        is_there = (artifacts.c.sha256 == sha256) & (artifacts.c.kind != _REMOVED)
        with self._database.read() as connection:
            return connection.execute(select(artifacts).where(is_there)).mappings().first()

    def _row(self, sha256: str) -> RowMapping:
        row = self._find(sha256)
        if row is None:
            raise NotFoundError(
                f"no artifact {sha256!r}", expected="the digest of an artifact in this home", do="check the digest"
            )
        return row

    def _place(self, row: RowMapping) -> str:
        return f"{self._root}/{row['place'] or _old_place(row['sha256'])}"

    def _is_whole(self, row: RowMapping) -> bool:
        place = self._place(row)
        # Looked for by opening it: its last user may delete it between two looks.
        if self._is_local:
            # On a local disk the content itself is proved; elsewhere that would mean a download, so the size has to do.
            with suppress(FileNotFoundError, IsADirectoryError):
                return bool(sha256_file(Path(place)) == row["sha256"])
            return False
        with self._explained(), suppress(FileNotFoundError):
            return bool(self._files.size(place) == row["num_bytes"])
        return False

    def _write(self, source: Path, place: str, *, may_move: bool) -> None:
        if not self._is_local:  # an object appears whole or not at all
            copy_to(self._files, source, f"{self._root}/{place}", self._name)
            return
        final = Path(self._root) / place
        final.parent.mkdir(parents=True, exist_ok=True)
        if may_move:
            replace_file(source, final)  # as rename, within one file system
            # As of a copy: after a power cut no row may name a place whose name was not on the disk yet.
            sync(final.parent)
        else:
            copy_local(source, final)

    def _remove(self, place: str) -> bool:
        """Remove an unused file; returns whether it is gone. Where not, it is a leftover, not an error."""
        try:
            self._files.rm_file(place)
        except FileNotFoundError:
            return True
        except Exception:  # noqa: BLE001 - each file system has its own
            return False
        return True

    def _explained(self) -> Any:
        return errors_explained(self._name, is_local=self._is_local)

    def _damaged(self, row: RowMapping, how: str) -> WorkError:
        return WorkError(
            f"artifact {row['sha256']} ({row['kind']}) at {self._place(row)} is damaged: {how}",
            expected="the content that its name says",
            do="check the disk and make the artifact again from its run",
        )


_UNUSED: Final = ~(
    exists().where(artifact_links.c.sha256 == artifacts.c.sha256)
    | exists().where(files.c.sha256 == artifacts.c.sha256, files.c.status != "deleted")
    | exists().where(upload_parts.c.sha256 == artifacts.c.sha256)
)


def link_artifact(connection: Connection, run_id: str, name: str, sha256: str) -> None:
    """As `ArtifactStore.link`, within the transaction that makes the artifact known."""
    old = (artifact_links.c.run_id == run_id, artifact_links.c.name == name)
    # Foreign keys make the insert fail where run or artifact are missing, and that undoes the delete.
    connection.execute(delete(artifact_links).where(*old))
    connection.execute(insert(artifact_links).values(run_id=run_id, name=name, sha256=sha256))


def _is_writing(row: RowMapping) -> ColumnElement[bool]:
    """Of a row of artifacts: that it still is this writing of its content."""
    return and_(artifacts.c.sha256 == row["sha256"], artifacts.c.place.is_not_distinct_from(row["place"]))


def _artifact(row: Any) -> Artifact:
    return Artifact(sha256=row["sha256"], kind=row["kind"], num_bytes=row["num_bytes"])


def _linked(source: Path, target: Path) -> bool:
    try:
        # Two names of one file: costs no room and no time, and stays when the other name is removed.
        target.hardlink_to(source)
    except FileNotFoundError:
        raise
    except OSError:  # another file system, or one without such links
        return False
    return True


def _new_place(sha256: str) -> str:
    # Random, so that removing an old place can never hit the file of a new writing of the same content.
    return f"{_old_place(sha256)}-{secrets.token_hex(4)}"


def _old_place(sha256: str) -> str:
    return f"{sha256[:2]}/{sha256[2:]}"


def _nothing(_: Connection) -> None:
    """Do nothing more."""


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
