"""Evals over HTTP: what OpenAI's API has, in its form; what is not supported is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient
from tests.fixtures.echo_engine import answering
from tests.fixtures.openai import ok, upload
from tests.vacuous import nonempty

from luthier.core.stream import TextRequest
from luthier.features.evals_api import job as eval_job
from luthier.features.evals_api.records import OutputItem, RunTotals
from luthier.platform.db.tables import eval_output_items
from luthier.platform.home.context import Context

CHECK = {
    "type": "string_check",
    "name": "right",
    "input": "{{sample.output_text}}",
    "reference": "{{item.answer}}",
    "operation": "eq",
}
LIKE = {
    "type": "text_similarity",
    "name": "alike",
    "input": "{{ sample.output_text }}",
    "reference": "{{item.answer}}",
    "evaluation_metric": "fuzzy_match",
    "pass_threshold": 0.8,
}
SCHEMA = {
    "type": "object",
    "properties": {"question": {"type": "string"}, "answer": {"type": "string"}},
    "required": ["question", "answer"],
}
EVAL = {
    "name": "Echo",
    "data_source_config": {"type": "custom", "item_schema": SCHEMA, "include_sample_schema": True},
    "testing_criteria": [CHECK, LIKE],
    "metadata": {"team": "a"},
}
ROWS = [
    {"item": {"question": "say four", "answer": "four"}},
    {"item": {"question": "say fours", "answer": "four"}},
    {"item": {"question": "say none", "answer": "four"}},
]
TEMPLATE = {
    "type": "template",
    "template": [
        {"role": "developer", "content": {"type": "input_text", "text": "Answer."}},
        {"role": "user", "content": "Please {{item.question}}"},
    ],
}
SOURCE = {
    "type": "completions",
    "model": "tiny",
    "input_messages": TEMPLATE,
    "source": {"type": "file_content", "content": ROWS},
    "sampling_params": {"temperature": 0.0, "max_completion_tokens": 8},
}


@pytest.fixture
def client(client_of: Callable[..., TestClient]) -> TestClient:
    return client_of()


def made(client: TestClient, **changes: Any) -> dict[str, Any]:
    answer = client.post("/v1/evals", json=EVAL | changes)
    assert answer.status_code == 201, answer.text
    document: dict[str, Any] = answer.json()
    return document


def started(client: TestClient, eval_id: str, source: Any = None) -> dict[str, Any]:
    answer = client.post(f"/v1/evals/{eval_id}/runs", json={"data_source": source or SOURCE, "name": "first"})
    assert answer.status_code == 201, answer.text
    document: dict[str, Any] = answer.json()
    return document


def refused(answer: Any, status: int = 400) -> tuple[str | None, str | None, str]:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    return error["param"], error["code"], error["message"]


def worked(home: Context) -> None:
    """What a worker and its child do, in this process."""
    job = home.jobs.claim("here", ("infer",))
    assert job is not None
    outcome = eval_job.carry_out(home, job)
    assert outcome.status != "validated"
    home.jobs.finish(job.job_id, job.attempt, outcome.status, outcome.error, outcome.found)


def test_an_eval_is_made_read_changed_and_deleted(client: TestClient) -> None:
    one = made(client)
    assert one["id"].startswith("eval_")
    assert (one["object"], one["name"], one["metadata"]) == ("eval", "Echo", {"team": "a"})
    assert one["testing_criteria"] == [CHECK, LIKE]
    schema = one["data_source_config"]["schema"]
    assert schema["properties"]["item"] == SCHEMA
    assert schema["required"] == ["item", "sample"]
    assert ok(client.get(f"/v1/evals/{one['id']}")) == one
    changed = ok(client.post(f"/v1/evals/{one['id']}", json={"name": "New"}))
    assert (changed["name"], changed["metadata"]) == ("New", {"team": "a"})
    assert ok(client.post(f"/v1/evals/{one['id']}", json={"metadata": None}))["metadata"] is None
    assert ok(client.delete(f"/v1/evals/{one['id']}")) == {
        "object": "eval.deleted",
        "deleted": True,
        "eval_id": one["id"],
    }
    assert client.get(f"/v1/evals/{one['id']}").status_code == 404


def test_pages_of_evals_in_both_orders(client: TestClient) -> None:
    ids = [made(client, name=str(number))["id"] for number in range(5)]
    client.post(f"/v1/evals/{ids[1]}", json={"name": "later"})
    first = ok(client.get("/v1/evals?limit=2"))
    assert [one["id"] for one in first["data"]] == ids[:2]
    assert (first["has_more"], first["first_id"], first["last_id"]) == (True, ids[0], ids[1])
    rest = ok(client.get(f"/v1/evals?limit=5&after={ids[1]}"))
    assert ([one["id"] for one in rest["data"]], rest["has_more"]) == (ids[2:], False)
    newest = ok(client.get("/v1/evals?order=desc&limit=3"))
    assert [one["id"] for one in newest["data"]] == ids[:1:-1]
    assert ok(client.get("/v1/evals?order_by=updated_at&order=desc&limit=1"))["data"][0]["id"] == ids[1]
    assert refused(client.get("/v1/evals?after=eval_none"))[:2] == ("after", "invalid_value")


def emptied(client: TestClient, address: str, *, query: str = "") -> list[str]:
    """Deletes each item of a list on the way through its pages, as a loop over a list of OpenAI's client does."""
    deleted: list[str] = []
    after = ""
    while True:
        page = ok(client.get(f"{address}?limit=2{query}{after}"))
        for one in page["data"]:
            ok(client.delete(f"{address}/{one['id']}"))
            deleted.append(one["id"])
        if not page["has_more"]:
            return deleted
        after = f"&after={page['last_id']}"


@pytest.mark.parametrize("query", ["", "&order=desc", "&order_by=updated_at"])
def test_evals_can_be_deleted_while_their_list_is_paged_through(
    client: TestClient, client_of: Callable[..., TestClient], query: str
) -> None:
    ids = [made(client, name=str(number))["id"] for number in range(5)]
    client.post(f"/v1/evals/{ids[3]}", json={"name": "later"})
    before = [one["id"] for one in ok(client.get(f"/v1/evals?limit=5{query}"))["data"]]
    assert sorted(before) == sorted(ids)
    assert emptied(client, "/v1/evals", query=query) == before
    assert refused(client_of("other").get(f"/v1/evals?after={ids[0]}"))[1] == "invalid_value"


def test_runs_can_be_deleted_while_their_list_is_paged_through(client: TestClient) -> None:
    one, another = made(client), made(client)
    address = f"/v1/evals/{one['id']}/runs"
    ids = [started(client, one["id"])["id"] for _ in range(5)]
    for run_id in ids:
        ok(client.post(f"{address}/{run_id}/cancel"))
    assert emptied(client, address) == ids
    assert refused(client.get(f"/v1/evals/{another['id']}/runs?after={ids[0]}"))[:2] == ("after", "invalid_value")


def test_a_run_answers_grades_counts_and_has_a_report(client: TestClient, home: Context) -> None:
    engine = answering(home)
    engine.num_cached = 1
    one = made(client)
    run = started(client, one["id"])
    assert (run["status"], run["model"], run["result_counts"]["total"]) == ("queued", "tiny", 0)
    assert run["data_source"] == SOURCE
    worked(home)
    address = f"/v1/evals/{one['id']}/runs/{run['id']}"
    run = ok(client.get(address))
    assert (run["status"], run["error"]) == ("completed", None)
    # "fours" is not "four", but more than 0.8 like it.
    assert run["result_counts"] == {"total": 3, "errored": 0, "failed": 2, "passed": 1}
    assert run["per_testing_criteria_results"] == [
        {"testing_criteria": "right", "passed": 1, "failed": 2},
        {"testing_criteria": "alike", "passed": 2, "failed": 1},
    ]
    assert run["per_model_usage"] == [
        {
            "model_name": "tiny",
            "invocation_count": 3,
            "prompt_tokens": 9,
            "completion_tokens": 6,
            "total_tokens": 15,
            "cached_tokens": 3,
        }
    ]
    assert [request.sampling.temperature for request in engine.asked if isinstance(request, TextRequest)] == [0.0] * 3
    items = ok(client.get(f"{address}/output_items"))
    assert [item["status"] for item in items["data"]] == ["pass", "fail", "fail"]
    item = items["data"][1]
    assert (item["datasource_item_id"], item["datasource_item"]) == (1, ROWS[1]["item"])
    assert [result["passed"] for result in item["results"]] == [False, True]
    assert item["results"][1]["score"] == pytest.approx(2 * 4 / 9)
    assert item["sample"]["input"][1] == {"role": "user", "content": "Please say fours"}
    assert item["sample"]["output"] == [{"role": "assistant", "content": "fours"}]
    tokens = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5, "cached_tokens": 1}
    assert item["sample"]["usage"] == tokens
    assert (item["sample"]["finish_reason"], item["sample"]["max_completion_tokens"]) == ("stop", 8)
    assert ok(client.get(f"{address}/output_items/{item['id']}")) == item
    failed = ok(client.get(f"{address}/output_items?status=fail&order=desc"))
    assert [one["datasource_item_id"] for one in failed["data"]] == [2, 1]
    result_id = run["report_url"].rsplit("/", 1)[1]
    from luthier.features.assessments.service import read_suite

    report = read_suite(home, "default", result_id)
    assert [task.name for task in report.tasks] == ["right", "alike", "all_graders"]
    share = report.tasks[0].systems[0].metrics["pass_rate"]
    assert share.value == pytest.approx(1 / 3)
    # Wilson's interval of 1 of 3.
    assert (share.low, share.high) == pytest.approx((0.0615, 0.7923), abs=1e-3)


def test_the_limit_of_answers_has_both_names_of_openai_s_reference(client: TestClient, home: Context) -> None:
    engine = answering(home)
    one = made(client)
    parameters = {"temperature": 1, "max_completions_tokens": 7, "top_p": 1, "seed": 42}
    run = started(client, one["id"], SOURCE | {"sampling_params": parameters})
    worked(home)
    address = f"/v1/evals/{one['id']}/runs/{run['id']}"
    assert ok(client.get(address))["status"] == "completed"
    items = ok(client.get(f"{address}/output_items"))["data"]
    assert [item["sample"]["max_completion_tokens"] for item in items] == [7] * len(ROWS)
    assert {request.max_new_tokens for request in engine.asked if isinstance(request, TextRequest)} == {7}
    both = SOURCE | {"sampling_params": {"max_completions_tokens": 7, "max_completion_tokens": 8}}
    answer = client.post(f"/v1/evals/{one['id']}/runs", json={"data_source": both})
    assert refused(answer)[:2] == ("data_source.sampling_params.max_completions_tokens", "unsupported_parameter")


@pytest.mark.parametrize(
    ("changes", "param", "code"),
    [
        ({"testing_criteria": [CHECK | {"operation": "is"}]}, "testing_criteria.0.operation", "invalid_value"),
        ({"testing_criteria": []}, "testing_criteria", "invalid_value"),
        ({"testing_criteria": [CHECK, LIKE | {"evaluation_metric": "cosine"}]},
         "testing_criteria.1.evaluation_metric", "unsupported_metric"),
        ({"testing_criteria": [{name: value for name, value in LIKE.items() if name != "pass_threshold"}]},
         "testing_criteria.0.pass_threshold", "missing_required_parameter"),
        ({"testing_criteria": [{"type": "python", "name": "p", "source": "def grade(s, i): return 1"}]},
         "testing_criteria.0.type", "unsupported_grader"),
        ({"testing_criteria": [CHECK | {"input": "{{secret.key}}"}]}, "testing_criteria.0", "invalid_grader"),
        ({"data_source_config": {"type": "custom", "item_schema": {"type": "odd"}}},
         "data_source_config.item_schema", "invalid_json_schema"),
        ({"data_source_config": {"type": "custom", "item_schema": {"$ref": "https://example.com/a.json"}}},
         "data_source_config.item_schema", "invalid_json_schema"),
        ({"data_source_config": {"type": "custom", "item_schema": SCHEMA}}, "testing_criteria.0", "invalid_grader"),
        ({"data_source_config": {"type": "custom", "item_schema": SCHEMA | {"additionalProperties": False},
                                 "include_sample_schema": True},
          "testing_criteria": [CHECK | {"reference": "{{item.other}}"}]}, "testing_criteria.0", "invalid_grader"),
        ({"shared_with": "all"}, "shared_with", "unknown_parameter"),
        ({"metadata": {"a": "b" * 513}}, "metadata.a", "invalid_value"),
    ],
)  # fmt: skip
def test_an_eval_that_cannot_be_carried_out_is_refused_by_name(
    client: TestClient, changes: dict[str, Any], param: str, code: str
) -> None:
    assert refused(client.post("/v1/evals", json=EVAL | changes))[:2] == (param, code)


@pytest.mark.parametrize(
    ("changes", "param", "code"),
    [
        ({"model": "none"}, "data_source.model", "model_not_found"),
        ({"source": {"type": "file_id", "id": "file-none"}}, "data_source.source.id", "invalid_file"),
        ({"source": {"type": "stored_completions"}}, "data_source.source.type", "invalid_value"),
        ({"source": {"type": "responses"}}, "data_source.source", "invalid_value"),
        ({"sampling_params": {"n": 2}}, "data_source.sampling_params.n", "unsupported_parameter"),
        ({"sampling_params": {"temperature": 9}}, "data_source.sampling_params.temperature", "invalid_value"),
        ({"type": "responses", "sampling_params": {"tools": [{"type": "web_search"}]}},
         "data_source.sampling_params.tools.0.type", "unsupported_parameter"),
        ({"input_messages": {"type": "template", "template": [{"role": "user", "content": "{{sample.output_text}}"}]}},
         "data_source.input_messages.template.0.content", "invalid_value"),
        ({"input_messages": {"type": "template", "template": [
            {"role": "user", "content": {"type": "input_image", "image_url": "data:,"}}]}}, None, "invalid_value"),
    ],
)  # fmt: skip
def test_a_run_that_cannot_be_carried_out_is_refused_by_name(
    client: TestClient, changes: dict[str, Any], param: str | None, code: str
) -> None:
    one = made(client)
    answer = client.post(f"/v1/evals/{one['id']}/runs", json={"data_source": SOURCE | changes})
    found = refused(answer)
    assert found[1] == code
    if param is not None:
        assert found[0] == param
    else:
        assert "input_messages" in str(found[0])


def test_nobody_sees_or_changes_evals_of_another_project(
    client: TestClient, client_of: Callable[..., TestClient], home: Context
) -> None:
    answering(home)
    one = made(client)
    run = started(client, one["id"])
    worked(home)
    address = f"/v1/evals/{one['id']}"
    item = ok(client.get(f"{address}/runs/{run['id']}/output_items"))["data"][0]["id"]
    other = client_of("other")
    assert ok(other.get("/v1/evals"))["data"] == []
    for method, path, body in nonempty(
        [
            ("GET", address, None),
            ("POST", address, {"name": "x"}),
            ("DELETE", address, None),
            ("GET", f"{address}/runs", None),
            ("POST", f"{address}/runs", {"data_source": SOURCE}),
            ("GET", f"{address}/runs/{run['id']}", None),
            ("POST", f"{address}/runs/{run['id']}", None),
            ("POST", f"{address}/runs/{run['id']}/cancel", None),
            ("DELETE", f"{address}/runs/{run['id']}", None),
            ("GET", f"{address}/runs/{run['id']}/output_items", None),
            ("GET", f"{address}/runs/{run['id']}/output_items/{item}", None),
        ]
    ):
        assert other.request(method, path, json=body).status_code == 404, (method, path)
    mine = made(other)
    # A run is found by its own eval alone, an item by its own run alone; a file by its own project.
    assert other.get(f"/v1/evals/{mine['id']}/runs/{run['id']}").status_code == 404
    file_id = upload(client, ROWS)
    source = SOURCE | {"source": {"type": "file_id", "id": file_id}}
    assert other.post(f"/v1/evals/{mine['id']}/runs", json={"data_source": source}).status_code == 400
    with pytest.raises(Exception, match="no suite result"):
        home.assessments.get("suite", OutputItem, home.access.project("other").project_id, "suite-x")


def test_what_a_key_may_do(client: TestClient, client_of: Callable[..., TestClient]) -> None:
    one = made(client)
    reader, asker, trainer = (client_of("default", scopes) for scopes in (("read",), ("infer",), ("train",)))
    assert ok(reader.get(f"/v1/evals/{one['id']}"))["id"] == one["id"]
    assert reader.post("/v1/evals", json=EVAL).status_code == 403
    assert reader.post(f"/v1/evals/{one['id']}", json={"name": "x"}).status_code == 403
    assert reader.delete(f"/v1/evals/{one['id']}").status_code == 403
    assert asker.get(f"/v1/evals/{one['id']}").status_code == 403
    # Training alone does not let anybody ask models; rows that bring their answers ask none.
    assert trainer.post(f"/v1/evals/{one['id']}/runs", json={"data_source": SOURCE}).status_code == 403
    brought = {"type": "jsonl", "source": {"type": "file_content", "content": [
        ROWS[0] | {"sample": {"output_text": "four"}}]}}  # fmt: skip
    assert trainer.post(f"/v1/evals/{one['id']}/runs", json={"data_source": brought}).status_code == 201


def test_runs_are_listed_cancelled_and_deleted(client: TestClient, home: Context) -> None:
    answering(home)
    one = made(client)
    ids = [started(client, one["id"])["id"] for _ in range(3)]
    address = f"/v1/evals/{one['id']}/runs"
    assert refused(client.delete(f"/v1/evals/{one['id']}"), 409)[1] == "conflict"
    assert refused(client.delete(f"{address}/{ids[0]}"), 409)[1] == "conflict"
    worked(home)
    assert ok(client.post(f"{address}/{ids[1]}"))["status"] == "canceled"
    assert ok(client.post(f"{address}/{ids[2]}/cancel"))["status"] == "canceled"
    assert refused(client.post(f"{address}/{ids[2]}"), 409)[1] == "conflict"
    listed = ok(client.get(f"{address}?status=canceled"))
    assert [run["id"] for run in listed["data"]] == ids[1:]
    assert [run["id"] for run in ok(client.get(f"{address}?limit=1&after={ids[1]}"))["data"]] == ids[2:]
    assert ok(client.delete(f"{address}/{ids[0]}")) == {
        "object": "eval.run.deleted",
        "deleted": True,
        "run_id": ids[0],
    }
    assert client.get(f"{address}/{ids[0]}").status_code == 404
    assert ok(client.delete(f"/v1/evals/{one['id']}"))["deleted"]


def test_why_the_job_of_a_run_has_crashed_names_no_place_of_this_machine(
    client: TestClient, home: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("luthier.platform.jobs.store.MOST_CRASHES", 1)
    eval_id = made(client)["id"]
    run = started(client, eval_id)
    job = home.jobs.claim("here", ("infer",))
    assert job is not None
    home.jobs.crash(job.job_id, job.attempt, f"exit code 1: no space for {home.home}/jobs/x")
    found = ok(client.get(f"/v1/evals/{eval_id}/runs/{run['id']}"))
    assert (found["status"], found["error"]["code"]) == ("failed", "run_failed")
    assert "exit code 1: no space for jobs/x" in found["error"]["message"]
    assert str(home.home) not in str(ok(client.get(f"/v1/evals/{eval_id}/runs")))


def test_the_same_request_twice_makes_one_run(client: TestClient) -> None:
    one = made(client)
    address, headers = f"/v1/evals/{one['id']}/runs", {"Idempotency-Key": "k"}
    first, second = (client.post(address, json={"data_source": SOURCE}, headers=headers) for _ in range(2))
    assert (first.status_code, second.status_code) == (201, 201)
    assert first.json() == second.json()
    assert len(ok(client.get(f"/v1/evals/{one['id']}/runs"))["data"]) == 1


def test_a_hundred_thousand_items_page_by_page(client: TestClient, home: Context) -> None:
    one = made(client)
    run = started(client, one["id"])
    num = 100_000
    document = OutputItem(
        item_id="outputitem_N", eval_run_id=run["id"], eval_id=one["id"], position=123456789, status="pass",
        item={}, sample={}, results=(),
    ).model_dump_json()  # fmt: skip
    with home.database.write() as connection:
        rows = [
            {
                "item_id": f"outputitem_{number:06}",
                "eval_run_id": run["id"],
                "position": number,
                "status": "pass" if number % 1000 else "fail",
                "document": document.replace("123456789", str(number)).replace("_N", f"_{number:06}"),
                "created_at": 1.0,
            }
            for number in range(num)
        ]
        connection.execute(eval_output_items.insert(), rows)
    home.evals.append(run["id"], [], RunTotals(num_items=num, passed=num))
    address = f"/v1/evals/{one['id']}/runs/{run['id']}/output_items"
    last = ok(client.get(f"{address}?limit=100&after=outputitem_099899"))
    assert [item["datasource_item_id"] for item in last["data"]] == list(range(99_900, 100_000))
    assert not last["has_more"]
    middle = ok(client.get(f"{address}?limit=2&order=desc&after=outputitem_050000"))
    assert [item["datasource_item_id"] for item in middle["data"]] == [49_999, 49_998]
    failed = ok(client.get(f"{address}?limit=100&status=fail"))
    assert ([item["datasource_item_id"] for item in failed["data"]], failed["has_more"]) == (
        list(range(0, num, 1000)),
        False,
    )
    assert ok(client.get(f"/v1/evals/{one['id']}/runs/{run['id']}"))["result_counts"]["passed"] == num
