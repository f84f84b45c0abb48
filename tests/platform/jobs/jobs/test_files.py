"""A job's own copy of a file outlives the file, and a power cut."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest

from luthier.core.dataset import Row
from luthier.ml.data.files.source import open_source
from luthier.ml.data.rows.rows import read_rows
from luthier.platform.files.service import add_file, local_path
from luthier.platform.home.context import Context
from luthier.platform.jobs.attempt import own_copy
from luthier.platform.jobs.records import Job


def test_a_copy_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job(job_id="job-1", kind="train", document={}, run_id="run-1")
    (tmp_path / "rows").write_text("rows")
    synced: dict[int, list[str]] = {}
    sync_descriptor = os.fsync

    def no_links(*_: object, **__: object) -> None:
        raise OSError("another disk")

    def note(descriptor: int) -> None:
        names = [path.name for path in (context.settings.jobs_folder / "job-1" / "files").iterdir()]
        synced[os.fstat(descriptor).st_ino] = names
        sync_descriptor(descriptor)

    with Context.open(tmp_path / "home") as context:
        file = add_file(context, "default", tmp_path / "rows", filename="rows.jsonl", purpose="fine-tune")
        source = local_path(context, file)
        monkeypatch.setattr(os, "link", no_links)
        monkeypatch.setattr(os, "fsync", note)
        path = own_copy(context, job, file.file_id, "data")
        assert (path.name, path.read_text()) == ("data.jsonl", "rows")
        assert path.stat().st_ino != source.stat().st_ino, "a copy, and no link"
        assert synced[path.stat().st_ino] == [".data.jsonl"]
        assert own_copy(context, job, file.file_id, "data") == path


def test_a_copy_of_a_packed_file_keeps_all_that_names_its_format(tmp_path: Path) -> None:
    job = Job(job_id="job-1", kind="train", document={}, run_id="run-1")
    (tmp_path / "rows").write_bytes(gzip.compress(b'{"prompt": "a", "completion": "b"}\n'))
    with Context.open(tmp_path / "home") as context:
        file = add_file(context, "default", tmp_path / "rows", filename="Rows.JSONL.gz", purpose="fine-tune")
        path = own_copy(context, job, file.file_id, "training")
        assert path.name == "training.jsonl.gz"
        source = open_source(path)
        assert (source.format, source.is_gzip) == ("jsonl", True)
        assert [row.fields for row in read_rows(source) if isinstance(row, Row)] == [{"prompt": "a", "completion": "b"}]
        assert own_copy(context, job, file.file_id, "training") == path
