"""Rows of versions by their place."""

from __future__ import annotations

import json

import pytest

from luthier.core.access import Caller
from luthier.core.dataset_version import DatasetVersion
from luthier.core.errors import DataError, NotFoundError
from luthier.service import dataset_versions, files
from luthier.service.context import Context
from luthier.service.dataset_index import columns_of, open_rows

CALLER = Caller()


def bring(context: Context, content: bytes, filename: str) -> DatasetVersion:
    file = dataset_versions.keep_rows(context, CALLER, [content], filename)
    return dataset_versions.create_dataset(context, CALLER, filename, file)[1]


def test_a_file_is_proved_once_and_then_only_looked_at(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    version = bring(context, b'{"a": 1}\n{"b": 2}\n', "rows.jsonl")
    assert columns_of(open_rows(context, CALLER, version)) == ["a", "b"]
    monkeypatch.setattr(files, "sha256_file", lambda path: pytest.fail(f"{path} was read whole"))
    assert open_rows(context, CALLER, version).num_rows == 2


def test_a_document_is_read_by_a_process_of_its_own(context: Context) -> None:
    version = bring(context, json.dumps([{"prompt": "p", "completion": "c"}] * 3).encode(), "rows.json")
    index = open_rows(context, CALLER, version)
    assert (index.num_rows, index.is_copy) == (3, True)
    assert index == open_rows(context, CALLER, version)


def test_what_cannot_be_read_is_told(context: Context) -> None:
    broken = bring(context, b"[{", "rows.json")
    with pytest.raises(DataError, match=r"rows\.json is not JSON"):
        open_rows(context, CALLER, broken)
    with pytest.raises(NotFoundError):
        open_rows(context, Caller(project_id="other"), broken)


def test_the_index_goes_with_its_file(context: Context) -> None:
    version = bring(context, b'{"a": 1}\n', "rows.jsonl")
    index = open_rows(context, CALLER, version)
    assert index.entries.is_file()
    dataset_versions.remove_dataset(context, CALLER, version.dataset_id)
    files.sweep_files(context)
    assert not index.entries.exists()
