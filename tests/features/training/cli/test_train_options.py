"""`luthier train`: what is checked before anything is copied or sent, and how a run on a cluster ends."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from luthier.features.training.launchers import ray
from luthier.features.training.launchers.ray import JobEnd

Command = Callable[..., Any]


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "train.jsonl").write_text('{"text": "a"}\n')
    path = tmp_path / "recipe.yaml"
    path.write_text("base_model: tiny\ndata: {train: train.jsonl}\n")
    return path


@pytest.fixture
def store(tmp_path: Path) -> Path:
    folder = tmp_path / "store"
    folder.mkdir()
    (folder / "rows.jsonl").write_text("{}\n")
    return folder


def test_a_wrong_recipe_is_refused_before_anything_is_copied(
    luthier: Command, recipe: Path, store: Path, tmp_path: Path
) -> None:
    recipe.write_text("base_model: tiny\ndata: {train: train.jsonl}\ntraning: {}\n")
    target = tmp_path / "node" / "rows"
    refused = luthier("train", recipe, "--stage", f"{target}=file://{store}")
    assert refused.code == 2
    assert "traning" in refused.err
    assert not target.parent.exists()


def test_options_that_a_cluster_does_not_have_are_refused_before_anything_is_copied(
    luthier: Command, recipe: Path, store: Path, tmp_path: Path
) -> None:
    target = tmp_path / "node" / "rows"
    options = ("--on", "ray://head", "--checkpoints", "s3://bucket", "--stage", f"{target}=file://{store}")
    refused = luthier("train", recipe, *options)
    assert refused.code == 2
    assert "LUTHIER_CHECKPOINTS" in refused.err
    assert not target.parent.exists()


def test_a_recipe_may_be_among_what_is_copied(
    luthier: Command, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (store / "recipe.yaml").write_text("base_model: tiny\ndata: {train: rows.jsonl}\n")
    sent: list[Any] = []

    def run_job(*_: Any, **arguments: Any) -> JobEnd:
        sent.append(arguments)
        return JobEnd("job-1", "http://head:8265", "SUCCEEDED", "")

    monkeypatch.setattr(ray, "run_job", run_job)
    target = tmp_path / "node"
    done = luthier("train", target / "recipe.yaml", "--on", "ray://head", "--stage", f"{target}=file://{store}")
    assert done.code == 0, done.err
    assert [one["recipe"].base_model for one in sent] == ["tiny"]


@pytest.mark.parametrize(("is_interrupted", "code"), [(True, 85), (False, 0)])
def test_a_run_paused_on_a_cluster_ends_with_the_code_that_was_asked_for(
    luthier: Command, recipe: Path, monkeypatch: pytest.MonkeyPatch, is_interrupted: bool, code: int
) -> None:
    asked: list[int] = []

    def run_job(*_: Any, interrupted_exit_code: int, **__: Any) -> JobEnd:
        asked.append(interrupted_exit_code)
        return JobEnd("job-1", "http://head:8265", "STOPPED", "", is_interrupted=is_interrupted)

    monkeypatch.setattr(ray, "run_job", run_job)
    ended = luthier("train", recipe, "--on", "ray://head", "--interrupted-exit-code", "85", "--json")
    assert ended.code == code
    assert ended.document["is_interrupted"] is is_interrupted
    assert asked == [85]
