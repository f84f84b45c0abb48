"""Objects of a store that fsspec reads: one, or all that match a pattern, on a file system in memory and on S3."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from luthier.core.errors import NotFoundError, RequestError
from luthier.core.ports import SilentProgress, SilentTask
from luthier.core.system.download import download
from luthier.ml.data.remote.cache import fetch
from luthier.ml.data.remote.object_store import look_up_objects


@pytest.fixture
def store() -> Iterator[Any]:
    files = fsspec.filesystem("memory")
    for number in range(3):
        files.pipe(f"/rows/{number}.jsonl", b'{"text": "%d"}\n' % number)
    yield files
    files.store.clear()
    files.pseudo_dirs[:] = [""]


def test_a_pattern_names_its_objects_in_order(store: Any, tmp_path: Path) -> None:
    found = look_up_objects("memory://rows/*.jsonl")
    assert [one.name for one in found.files] == ["0.jsonl", "1.jsonl", "2.jsonl"]
    assert found.revision.startswith("3 objects ")
    part = tmp_path / "part"
    part.write_bytes(b'{"te')  # left by an earlier attempt
    download(found, found.files[1], part, SilentTask())
    assert part.read_bytes() == b'{"text": "1"}\n'


def test_objects_of_a_pattern_are_not_asked_about_one_by_one(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    files = type(store)
    really, asked = files.info, list[str]()
    monkeypatch.setattr(files, "info", lambda self, path, **given: asked.append(path) or really(self, path, **given))
    found = look_up_objects("memory://rows/*.jsonl")
    assert [one.num_bytes for one in found.files] == [14, 14, 14]
    assert not [path for path in asked if path.endswith(".jsonl")]


def test_a_changed_object_has_another_revision(store: Any) -> None:
    before = look_up_objects("memory://rows/1.jsonl").revision
    store.pipe("/rows/1.jsonl", b'{"text": "other"}\n')
    assert before
    assert look_up_objects("memory://rows/1.jsonl").revision != before


@pytest.mark.parametrize("url", ["memory://rows/9.jsonl", "memory://none/*.jsonl"])
def test_what_is_not_there_is_said(store: Any, url: str) -> None:
    with pytest.raises(NotFoundError, match="there is no file"):
        look_up_objects(url)


def test_a_store_without_a_driver_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> None:
        raise ImportError("no driver")

    monkeypatch.setattr("fsspec.core.url_to_fs", missing)
    with pytest.raises(RequestError, match=r"driver for rows at s3:// is not installed[\s\S]*s3"):
        look_up_objects("s3://bucket/rows.jsonl")
    with pytest.raises(RequestError, match=r"luthier\[gs\]"):
        look_up_objects("gs://bucket/rows.jsonl")
    with pytest.raises(RequestError, match=r"luthier\[azure\]"):
        look_up_objects("abfss://container/rows.jsonl")


def test_objects_of_s3_come_with_their_etag(empty_bucket: Callable[[str, str], Any], tmp_path: Path) -> None:
    client = empty_bucket("luthier-rows", "test-secret-key-0123456789")
    client.put_object(Bucket="luthier-rows", Key="rows/a.jsonl", Body=b'{"text": "a"}\n')
    found = fetch("s3://luthier-rows/rows/a.jsonl", tmp_path / "data", SilentProgress())
    assert found.files[0].path.read_bytes() == b'{"text": "a"}\n'
    assert found.revision.startswith("ETag ")
    with pytest.raises(NotFoundError):
        fetch("s3://luthier-rows/rows/none.jsonl", tmp_path / "data", SilentProgress())
    (alone,) = look_up_objects("s3://luthier-rows/rows/*.jsonl").files
    assert (alone.name, alone.num_bytes) == ("a.jsonl", 14)
    assert look_up_objects("s3://luthier-rows/rows/*.jsonl").revision == found.revision, "a listing has the same ETag"
