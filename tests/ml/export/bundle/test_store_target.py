"""Bundles to object storage and folders: whole there or not there, and never over another one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.ml.export.bundle.conftest import make_export, make_facts, write_model
from tests.ml.export.bundle.keys import write_keys

from luthier.core.errors import ConflictError, RequestError, StoppedError, WorkError
from luthier.core.ports import SilentProgress
from luthier.core.system import artifact_transfer
from luthier.ml.export.bundle import add_bundle_files, push, verify
from luthier.ml.export.bundle.push import UNFINISHED, load, push_to_store, shown_url
from luthier.ml.export.bundle.write import add_signature

QUIET = SilentProgress()
BUCKET = "luthier-bundles"


@pytest.fixture
def s3(empty_bucket: Callable[[str, str], Any]) -> Any:
    """A client that sees the bucket itself, which is made empty."""
    return empty_bucket(BUCKET, "test-secret-key")


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """A bundle of other facts."""
    folder = write_model(tmp_path / "other")
    add_bundle_files(folder, make_export(), make_facts(title="another"))
    return folder


def stop_after(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Make the push die when so many files have been sent, as a kill would."""
    sent: list[str] = []
    whole: Callable[..., None] = push.copy_to

    def copy_to(files: Any, source: Path, place: str, name: str, **given: Any) -> None:
        if len(sent) == number:
            raise KeyboardInterrupt
        sent.append(place)
        whole(files, source, place, name, **given)

    monkeypatch.setattr(push, "copy_to", copy_to)


def test_a_folder(whole_bundle: Path, tmp_path: Path) -> None:
    target = tmp_path / "deep" / "target"
    pushed = push_to_store(load(whole_bundle), f"file://{target}", QUIET)
    assert verify(target).bundle_sha256 == pushed.bundle_sha256 == verify(whole_bundle).bundle_sha256
    assert pushed.num_sent == pushed.num_files == len([p for p in whole_bundle.rglob("*") if p.is_file()])
    again = push_to_store(load(whole_bundle), f"file://{target}", QUIET)
    assert (again.num_sent, again.num_bytes_sent, again.num_files) == (0, 0, pushed.num_files)


def test_object_storage(s3: Any, whole_bundle: Path, tmp_path: Path) -> None:
    url = f"s3://{BUCKET}/models/a"
    pushed = push_to_store(load(whole_bundle), url, QUIET)
    assert pushed.url == url
    copy = tmp_path / "copy"
    for entry in s3.list_objects_v2(Bucket=BUCKET)["Contents"]:
        path = copy / entry["Key"].removeprefix("models/a/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(s3.get_object(Bucket=BUCKET, Key=entry["Key"])["Body"].read())
    report = verify(copy)
    assert (report.is_whole, report.bundle_sha256) == (True, pushed.bundle_sha256)
    assert push_to_store(load(whole_bundle), url + "/", QUIET).num_sent == 0


def test_a_folder_that_was_made_in_a_console_is_empty(s3: Any, whole_bundle: Path) -> None:
    # Consoles write an empty object with the name of the folder and a slash.
    s3.put_object(Bucket=BUCKET, Key="made/", Body=b"")
    pushed = push_to_store(load(whole_bundle), f"s3://{BUCKET}/made", QUIET)
    assert pushed.num_sent == pushed.num_files > 0
    s3.put_object(Bucket=BUCKET, Key="taken/", Body=b"")
    s3.put_object(Bucket=BUCKET, Key="taken/notes.txt", Body=b"mine")
    with pytest.raises(ConflictError, match="holds 1 file and no manifest"):
        push_to_store(load(whole_bundle), f"s3://{BUCKET}/taken", QUIET)


def test_damage_over_there_is_healed(s3: Any, whole_bundle: Path) -> None:
    url = f"s3://{BUCKET}/a"
    push_to_store(load(whole_bundle), url, QUIET)
    s3.put_object(Bucket=BUCKET, Key="a/model.gguf", Body=b"x" * 2048)
    s3.delete_object(Bucket=BUCKET, Key="a/adapters/a.bin")
    assert push_to_store(load(whole_bundle), url, QUIET).num_sent == 2
    assert push_to_store(load(whole_bundle), url, QUIET).num_sent == 0


@pytest.mark.parametrize("number", [0, 4])
def test_a_push_that_was_killed_goes_on(
    s3: Any, whole_bundle: Path, other: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    url = f"s3://{BUCKET}/b"
    with monkeypatch.context() as patch:
        stop_after(patch, number)
        with pytest.raises(KeyboardInterrupt):
            push_to_store(load(whole_bundle), url, QUIET)
    keys = {entry["Key"] for entry in s3.list_objects_v2(Bucket=BUCKET).get("Contents", [])}
    assert "b/bundle.json" not in keys
    assert len(keys) == number
    if number:
        with pytest.raises(ConflictError, match="a part of another bundle"):
            push_to_store(load(other), url, QUIET)
    pushed = push_to_store(load(whole_bundle), url, QUIET)
    assert pushed.num_sent == pushed.num_files - max(0, number - 1)
    keys = {entry["Key"] for entry in s3.list_objects_v2(Bucket=BUCKET)["Contents"]}
    assert f"b/{UNFINISHED}" not in keys


def test_a_file_that_was_half_written_is_written_anew(
    whole_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "target"
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        with pytest.raises(KeyboardInterrupt):
            push_to_store(load(whole_bundle), f"file://{target}", QUIET)
    (sent, *_) = (path for path in sorted(target.rglob("*")) if path.is_file() and path.name != UNFINISHED)
    sent.write_bytes(sent.read_bytes()[:3])
    assert [fault.path for fault in verify(target).faults] == ["bundle.json"]
    push_to_store(load(whole_bundle), f"file://{target}", QUIET)
    assert verify(target).is_whole


def test_another_bundle_is_never_overwritten(whole_bundle: Path, other: Path, tmp_path: Path) -> None:
    url = f"file://{tmp_path / 'target'}"
    push_to_store(load(other), url, QUIET)
    with pytest.raises(ConflictError, match="holds another bundle") as caught:
        push_to_store(load(whole_bundle), url, QUIET)
    assert "never overwritten" in caught.value.expected
    assert verify(tmp_path / "target").bundle_sha256 == verify(other).bundle_sha256


def test_places_that_hold_something_else(whole_bundle: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / "theirs.txt").touch()
    with pytest.raises(ConflictError, match="holds 1 file and no manifest"):
        push_to_store(load(whole_bundle), f"file://{target}", QUIET)
    (target / "theirs.txt").unlink()
    push_to_store(load(whole_bundle), f"file://{target}", QUIET)
    (target / "theirs.txt").touch()
    with pytest.raises(ConflictError, match=r"files of something else: 'theirs.txt'"):
        push_to_store(load(whole_bundle), f"file://{target}", QUIET)
    with pytest.raises(ConflictError):
        push_to_store(load(whole_bundle), f"file://{target / 'theirs.txt'}", QUIET)


def test_a_signature_may_follow_and_is_not_replaced(bundle: Path, tmp_path: Path) -> None:
    url = f"file://{tmp_path / 'target'}"
    push_to_store(load(bundle), url, QUIET)
    private, _ = write_keys(tmp_path, "a")
    signer = add_signature(bundle, private)
    assert push_to_store(load(bundle), url, QUIET).num_sent == 1
    assert verify(tmp_path / "target").signed_by == signer
    (bundle / "bundle.dsse.json").unlink()
    add_signature(bundle, write_keys(tmp_path, "b")[0])
    with pytest.raises(ConflictError, match="with another signature"):
        push_to_store(load(bundle), url, QUIET)


def test_a_place_that_damages_what_it_gets(whole_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def copy_to(files: Any, source: Path, place: str, name: str, **given: Any) -> None:
        shutil.copyfile(source, place)
        if place.endswith("model.gguf"):
            Path(place).write_bytes(b"other")

    monkeypatch.setattr(push, "copy_to", copy_to)
    with pytest.raises(WorkError, match=r"'model.gguf' at file://.* is not what was sent"):
        push_to_store(load(whole_bundle), f"file://{tmp_path / 'target'}", QUIET)
    assert not (tmp_path / "target" / "bundle.json").exists()


def test_no_such_bucket_and_no_such_protocol(s3: Any, whole_bundle: Path) -> None:
    before = [entry["Name"] for entry in s3.list_buckets()["Buckets"]]
    with pytest.raises(WorkError, match="s3://no-such-bucket/a failed"):
        push_to_store(load(whole_bundle), "s3://no-such-bucket/a", QUIET)
    assert [entry["Name"] for entry in s3.list_buckets()["Buckets"]] == before
    with pytest.raises(RequestError, match="any driver that is known") as caught:
        push_to_store(load(whole_bundle), "nonsense://user:secret@host/a", QUIET)
    assert "secret" not in str(caught.value)


def test_urls_are_shown_without_secrets() -> None:
    assert shown_url("sftp://me:secret@host:22/a/") == "sftp://host:22/a"
    assert shown_url("s3://bucket/a") == "s3://bucket/a"


def test_a_push_that_is_stopped_leaves_no_bundle_and_is_completed_by_the_next(
    whole_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artifact_transfer, "WRITE_BYTES", 16)
    target, num_looks, most = tmp_path / "target", 0, 0

    def stop_requested() -> str | None:
        nonlocal num_looks
        num_looks += 1
        return "cancelled" if num_looks > most else None

    left: list[int] = []
    # From before the first file over places within files to a look that never comes.
    for most in (0, 3, 20, 100, 500, 10**9):
        num_looks = 0
        try:
            push_to_store(load(whole_bundle), f"file://{target}", QUIET, stop_requested=stop_requested)
        except StoppedError:
            pass
        else:
            break
        assert num_looks == most + 1, "it ends at once"
        assert not (target / "bundle.json").exists()
        left.append(sum(path.stat().st_size for path in target.rglob("*") if path.is_file()))
    assert left[0] == 0
    assert left[-1] > left[1] > 0
    assert verify(target).is_whole, "what is cancelled again and again is completed in the end"
