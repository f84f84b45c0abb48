"""Runs of evals as jobs: wrong rows, graders that never return, attempts that were killed, all data sources."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.fixtures.echo_engine import CutEngine, answering
from tests.vacuous import nonempty

from luthier.core.access import Caller
from luthier.core.errors import UnsupportedError
from luthier.core.ids import new_id
from luthier.core.ports import SilentProgress
from luthier.core.results.suite import SuiteResult
from luthier.core.stream import Failed, TextRequest
from luthier.features.evals_api import grading, service
from luthier.features.evals_api import job as eval_job
from luthier.features.evals_api.records import EvalRequest, RunRequest
from luthier.features.evals_api.store import RunView
from luthier.features.traffic.stored_completions import StoredCompletion
from luthier.features.traffic.stored_responses import StoredResponse
from luthier.ml.evaluation.sandbox import runners
from luthier.ml.evaluation.sandbox.runners import isolation
from luthier.platform.auth import access_check
from luthier.platform.auth.service import create_key, revoke_key
from luthier.platform.files import service as files
from luthier.platform.home.context import Context
from luthier.platform.home.settings import Settings
from luthier.platform.jobs.records import Job
from luthier.platform.notifications.store import EVENT_TYPES, Webhook

CALLER = Caller()
SCHEMA = {"type": "object", "properties": {"q": {"type": "string"}, "a": {"type": "string"}}, "required": ["q", "a"]}
CHECK = {
    "type": "string_check",
    "name": "right",
    "input": "{{sample.output_text}}",
    "reference": "{{item.a}}",
    "operation": "eq",
}
needs_sandbox = pytest.mark.skipif(not isolation().seccomp, reason="this machine cannot lock a process down")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Context]:
    """A home of this file that allows graders in Python; every test has evals of its own."""
    from luthier.ml.inference.models import sources

    home = tmp_path_factory.mktemp("evals") / "home"
    home.mkdir()
    with Context(Settings(home=home, python_graders=True), SilentProgress()) as context:
        sources.pull(str(tiny_model), home, SilentProgress())
        yield context


@pytest.fixture
def opened(shared: Context) -> Context:
    answering(shared)
    return shared


def start(
    context: Context,
    *graders: dict[str, Any],
    config: dict[str, Any] | None = None,
    caller: Caller = CALLER,
    **source: Any,
) -> RunView:
    custom = {"type": "custom", "item_schema": SCHEMA, "include_sample_schema": True}
    request = {"data_source_config": config or custom, "testing_criteria": list(graders) or [CHECK]}
    one = service.create(context, CALLER, EvalRequest.model_validate(request))
    asked = {"type": "completions", "model": "tiny", "input_messages": prompt("{{item.q}}")} | source
    asked = {name: value for name, value in asked.items() if value is not None}
    return service.start_run(context, caller, one.eval_id, RunRequest.model_validate({"data_source": asked}))


def prompt(text: str) -> dict[str, Any]:
    return {"type": "template", "template": [{"role": "user", "content": text}]}


def content(*rows: dict[str, Any]) -> dict[str, Any]:
    return {"type": "file_content", "content": list(rows)}


def row(question: str, answer: str) -> dict[str, Any]:
    return {"item": {"q": question, "a": answer}}


def file_of(context: Context, text: str | bytes) -> dict[str, Any]:
    with files.incoming_file(context) as incoming:
        incoming.write(text if isinstance(text, bytes) else text.encode())
        stored = files.keep_file(context, "default", incoming, filename="rows.jsonl", purpose="evals")
    return {"type": "file_id", "id": stored.file_id}


def claimed(context: Context) -> Job:
    job = context.jobs.claim("here", ("infer",))
    assert job is not None
    return job


def carried_out(context: Context, view: RunView) -> RunView:
    job = claimed(context)
    assert job.job_id == view.job.job_id
    outcome = eval_job.carry_out(context, job)
    assert outcome.status != "validated"
    context.jobs.finish(job.job_id, job.attempt, outcome.status, outcome.error, outcome.found)
    return context.evals.run("default", view.run.eval_id, view.run.eval_run_id)


def statuses(context: Context, view: RunView) -> list[str]:
    return [one.status for one in context.evals.all_items(view.run.eval_run_id)]


def test_a_byte_order_mark_is_no_part_of_the_first_row(opened: Context) -> None:
    text = "\ufeff" + "".join(f"{json.dumps(row(f'say {one}', one))}\n" for one in "ab")
    view = carried_out(opened, start(opened, source=file_of(opened, text)))
    assert (view.status, len(statuses(opened, view))) == ("completed", 2)


def test_rows_of_a_file_that_are_wrong_end_the_run_before_anything_is_asked(opened: Context) -> None:
    lines = [json.dumps(row("say a", "a")), json.dumps({"item": {"q": "no answer"}}), "not json", '{"q": 1}', "[]"]
    view = carried_out(opened, start(opened, source=file_of(opened, "\n".join(lines))))
    assert view.status == "failed"
    error = view.job.error or {}
    assert error["code"] == "invalid_data_source"
    assert "4 of 5 rows" in error["message"]
    for part in nonempty(
        ["line 2: ", "the column 'a' is missing; it has 'q'", "line 3: not JSON", "line 4: ", "the key item"]
    ):
        assert part in error["message"]
    assert opened.inference_client.asked == []  # type: ignore[attr-defined]
    assert statuses(opened, view) == []


def test_blank_lines_of_a_file_count_in_the_numbers_that_name_its_wrong_rows(opened: Context) -> None:
    lines = ["", json.dumps(row("say a", "a")), "", "not json"]
    view = carried_out(opened, start(opened, source=file_of(opened, "\n".join(lines))))
    message = (view.job.error or {})["message"]
    assert "1 of 2 rows" in message
    assert "line 4: not JSON" in message


def test_rows_of_a_request_that_are_wrong_are_named_by_their_number(opened: Context) -> None:
    source = content(row("say a", "a"), {"item": {"q": "no answer"}})
    view = carried_out(opened, start(opened, source=source))
    assert "row 2: the column" in (view.job.error or {})["message"]


def test_bytes_that_are_no_utf8_are_named_and_not_replaced(opened: Context) -> None:
    lines = [json.dumps(row("say a", "a")).encode(), b'{"item": {"q": "caf\xe9", "a": "b"}}']
    view = carried_out(opened, start(opened, source=file_of(opened, b"\n".join(lines))))
    assert view.status == "failed"
    message = (view.job.error or {})["message"]
    assert "1 of 2 rows" in message
    assert "line 2: not UTF-8 (byte 0xe9 at character 20)" in message


def test_a_file_without_rows_ends_the_run(opened: Context) -> None:
    view = carried_out(opened, start(opened, source=file_of(opened, "\n")))
    assert "has no rows" in (view.job.error or {})["message"]


def test_rows_without_answers_are_wrong_where_no_model_is_asked(opened: Context) -> None:
    source: dict[str, Any] = {"type": "jsonl", "model": None, "input_messages": None}
    view = carried_out(opened, start(opened, source=content(row("x", "x")), **source))
    assert "no sample" in (view.job.error or {})["message"]
    brought = [row("x", "x") | {"sample": {"output_text": "x"}}, row("x", "y") | {"sample": completion("x")}]
    view = carried_out(opened, start(opened, source=content(*brought), **source))
    assert (view.status, statuses(opened, view)) == ("completed", ["pass", "fail"])
    assert (view.run.totals.usage, view.run.model) == ({}, "")


def completion(text: str, model: str = "tiny") -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    return {"id": "c", "object": "chat.completion", "created": 1, "model": model, "choices": [choice], "usage": usage}


def test_what_is_wrong_with_one_item_is_its_own_error(opened: Context) -> None:
    schema = {"type": "object", "required": ["q"]}
    config = {"type": "custom", "item_schema": schema, "include_sample_schema": True}
    answering(opened, lambda text: failed() if text == "fail" else text)
    items = [{"item": {"q": "a", "a": "a"}}, {"item": {"q": "no a"}}, {"item": {"q": "fail", "a": "a"}}]
    view = carried_out(opened, start(opened, config=config, source=content(*items)))
    assert statuses(opened, view) == ["pass", "error", "error"]
    found = list(opened.evals.all_items(view.run.eval_run_id))
    assert (found[1].results[0].error or {})["code"] == "invalid_variable_error"
    assert found[2].sample["error"] == (found[2].results[0].error or {}) | {"message": "too long; expected: less; "
        "what to do: cut it"}  # fmt: skip
    totals = view.run.totals
    assert (totals.passed, totals.failed, totals.errored, totals.failed_by_criterion) == (1, 0, 2, (2,))
    from luthier.features.assessments.service import read_suite

    task = read_suite(opened, "default", view.run.result_id).tasks[0]
    assert (task.num_rows, task.systems[0].metrics["pass_rate"].value) == (1, 1.0)
    assert task.cautions == ("2 items have an error, of 3: not in these figures.",)


def failed() -> Failed:
    return Failed(error={"type": "RequestError", "came": "too long", "expected": "less", "do": "cut it"})


def test_an_attempt_continues_behind_what_was_stored(opened: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    view = start(opened, source=content(*(row(f"say {n}", str(n)) for n in range(20))))
    seen: list[str] = []

    def say(text: str) -> str:
        seen.append(text)
        return text.split()[-1]

    answering(opened, say)
    monkeypatch.setattr(eval_job, "_WINDOW", 4)
    monkeypatch.setattr(eval_job, "NUM_AT_ONCE", 1)
    whole = opened.evals.append

    def killed(*given: Any) -> None:
        whole(*given)
        if given[2].num_done >= 7:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(opened.evals, "append", killed)
        job = claimed(opened)
        with pytest.raises(KeyboardInterrupt):
            eval_job.carry_out(opened, job)
    num_stored = len(statuses(opened, view))
    assert 7 <= num_stored < 20
    # Files and stored answers may change between attempts: the rows of the run do not.
    opened.jobs.crash(job.job_id, job.attempt, "killed", is_lost=True)
    seen.clear()
    view = carried_out(opened, view)
    # A set: the attempt that was killed may still have been asking for the next one.
    assert set(seen) == {f"say {n}" for n in range(num_stored, 20)}
    items = list(opened.evals.all_items(view.run.eval_run_id))
    assert [one.position for one in items] == list(range(20))
    assert (view.status, view.run.totals.passed) == ("completed", 20)


def test_stored_completions_are_graded_as_they_were_or_answered_again(opened: Context) -> None:
    for number, (text, label) in enumerate([("yes", "a"), ("no", "a"), ("yes", "b")]):
        request = {"model": "tiny", "messages": [{"role": "user", "content": f"say {text}"}]}
        opened.stored_completions.add(
            StoredCompletion(
                completion_id=f"chatcmpl-{number}",
                project_id="default",
                model="tiny",
                user_digest="",
                labels={"use": label},
                document={"request": request, "response": completion("yes")},
            )
        )
    config = {"type": "logs", "metadata": {"use": "a"}}
    says_yes = CHECK | {"reference": "yes"}
    source = {"type": "stored_completions", "metadata": {"use": "a"}}
    view = carried_out(opened, start(opened, says_yes, config=config, source=source, model=None, input_messages=None))
    assert statuses(opened, view) == ["pass", "pass"]
    reference = {"type": "item_reference", "item_reference": "item.input"}
    view = carried_out(opened, start(opened, says_yes, config=config, source=source, input_messages=reference))
    assert statuses(opened, view) == ["pass", "fail"]
    # The eval has a filter of its own, which holds for all of its runs.
    whole = source | {"metadata": None}
    view = carried_out(opened, start(opened, says_yes, config=config, source=whole, model=None, input_messages=None))
    assert statuses(opened, view) == ["pass", "pass"]
    other = source | {"metadata": {"use": "b"}}
    view = start(opened, says_yes, config=config, source=other, model=None, input_messages=None)
    assert "has no rows" in (carried_out(opened, view).job.error or {})["message"]
    limited = source | {"limit": 1, "metadata": None}
    view = carried_out(opened, start(opened, says_yes, config=config, source=limited, model=None, input_messages=None))
    assert statuses(opened, view) == ["pass"]


def test_sampling_of_the_responses_kind_has_tools_and_a_format(opened: Context) -> None:
    engine = answering(opened, lambda _: '{"x": 1}')
    parameters = {
        "text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}},
        "tools": [{"type": "function", "name": "f", "parameters": {"type": "object"}}],
        "seed": 5,
        "top_p": 0.5,
    }
    grader = CHECK | {"input": "{{sample.output_json.x}}", "reference": "1"}
    view = start(opened, grader, type="responses", sampling_params=parameters, source=content(row("a", "b")))
    view = carried_out(opened, view)
    assert statuses(opened, view) == ["pass"]
    (asked,) = engine.asked
    assert asked.json_schema == {"type": "object"}  # type: ignore[union-attr]
    assert asked.tools[0]["function"]["name"] == "f"  # type: ignore[union-attr]
    assert (asked.sampling.seed, asked.sampling.top_p) == (5, 0.5)  # type: ignore[union-attr]


def test_models_grade_with_their_own_usage(opened: Context) -> None:
    engine = answering(opened, lambda text: "0.75" if text.startswith("Grade") else text)
    score = {
        "type": "score_model",
        "name": "score",
        "model": "tiny",
        "input": [{"role": "user", "content": ["Grade", {"type": "input_text", "text": "{{sample.output_text}}"}]}],
        "pass_threshold": 0.7,
    }
    multi = {
        "type": "multi",
        "name": "both",
        "graders": {"score": score, "right": CHECK},
        "calculate_output": "0.5 * score + 0.5 * right",
    }
    view = carried_out(opened, start(opened, score, multi, source=content(row("a", "a"))))
    (item,) = opened.evals.all_items(view.run.eval_run_id)
    assert [(one.score, one.passed) for one in item.results] == [(0.75, True), (0.875, True)]
    assert item.results[0].sample == {"output": [item.results[0].sample["output"][0]]}
    assert item.results[0].sample["output"][0]["content"] == "0.75"  # type: ignore[index]
    # Their figures are the opinion of a model, which a gate does not take without a calibration.
    made = opened.assessments.get("suite", SuiteResult, view.run.project_id, view.run.result_id)
    assert [one.judges for one in made.tasks] == [
        {"pass_rate": "tiny", "score": "tiny"},
        {"pass_rate": "tiny", "score": "tiny"},
        {"pass_rate": "tiny"},
    ]
    # One answer and two grades.
    assert view.run.totals.usage["tiny"].invocation_count == 3
    # A thought is beside the tokens of a grade.
    grades = [one for one in engine.asked if isinstance(one, TextRequest)][1:]
    assert [(one.max_new_tokens, one.max_thinking_tokens) for one in grades] == [(256, None)] * 2


@pytest.mark.parametrize(
    ("verdict", "most", "score", "error"),
    [
        ('{"result": 0.25}', None, 0.25, None),
        # Not even 4,096 tokens are enough.
        ("more " * 5000, None, 0.0, "model_grader_server_error"),
        # A limit of the grader itself is meant: the reply is read as it is, by its first number.
        ('{"result": 0.25}', 8, 1.0, None),
    ],
)
def test_a_grade_that_is_cut_off_is_asked_for_again_with_more_room_and_not_read_from_its_reasons(
    opened: Context, verdict: str, most: int | None, score: float, error: str | None
) -> None:
    def say(text: str) -> str:
        return "It needs 1 " + "more " * 300 + verdict if text.startswith("Grade") else text

    engine = CutEngine(say)
    opened.__dict__["inference_client"] = engine
    grader = {
        "type": "score_model",
        "name": "score",
        "model": "tiny",
        "input": [{"role": "user", "content": "Grade {{sample.output_text}}"}],
        "sampling_params": {"max_completions_tokens": most},
    }
    view = carried_out(opened, start(opened, grader, source=content(row("a", "a"))))
    ((found,),) = [item.results for item in opened.evals.all_items(view.run.eval_run_id)]
    assert (found.score, None if found.error is None else found.error["code"]) == (score, error)
    grades = [one.max_new_tokens for one in engine.asked if isinstance(one, TextRequest)][1:]
    assert grades == ([256, 4096] if most is None else [most])


@needs_sandbox
def test_graders_in_python_see_sample_and_item_and_fail_alone(opened: Context) -> None:
    source = (
        "def grade(sample, item):\n"
        "    if item['q'] == 'boom':\n"
        "        raise ValueError('no')\n"
        "    return len(sample['output_text']) / len(item['a'])\n"
    )
    python = {"type": "python", "name": "code", "source": source, "pass_threshold": 0.5}
    rows = [row("ab", "abcd"), row("a", "abcd"), row("boom", "abcd")]
    view = carried_out(opened, start(opened, python, source=content(*rows)))
    found = [one.results[0] for one in opened.evals.all_items(view.run.eval_run_id)]
    assert [(one.score, one.passed) for one in found] == [(0.5, True), (0.25, False), (0.0, False)]
    assert found[2].error == {"code": "python_grader_runtime_error", "message": "ValueError: no"}


@needs_sandbox
def test_a_grader_that_never_returns_ends_the_run_with_its_reason(
    opened: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runners.PythonGrader.__init__, "__kwdefaults__", {"seconds": 0.3, "most_memory_bytes": 2**29})
    monkeypatch.setattr(grading, "MAX_TIMEOUTS", 2)
    monkeypatch.setattr(eval_job, "NUM_AT_ONCE", 1)
    python = {"type": "python", "name": "loop", "source": "def grade(sample, item):\n    while True: pass"}
    view = carried_out(opened, start(opened, python, source=content(*(row("a", "a") for _ in range(9)))))
    assert view.status == "failed"
    assert (view.job.error or {})["code"] == "grader_timeout"
    assert "loop forever" in (view.job.error or {})["message"]


def test_python_graders_of_a_home_that_no_longer_allows_them_are_refused(
    opened: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = {"type": "python", "name": "code", "source": "def grade(sample, item): return 1"}
    view = start(opened, python, source=content(row("a", "a")))
    service.cancel_run(opened, CALLER, view.run.eval_id, view.run.eval_run_id)
    monkeypatch.setattr(opened, "settings", opened.settings.model_copy(update={"python_graders": False}))
    with pytest.raises(UnsupportedError, match="runs no code of requests"):
        service.start_run(opened, CALLER, view.run.eval_id, RunRequest(data_source=view.run.data_source))


def test_a_run_ends_with_the_key_that_started_it(opened: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    key, _ = create_key(opened, "gone", scopes=("train", "infer"))
    caller = Caller(key_id=key.key_id, name="gone", scopes=("train", "infer"))
    monkeypatch.setattr(access_check, "REMEMBERED_SECONDS", 0.0)
    monkeypatch.setattr(eval_job, "NUM_AT_ONCE", 1)
    monkeypatch.setattr(eval_job, "_WINDOW", 2)

    def say(text: str) -> str:
        if text == "say 5":
            revoke_key(opened, key.key_id)
        return text.split()[-1]

    answering(opened, say)
    rows = [row(f"say {n}", str(n)) for n in range(30)]
    view = carried_out(opened, start(opened, caller=caller, source=content(*rows)))
    assert view.status == "failed"
    error = view.job.error or {}
    assert error["code"] == "access_revoked"
    assert f"the key 'gone' ({key.key_id}) was revoked" in error["message"]
    assert 0 < len(statuses(opened, view)) < 10
    # A run that asks no model needs no key.
    source: dict[str, Any] = {"type": "jsonl", "model": None, "input_messages": None}
    brought = [row("x", "x") | {"sample": {"output_text": "x"}}]
    view = carried_out(opened, start(opened, caller=caller, source=content(*brought), **source))
    assert view.status == "completed"


def response(name: str, text: str, **parameters: Any) -> StoredResponse:
    asked = {"model": "tiny", **parameters}
    part = {"type": "output_text", "text": text, "annotations": []}
    output = [{"id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "content": [part]}]
    usage = {"input_tokens": 1, "output_tokens": 2}
    made = {"id": name, "status": "completed", "output": output, "usage": usage, "temperature": 1.0, "top_p": 1.0}
    effort = {"reasoning": {"effort": (parameters.get("reasoning") or {}).get("effort")}}
    question = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": f"say {text}"}]}
    document = {"parameters": asked, "input": [question], "response": made | effort}
    return StoredResponse(
        response_id=name,
        project_id="default",
        model="tiny",
        user_digest="",
        earlier_ids=(),
        labels=parameters.get("metadata") or {},
        document=document,
    )


def test_stored_responses_are_graded_and_asked_again(opened: Context) -> None:
    tool = {"type": "function", "name": "f"}
    opened.stored_responses.add(response("resp_a", "one", instructions="Be SHORT.", tools=[tool]))
    opened.stored_responses.add(response("resp_b", "two", metadata={"use": "b"}, reasoning={"effort": "low"}))
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}", "status": "completed"}
    with_call = response("resp_c", "", temperature=0.5)
    with_call.document["response"]["output"] = [call]
    with_call.document["response"]["temperature"] = 0.5
    opened.stored_responses.add(with_call)
    config: dict[str, Any] = {"type": "logs"}
    check = CHECK | {"reference": "{{item.output[0].content}}"}
    source: dict[str, Any] = {"type": "responses", "model": None, "input_messages": None}

    def ids(**conditions: Any) -> list[str]:
        view = start(opened, check, config=config, source={"type": "responses", **conditions}, **source)
        view = carried_out(opened, view)
        assert view.status == "completed", view.job.error
        return [one.item["id"] for one in opened.evals.all_items(view.run.eval_run_id)]

    assert ids() == ["resp_a", "resp_b", "resp_c"]
    assert ids(instructions_search="be short") == ids(tools=["f"]) == ["resp_a"]
    assert ids(metadata={"use": "b"}) == ids(reasoning_effort="low") == ["resp_b"]
    assert ids(temperature=0.5) == ["resp_c"]
    config["metadata"] = {"use": "b"}
    assert ids() == ["resp_b"]
    del config["metadata"]
    assert ids(model="tiny", created_after=0, top_p=1.0, created_before=2**40) == ["resp_a", "resp_b", "resp_c"]
    view = start(opened, check, config=config, source={"type": "responses", "users": ["nobody"]}, **source)
    assert "has no rows" in (carried_out(opened, view).job.error or {})["message"]
    again = {"type": "item_reference", "item_reference": "item.input"}
    asked = {"type": "responses", "input_messages": again, "sampling_params": {"max_completion_tokens": 4}}
    view = carried_out(
        opened, start(opened, check, config=config, source={"type": "responses", "tools": ["f"]}, **asked)
    )
    (item,) = opened.evals.all_items(view.run.eval_run_id)
    assert (item.status, item.sample["output"][0]["content"]) == ("pass", "one")
    assert [one["role"] for one in item.item["input"]] == ["system", "user"]
    with pytest.raises(UnsupportedError, match="data_source_config is custom"):
        start(opened, source={"type": "responses"}, **source)


def test_a_run_asks_with_the_key_that_started_it_and_is_shown_among_evaluations(opened: Context) -> None:
    from luthier.features.evaluation_orders.service import list_orders, show_order

    view = start(opened, source=content(row("a", "a")))
    shown = show_order(opened, CALLER, view.job.job_id)
    assert shown.words.startswith("tiny by eval_")
    assert shown.result_page == f"/evaluations/suites/{view.run.result_id}"
    assert view.job.job_id in [one.job.job_id for one in list_orders(opened, CALLER)]
    job = claimed(opened)
    assert eval_job.caller_of(job) == Caller(project_id="default", scopes=("infer",), name="local")
    assert eval_job.carry_out(opened, job).status == "succeeded"


@pytest.mark.parametrize(
    ("status", "event_type"),
    [("succeeded", "eval.run.succeeded"), ("failed", "eval.run.failed"), ("cancelled", "eval.run.canceled")],
)
def test_webhooks_get_openais_event_about_the_end_of_a_run(opened: Context, status: Any, event_type: str) -> None:
    from openai.types.webhooks import UnwrapWebhookEvent
    from pydantic import TypeAdapter

    while opened.webhooks.announce():
        pass  # of other tests of this home
    url = f"https://example.com/{status}"
    hook = Webhook(webhook_id=new_id("webhook"), project_id="default", url=url, event_types=EVENT_TYPES)
    opened.webhooks.add(hook, "whsec_c2VjcmV0")
    view = start(opened, source=content(row("q", "a")))
    while (job := claimed(opened)).job_id != view.job.job_id:
        pass  # of another test
    opened.jobs.finish(job.job_id, job.attempt, status)
    assert opened.webhooks.announce() >= 1  # a job of another test may have ended when it was claimed
    sent = opened.webhooks.deliveries(hook.webhook_id, "default", 10)
    opened.webhooks.remove(hook.webhook_id, "default")
    events: list[Any] = [TypeAdapter(UnwrapWebhookEvent).validate_json(one.body) for one in sent]
    (event,) = (one for one in events if one.data.id == view.run.eval_run_id)
    assert (event.type, event.object) == (event_type, "event")
