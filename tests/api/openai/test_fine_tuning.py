"""Jobs over HTTP: from the request to a model, whatever happens in between, and never another project's."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from luthier.core.digest import sha256_file
from luthier.service.context import Context

from .conftest import all_events, chat_row, ok, upload, work

ClientOf = Callable[..., TestClient]
JOBS = "/v1/fine_tuning/jobs"


@pytest.fixture
def client(client_of: ClientOf) -> TestClient:
    return client_of()


def make_job(client: TestClient, **fields: Any) -> dict[str, Any]:
    """A job of 12 rows and 3 epochs of 3 steps, validated on 4 other rows."""
    files = {
        "training_file": upload(client, [chat_row(n) for n in range(12)]),
        "validation_file": upload(client, [chat_row(n) for n in range(50, 54)]),
    }
    method = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 3, "batch_size": 4}}}
    body = {"model": "tiny", "suffix": "my suffix", "seed": 7, "method": method, **files} | fields
    return ok(client.post(JOBS, json={key: value for key, value in body.items() if value is not None}))


def error_of(answer: Any, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def digests(context: Context, job_id: str) -> dict[str, str]:
    """The digest of the weights of the outcome and of each checkpoint, by the name of the model's end."""
    job = context.jobs.get(job_id)
    models = context.tuned_models.list(job.project_id, job_id=job_id)
    return {str(model.step): sha256_file(Path(model.adapter_path) / "adapter_model.safetensors") for model in models}


def told(client: TestClient, job_id: str) -> list[tuple[str, Any]]:
    """All that does not differ from attempt to attempt: figures, checkpoints, the model."""
    kept = re.compile(r"Step |Checkpoint |Files validated|The job has")
    return [(e["message"], e["data"]) for e in all_events(client, job_id) if kept.match(e["message"])]


def test_from_request_to_model(client: TestClient, home: Context) -> None:
    job = make_job(client, metadata={"team": "a"})
    assert job["status"] == "validating_files"
    assert job["hyperparameters"] == {"n_epochs": 3, "batch_size": 4, "learning_rate_multiplier": "auto"}
    assert (job["fine_tuned_model"], job["error"], job["result_files"], job["trained_tokens"]) == (None, None, [], None)
    work(home)
    done = ok(client.get(f"{JOBS}/{job['id']}"))
    assert (done["status"], done["error"]) == ("succeeded", None)
    assert re.fullmatch(r"ft:tiny:default:my-suffix:[0-9a-f]{10}", done["fine_tuned_model"])
    assert done["finished_at"] >= done["created_at"]
    assert done["hyperparameters"] == {"n_epochs": 3, "batch_size": 4, "learning_rate_multiplier": 1.0}
    assert done["method"]["supervised"]["hyperparameters"] == done["hyperparameters"]
    assert (done["seed"], done["metadata"], done["organization_id"]) == (7, {"team": "a"}, "default")
    assert done["trained_tokens"] > 0

    events = all_events(client, job["id"])
    messages = [event["message"] for event in events]
    assert messages[0] == f"Created fine-tuning job: {job['id']}"
    assert messages[1:4] == [
        "Validating the files",
        "Files validated, moving job to queued state",
        "Fine-tuning job started",
    ]
    assert messages[-2:] == [
        f"New fine-tuned model created: {done['fine_tuned_model']}",
        "The job has successfully completed",
    ]
    steps = [event for event in events if event["type"] == "metrics"]
    assert [event["data"]["step"] for event in steps] == list(range(1, 10))
    assert re.fullmatch(r"Step 9/9: training loss=\d+\.\d\d, validation loss=\d+\.\d\d, full .*", steps[-1]["message"])
    assert all(0 <= event["data"]["train_mean_token_accuracy"] <= 1 for event in steps)
    assert steps[-1]["data"]["valid_loss"] == steps[-1]["data"]["full_valid_loss"] > 0

    found = ok(client.get(f"{JOBS}/{job['id']}/checkpoints"))
    assert [one["step_number"] for one in found["data"]] == [9, 6, 3]
    assert found["data"][0]["fine_tuned_model_checkpoint"] == f"{done['fine_tuned_model']}:ckpt-step-9"
    assert found["data"][0]["metrics"]["train_loss"] == steps[-1]["data"]["train_loss"]
    assert found["data"][0]["metrics"]["full_valid_loss"] == steps[-1]["data"]["valid_loss"]
    assert set(digests(home, job["id"])) == {"None", "3", "6", "9"}

    (result_file,) = done["result_files"]
    text = client.get(f"/v1/files/{result_file}/content").text
    rows = list(csv.DictReader(io.StringIO(text)))
    assert text.splitlines()[0] == "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy"
    assert [float(row["train_loss"]) for row in rows] == [event["data"]["train_loss"] for event in steps]
    assert float(rows[-1]["valid_loss"]) == steps[-1]["data"]["valid_loss"]
