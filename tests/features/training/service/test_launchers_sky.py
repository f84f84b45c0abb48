"""`luthier launch --on sky` calls SkyPilot's API by its own names, in the Python that has it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from luthier.cli.main import main
from luthier.core.errors import RequestError, WorkError
from luthier.features.training.launchers import sky

SIGNATURES: dict[str, str] = json.loads(Path(__file__).with_name("skypilot_schema.json").read_text(encoding="utf-8"))[
    "signatures"
]
_STAND_IN = """
import json, os
def note(_called, **given):
    with open(os.environ["SKY_CALLS"], "a") as file:
        file.write(json.dumps([_called, {{key: str(value) for key, value in given.items() if value}}]) + "\\n")
class Task:
    @staticmethod
    def from_yaml_config({task}):
        note("task", **{{"num_nodes": config["num_nodes"], "secrets": dict(secrets_overrides or ())}})
        return "the task"
def launch({launch}):
    note("launch", task=task, cluster_name=cluster_name, idle=idle_minutes_to_autostop, down=down)
    return "request-1"
def stream_and_get({stream}):
    print("SkyPilot prints to stdout, too")
    output_stream.write("streamed\\n")
    note("stream_and_get", request_id=request_id)
    if os.environ.get("SKY_FAILS"):
        raise RuntimeError("no A100-80GB in any region")
    return ([7] if request_id == "request-2" else 3), "handle"
"""
_JOBS = """
from sky import note
def launch({jobs}):
    note("jobs.launch", task=task, name=name)
    return "request-2"
"""


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[Any]]:
    """A stand-in with the arguments of SkyPilot's wheel; gives what was called."""
    package = tmp_path / "site" / "sky"
    (package / "jobs").mkdir(parents=True)
    module = _STAND_IN.format(
        task=SIGNATURES["sky.Task.from_yaml_config"],
        launch=SIGNATURES["sky.launch"],
        stream=SIGNATURES["sky.stream_and_get"],
    )
    (package / "__init__.py").write_text(module, encoding="utf-8")
    (package / "jobs" / "__init__.py").write_text(_JOBS.format(jobs=SIGNATURES["sky.jobs.launch"]), encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    monkeypatch.setenv("SKY_CALLS", str(tmp_path / "calls"))
    monkeypatch.setattr(sky, "interpreter", lambda: sys.executable)
    return lambda: [json.loads(line) for line in (tmp_path / "calls").read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text("base_model: tiny\ndata: {train: rows.jsonl}\n", encoding="utf-8")
    return path


def test_a_managed_job_is_launched_and_its_commands_are_shown(
    calls: Callable[[], list[Any]],
    recipe: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret")
    arguments = ["--spot", "--checkpoints", "s3://bucket/runs", "--secret", "AWS_SECRET_ACCESS_KEY", "--json"]
    assert main(["launch", str(recipe), "--on", "sky", *arguments]) == 0
    out, err = capfd.readouterr()
    document = json.loads(out)
    assert document["job"] == {"request_id": "request-2", "job_ids": [7], "cluster": None}
    assert "very-secret" not in out + err
    assert "SkyPilot request request-2" in err
    assert calls() == [
        ["task", {"num_nodes": "1", "secrets": "{'AWS_SECRET_ACCESS_KEY': 'very-secret'}"}],
        ["jobs.launch", {"task": "the task", "name": "luthier-recipe"}],
        ["stream_and_get", {"request_id": "request-2"}],
    ]


def test_a_cluster_ends_when_it_is_idle(
    calls: Callable[[], list[Any]], recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "job.yaml"
    arguments = ["launch", "skypilot", str(recipe), "--on", "sky", "--cluster", "mine", "--out", str(file)]
    assert main(arguments) == 0
    assert "sky cancel mine 3" in " ".join(capsys.readouterr().out.split())
    assert yaml.safe_load(file.read_text(encoding="utf-8"))["name"] == "luthier-recipe"
    assert calls()[1] == ["launch", {"task": "the task", "cluster_name": "mine", "idle": "10", "down": "True"}]


def test_what_skypilot_refuses_is_reported_in_its_words(
    calls: Callable[[], list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SKY_FAILS", "1")
    with pytest.raises(WorkError, match="RuntimeError: no A100-80GB in any region"):
        sky.start("num_nodes: 1", "name", cluster=None, secrets=(), idle_minutes=10)
    assert len(calls()) == 3


def test_without_skypilot_the_message_names_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sky, "interpreter", lambda: None)
    with pytest.raises(RequestError, match="--on sky needs SkyPilot") as caught:
        sky.start("num_nodes: 1", "name", cluster=None, secrets=(), idle_minutes=10)
    assert "uv tool install 'skypilot[aws]'" in caught.value.do


def test_a_secret_that_is_not_set_is_refused_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOT_SET", raising=False)
    with pytest.raises(RequestError, match="--secret NOT_SET"):
        sky.start("num_nodes: 1", "name", cluster=None, secrets=("NOT_SET",), idle_minutes=10)


@pytest.mark.parametrize(
    ("head", "found"),
    [
        ("#!/opt/sky/bin/python3.11\nimport sky", "/opt/sky/bin/python3.11"),
        ("#!/bin/sh\n'''exec' '/opt/a b/bin/python' \"$0\" \"$@\"\n' '''\n", "/opt/a b/bin/python"),
        ("#!/bin/sh\n'''exec' \"/opt/sky/bin/python\" \"$0\" \"$@\"\n' '''\n", "/opt/sky/bin/python"),
        ("#!/bin/sh\necho no python", None),
    ],
)
def test_the_python_of_the_command_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: str, found: str | None
) -> None:
    command = tmp_path / "sky"
    command.write_text(head, encoding="utf-8")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert sky.interpreter() == found


def test_no_command_is_no_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert sky.interpreter() is None


@pytest.mark.parametrize(
    ("arguments", "came"),
    [
        (["slurm", "RECIPE", "--on", "sky"], "--on sky for slurm"),
        (["RECIPE", "--on", "ray"], "--on ray"),
        (["skypilot", "RECIPE", "--cluster", "mine"], "--cluster mine without --on sky"),
        (["slurm"], "no recipe"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    recipe: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], came: str
) -> None:
    assert main(["launch", *[str(recipe) if one == "RECIPE" else one for one in arguments]]) == 2
    assert came in " ".join(capsys.readouterr().err.split())
