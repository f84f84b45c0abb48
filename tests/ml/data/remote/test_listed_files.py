"""Files of a source one by one: listed first, downloaded when they are read, and refused once they have changed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from tests.hub_server import COMMIT, Hub, serving

from luthier.core.errors import DataSourceError, StorageFullError
from luthier.core.ports import ProgressTask, SilentProgress
from luthier.core.system import download
from luthier.ml.data.remote import cache
from luthier.ml.data.remote.cache import FileFetcher, fetch, list_files

SOURCE = "hub:org/talks"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    files = {f"train-{n}.jsonl": json.dumps({"text": f"row {n}"}).encode() * 40 for n in range(3)}
    served = Hub(files, repo="org/talks", kind="dataset")
    with serving(served) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        monkeypatch.setattr(download.time, "sleep", lambda _: None)
        yield served


def downloads(hub: Hub) -> list[str]:
    return [path.rpartition("/")[2] for path, _ in hub.requests if "/resolve/" in path]


def fetcher_of(folder: Path, source: str = SOURCE) -> FileFetcher:
    return FileFetcher(list_files(source, folder, SilentProgress()), folder, SilentProgress())


def test_a_listing_downloads_nothing_and_a_file_comes_when_it_is_asked_for(hub: Hub, tmp_path: Path) -> None:
    listing = list_files(SOURCE, tmp_path, SilentProgress())
    assert (listing.revision, listing.pinned) == (COMMIT, f"hub:org/talks@{COMMIT}")
    assert listing.names == ("train-0.jsonl", "train-1.jsonl", "train-2.jsonl")
    assert listing.sizes == tuple(len(content) for content in hub.files.values())
    assert downloads(hub) == []
    fetcher = FileFetcher(listing, tmp_path, SilentProgress())
    assert fetcher.fetch(1).path.read_bytes() == hub.files["train-1.jsonl"]
    assert downloads(hub) == ["train-1.jsonl"]
    num_requests = len(hub.requests)
    # Another process, or a run that is resumed at the commit: the file is there under both names.
    for source in (SOURCE, listing.pinned):
        assert fetcher_of(tmp_path, source).fetch(1).path.read_bytes() == hub.files["train-1.jsonl"]
    assert len(hub.requests) == num_requests, "what is there needs no network"


def test_files_that_were_fetched_as_a_whole_are_used(hub: Hub, tmp_path: Path) -> None:
    whole = fetch(SOURCE, tmp_path, SilentProgress())
    num_requests = len(hub.requests)
    fetcher = fetcher_of(tmp_path)
    assert [fetcher.fetch(n).path for n in range(3)] == [file.path for file in whole.files]
    assert len(hub.requests) == num_requests


def test_an_interrupted_file_is_continued(hub: Hub, tmp_path: Path) -> None:
    hub.cut_after, hub.num_cuts = {"train-2.jsonl": 100}, 1
    assert fetcher_of(tmp_path).fetch(2).path.read_bytes() == hub.files["train-2.jsonl"]
    assert [asked for path, asked in hub.requests if path.endswith("train-2.jsonl")] == [None, "bytes=100-"]


def test_a_file_that_was_removed_from_the_cache_is_fetched_again_and_must_be_the_same(hub: Hub, tmp_path: Path) -> None:
    fetcher = fetcher_of(tmp_path)
    content = fetcher.fetch(0).path.read_bytes()
    shutil.rmtree(tmp_path / "files")
    assert fetcher.fetch(0).path.read_bytes() == content
    shutil.rmtree(tmp_path / "files")
    # The same size and the same name at the same commit: a hub that is broken or hostile.
    hub.files["train-0.jsonl"] = content[::-1]
    with pytest.raises(
        DataSourceError, match=r"train-0\.jsonl of hub:org/talks@\w+ has digest \w+, and had \w+ before"
    ):
        fetcher_of(tmp_path, f"hub:org/talks@{COMMIT}").fetch(0)


def test_a_source_that_has_other_files_than_were_listed_is_refused(hub: Hub, tmp_path: Path) -> None:
    fetcher = fetcher_of(tmp_path)
    before = dict(hub.files)
    hub.files = {"train-0.jsonl": b"{}"}
    with pytest.raises(DataSourceError, match="a source has changed while its rows were streamed") as caught:
        fetcher.fetch(1)
    assert f"revision {COMMIT}" in caught.value.expected
    hub.files = before
    assert fetcher_of(tmp_path).fetch(1).path.read_bytes() == before["train-1.jsonl"]


def test_a_full_disk_ends_with_what_is_missing(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetcher = fetcher_of(tmp_path)
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 90, 10))
    with pytest.raises(StorageFullError, match=r"hub:org/talks has \d+ bytes left to download, the disk of \S+ has 10"):
        fetcher.fetch(0)
    assert downloads(hub) == []


class ShownTasks(SilentProgress):
    """What the progress has shown."""

    def __init__(self) -> None:
        self.titles: list[str] = []

    def task(self, title: str, total: float | None, unit: str, done: float = 0) -> ProgressTask:
        self.titles.append(title)
        return super().task(title, total, unit, done)


PATTERN = "memory://rows/*.jsonl"


@pytest.fixture
def store() -> Iterator[Any]:
    files = fsspec.filesystem("memory")
    for number in (1, 2):
        files.pipe(f"/rows/{number}.jsonl", b'{"text": "%d"}\n' % number)
    yield files
    files.store.clear()
    files.pseudo_dirs[:] = [""]


def test_an_object_that_was_added_since_is_not_read_and_named(store: Any, tmp_path: Path) -> None:
    shown = ShownTasks()
    before = list_files(PATTERN, tmp_path, SilentProgress())
    assert [place for place, _ in before.objects] == ["/rows/1.jsonl", "/rows/2.jsonl"]
    store.pipe("/rows/0.jsonl", b'{"text": "new"}\n')
    assert list_files(PATTERN, tmp_path / "elsewhere", shown, before=before) == before
    fetcher = FileFetcher(before, tmp_path, shown)
    assert [fetcher.fetch(number).path.read_text() for number in (0, 1)] == ['{"text": "1"}\n', '{"text": "2"}\n']
    said = [title for title in shown.titles if "added" in title]
    assert said == ["1 object was added since the run began, and is not read: /rows/0.jsonl"] * 2
    assert list_files(PATTERN, tmp_path / "new", SilentProgress()).names == ("0.jsonl", "1.jsonl", "2.jsonl")
    # What is here already needs no store.
    store.store.clear()
    assert list_files(PATTERN, tmp_path, SilentProgress(), before=before) == before


def test_what_an_earlier_version_has_noted_gets_its_objects(store: Any, tmp_path: Path) -> None:
    now = list_files(PATTERN, tmp_path, SilentProgress())
    (noted,) = (tmp_path / "listings").glob("*.json")
    document = json.loads(noted.read_text())
    del document["objects"]
    noted.write_text(json.dumps(document))
    assert list_files(PATTERN, tmp_path, SilentProgress()) == now


@pytest.mark.parametrize("harm", ["changed", "removed"])
def test_an_object_that_was_changed_or_removed_is_refused_by_name(store: Any, tmp_path: Path, harm: str) -> None:
    before = list_files(PATTERN, tmp_path, SilentProgress())
    store.rm("/rows/2.jsonl")
    if harm == "changed":
        store.pipe("/rows/2.jsonl", b'{"text": "other"}\n')
    for ask in (
        lambda: list_files(PATTERN, tmp_path, SilentProgress(), before=before),
        lambda: FileFetcher(before, tmp_path, SilentProgress()).fetch(0),
    ):
        with pytest.raises(DataSourceError, match=r"/rows/2\.jsonl (was|is now).*"):
            ask()
