"""Reinforcement fine-tuning by the unmodified `openai` package: a model of the server grades, real workers train."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from luthier.features.models.service import pull_model
from luthier.platform.home.context import Context
from luthier.testing.servers import RunningServer
from luthier.testing.tiny import make_tiny_judge

PATIENCE_SECONDS = 240
SCORE: Any = {
    "type": "score_model",
    "name": "opinion",
    "model": "judge",
    "input": [{"role": "user", "content": "Grade {{ sample.output_text }} by {{ item.answer }}."}],
    "range": [0, 1],
    "sampling_params": {"max_completions_tokens": 2, "temperature": 0},
}
CHECK: Any = {
    "type": "string_check",
    "name": "named",
    "input": "{{ sample.output_text }}",
    "reference": "{{ item.answer }}",
    "operation": "like",
}
MULTI: Any = {
    "type": "multi",
    "name": "both",
    "graders": {"opinion": SCORE, "named": CHECK},
    "calculate_output": "0.5 * opinion + named",
}


@pytest.fixture(scope="module")
def judge(keys_and_server: tuple[dict[str, str], RunningServer], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_tiny_judge(tmp_path_factory.mktemp("judge") / "judge")
    with Context.open(keys_and_server[1].home) as context:
        pull_model(context, str(folder))
    return folder


@pytest.fixture(scope="module")
def client(keys_and_server: tuple[dict[str, str], RunningServer]) -> Iterator[openai.OpenAI]:
    keys, server = keys_and_server
    with openai.OpenAI(api_key=keys["admin"], base_url=f"{server.url}/v1", max_retries=0) as made:
        yield made


def test_the_way_of_a_reinforcement_job_with_a_model_that_grades(
    client: openai.OpenAI, judge: Path, keys_and_server: tuple[dict[str, str], RunningServer]
) -> None:
    assert judge.name in {model.id for model in client.models.list()}
    graders = client.fine_tuning.alpha.graders
    assert graders.validate(grader=MULTI).grader is not None
    tried = graders.run(grader=SCORE, model_sample="four", item={"answer": "four"})
    assert tried.reward in (0.0, 1.0)
    assert not tried.metadata.errors.model_dump(by_alias=True)["model_grader_parse_error"]
    rows = [{"messages": [{"role": "user", "content": f"Say {n}"}], "answer": str(n)} for n in range(10)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    file = client.files.create(file=("rows.jsonl", text.encode()), purpose="fine-tune")
    method: Any = {
        "type": "reinforcement",
        "reinforcement": {"grader": MULTI, "hyperparameters": {"n_epochs": 1, "batch_size": 5}},
    }
    job = client.fine_tuning.jobs.create(model="tiny", training_file=file.id, seed=3, method=method)
    end = time.monotonic() + PATIENCE_SECONDS
    while (job := client.fine_tuning.jobs.retrieve(job.id)).status not in ("succeeded", "failed"):
        assert time.monotonic() < end, keys_and_server[1].log.read_text()[-3000:]
        time.sleep(0.5)
    assert job.status == "succeeded", job.error
    assert job.method is not None
    assert job.method.reinforcement is not None
    assert job.method.reinforcement.grader.type == "multi"
    said = client.chat.completions.create(
        model=job.fine_tuned_model or "", messages=[{"role": "user", "content": "Say 3"}], max_tokens=4
    )
    assert said.choices[0].finish_reason in ("stop", "length")


def test_a_model_that_is_not_here_does_not_grade(client: openai.OpenAI) -> None:
    grader = SCORE | {"model": "gpt-4o-2024-08-06"}
    method: Any = {"type": "reinforcement", "reinforcement": {"grader": grader}}
    file = client.files.create(file=("rows.jsonl", b'{"messages": []}\n'), purpose="fine-tune")
    with pytest.raises(openai.BadRequestError) as caught:
        client.fine_tuning.jobs.create(model="tiny", training_file=file.id, method=method)
    assert (caught.value.param, caught.value.code) == ("method.reinforcement.grader", "model_not_found")
    assert "gpt-4o-2024-08-06" in caught.value.message
