"""Files of projects and the parts of uploads, on both databases: content shared, and gone with its last user."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import delete, update
from tests.vacuous import nonempty

from luthier.core.errors import ConflictError, FileQuotaError, NotFoundError, RequestError, StorageFullError
from luthier.core.plan import Plan
from luthier.core.run import RunRecord
from luthier.features.runs.store import RunStore
from luthier.platform.auth.store import AccessStore
from luthier.platform.db.database import Database
from luthier.platform.db.tables import files as table
from luthier.platform.db.tables import uploads as upload_table
from luthier.platform.files import artifacts as artifact_store
from luthier.platform.files.artifacts import ArtifactStore
from luthier.platform.files.service import STALE_SECONDS, IncomingFile, sweep_incoming
from luthier.platform.files.store import FileStore, StoredFile, UploadPart
from luthier.platform.files.uploads_store import UploadStore

RUN = "run-20261125-093000-aaaaaa"
PROJECT, OTHER = "default", "proj-other"


@pytest.fixture
def artifacts(database: Database, tmp_path: Path) -> ArtifactStore:
    AccessStore(database).add_project(OTHER, "other")
    return ArtifactStore(database, tmp_path / "artifacts")


@pytest.fixture
def store(database: Database, artifacts: ArtifactStore) -> FileStore:
    return FileStore(database, artifacts)


@pytest.fixture
def uploads(database: Database, artifacts: ArtifactStore) -> UploadStore:
    return UploadStore(database, artifacts)


@pytest.fixture
def add(store: FileStore, artifacts: ArtifactStore) -> Callable[..., StoredFile]:
    def add(content: bytes, project: str = PROJECT, life: int | None = None) -> StoredFile:
        with IncomingFile(artifacts.incoming) as incoming:
            incoming.write(content)
            digest = incoming.finish()
            return store.add(
                project, incoming.path, digest, filename="a", purpose="fine-tune", expires_after_seconds=life
            )

    return add


@pytest.fixture
def access(database: Database) -> AccessStore:
    return AccessStore(database)


def test_files_of_a_project_take_no_more_than_its_quota(
    store: FileStore,
    uploads: UploadStore,
    artifacts: ArtifactStore,
    access: AccessStore,
    database: Database,
    add: Callable[..., StoredFile],
) -> None:
    access.set_file_quota(PROJECT, 10)
    first = add(b"12345")
    add(b"12345", OTHER)
    with pytest.raises(FileQuotaError, match=r"^6 B for the files of the project default, which take 5 B") as refused:
        add(b"123456")
    assert refused.value.expected == "at most 10 B in all"
    assert kept_files(artifacts) == 1, "nothing is kept of what is refused"
    # What an upload announces is reserved until it ends; a file counts in full where its content is shared.
    upload = uploads.create(PROJECT, filename="b", purpose="evals", mime_type="text/plain", num_bytes=5)
    assert store.used_bytes() == {PROJECT: 10, OTHER: 5}
    for brings in (lambda: add(b"1"), lambda: store.check_room(PROJECT, 1)):
        with pytest.raises(FileQuotaError):
            brings()
    with IncomingFile(artifacts.incoming) as incoming:
        incoming.write(b"abcde")
        uploads.complete(upload, incoming.path, incoming.finish())
    assert store.used_bytes()[PROJECT] == 10
    # The result of a job is kept, since its work is done.
    with IncomingFile(artifacts.incoming) as incoming:
        incoming.write(b"result")
        digest = incoming.finish()
        store.add(PROJECT, incoming.path, digest, filename="r", purpose="batch_output", is_result=True)
    assert store.used_bytes()[PROJECT] == 16
    store.delete(PROJECT, first.file_id)
    with database.write() as connection:
        connection.execute(update(table).where(table.c.project_id == PROJECT).values(expires_at=1.0))
    assert store.used_bytes() == {OTHER: 5}, "what is deleted or has expired takes nothing"
    add(b"1234567890")
    access.set_file_quota(PROJECT, None)
    add(b"1234567890")


def test_files_that_come_at_the_same_time_share_a_quota(
    store: FileStore, access: AccessStore, add: Callable[..., StoredFile]
) -> None:
    access.set_file_quota(PROJECT, 20)

    def bring(number: int) -> bool:
        try:
            add(f"file{number:04}".encode())
        except FileQuotaError:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(bring, range(8))) == 2
    assert store.used_bytes() == {PROJECT: 16}


def kept_files(artifacts: ArtifactStore) -> int:
    return sum(path.is_file() for path in artifacts.incoming.parent.rglob("*"))


def test_the_last_file_takes_its_content_along(
    store: FileStore, artifacts: ArtifactStore, add: Callable[..., StoredFile]
) -> None:
    first, second = add(b"same"), add(b"same", OTHER)
    assert (first.sha256, first.num_bytes, first.status) == (second.sha256, 4, "processed")
    assert kept_files(artifacts) == 1
    with pytest.raises(NotFoundError, match="no such file"):
        store.delete(PROJECT, second.file_id)
    assert store.delete(PROJECT, first.file_id) == first
    with store.open(second) as reader:
        assert reader.read(99) == b"same"
    store.delete(OTHER, second.file_id)
    assert (kept_files(artifacts), artifacts.has(second.sha256)) == (0, False)


def test_a_run_holds_on_to_the_content_of_a_deleted_file(
    store: FileStore,
    artifacts: ArtifactStore,
    add: Callable[..., StoredFile],
    runs: RunStore,
    record: Callable[..., RunRecord],
    plan: Plan,
    tmp_path: Path,
) -> None:
    runs.create(record(), plan)
    file = add(b"rows")
    artifacts.link(RUN, "training_file", file.sha256)
    store.delete(PROJECT, file.file_id)
    assert artifacts.fetch(file.sha256, tmp_path / "copy").read_bytes() == b"rows"


def test_what_is_deleted_while_it_is_compared_is_brought_again(
    store: FileStore, add: Callable[..., StoredFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, places = add(b"same"), []

    def gone(path: Path) -> str:
        """As if the last user had deleted the file between a look and the opening."""
        places.append(path)
        path.unlink()
        raise FileNotFoundError(path)

    with monkeypatch.context() as patched:
        patched.setattr(artifact_store, "sha256_file", gone)
        again = add(b"same")
    assert len(places) == 1
    for file in (first, again):
        with store.open(file) as reader:
            assert reader.read(99) == b"same"


def test_who_brings_what_is_just_being_deleted_loses_nothing(
    store: FileStore, artifacts: ArtifactStore, add: Callable[..., StoredFile]
) -> None:
    def bring_and_delete(number: int) -> bool:
        for _ in range(8):
            file = add(b"same")
            with store.open(file) as reader:
                whole = reader.read(99) == b"same"
            store.delete(PROJECT, file.file_id)
            if not whole:
                return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(nonempty(pool.map(bring_and_delete, range(4))))
    assert kept_files(artifacts) == 0


@pytest.mark.parametrize("is_expired", [True, False], ids=["expired", "deleted"])
@pytest.mark.parametrize("step", ["forget_unused", "_remove"])
def test_the_next_sweep_finds_what_a_kill_left(
    store: FileStore,
    artifacts: ArtifactStore,
    add: Callable[..., StoredFile],
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    is_expired: bool,
) -> None:
    file = add(b"private")
    if is_expired:
        with database.write() as connection:
            connection.execute(update(table).values(expires_at=1.0))
    with monkeypatch.context() as patch:
        patch.setattr(ArtifactStore, step, killed)
        with pytest.raises(KeyboardInterrupt):
            store.sweep() if is_expired else store.delete(PROJECT, file.file_id)
    with database.write() as connection:
        connection.execute(delete(table))  # as a day later, when the traces go
    assert kept_files(artifacts) == 1
    store.sweep()
    assert (kept_files(artifacts), artifacts.has(file.sha256), artifacts.num_bytes()) == (0, False, 0)


def test_content_that_cannot_be_removed_is_removed_later_or_brought_again(
    store: FileStore, artifacts: ArtifactStore, add: Callable[..., StoredFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(artifacts._files, "rm_file", no_answer)
        store.delete(PROJECT, add(b"private").file_id)
        store.delete(PROJECT, add(b"again").file_id)
        assert kept_files(artifacts) == 2
    again = add(b"again")
    store.sweep()
    with store.open(again) as reader:
        assert reader.read(99) == b"again"
    assert kept_files(artifacts) == 1


def killed(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def no_answer(_: str) -> None:
    raise OSError(5, "no answer")


def test_what_cannot_be_added_leaves_nothing(artifacts: ArtifactStore, add: Callable[..., StoredFile]) -> None:
    with pytest.raises(Exception, match=r"(?i)foreign key"):
        add(b"rows", "proj-none")
    assert kept_files(artifacts) == 0


def test_ids_that_are_taken_are_not_given_again(
    add: Callable[..., StoredFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = iter("aab")
    monkeypatch.setattr("luthier.platform.files.store.new_id", lambda kind: f"{kind}-20261125-093000-{next(drawn) * 6}")
    assert [add(b"1").file_id[-1], add(b"2").file_id[-1]] == ["a", "b"]


def test_pages_of_many(store: FileStore, database: Database, add: Callable[..., StoredFile]) -> None:
    made = [add(b"%d" % number).file_id for number in range(7)]
    add(b"theirs", OTHER)
    walked: list[str] = []
    more = True
    while more:
        page, more = store.list(PROJECT, after=walked[-1] if walked else None, limit=3)
        walked += [file.file_id for file in page]
        assert len(page) <= 3
    assert walked == made[::-1]
    assert [file.file_id for file in store.list(PROJECT, order="asc", limit=2)[0]] == made[:2]
    assert store.list(PROJECT, purpose="evals") == ([], False)
    for unknown in ("file-20261125-093000-1f2e3d", store.list(OTHER)[0][0].file_id, "\x00"):
        with pytest.raises(RequestError, match="is not in this list"):
            store.list(PROJECT, after=unknown)


def test_names_are_those_of_the_projects_own_files(store: FileStore, add: Callable[..., StoredFile]) -> None:
    mine, deleted, other = add(b"mine"), add(b"deleted"), add(b"other", OTHER)
    store.delete(PROJECT, deleted.file_id)
    asked = [mine.file_id, mine.file_id, deleted.file_id, other.file_id, "file-none", "no \0 id"]
    assert store.names(PROJECT, asked) == {mine.file_id: "a"}
    assert store.names(PROJECT, []) == {}


def test_what_has_expired_is_gone_before_it_is_swept(
    store: FileStore, database: Database, artifacts: ArtifactStore, add: Callable[..., StoredFile]
) -> None:
    fresh, old = add(b"fresh", life=3600), add(b"old", life=3600)
    assert fresh.expires_at == pytest.approx(fresh.created_at + 3600)
    with database.write() as connection:
        connection.execute(update(table).where(table.c.file_id == old.file_id).values(expires_at=1.0))
    with pytest.raises(NotFoundError):
        store.get(PROJECT, old.file_id)
    assert store.list(PROJECT)[0] == [fresh]
    assert (store.sweep(), store.sweep()) == (1, 0)
    assert (artifacts.has(old.sha256), artifacts.has(fresh.sha256)) == (False, True)
    assert store.list(PROJECT, after=old.file_id) == ([fresh], False)  # its place in lists is known for a day
    with database.write() as connection:
        connection.execute(update(table).values(created_at=1.0))
    store.sweep()
    with pytest.raises(RequestError):
        store.list(PROJECT, after=old.file_id)
    assert [file.file_id for file in store.list(PROJECT)[0]] == [fresh.file_id]


@pytest.mark.parametrize("is_expired", [True, False], ids=["expired", "deleted"])
def test_the_place_of_an_old_file_is_known_for_a_day_from_its_deletion(
    store: FileStore, database: Database, add: Callable[..., StoredFile], is_expired: bool
) -> None:
    kept, old = add(b"kept"), add(b"old")
    expires_at = 2.0 if is_expired else None
    with database.write() as connection:
        connection.execute(update(table).values(created_at=1.0))
        connection.execute(update(table).where(table.c.file_id == old.file_id).values(expires_at=expires_at))
    if not is_expired:
        store.delete(PROJECT, old.file_id)
    store.sweep()
    [after], has_more = store.list(PROJECT, after=old.file_id)
    assert (after.file_id, after.created_at, has_more) == (kept.file_id, 1.0, False)


def part_of(uploads: UploadStore, artifacts: ArtifactStore, upload_id: str, content: bytes) -> UploadPart:
    with IncomingFile(artifacts.incoming) as incoming:
        incoming.write(content)
        return uploads.add_part(PROJECT, upload_id, incoming.path, incoming.finish())


def test_uploads(
    store: FileStore,
    uploads: UploadStore,
    database: Database,
    artifacts: ArtifactStore,
    add: Callable[..., StoredFile],
) -> None:
    given = {"filename": "a", "mime_type": "text/jsonl"}
    upload = uploads.create(PROJECT, purpose="fine-tune", num_bytes=4, **given)
    assert (upload.status, upload.expires_at) == ("pending", pytest.approx(upload.created_at + 3600))
    assert uploads.get(PROJECT, upload.upload_id) == upload
    a, b = (part_of(uploads, artifacts, upload.upload_id, content) for content in (b"ab", b"cd"))
    shared = add(b"ab")
    assert uploads.parts(upload.upload_id, [b.part_id, a.part_id]) == [b, a]
    with IncomingFile(artifacts.incoming) as incoming:
        incoming.write(b"abcd")
        file = uploads.complete(upload, incoming.path, incoming.finish())
    assert store.get(PROJECT, file.file_id) == file
    done = uploads.get(PROJECT, upload.upload_id)
    assert (done.status, done.file_id) == ("completed", file.file_id)
    assert (artifacts.has(b.sha256), artifacts.has(shared.sha256)) == (False, True)
    with pytest.raises(ConflictError, match="is completed"):
        part_of(uploads, artifacts, upload.upload_id, b"ef")
    late = uploads.create(PROJECT, purpose="evals", num_bytes=4, **given)
    lost = part_of(uploads, artifacts, late.upload_id, b"gh")
    with database.write() as connection:
        is_late = upload_table.c.upload_id == late.upload_id
        connection.execute(update(upload_table).where(is_late).values(expires_at=1.0))
    assert uploads.get(PROJECT, late.upload_id).status == "expired"
    with pytest.raises(ConflictError, match="is expired"):
        uploads.cancel(PROJECT, late.upload_id)
    assert (uploads.sweep(), uploads.sweep(), artifacts.has(lost.sha256)) == (1, 0, False)


def test_partial_files(tmp_path: Path) -> None:
    with IncomingFile(tmp_path) as incoming:
        incoming.write(memoryview(b"abc")[1:])
        assert (incoming.num_bytes, incoming.path.read_bytes()) == (2, b"bc")
        other = tmp_path / "left.partial"
        other.touch()
        sweep_incoming(tmp_path)
        assert other.exists()
        long_ago = other.stat().st_mtime - STALE_SECONDS - 60
        os.utime(other, (long_ago, long_ago))
        sweep_incoming(tmp_path)
        assert not other.exists()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    with IncomingFile(tmp_path) as incoming, Path("/dev/full").open("wb", buffering=0) as full:
        os.dup2(full.fileno(), incoming._file.fileno())
        with pytest.raises(StorageFullError, match="no room for a file"):
            incoming.write(b"abc")
    assert list(tmp_path.iterdir()) == []
