"""Reinforcement jobs whose graders ask a model of this server, from the request to the tuned model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from tests.fixtures.openai import chat_row, ok, upload, work_here

from luthier.core.events import StepDone
from luthier.features.models.service import pull_model
from luthier.ml.evaluation.sandbox.runners import isolation
from luthier.platform.home.context import Context
from luthier.testing.tiny import make_tiny_judge

ClientOf = Callable[..., TestClient]
JOBS = "/v1/fine_tuning/jobs"
SCORE = {
    "type": "score_model",
    "name": "opinion",
    "model": "judge",
    "input": [
        {"role": "system", "content": "Grade from 0 to 1."},
        {"type": "message", "role": "user", "content": {"type": "input_text", "text": "{{sample.output_text}}"}},
        {"role": "user", "content": [{"type": "input_text", "text": "Right: {{item.answer}}"}]},
    ],
    "range": [0, 1],
    "sampling_params": {"max_completions_tokens": 2, "temperature": 0, "top_p": 1, "seed": 3},
    "pass_threshold": 0.5,
}
LABEL = {
    "type": "label_model",
    "name": "label",
    "model": "judge",
    "input": [{"role": "user", "content": "{{sample.output_text}}"}],
    "labels": ["0", "1"],
    "passing_labels": ["1"],
}


@pytest.fixture(scope="session")
def tiny_judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_judge(tmp_path_factory.mktemp("judge") / "judge")


@pytest.fixture
def client(client_of: ClientOf) -> TestClient:
    return client_of()


def job_of(client: TestClient, grader: dict[str, Any], *, length: dict[str, Any] | None = None) -> Any:
    rows = [{"messages": chat_row(n)["messages"][:1], "answer": str(n)} for n in range(10)]
    hyperparameters = {"n_epochs": 1, "batch_size": 5} | (length or {})
    method = {"type": "reinforcement", "reinforcement": {"grader": grader, "hyperparameters": hyperparameters}}
    return client.post(JOBS, json={"model": "tiny", "training_file": upload(client, rows), "seed": 7, "method": method})


def test_a_job_learns_from_the_scores_and_the_labels_of_a_model_of_the_server(
    client: TestClient, home: Context, tiny_judge: Path
) -> None:
    pull_model(home, str(tiny_judge))
    multi = {"type": "multi", "name": "both", "graders": [SCORE, LABEL], "calculate_output": "opinion + 2 * label"}
    job = ok(job_of(client, multi))
    assert job["method"]["reinforcement"]["grader"] == multi
    work_here(home)
    job = ok(client.get(f"{JOBS}/{job['id']}"))
    assert (job["status"], job["error"]) == ("succeeded", None)
    run_id = home.jobs.get(job["id"]).run_id
    (judge,) = home.runs.plan(run_id).objective.judges or ()
    assert Path(judge.path).name == "judge"
    folder = home.settings.run_folder(run_id) / "samples"
    lines = [json.loads(line) for file in folder.iterdir() for line in file.read_text().splitlines()]
    assert {line["reward"] for line in lines} <= {0.0, 1.0, 2.0, 3.0}
    assert len({line["reward"] for line in lines}) > 1
    steps = [event for event in home.runs.events(run_id) if isinstance(event, StepDone)]
    assert len(steps) == 2
    assert all(0 <= step.measures["ungraded_fraction"] <= 1 for step in steps)


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"model": "gpt-4o"}, "model_not_found", "the grader asks 'gpt-4o'"),
        ({"model": "/etc"}, "model_not_found", "the grader asks '/etc'"),
        ({"model": "http://127.0.0.1:1/v1#x"}, "model_not_found", "the grader asks 'http://"),
        ({"range": [2, 1]}, "unsupported_method", "range 2 to 1"),
        ({"sampling_params": {"top_p": 0.5}}, "unsupported_method", "sampling_params.top_p"),
        ({"input": []}, "unsupported_method", "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "unsupported_method", "content"),
        ({"input": [{"role": "user", "content": "{{sample.choices}}"}]}, "unsupported_method", "sample.choices"),
        ({"type": "python", "source": "x"}, "unsupported_grader", "of type python"),
    ],
)
def test_what_cannot_grade_is_refused_with_the_request(
    client: TestClient, home: Context, tiny_judge: Path, changes: dict[str, Any], code: str, words: str
) -> None:
    pull_model(home, str(tiny_judge))
    multi = {"type": "multi", "name": "m", "graders": {"opinion": SCORE | changes}, "calculate_output": "opinion"}
    for grader in (SCORE | changes, multi):
        answer = job_of(client, grader)
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert (error["param"], error["code"]) == ("method.reinforcement.grader", code)
        assert words in error["message"]
    assert ok(client.get(JOBS))["data"] == []


CODE = """
def grade(sample, item):
    if len(sample["output_text"]) % 3 == 0:
        raise ValueError("no score")
    return len(sample["output_text"]) % 2 + float(item["answer"]) * 0
"""


@pytest.mark.skipif(not isolation().seccomp, reason="this machine cannot lock a process down")
def test_code_grades_where_the_operator_allows_it_and_its_failures_are_in_the_events_of_the_job(
    client: TestClient, home: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(home, "settings", home.settings.model_copy(update={"python_graders": True}))
    code = {"type": "python", "name": "own", "source": CODE, "image_tag": None}
    check = {"type": "string_check", "name": "same", "input": "{{sample.output_text}}", "reference": "{{item.answer}}"}
    graders = [code, check | {"operation": "eq"}]
    multi = {"type": "multi", "name": "both", "graders": graders, "calculate_output": "own + same"}
    job = ok(job_of(client, multi))
    work_here(home)
    job = ok(client.get(f"{JOBS}/{job['id']}"))
    assert (job["status"], job["error"]) == ("succeeded", None)
    run_id = home.jobs.get(job["id"]).run_id
    folder = home.settings.run_folder(run_id) / "samples"
    lines = [json.loads(line) for file in folder.iterdir() for line in file.read_text().splitlines()]
    assert all(("is_ungraded" in line) == (len(line["output"]) % 3 == 0) for line in lines)
    assert {line["parts"]["both"] for line in lines if "is_ungraded" in line} <= {0.0, 1.0}
    events = ok(client.get(f"{JOBS}/{job['id']}/events"))["data"]
    (warned,) = [event for event in events if event["level"] == "warn"]
    assert "grader 'own' has given an answer no score (ValueError: no score)" in warned["message"]
    steps = [event for event in events if event["type"] == "metrics"]
    assert all("training reward=" in event["message"] for event in steps)
    assert any("answers without a score=" in event["message"] for event in steps)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"source": "def grade("}, "is no Python"),
        ({"source": "x = 1"}, "defines no function grade"),
        ({"image_tag": "2026-01-01"}, "image_tag"),
    ],
)
def test_code_that_cannot_grade_is_refused_with_the_request(
    client: TestClient, home: Context, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], words: str
) -> None:
    monkeypatch.setattr(home, "settings", home.settings.model_copy(update={"python_graders": True}))
    answer = job_of(client, {"type": "python", "name": "own", "source": CODE} | changes)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == ("method.reinforcement.grader", "unsupported_method")
    assert words in error["message"]


def test_a_key_that_may_not_ask_models_makes_no_job_that_does(
    client_of: ClientOf, home: Context, tiny_judge: Path
) -> None:
    pull_model(home, str(tiny_judge))
    answer = job_of(client_of(scopes=("train",)), SCORE)
    assert answer.status_code == 403
    assert "may not ask models, and the grader asks judge" in answer.json()["error"]["message"]
