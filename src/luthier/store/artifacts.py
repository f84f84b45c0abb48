"""Files that never change, named by their SHA-256: `ab/cdef...` under one root, a local folder or any fsspec URL."""

from __future__ import annotations

import os
import shutil
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from sqlalchemy import delete, insert, select
from sqlalchemy.exc import IntegrityError

from luthier.core.digest import sha256_file
from luthier.core.errors import NotFoundError, WorkError
from luthier.core.frozen import Frozen
from luthier.store.database import Database
from luthier.store.tables import artifact_links, artifacts


class Artifact(Frozen):
    """An immutable file. `kind` says what it is (adapter, report, dataset); `sha256` is its name."""

    sha256: str
    kind: str
    num_bytes: int


class ArtifactStore:
    """Files by digest, and which run made which.

    root: a local folder (made where it is missing) or an fsspec URL such as `s3://bucket/luthier`.
    """

    def __init__(self, database: Database, root: str | Path) -> None:
        self._database = database
        self._files, self._root = url_to_fs(str(root))
        self._is_local = isinstance(self._files, LocalFileSystem)

    def put_file(self, path: Path, kind: str) -> Artifact:
        """Keep a copy of a file; one of the same content is kept once (under the kind it came with first).

        Raises NotFoundError where there is no such file.
        """
        if not path.is_file():
            raise NotFoundError(f"no file {path}", expected="a file to keep", do="check the path")
        digest = sha256_file(path)
        if not self._has_whole(digest, path.stat().st_size):
            self._write(path, digest)
        row = {"sha256": digest, "kind": kind, "num_bytes": path.stat().st_size, "created_at": _now()}
        known = select(artifacts).where(artifacts.c.sha256 == digest)
        with self._database.write() as connection:
            if connection.execute(known).first() is None:
                connection.execute(insert(artifacts).values(**row))
            return _artifact(connection.execute(known).mappings().one())

    def get(self, sha256: str) -> Artifact:
        """What is known of an artifact. Raises NotFoundError."""
        with self._database.read() as connection:
            row = connection.execute(select(artifacts).where(artifacts.c.sha256 == sha256)).mappings().first()
        if row is None:
            raise NotFoundError(
                f"no artifact {sha256!r}", expected="the digest of an artifact in this home", do="check the digest"
            )
        return _artifact(row)

    def fetch(self, sha256: str, target: Path) -> Path:
        """Copy an artifact to `target`, which appears only when its digest was proved; returns `target`.

        Raises NotFoundError (never kept) and WorkError (lost or damaged since).
        """
        artifact = self.get(sha256)
        partial = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
        try:
            try:
                self._files.get_file(self._place(sha256), str(partial))
            except FileNotFoundError as error:
                raise _damaged(artifact, self._place(sha256), "the file is gone") from error
            if (found := sha256_file(partial)) != sha256:
                raise _damaged(artifact, self._place(sha256), f"its content has digest {found}")
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
        return target

    def link(self, run_id: str, name: str, sha256: str) -> None:
        """Say that a run's `name` ("adapter", "report") is this artifact; a second link of that name replaces it.

        Raises NotFoundError where the run or the artifact is not there.
        """
        try:
            with self._database.write() as connection:
                old = (artifact_links.c.run_id == run_id, artifact_links.c.name == name)
                connection.execute(delete(artifact_links).where(*old))
                connection.execute(insert(artifact_links).values(run_id=run_id, name=name, sha256=sha256))
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

    def _place(self, digest: str) -> str:
        return f"{self._root}/{digest[:2]}/{digest[2:]}"

    def _has_whole(self, digest: str, num_bytes: int) -> bool:
        place = self._place(digest)
        if not self._files.exists(place) or self._files.size(place) != num_bytes:
            return False
        return not self._is_local or sha256_file(Path(place)) == digest

    def _write(self, source: Path, digest: str) -> None:
        place = self._place(digest)
        if not self._is_local:  # an object appears whole or not at all
            self._files.put_file(str(source), place)
            return
        final = Path(place)
        final.parent.mkdir(parents=True, exist_ok=True)
        partial = final.with_name(f".{digest}.{uuid.uuid4().hex}")
        try:
            with source.open("rb") as reader, partial.open("xb") as writer:
                shutil.copyfileobj(reader, writer)
                writer.flush()
                os.fsync(writer.fileno())
            partial.replace(final)
        finally:
            partial.unlink(missing_ok=True)


def _artifact(row: Any) -> Artifact:
    return Artifact(sha256=row["sha256"], kind=row["kind"], num_bytes=row["num_bytes"])


def _damaged(artifact: Artifact, place: str, how: str) -> WorkError:
    return WorkError(
        f"artifact {artifact.sha256} ({artifact.kind}) at {place} is damaged: {how}",
        expected="the content that its name says",
        do="check the disk and make the artifact anew from its run",
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
