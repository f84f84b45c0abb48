import sys

import pytest
from tests.vacuous import nonempty

from luthier.core.errors import ModelSourceError, StorageFullError
from luthier.core.ports import SilentProgress
from luthier.ml.inference.models import sources
from luthier.ml.inference.models.gguf.files import convert, metadata


def python_that(tmp_path, monkeypatch, script: str) -> None:
    """Let the child be a shell script instead of Python."""
    file = tmp_path / "python"
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(file))


def test_metadata_is_read_without_the_weights(tiny_gguf):
    assert metadata(tiny_gguf, "general.architecture") == "llama"
    assert metadata(tiny_gguf, "no.such.key") is None


def test_the_values_of_a_file_are_read_once_for_all_that_ask(tiny_gguf, monkeypatch):
    import gguf  # here: every process of a run collects this file

    from luthier.ml.inference.models.gguf import worker

    opened, real, fields = [], gguf.GGUFReader, gguf.GGUFReader(tiny_gguf).fields

    def init(self, path, mode="r"):
        opened.append(path)
        begin(self, path, mode)

    begin = real.__init__
    monkeypatch.setattr(real, "__init__", init)
    _, tokenizer = worker._read(tiny_gguf)
    assert len(opened) == 1
    assert gguf.GGUFReader is real
    assert len(tokenizer) == 384
    with worker.one_reader():
        found = gguf.GGUFReader(tiny_gguf).fields
    assert {name: field.contents() for name, field in found.items()} == {
        name: field.contents() for name, field in nonempty(fields.items())
    }


def test_a_child_that_is_killed_is_an_error_with_its_last_words(tiny_gguf, tmp_path, monkeypatch):
    python_that(tmp_path, monkeypatch, "echo 'last words' >&2; kill -9 $$")
    with pytest.raises(ModelSourceError, match=r"exit code -9; its output:\n    last words") as caught:
        convert(tiny_gguf, tmp_path / "out", SilentProgress())
    assert "memory" in caught.value.do


def test_a_disk_that_fills_up_while_converting_is_said_so(tiny_gguf, tmp_path, monkeypatch):
    python_that(tmp_path, monkeypatch, "echo 'SafetensorError: No space left on device' >&2; exit 1")
    with pytest.raises(StorageFullError, match="is full"):
        sources.pull(str(tiny_gguf), tmp_path / "home", SilentProgress())
    assert sources.local_models(tmp_path / "home") == []
