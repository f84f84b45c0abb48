"""Files as this machine lays them out: under a name that says their format, proved, and cleared away."""

from __future__ import annotations

from pathlib import Path

import pytest

from luthier.core.access import Caller
from luthier.core.ids import sha256_file
from luthier.features.datasets import service as dataset_versions
from luthier.platform.files import service as files
from luthier.platform.files.store import StoredFile
from luthier.platform.home.context import Context


def add(context: Context, filename: str = "rows.jsonl") -> StoredFile:
    with files.incoming_file(context) as incoming:
        incoming.write(b'{"text": "a"}\n')
        return files.keep_file(context, "default", incoming, filename=filename, purpose="fine-tune")


@pytest.mark.parametrize(
    ("filename", "name"),
    [
        ("a.b.JSONL", "file.jsonl"),
        ("a.csv.gz", "file.csv.gz"),
        ("a.gz", "file.gz"),
        ("none", "file"),
        ("a.wörter", "file"),
        (".jsonl", "file"),
    ],
)
def test_a_file_is_laid_out_under_what_says_its_format(context: Context, filename: str, name: str) -> None:
    assert files.local_path(context, add(context, filename)).name == name


def test_a_file_is_read_anew_only_where_somebody_has_touched_it(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []

    def counted(path: Path) -> str:
        read.append(path)
        return sha256_file(path)

    monkeypatch.setattr(files, "sha256_file", counted)
    file = add(context)
    path = files.local_path(context, file)
    files.local_path(context, file)
    num_read = len(read)
    files.local_path(context, file)
    assert len(read) == num_read
    path.unlink()
    path.write_bytes(b'{"text": "b"}\n')
    assert files.local_path(context, file).read_bytes() == b'{"text": "a"}\n', "what was changed is laid out again"


def test_what_was_found_out_goes_with_the_content(context: Context) -> None:
    caller = Caller()
    version = dataset_versions.create_dataset(context, caller, "One", add(context))[1]
    folder = context.settings.answers_folder / version.sha256
    assert folder.is_dir()
    files.sweep_files(context)
    assert folder.is_dir()
    dataset_versions.remove_dataset(context, caller, version.dataset_id)
    files.sweep_files(context)
    assert not folder.exists()
