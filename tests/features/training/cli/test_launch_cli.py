"""`luthier launch`: the file on stdout or where it is wanted, and no file for what could not be trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from luthier.cli.main import main


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text("base_model: tiny\ndata: {train: rows.jsonl}\n", encoding="utf-8")
    return path


def test_it_prints_the_file(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["launch", "slurm", str(recipe), "--nodes", "2", "--devices", "4"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("#!/usr/bin/env bash\n")
    assert f"luthier luthier train {recipe}\n" in out


def test_it_writes_the_file(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["launch", "skypilot", str(recipe), "--out", str(tmp_path / "job.yaml"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["path"] == str(tmp_path / "job.yaml")
    assert (tmp_path / "job.yaml").read_text(encoding="utf-8") == document["text"]


def test_an_unknown_system_is_refused(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["launch", "pbs", str(recipe)]) == 2
    assert "expected: one of slurm, skypilot, ray" in capsys.readouterr().err


def test_devices_that_do_not_divide_the_batch_are_refused(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["launch", "slurm", str(recipe), "--nodes", "3"]) == 2
    assert "training.global_batch_size 16 on 3 devices" in capsys.readouterr().err
