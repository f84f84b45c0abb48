"""Files written tensor by tensor are byte for byte those of the library."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch

from luthier.ml.training.checkpoint import save_file

ALL = {
    "b": torch.arange(6.0).reshape(2, 3),
    "a": torch.ones(3, dtype=torch.bfloat16),
    "wide": torch.tensor([0.1], dtype=torch.float64),
    "half": torch.ones(2, 2, dtype=torch.float16),
    "kept": torch.tensor([True, False, True]),
    "bytes": torch.arange(7, dtype=torch.uint8),
    "signed": torch.arange(7, dtype=torch.int8),
    "short": torch.arange(3, dtype=torch.int16),
    "steps": torch.tensor(7, dtype=torch.int64),
    "counts": torch.arange(3, dtype=torch.int32),
    "ünïcode": torch.zeros(1),
    "none": torch.zeros(0, 4),
}


@pytest.mark.parametrize("names", [list(ALL), ["a"], ["b", "ünïcode", "none"], ["wide", "steps"], []])
def test_the_bytes_are_the_librarys(tmp_path: Path, names: list[str]) -> None:
    tensors = {name: ALL[name] for name in names}
    save_file(tensors, tmp_path / "ours")
    safetensors.torch.save_file(tensors, tmp_path / "theirs")
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_a_view_is_written_as_what_it_shows(tmp_path: Path) -> None:
    view = torch.arange(12.0).reshape(3, 4).t()[1:]
    save_file({"x": view}, tmp_path / "file")
    assert torch.equal(safetensors.torch.load_file(tmp_path / "file")["x"], view)
