"""Bundles to a hub's repository: one commit, proved, never over another bundle."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.ml.export.bundle.conftest import make_export, make_facts, write_model
from tests.ml.export.bundle.upload_hub import UploadHub, serving

from luthier.core.errors import ConflictError, RequestError, StoppedError, WorkError
from luthier.core.ports import SilentProgress
from luthier.ml.export.bundle import add_bundle_files, verify
from luthier.ml.export.bundle.push import load, push_to_hub

# The hub's client sends bodies in a way that its own HTTP library calls old.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload:DeprecationWarning")
QUIET, URL = SilentProgress(), "hf://org/made"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[UploadHub]:
    served = UploadHub()
    with serving(served) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        yield served


def put(files: dict[str, bytes], folder: Path) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def test_one_commit_holds_the_bundle(hub: UploadHub, whole_bundle: Path, tmp_path: Path) -> None:
    pushed = push_to_hub(load(whole_bundle), URL, QUIET)
    assert hub.commits == [f"Bundle {pushed.bundle_sha256}"]
    assert hub.is_private is True
    assert hub.files is not None
    report = verify(put(hub.files, tmp_path / "copy"))
    assert (report.is_whole, report.bundle_sha256) == (True, pushed.bundle_sha256)
    assert report.left_aside == (".gitattributes",)
    again = push_to_hub(load(whole_bundle), URL, QUIET)
    assert (again.num_sent, len(hub.commits)) == (0, 1)


def test_public_only_where_it_is_asked_for(hub: UploadHub, whole_bundle: Path) -> None:
    push_to_hub(load(whole_bundle), URL, QUIET, is_public=True)
    assert hub.is_private is False


def test_a_push_that_broke_off_sends_the_rest(hub: UploadHub, whole_bundle: Path) -> None:
    hub.fail_put_after = 1
    with pytest.raises(WorkError, match="status 403"):
        push_to_hub(load(whole_bundle), URL, QUIET)
    assert hub.commits == []
    assert set(hub.files or {}) == {".gitattributes"}
    hub.fail_put_after = None
    push_to_hub(load(whole_bundle), URL, QUIET)
    assert hub.num_puts == 2  # each of the two large files once


def test_another_bundle_and_other_files_stay(hub: UploadHub, whole_bundle: Path, tmp_path: Path) -> None:
    other = write_model(tmp_path / "other")
    add_bundle_files(other, make_export(), make_facts(title="another"))
    push_to_hub(load(other), URL, QUIET)
    before = dict(hub.files or {})
    with pytest.raises(ConflictError, match="holds another bundle"):
        push_to_hub(load(whole_bundle), URL, QUIET)
    hub.files = {".gitattributes": b"", "README.md": b"theirs"}
    with pytest.raises(ConflictError, match="holds 1 file and no manifest"):
        push_to_hub(load(whole_bundle), URL, QUIET)
    hub.files = before | {"theirs.txt": b""}
    with pytest.raises(ConflictError, match=r"files of something else: 'theirs.txt'"):
        push_to_hub(load(other), URL, QUIET)
    assert len(hub.commits) == 1


@pytest.mark.parametrize("name", ["Modelfile", "model.gguf"])
def test_a_hub_that_damages_what_it_gets(hub: UploadHub, whole_bundle: Path, name: str) -> None:
    hub.damage = name
    with pytest.raises(WorkError, match=f"'{name}' at hf://org/made is not what was sent"):
        push_to_hub(load(whole_bundle), URL, QUIET)


def test_somebody_commits_meanwhile(hub: UploadHub, whole_bundle: Path) -> None:
    hub.moved = True
    with pytest.raises(WorkError, match="status 412") as caught:
        push_to_hub(load(whole_bundle), URL, QUIET)
    assert "committed meanwhile" in caught.value.do


@pytest.mark.parametrize("status", [401, 403])
def test_a_hub_that_refuses(hub: UploadHub, whole_bundle: Path, status: int) -> None:
    hub.status = status
    with pytest.raises(WorkError, match=f"status {status}") as caught:
        push_to_hub(load(whole_bundle), URL, QUIET)
    assert "HF_TOKEN" in caught.value.do
    assert "hf_secret" not in str(caught.value)


def test_a_branch_of_its_own(hub: UploadHub, whole_bundle: Path) -> None:
    pushed = push_to_hub(load(whole_bundle), f"{URL}@v1", QUIET)
    assert pushed.url.endswith("/org/made/tree/v1")


@pytest.mark.parametrize("url", ["hf://org", "hf://org/made/more", "hf://../made", "hf://"])
def test_addresses_that_are_none(whole_bundle: Path, url: str) -> None:
    with pytest.raises(RequestError, match="names no repository"):
        push_to_hub(load(whole_bundle), url, QUIET)


def test_nobody_answers(whole_bundle: Path, hub: UploadHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(WorkError, match="could not be pushed") as caught:
        push_to_hub(load(whole_bundle), URL, QUIET)
    assert "HF_HUB_OFFLINE" in caught.value.do


@pytest.mark.parametrize("num_parts", [0, 1])
def test_a_push_that_is_stopped_commits_nothing(hub: UploadHub, whole_bundle: Path, num_parts: int) -> None:
    looks = 0

    def stop_requested() -> str | None:
        nonlocal looks
        looks += 1
        return "cancelled" if looks > num_parts else None

    with pytest.raises(StoppedError, match="cancelled"):
        push_to_hub(load(whole_bundle), URL, QUIET, stop_requested=stop_requested)
    assert looks == num_parts + 1
    assert hub.commits == []
    push_to_hub(load(whole_bundle), URL, QUIET)
    assert len(hub.commits) == 1
