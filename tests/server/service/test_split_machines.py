"""A server without a worker and a worker without a server, each with its home, joined by PostgreSQL and a bucket."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi.testclient import TestClient

from luthier.core.access import Caller
from luthier.core.errors import WorkError
from luthier.core.ids import sha256_file
from luthier.core.ports import SilentProgress
from luthier.features.models.resolve import find_candidate
from luthier.features.runs.run_files import has_weights, weights_of
from luthier.features.runs.state import standing
from luthier.features.runs.views import report_of
from luthier.features.serving.targets import served_target
from luthier.features.training.recipe_job import carry_out
from luthier.ml.inference.models import sources
from luthier.platform.home.context import Context
from luthier.server.api import create_app
from luthier.server.prepare import prepare_home
from luthier.testing.servers import home_server

BUCKET, SECRET = "luthier-split", "test-secret-key-0123456789"
KEY = "a-first-key-of-a-cluster-0123456789abcdef"
ROWS = [
    {"messages": [{"role": "user", "content": f"What comes after {n}?"}, {"role": "assistant", "content": f"{n + 1}"}]}
    for n in range(24)
]


@dataclass
class Machines:
    """Two homes over one database and one bucket: `here` has the server, `there` a worker."""

    here: Path
    there: Path
    bucket: Any


@pytest.fixture
def machines(
    new_postgresql: Callable[[], str],
    empty_bucket: Callable[[str, str], Any],
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Machines:
    bucket = empty_bucket(BUCKET, SECRET)
    monkeypatch.setenv("LUTHIER_DATABASE", new_postgresql())
    monkeypatch.setenv("LUTHIER_ARTIFACTS", f"s3://{BUCKET}/artifacts")
    here, there = tmp_path / "server", tmp_path / "worker"
    for home in (here, there):
        with Context.open(home) as context:
            sources.pull(str(tiny_model), context.home, SilentProgress())
            prepared = prepare_home(context, KEY)
    assert (prepared.key_is, prepared.artifacts, prepared.key) == ("there", "elsewhere", None)
    return Machines(here, there, bucket)


def started(client: httpx2.Client | TestClient) -> str:
    """The id of a run that was queued by the server."""
    rows = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    file = client.post("/v1/files", files={"file": ("a.jsonl", rows)}, data={"purpose": "fine-tune"}).json()
    data = {"train": file["id"], "held_out": 0.25}
    judged = {"few_shot": 0, "max_new_tokens": 4}
    training = {"epochs": 1, "global_batch_size": 8}
    recipe = {"base_model": "tiny", "data": data, "training": training, "evaluation": judged}
    return str(client.post("/api/v1/runs", json={"recipe": recipe}).json()["run_id"])


def worked(context: Context) -> None:
    """What a worker and its children do, in this process: they take seconds to start."""
    for _ in ("validate", "train"):
        job = context.jobs.claim("other", ("validate", "train"))
        assert job is not None
        outcome = carry_out(context, job)
        if outcome.status == "validated":
            context.jobs.advance(job.job_id, job.attempt, outcome.found)
        else:
            context.jobs.finish(job.job_id, job.attempt, outcome.status, outcome.error, outcome.found)


def digests(folder: Path) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in folder.iterdir() if path.is_file()}


def test_what_another_machine_has_trained_is_shown_and_resolved_here(machines: Machines) -> None:
    with Context.open(machines.here) as context:
        with TestClient(create_app(context), headers={"Authorization": f"Bearer {KEY}"}) as client:
            run_id = started(client)
            with Context.open(machines.there) as other:
                worked(other)
            made = digests(machines.there / "runs" / run_id / "adapter")
            assert "adapter_config.json" in made
            assert not (machines.here / "runs" / run_id).exists()
            # The machine that has trained is gone, with its disk.
            shutil.rmtree(machines.there)
            assert has_weights(context, standing(context, Caller(), run_id))
            assert not (machines.here / "runs" / run_id).exists(), "a question fetches nothing"
            assert weights_of(context, Caller(), run_id).num_bytes > 0
            assert client.get(f"/api/v1/runs/{run_id}/verdict").json()["word"]
            deployed = client.post("/api/v1/deployments", json={"name": "after", "target": run_id})
            assert deployed.status_code == 201, deployed.text
        assert "verdict" in report_of(context, "default", run_id).casefold()
        folder = machines.here / "runs" / run_id / "adapter"
        assert find_candidate(context, run_id).adapter_path == str(folder)
        assert served_target(context, Caller(), run_id).adapter_path == str(folder)
        assert digests(folder) == made
        # What is damaged in the bucket is refused, and nothing of it is left.
        shutil.rmtree(folder.parent)
        weights = context.artifacts.linked(run_id)["adapter/adapter_model.safetensors"].sha256
        stored = machines.bucket.list_objects_v2(Bucket=BUCKET)["Contents"]
        (key,) = [entry["Key"] for entry in stored if f"{weights[:2]}/{weights[2:]}" in entry["Key"]]
        machines.bucket.put_object(Bucket=BUCKET, Key=key, Body=b"x")
        with pytest.raises(WorkError, match="digest"):
            find_candidate(context, run_id)
        assert not folder.exists()


@pytest.mark.drill
def test_a_worker_process_without_a_server_trains_and_the_server_without_a_worker_answers(machines: Machines) -> None:
    with (
        home_server(machines.here) as server,
        httpx2.Client(base_url=server.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=240) as client,
    ):
        run_id = started(client)
        command = [sys.executable, "-m", "luthier", "worker", "--name", "other", "--until-idle"]
        command += ["--home", str(machines.there)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        shutil.rmtree(machines.there)
        assert client.post("/api/v1/deployments", json={"name": "after", "target": run_id}).status_code == 201
        asked = {"model": "after", "messages": [{"role": "user", "content": "What comes after 7?"}], "max_tokens": 4}
        answer = client.post("/v1/chat/completions", json=asked)
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-luthier-target"] == run_id
