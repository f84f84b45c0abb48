"""A recipe travels with its rows to a cluster, what the job prints comes back, and a bad end is told."""

from __future__ import annotations

import io
import json
import os
import signal
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from luthier.core.errors import RequestError, WorkError
from luthier.core.recipe import Recipe
from luthier.features.training.launchers.ray import base_url, package, run_job
from luthier.ml.data.files.patterns import matching_files

RECIPE = Recipe.model_validate(
    {"base_model": "tiny", "data": {"train": "my rows.jsonl", "held_out": 0.1}, "training": {"epochs": 1}}
)


class Cluster(BaseHTTPRequestHandler):
    """As much of the Jobs API as a submission needs; a job runs for as many looks as `states` has words."""

    states: ClassVar[list[str]] = []
    packages: ClassVar[dict[str, bytes]] = {}
    jobs: ClassVar[list[dict[str, Any]]] = []
    tokens: ClassVar[set[str | None]] = set()
    stopped: ClassVar[list[str]] = []
    exit_code: ClassVar[int | None] = None
    refuses: ClassVar[tuple[int, str] | None] = None

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, status: int, document: Any) -> None:
        content = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_GET(self) -> None:
        self.tokens.add(self.headers.get("Authorization"))
        if self.path.startswith("/api/packages/gcs/"):
            self.answer(200 if self.path.rpartition("/")[2] in self.packages else 404, {})
        elif self.path == "/api/jobs/job-1":
            word = self.states.pop(0) if len(self.states) > 1 else self.states[0]
            if word == "STOPPING":
                os.kill(os.getpid(), signal.SIGINT)
                word = "RUNNING"
            status = "STOPPED" if self.stopped else word
            self.answer(200, {"status": status, "message": f"Job is {word}.", "driver_exit_code": self.exit_code})
        else:
            self.answer(200, {"logs": "line 1\nline 2\n"[: 14 - 7 * (len(self.states) > 1)]})

    def do_PUT(self) -> None:
        self.packages[self.path.rpartition("/")[2]] = self.body()
        self.answer(200, {})

    def do_POST(self) -> None:
        if self.refuses is not None:
            self.answer(*self.refuses)
        elif self.path.endswith("/stop"):
            self.stopped.append(self.path)
            self.answer(200, {"stopped": True})
        else:
            self.jobs.append(json.loads(self.body()))
            self.answer(200, {"submission_id": "job-1"})


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    for name in ("states", "packages", "jobs", "tokens", "stopped"):
        monkeypatch.setattr(Cluster, name, type(getattr(Cluster, name))())
    monkeypatch.setattr(Cluster, "refuses", None)
    monkeypatch.setattr(Cluster, "exit_code", None)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Cluster)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    (tmp_path / "my rows.jsonl").write_text('{"text": "a"}\n', encoding="utf-8")
    yield f"ray://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def submit(cluster: str, folder: Path, **arguments: Any) -> tuple[Any, str]:
    said: list[str] = []
    ended = run_job(
        cluster, **{"recipe": RECIPE, "base_dir": folder, "echo": said.append, "look_seconds": 0.0} | arguments
    )
    return ended, "".join(said)


def test_recipe_and_rows_travel_and_the_output_comes_back_once(cluster: str, tmp_path: Path) -> None:
    Cluster.states.extend(["PENDING", "RUNNING", "RUNNING", "SUCCEEDED"])
    ended, said = submit(cluster, tmp_path, num_devices=4)
    assert (ended.status, ended.job_id) == ("SUCCEEDED", "job-1")
    assert said.endswith("line 1\nline 2\n")
    assert said.count("line 1") == 1
    (job,) = Cluster.jobs
    assert job["entrypoint"] == "luthier train recipe.json --on ray --devices 4"
    (name,) = Cluster.packages
    assert job["runtime_env"]["working_dir"] == f"gcs://{name}"
    assert Cluster.tokens == {"Bearer secret"}
    with zipfile.ZipFile(io.BytesIO(Cluster.packages[name])) as archive:
        assert sorted(archive.namelist()) == ["recipe.json", "rows/0-my rows.jsonl"]
        sent = json.loads(archive.read("recipe.json"))
        assert archive.read("rows/0-my rows.jsonl") == b'{"text": "a"}\n'
    assert sent["data"] == {"train": "rows/0-my rows.jsonl", "held_out": 0.1}
    assert Recipe.model_validate(sent).training == RECIPE.training


def test_every_file_that_a_recipe_names_travels(tmp_path: Path) -> None:
    """Found by what the model of a recipe declares, so that a key of tomorrow cannot be forgotten."""
    data = {"train": "a.jsonl", "validation": "b.jsonl", "held_out": "c.jsonl"}
    data |= {"replay": {"file": "d.jsonl", "held_out": "e.jsonl", "fraction": 0.1}}
    for name in "abcde":
        (tmp_path / f"{name}.jsonl").write_text(name)
    recipe = Recipe.model_validate({"base_model": "tiny", "data": data})
    with zipfile.ZipFile(io.BytesIO(package(recipe, tmp_path))) as archive:
        sent = Recipe.model_validate(json.loads(archive.read("recipe.json")))
        texts = [archive.read(name).decode() for name in sent.data.files().values()]
    assert texts == list("abcde")
    assert ".jsonl" in sent.model_dump_json()
    assert '"d.jsonl"' not in sent.model_dump_json()
    (tmp_path / "e.jsonl").unlink()
    with pytest.raises(RequestError, match=r"data\.replay\.held_out: .*e\.jsonl"):
        package(recipe, tmp_path)


def test_the_same_package_is_sent_once(cluster: str, tmp_path: Path) -> None:
    Cluster.states.append("SUCCEEDED")
    submit(cluster, tmp_path)
    sent = dict(Cluster.packages)
    Cluster.packages.update(dict.fromkeys(sent, b"kept"))
    submit(cluster, tmp_path)
    assert set(Cluster.packages.values()) == {b"kept"}
    assert package(RECIPE, tmp_path) == package(RECIPE, tmp_path)


def test_sources_keep_their_names_on_the_cluster(tmp_path: Path) -> None:
    sources = [{"path": "orders.jsonl"}, {"path": "faq.jsonl", "name": "questions"}]
    recipe = Recipe.model_validate({"base_model": "tiny", "data": {"train": sources}})
    for name in ("orders", "faq"):
        (tmp_path / f"{name}.jsonl").write_text("{}\n")
    with zipfile.ZipFile(io.BytesIO(package(recipe, tmp_path))) as archive:
        sent = Recipe.model_validate(json.loads(archive.read("recipe.json"))).data.listed()["train"]
    assert [(one.name, one.path) for one in sent] == [
        ("orders", "rows/0-orders.jsonl"), ("questions", "rows/1-faq.jsonl"),
    ]  # fmt: skip


def test_files_of_a_pattern_are_sent_in_their_folders(tmp_path: Path) -> None:
    recipe = Recipe.model_validate({"base_model": "tiny", "data": {"train": "talks/**/*.jsonl", "held_out": "one/*"}})
    for name in ("talks/b.jsonl", "talks/a/c.jsonl", "one/d.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(name)
    with zipfile.ZipFile(io.BytesIO(package(recipe, tmp_path))) as archive:
        sent = Recipe.model_validate(json.loads(archive.read("recipe.json"))).data
        archive.extractall(tmp_path / "there")
    assert (sent.train, sent.held_out) == ("rows/0/**/*", "rows/1/d.jsonl")
    found = matching_files(tmp_path / "there" / str(sent.train))
    assert [(shown, path.read_text()) for path, shown in found] == [
        ("a/c.jsonl", "talks/a/c.jsonl"), ("b.jsonl", "talks/b.jsonl"),
    ]  # fmt: skip


def test_a_run_of_the_cluster_goes_on_without_a_package(cluster: str, tmp_path: Path) -> None:
    Cluster.states.append("SUCCEEDED")
    submit(cluster, tmp_path, recipe=None, resume_id="run-1")
    assert Cluster.packages == {}
    assert Cluster.jobs[0]["entrypoint"] == "luthier train --resume run-1 --on ray --devices 1"


def test_a_wish_to_stop_pauses_the_job(cluster: str, tmp_path: Path) -> None:
    Cluster.states.extend(["RUNNING", "STOPPING", "RUNNING"])
    ended, _ = submit(cluster, tmp_path)
    assert (ended.status, ended.is_interrupted) == ("STOPPED", True)
    assert Cluster.stopped == ["/api/jobs/job-1/stop"]
    assert int(Cluster.jobs[0]["runtime_env"]["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"]) >= 600


def test_a_job_that_fails_is_told(cluster: str, tmp_path: Path) -> None:
    Cluster.states.extend(["RUNNING", "FAILED"])
    with pytest.raises(WorkError, match=r"job job-1 on http://127.0.0.1:\d+ failed: Job is FAILED."):
        submit(cluster, tmp_path)


def test_a_run_that_a_signal_paused_on_the_cluster_has_not_failed(cluster: str, tmp_path: Path) -> None:
    """Ray calls each exit code but 0 a failure; the one that was asked for means a pause."""
    Cluster.states.append("FAILED")
    Cluster.exit_code = 85
    ended, _ = submit(cluster, tmp_path, interrupted_exit_code=85)
    assert ended.is_interrupted
    assert ended.as_json()["is_interrupted"] is True
    assert Cluster.jobs[0]["entrypoint"] == (
        "luthier train recipe.json --interrupted-exit-code 85 --on ray --devices 1"
    )
    Cluster.exit_code = 1
    with pytest.raises(WorkError, match="failed"):
        submit(cluster, tmp_path, interrupted_exit_code=85)
    # 1 is what a failed run ends with, so that it says nothing.
    with pytest.raises(WorkError, match="failed"):
        submit(cluster, tmp_path, interrupted_exit_code=1)
    assert "--interrupted-exit-code" not in Cluster.jobs[-1]["entrypoint"]


@pytest.mark.parametrize(("status", "kind"), [(401, RequestError), (400, RequestError), (500, WorkError)])
def test_what_the_api_refuses_is_told(cluster: str, tmp_path: Path, status: int, kind: type[Exception]) -> None:
    Cluster.refuses = (status, {"why": "no"})
    with pytest.raises(kind, match=rf"POST /api/jobs/: {status} .*why"):
        submit(cluster, tmp_path)


def test_a_cluster_that_is_not_there_is_told(cluster: str, tmp_path: Path) -> None:
    with pytest.raises(WorkError, match=r"the Ray cluster at http://127\.0\.0\.1:1"):
        submit("ray://127.0.0.1:1", tmp_path)


def test_rows_that_are_no_file_are_refused(cluster: str, tmp_path: Path) -> None:
    (tmp_path / "my rows.jsonl").unlink()
    with pytest.raises(RequestError, match=r"data.train: .*my rows.jsonl"):
        submit(cluster, tmp_path)
    assert Cluster.jobs == []


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("ray://head", "http://head:8265"),
        ("ray://10.0.0.1:9000/", "http://10.0.0.1:9000"),
        ("https://ray.example:443", "https://ray.example:443"),
    ],
)
def test_addresses(address: str, url: str) -> None:
    assert base_url(address) == url


@pytest.mark.parametrize("address", ["ray://", "ray://head:port", "ray://head/path"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(RequestError, match="--on ray://"):
        base_url(address)


def test_settings_that_decide_what_a_run_does_travel_with_a_job(
    cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grader = {"type": "python", "name": "own", "source": "def grade(sample, item): return 1.0"}
    asked = {**RECIPE.model_dump(exclude_none=True), "objective": {"name": "grpo", "rewards": [{"grader": grader}]}}
    recipe = Recipe.model_validate(asked)
    Cluster.states.append("SUCCEEDED")
    monkeypatch.delenv("LUTHIER_PYTHON_GRADERS", raising=False)
    assert "note: objective.rewards has graders in Python" in submit(cluster, tmp_path, recipe=recipe)[1]
    monkeypatch.setenv("LUTHIER_PYTHON_GRADERS", "true")
    monkeypatch.setenv("LUTHIER_DATABASE", "postgresql://user:secret@host/name")
    assert "note:" not in submit(cluster, tmp_path, recipe=recipe)[1]
    first, second = (job["runtime_env"]["env_vars"] for job in Cluster.jobs)
    assert "LUTHIER_PYTHON_GRADERS" not in first
    assert second == first | {"LUTHIER_PYTHON_GRADERS": "true"}, "and nothing that is about this machine"
