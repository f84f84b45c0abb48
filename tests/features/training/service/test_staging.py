"""Data from a store: whole or not at all, copied once a machine, and again where the store has changed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from luthier.core.errors import NotFoundError, RequestError
from luthier.core.ports import SilentProgress
from luthier.core.system.files import replace_text
from luthier.features.training import staging
from luthier.features.training.staging import stage


@pytest.fixture
def store(tmp_path: Path) -> Path:
    folder = tmp_path / "store" / "rows"
    (folder / "more").mkdir(parents=True)
    (folder / "train.jsonl").write_text("1\n")
    (folder / "more" / "valid.jsonl").write_text("2\n")
    return folder


def test_a_folder_is_copied_once_and_again_where_it_has_changed(store: Path, tmp_path: Path) -> None:
    target, asked = tmp_path / "node" / "rows", f"{tmp_path / 'node' / 'rows'}=file://{store}"
    assert stage([asked], SilentProgress()) == [target]
    assert (target / "more" / "valid.jsonl").read_text() == "2\n"
    assert stage([asked], SilentProgress()) == []
    (store / "train.jsonl").write_text("3\n")
    os.utime(store / "train.jsonl", (1, 1))  # of the same size, at another time
    (store / "more" / "valid.jsonl").unlink()
    assert stage([asked], SilentProgress()) == [target]
    assert (target / "train.jsonl").read_text() == "3\n"
    assert not (target / "more").exists()


def test_a_single_object_becomes_a_file(store: Path, tmp_path: Path) -> None:
    target = tmp_path / "node" / "rows.jsonl"
    stage([f"{target}=file://{store}/train.jsonl"], SilentProgress())
    assert target.read_text() == "1\n"
    assert [path.name for path in target.parent.iterdir() if not path.name.startswith(".")] == ["rows.jsonl"]


def test_an_interrupted_copy_is_none(store: Path, tmp_path: Path) -> None:
    node = tmp_path / "node"
    (node / ".rows.partial").mkdir(parents=True)
    (node / ".rows.partial" / "left").write_text("half")
    stage([f"{node / 'rows'}=file://{store}"], SilentProgress())
    assert sorted(path.name for path in (node / "rows").iterdir()) == ["more", "train.jsonl"]


def test_a_note_that_a_full_disk_has_cut_off_is_none(store: Path, tmp_path: Path) -> None:
    target, asked = tmp_path / "node" / "rows", f"{tmp_path / 'node' / 'rows'}=file://{store}"
    stage([asked], SilentProgress())
    (tmp_path / "node" / ".rows.staged.json").write_text("")
    assert stage([asked], SilentProgress()) == [target]
    assert (target / "train.jsonl").read_text() == "1\n"
    assert stage([asked], SilentProgress()) == []


@pytest.mark.parametrize("is_folder", [True, False])
def test_what_is_no_copy_is_never_replaced(store: Path, tmp_path: Path, is_folder: bool) -> None:
    """Rows of one's own under the same path, as where jobs run in the folder that they were submitted from."""
    target = tmp_path / "node" / "rows"
    own = target / "own.jsonl" if is_folder else target
    own.parent.mkdir(parents=True)
    own.write_text("mine\n")
    with pytest.raises(RequestError, match="is not a copy that --stage has made"):
        stage([f"{target}=file://{store}"], SilentProgress())
    assert own.read_text() == "mine\n"
    own.unlink()
    assert stage([f"{target}=file://{store}"], SilentProgress()) == [target], "an empty folder is no content"
    assert (target / "train.jsonl").read_text() == "1\n"


def test_a_copy_that_was_killed_before_its_note_is_made_again(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, asked = tmp_path / "node" / "rows", f"{tmp_path / 'node' / 'rows'}=file://{store}"

    def killed_before_the_note(path: Path, text: str) -> None:
        if text:
            raise KeyboardInterrupt
        replace_text(path, text)

    with monkeypatch.context() as killed:
        killed.setattr("luthier.core.system.files.replace_text", killed_before_the_note)
        with pytest.raises(KeyboardInterrupt):
            stage([asked], SilentProgress())
    assert (target / "train.jsonl").is_file()
    assert stage([asked], SilentProgress()) == [target]
    assert stage([asked], SilentProgress()) == []


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="nothing at file://"):
        stage([f"{tmp_path / 'rows'}=file://{tmp_path}/nothing"], SilentProgress())
    assert not (tmp_path / "rows").exists()
    for text in ("rows", "rows=bucket", "=s3://bucket"):
        with pytest.raises(RequestError, match="is not a file to stage"):
            stage([text], SilentProgress())


def test_an_object_whose_name_leads_out_of_the_folder_is_not_copied(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A store of objects lists such a name; a folder of this machine cannot.
    listed = {"train.jsonl": ["2"], "../../outside": ["2"]}
    monkeypatch.setattr(staging, "_listed", lambda *_: listed)
    with pytest.raises(RequestError, match=r"the object '../../outside' at file://"):
        stage([f"{tmp_path / 'node' / 'rows'}=file://{store}"], SilentProgress())
    assert not (tmp_path / "node" / "rows").exists()
    assert not (tmp_path / "outside").exists()

    with pytest.raises(RequestError, match="data at nonsense://") as caught:
        stage([f"{tmp_path / 'rows'}=nonsense://bucket/rows"], SilentProgress())
    assert caught.value.do == "correct --stage"


def test_folders_that_were_made_in_a_console_are_no_objects(
    empty_bucket: Callable[[str, str], Any], tmp_path: Path
) -> None:
    # Consoles write an empty object with the name of the folder and a slash.
    client = empty_bucket("luthier-staging", "test-secret-key")
    for key, body in {
        "rows/": b"",
        "rows/more/": b"",
        "rows/train.jsonl": b"1\n",
        "rows/more/valid.jsonl": b"2\n",
    }.items():
        client.put_object(Bucket="luthier-staging", Key=key, Body=body)
    target = tmp_path / "node" / "rows"
    assert stage([f"{target}=s3://luthier-staging/rows"], SilentProgress()) == [target]
    found = {path.relative_to(target).as_posix(): path.read_text() for path in target.rglob("*") if path.is_file()}
    assert found == {"train.jsonl": "1\n", "more/valid.jsonl": "2\n"}
    client.put_object(Bucket="luthier-staging", Key="nothing/", Body=b"")
    with pytest.raises(NotFoundError, match="nothing at s3://luthier-staging/nothing"):
        stage([f"{tmp_path / 'other'}=s3://luthier-staging/nothing"], SilentProgress())
