"""Files of a source one by one: listed first, downloaded when they are read, and refused once they have changed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from luthier.core.errors import DataSourceError, StorageFullError
from luthier.core.ports import SilentProgress
from luthier.ml.data.remote import cache, download
from luthier.ml.data.remote.cache import FileFetcher, fetch, list_files
from luthier.testing.hub_server import COMMIT, Hub, serving

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
    with pytest.raises(StorageFullError, match=r"hub:org/talks has \d+ bytes still to come, the disk of \S+ has 10"):
        fetcher.fetch(0)
    assert downloads(hub) == []
