"""Files named by their digest."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import Connection

from luthier.core.errors import NotFoundError, WorkError
from luthier.core.ids import sha256_bytes
from luthier.core.plan import Plan
from luthier.core.run import RunRecord
from luthier.features.runs.store import RunStore
from luthier.platform.db.database import Database
from luthier.platform.files.artifacts import ArtifactStore

RUN = "run-20261125-093000-aaaaaa"
CONTENT = b"weights" * 1000


@pytest.fixture(params=["folder", "url"])
def store(request: pytest.FixtureRequest, database: Database, tmp_path: Path) -> ArtifactStore:
    root = tmp_path / "artifacts" if request.param == "folder" else f"memory://{tmp_path.name}"
    return ArtifactStore(database, root)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "adapter.safetensors"
    path.write_bytes(CONTENT)
    return path


def the_one_file(folder: Path) -> Path:
    (file,) = (path for path in folder.rglob("*") if path.is_file())
    return file


def test_what_goes_in_comes_out_under_its_digest(store: ArtifactStore, source: Path, tmp_path: Path) -> None:
    artifact = store.put_file(source, "adapter")
    assert (artifact.sha256, artifact.num_bytes, artifact.kind) == (sha256_bytes(CONTENT), len(CONTENT), "adapter")
    assert store.get(artifact.sha256) == artifact
    assert store.fetch(artifact.sha256, tmp_path / "copy").read_bytes() == CONTENT


def test_the_same_content_is_kept_once(store: ArtifactStore, source: Path, tmp_path: Path) -> None:
    first = store.put_file(source, "adapter")
    assert store.put_file(source.rename(tmp_path / "other"), "report") == first


def test_a_local_store_holds_whole_files_only(database: Database, source: Path, tmp_path: Path) -> None:
    ArtifactStore(database, tmp_path / "artifacts").put_file(source, "adapter")
    digest, place = sha256_bytes(CONTENT), the_one_file(tmp_path / "artifacts")
    assert place.parent == tmp_path / "artifacts" / digest[:2]
    assert place.name.startswith(f"{digest[2:]}-")


@pytest.mark.parametrize("keep", ["put_file", "adopt"])
def test_the_name_of_a_file_is_on_the_disk_before_the_database_has_it(
    database: Database, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: str
) -> None:
    """Else a power cut could leave a row that names no file."""
    store, synced, sync_descriptor = ArtifactStore(database, tmp_path / "artifacts"), list[tuple[int, bool]](), os.fsync
    digest = sha256_bytes(CONTENT)
    folder = tmp_path / "artifacts" / digest[:2]

    def note(descriptor: int) -> None:
        is_named = folder.is_dir() and any(path.name.startswith(digest[2:]) for path in folder.iterdir())
        synced.append((os.fstat(descriptor).st_ino, is_named))
        sync_descriptor(descriptor)

    def then(_: Connection) -> None:
        assert (folder.stat().st_ino, True) in synced

    monkeypatch.setattr(os, "fsync", note)
    if keep == "adopt":
        store.adopt(source, digest, "file", then)
    else:
        store.put_file(source, "file", then)
    assert store.get(digest).num_bytes == len(CONTENT)


@pytest.mark.parametrize("content", [b"", CONTENT[:-1], b"x" + CONTENT[1:]])
def test_damage_is_found_when_it_is_read_and_healed_by_putting_again(
    database: Database, source: Path, tmp_path: Path, content: bytes
) -> None:
    store = ArtifactStore(database, tmp_path / "artifacts")
    artifact = store.put_file(source, "adapter")
    the_one_file(tmp_path / "artifacts").write_bytes(content)
    with pytest.raises(WorkError, match="is damaged"):
        store.fetch(artifact.sha256, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
    assert not list(tmp_path.glob(".copy*"))
    store.put_file(source, "adapter")
    assert store.fetch(artifact.sha256, tmp_path / "copy").read_bytes() == CONTENT
    the_one_file(tmp_path / "artifacts")


def test_a_lost_file_and_an_unknown_digest(database: Database, source: Path, tmp_path: Path) -> None:
    store = ArtifactStore(database, tmp_path / "artifacts")
    artifact = store.put_file(source, "adapter")
    the_one_file(tmp_path / "artifacts").unlink()
    with pytest.raises(WorkError, match="the file is gone"):
        store.fetch(artifact.sha256, tmp_path / "copy")
    with pytest.raises(NotFoundError, match="no artifact"):
        store.fetch("0" * 64, tmp_path / "copy")
    with pytest.raises(NotFoundError, match="no file"):
        store.put_file(tmp_path / "none", "adapter")


def test_links(
    store: ArtifactStore, source: Path, runs: RunStore, record: Callable[..., RunRecord], plan: Plan
) -> None:
    runs.create(record(), plan)
    first = store.put_file(source, "adapter")
    source.write_bytes(b"better")
    second = store.put_file(source, "adapter")
    assert store.linked(RUN) == {}
    store.link(RUN, "first", first.sha256)
    store.link(RUN, "adapter", first.sha256)
    store.link(RUN, "adapter", second.sha256)
    assert store.linked(RUN) == {"adapter": second, "first": first}
    with pytest.raises(NotFoundError, match="cannot link"):
        store.link(RUN, "adapter", "0" * 64)
    with pytest.raises(NotFoundError, match="cannot link"):
        store.link("run-none", "adapter", first.sha256)
    assert store.linked(RUN)["adapter"] == second
    runs.delete(RUN)
    assert store.linked(RUN) == {}
    assert store.get(first.sha256) == first
