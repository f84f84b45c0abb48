"""Datasets on both databases: versions in order, files held, names free or taken, what was said of rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from luthier.core.errors import ConflictError, NotFoundError
from luthier.features.datasets.store import Dataset, DatasetStore, DatasetVersion, RowDecision
from luthier.platform.auth.store import AccessStore
from luthier.platform.db.database import Database
from luthier.platform.files.artifacts import ArtifactStore
from luthier.platform.files.service import IncomingFile
from luthier.platform.files.store import FileStore, StoredFile

PROJECT, OTHER = "default", "proj-other"


@pytest.fixture
def store(database: Database) -> DatasetStore:
    AccessStore(database).add_project(OTHER, "other")
    return DatasetStore(database)


@pytest.fixture
def file_store(database: Database, tmp_path: Path) -> FileStore:
    return FileStore(database, ArtifactStore(database, tmp_path / "artifacts"))


@pytest.fixture
def add_file(file_store: FileStore) -> Callable[..., StoredFile]:
    def add(content: bytes = b"{}\n", project: str = PROJECT, life: int | None = None) -> StoredFile:
        with IncomingFile(file_store._artifacts.incoming) as incoming:
            incoming.write(content)
            digest, name = incoming.finish(), "a.jsonl"
            return file_store.add(
                project, incoming.path, digest, filename=name, purpose="fine-tune", expires_after_seconds=life
            )

    return add


def version_of(file: StoredFile, dataset_id: str = "data-1", **values: object) -> DatasetVersion:
    facts = {"filename": file.filename, "sha256": file.sha256, "num_bytes": file.num_bytes, "num_rows": 1}
    made = {"dataset_id": dataset_id, "number": 1, "file_id": file.file_id, "origin": "upload", **facts, **values}
    return DatasetVersion.model_validate(made)


def dataset_of(name: str = "Questions", dataset_id: str = "data-1", project_id: str = PROJECT) -> Dataset:
    return Dataset(dataset_id=dataset_id, project_id=project_id, name=name)


def test_versions_count_from_one_and_the_newest_stands_in_the_list(
    store: DatasetStore, add_file: Callable[..., StoredFile]
) -> None:
    dataset, first = store.add(dataset_of(), version_of(add_file(), number=9))
    second = store.add_version(version_of(add_file(), parent=1, note="why", details={"a": [1]}))
    assert (first.number, second.number) == (1, 2)
    assert 0 < dataset.created_at == first.created_at <= second.created_at
    assert store.list(PROJECT) == [(dataset, second)]
    assert store.list(OTHER) == []
    assert store.versions("data-1") == [second, first]
    with pytest.raises(NotFoundError, match="no dataset 'data-2'"):
        store.add_version(version_of(add_file(), "data-2"))


def test_a_name_is_taken_in_its_project_alone(store: DatasetStore, add_file: Callable[..., StoredFile]) -> None:
    store.add(dataset_of(), version_of(add_file()))
    with pytest.raises(ConflictError, match="exists already"):
        store.add(dataset_of(dataset_id="data-2"), version_of(add_file(), "data-2"))
    store.add(dataset_of("questions", "data-3"), version_of(add_file(), "data-3"))
    store.add(dataset_of("Questions", "data-4", OTHER), version_of(add_file(project=OTHER), "data-4"))
    assert store.find(PROJECT, "Questions") == store.get(PROJECT, "data-1")
    assert store.find(PROJECT, "answers") is None
    with pytest.raises(NotFoundError):
        store.get(PROJECT, "data-4")


def test_a_file_of_a_version_neither_expires_nor_can_be_deleted(
    store: DatasetStore, file_store: FileStore, add_file: Callable[..., StoredFile]
) -> None:
    file = add_file(life=3600)
    store.add(dataset_of(), version_of(file))
    assert file_store.get(PROJECT, file.file_id).expires_at is None
    assert file_store.sweep() == 0
    with pytest.raises(ConflictError, match="version 1 of the dataset 'Questions'"):
        file_store.delete(PROJECT, file.file_id)
    assert store.files_in_use([file.file_id, "file-of-nobody"]) == {file.file_id}
    assert store.files_in_use([]) == set()
    store.remove(PROJECT, "data-1")
    assert store.files_in_use([file.file_id]) == set()
    file_store.delete(PROJECT, file.file_id)


def test_a_version_needs_a_file_of_its_own_project(
    store: DatasetStore, file_store: FileStore, add_file: Callable[..., StoredFile]
) -> None:
    foreign, gone = add_file(project=OTHER), add_file()
    file_store.delete(PROJECT, gone.file_id)
    for file in (foreign, gone):
        with pytest.raises(NotFoundError, match="no such file"):
            store.add(dataset_of(), version_of(file))
    store.add(dataset_of(), version_of(add_file()))
    for file in (foreign, gone):
        with pytest.raises(NotFoundError, match="no such file"):
            store.add_version(version_of(file))
    assert len(store.versions("data-1")) == 1


def test_rows_that_are_counted_later_are_written_down_once(
    store: DatasetStore, add_file: Callable[..., StoredFile]
) -> None:
    file = add_file()
    store.add(dataset_of(), version_of(file, num_rows=None))
    store.add_version(version_of(file, num_rows=7))
    store.learn_num_rows(file.file_id, 3)
    assert [version.num_rows for version in store.versions("data-1")] == [7, 3]


def test_what_was_removed_is_gone_with_what_was_said_of_its_rows(
    store: DatasetStore, add_file: Callable[..., StoredFile]
) -> None:
    store.add(dataset_of(), version_of(add_file()))
    store.decide("data-1", 1, RowDecision(row=2, decision="reject"))
    with pytest.raises(NotFoundError):
        store.remove(OTHER, "data-1")
    store.remove(PROJECT, "data-1")
    with pytest.raises(NotFoundError):
        store.remove(PROJECT, "data-1")
    assert store.versions("data-1") == []
    assert store.decisions("data-1", 1) == []


def test_the_newest_word_on_a_row_counts(store: DatasetStore, add_file: Callable[..., StoredFile]) -> None:
    store.add(dataset_of(), version_of(add_file()))
    store.decide("data-1", 1, RowDecision(row=2, decision="reject"))
    store.decide("data-1", 1, RowDecision(row=1, decision="edit", edited={"text": "x"}, author="Ada"))
    made = store.decide("data-1", 1, RowDecision(row=2, decision="accept"))
    assert made.decided_at > 0
    assert [(one.row, one.decision) for one in store.decisions("data-1", 1)] == [(1, "edit"), (2, "accept")]
    store.undo_decision("data-1", 1, 2)
    assert [one.row for one in store.decisions("data-1", 1)] == [1]
