"""Evals, stored completions and batches by the unmodified `openai` package, against a real server with real workers."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest
from openai.types.eval_custom_data_source_config import EvalCustomDataSourceConfig

from luthier.testing.servers import RunningServer

PATIENCE_SECONDS = 240
SCHEMA = {"type": "object", "properties": {"q": {"type": "string"}, "a": {"type": "string"}}, "required": ["q", "a"]}
CRITERIA: list[Any] = [
    {
        "type": "string_check",
        "name": "not empty",
        "input": "{{ sample.output_text }}",
        "reference": "",
        "operation": "ne",
    },
    {
        "type": "text_similarity",
        "name": "alike",
        "input": "{{ sample.output_text }}",
        "reference": "{{ item.a }}",
        "evaluation_metric": "fuzzy_match",
        "pass_threshold": 0.9,
    },
]
PROMPT: Any = {"type": "template", "template": [{"role": "user", "content": "{{ item.q }}"}]}


@pytest.fixture(scope="module")
def client(keys_and_server: tuple[dict[str, str], RunningServer]) -> Iterator[openai.OpenAI]:
    keys, server = keys_and_server
    with openai.OpenAI(api_key=keys["admin"], base_url=f"{server.url}/v1", max_retries=0) as made:
        yield made


def uploaded(client: openai.OpenAI, lines: list[Any], purpose: Any) -> str:
    text = "".join(json.dumps(line) + "\n" for line in lines)
    return client.files.create(file=("rows.jsonl", text.encode()), purpose=purpose).id


def waited(look: Callable[[], Any], done: set[str], log: RunningServer) -> Any:
    end = time.monotonic() + PATIENCE_SECONDS
    while (found := look()).status not in done:
        assert time.monotonic() < end, log.log.read_text()[-3000:]
        time.sleep(0.5)
    return found


def test_the_way_of_an_eval(client: openai.OpenAI, keys_and_server: tuple[dict[str, str], RunningServer]) -> None:
    _, server = keys_and_server
    config: Any = {"type": "custom", "item_schema": SCHEMA, "include_sample_schema": True}
    one = client.evals.create(name="compat", data_source_config=config, testing_criteria=CRITERIA, metadata={"a": "b"})
    assert isinstance(one.data_source_config, EvalCustomDataSourceConfig)
    assert one.data_source_config.schema_["properties"]["item"] == SCHEMA  # type: ignore[index]
    assert client.evals.update(one.id, name="compat 2").name == "compat 2"
    assert one.id in [each.id for each in client.evals.list(limit=1, order="desc", order_by="updated_at").data]
    file_id = uploaded(client, [{"item": {"q": f"Say {n}", "a": str(n)}} for n in range(7)], "evals")
    source: Any = {
        "type": "completions",
        "model": "tiny",
        "input_messages": PROMPT,
        "source": {"type": "file_id", "id": file_id},
        "sampling_params": {"max_completion_tokens": 4, "temperature": 0.0},
    }
    run = client.evals.runs.create(one.id, name="first", data_source=source)
    # Too long to end before it is canceled.
    rows = [{"item": {"q": f"Say {n}", "a": str(n)}} for n in range(5000)]
    of_rows = {"source": {"type": "file_id", "id": uploaded(client, rows, "evals")}}
    waiting = client.evals.runs.create(one.id, data_source=source | of_rows)
    assert client.evals.runs.cancel(waiting.id, eval_id=one.id).status in ("canceled", "in_progress")
    run = waited(lambda: client.evals.runs.retrieve(run.id, eval_id=one.id), {"completed", "failed"}, server)
    assert (run.status, run.error) == ("completed", None)
    counts = run.result_counts
    assert (counts.total, counts.errored, counts.passed + counts.failed) == (7, 0, 7)
    assert [each.testing_criteria for each in run.per_testing_criteria_results] == ["not empty", "alike"]
    (usage,) = run.per_model_usage
    assert (usage.run_model_name, usage.invocation_count) == ("tiny", 7)
    items = list(client.evals.runs.output_items.list(run.id, eval_id=one.id, limit=3))
    assert [item.datasource_item["a"] for item in items] == [str(n) for n in range(7)]
    first = client.evals.runs.output_items.retrieve(items[0].id, eval_id=one.id, run_id=run.id)
    assert first.model_dump() == items[0].model_dump()
    assert first.sample.usage.total_tokens > 0
    assert first.sample.input[0].content == "Say 0"
    assert [result.name for result in first.results] == ["not empty", "alike"]
    assert run.report_url.startswith(f"{server.url}/evaluations/suites/suite-")
    assert {each.id for each in client.evals.runs.list(one.id)} == {run.id, waiting.id}
    waited(lambda: client.evals.runs.retrieve(waiting.id, eval_id=one.id), {"canceled"}, server)
    assert client.evals.runs.delete(waiting.id, eval_id=one.id).deleted
    assert client.evals.delete(one.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.evals.retrieve(one.id)
    with pytest.raises(openai.BadRequestError) as caught:
        client.evals.create(data_source_config=config, testing_criteria=[CRITERIA[1] | {"evaluation_metric": "cosine"}])
    assert (caught.value.param, caught.value.code) == ("testing_criteria.0.evaluation_metric", "unsupported_metric")


def test_the_way_of_a_batch(client: openai.OpenAI, keys_and_server: tuple[dict[str, str], RunningServer]) -> None:
    _, server = keys_and_server
    lines: list[dict[str, Any]] = [
        {
            "custom_id": f"request-{n}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"model": "tiny", "messages": [{"role": "user", "content": f"Say {n}"}], "max_tokens": 4},
        }
        for n in range(20)
    ]
    file_id = uploaded(client, [*lines, {"custom_id": "wrong"}], "batch")
    batch = client.batches.create(
        input_file_id=file_id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        metadata={"a": "b"},
        output_expires_after={"anchor": "created_at", "seconds": 3600},
    )
    batch = waited(lambda: client.batches.retrieve(batch.id), {"completed", "failed", "expired"}, server)
    assert batch.status == "completed"
    assert batch.request_counts is not None
    assert (batch.request_counts.total, batch.request_counts.completed, batch.request_counts.failed) == (21, 20, 1)
    assert batch.usage is not None
    assert batch.usage.total_tokens > 0
    assert batch.output_file_id is not None
    answers = [json.loads(line) for line in client.files.content(batch.output_file_id).text.splitlines()]
    assert sorted(one["custom_id"] for one in answers) == sorted(line["custom_id"] for line in lines)
    assert batch.error_file_id is not None
    (error,) = client.files.content(batch.error_file_id).text.splitlines()
    assert json.loads(error)["error"]["code"] == "invalid_line"
    assert client.batches.list(limit=1).data[0].id == batch.id
    with pytest.raises(openai.ConflictError):
        client.batches.cancel(batch.id)
