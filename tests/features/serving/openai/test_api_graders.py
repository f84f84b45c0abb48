"""Graders over HTTP: the same scores as in training, nothing run that a request brings, no formula that is code."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
from fastapi.testclient import TestClient
from pydantic import TypeAdapter
from tests.fixtures.echo_engine import CutEngine, answering
from tests.fixtures.openai import ok

from luthier.core.errors import UnsupportedError, WorkError
from luthier.core.stream import TextRequest
from luthier.features.serving import graders
from luthier.features.serving.graders import GraderRequest
from luthier.platform.home.context import Context

URL = "/v1/fine_tuning/alpha/graders"
ITEM = {"answer": "four", "more": {"deep": [1, 2]}}
CHECK = {
    "type": "string_check",
    "name": "same",
    "input": "{{sample.output_text}}",
    "reference": "{{item.answer}}",
    "operation": "eq",
}
LIKE = CHECK | {"type": "text_similarity", "name": "like", "evaluation_metric": "fuzzy_match"}
del LIKE["operation"]
SCORE = {
    "type": "score_model",
    "name": "score",
    "model": "tiny",
    "input": [{"role": "user", "content": "Grade {{sample.output_text}} against {{item.answer}}"}],
}
LABEL = SCORE | {"type": "label_model", "labels": ["good", "bad"], "passing_labels": ["good"]}


@pytest.fixture
def client(client_of: Callable[..., TestClient]) -> TestClient:
    return client_of()


def run(client: TestClient, grader: Mapping[str, Any], sample: str = "four") -> dict[str, Any]:
    return ok(client.post(f"{URL}/run", json={"grader": grader, "model_sample": sample, "item": ITEM}))


@pytest.mark.parametrize(
    ("changes", "sample", "reward"),
    [
        ({}, "four", 1.0),
        ({}, "Four", 0.0),
        ({"operation": "ne"}, "Four", 1.0),
        ({"operation": "like"}, "it is four.", 1.0),
        ({"operation": "ilike"}, "It Is FOUR.", 1.0),
        ({"reference": "{{item.more.deep}}"}, "[1, 2]", 1.0),
        ({"input": "{{ item.answer }}", "reference": "four"}, "", 1.0),
    ],
)
def test_string_checks(client: TestClient, changes: dict[str, str], sample: str, reward: float) -> None:
    assert run(client, CHECK | changes, sample)["reward"] == reward


def test_similarity_and_the_shape_of_an_answer(client: TestClient) -> None:
    answer = run(client, LIKE, "for")
    assert answer["reward"] == pytest.approx(2 * 3 / 7)
    assert (answer["metadata"]["name"], answer["metadata"]["type"]) == ("like", "text_similarity")
    assert not any(answer["metadata"]["errors"].values())
    assert answer["metadata"]["execution_time"] >= 0
    assert (answer["sub_rewards"], answer["model_grader_token_usage_per_model"]) == ({}, {})


@pytest.mark.parametrize("form", ["by name", "list"])
def test_a_formula_over_several(client: TestClient, form: str) -> None:
    parts = {"same": CHECK, "like": LIKE} if form == "by name" else [CHECK, LIKE]
    multi = {"type": "multi", "name": "both", "graders": parts, "calculate_output": "0.5 * same + max(like, 0.1)"}
    answer = run(client, multi)
    assert answer["reward"] == pytest.approx(1.5)
    assert answer["sub_rewards"] == answer["metadata"]["scores"] == {"same": 1.0, "like": 1.0}
    lost = run(client, multi | {"calculate_output": "1 / (same - like)"})
    assert (lost["reward"], lost["metadata"]["errors"]["formula_parse_error"]) == (0.0, True)


def test_openai_s_documented_grader_over_two_tool_graders_needs_no_name(client: TestClient) -> None:
    part = {"type": "string_check", "operation": "eq", "input": "four", "name": "same"}
    parts = {"right": part | {"reference": "{{ sample.output_text }}"}, "wrong": part | {"reference": "none"}}
    multi = {"type": "multi", "graders": parts, "calculate_output": "2 * right ^ 2 + 0.5 * wrong"}
    answer = run(client, multi)
    assert (answer["reward"], answer["metadata"]["name"]) == (2.0, "multi")


def test_two_graders_of_a_list_with_one_name_are_refused(client: TestClient) -> None:
    multi = {"type": "multi", "name": "both", "graders": [CHECK, CHECK], "calculate_output": "same"}
    answer = client.post("/v1/fine_tuning/alpha/graders/validate", json={"grader": multi})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == ("grader.graders", "invalid_grader")
    assert "two graders of one name" in error["message"]


def test_a_field_that_the_item_lacks_is_told(client: TestClient) -> None:
    answer = run(client, CHECK | {"reference": "{{item.none}}"})
    assert (answer["reward"], answer["metadata"]["errors"]["invalid_variable_error"]) == (0.0, True)
    long = run(client, LIKE, "x" * 20_000)
    assert long["metadata"]["errors"]["truncated_observation_error"]


@pytest.mark.parametrize(
    ("grader", "param", "code"),
    [
        ({"type": "python", "name": "p", "source": "print()"}, "grader.type", "unsupported_grader"),
        (LIKE | {"evaluation_metric": "cosine"}, "grader.evaluation_metric", "unsupported_metric"),
        (LIKE | {"evaluation_metric": "meteor"}, "grader.evaluation_metric", "unsupported_metric"),
        (CHECK | {"input": "{{system.secret}}"}, "grader", "invalid_grader"),
        (
            {"type": "multi", "name": "m", "graders": {"same": CHECK}, "calculate_output": "__import__('os')"},
            "grader.calculate_output",
            "invalid_grader",
        ),
        (LABEL | {"passing_labels": ["great"]}, "grader.passing_labels", "invalid_grader"),
        (LABEL | {"passing_labels": []}, "grader.passing_labels", "invalid_grader"),
        (LABEL | {"labels": ["good", "Good ", "bad"]}, "grader.labels", "invalid_grader"),
        (LABEL | {"labels": ["good", " "]}, "grader.labels", "invalid_grader"),
        (SCORE | {"range": [1, 0]}, "grader.range", "invalid_grader"),
        (SCORE | {"range": [1, 1]}, "grader.range", "invalid_grader"),
        (SCORE | {"pass_threshold": 7}, "grader.pass_threshold", "invalid_grader"),
        (LIKE | {"pass_threshold": 80}, "grader.pass_threshold", "invalid_grader"),
        (CHECK | {"operation": "like", "reference": ""}, "grader.reference", "invalid_grader"),
        (SCORE | {"sampling_params": {"top_p": 0.5}}, "grader.sampling_params.top_p", "unsupported_value"),
        (
            SCORE | {"sampling_params": {"reasoning_effort": "high"}},
            "grader.sampling_params.reasoning_effort",
            "unsupported_value",
        ),
    ],
)
def test_what_is_not_done_is_refused_with_a_reason(
    client: TestClient, grader: dict[str, Any], param: str, code: str
) -> None:
    for path, body in (("validate", {}), ("run", {"model_sample": "x", "item": ITEM})):
        answer = client.post(f"{URL}/{path}", json={"grader": grader, **body})
        assert answer.status_code == 400, answer.text
        assert (answer.json()["error"]["param"], answer.json()["error"]["code"]) == (param, code)


def test_messages_that_repeat_a_long_field_are_refused_before_a_model_is_asked() -> None:
    message = {"role": "user", "content": "{{item.text}}"}
    grader: Any = TypeAdapter(GraderRequest).validate_python(SCORE | {"input": [message] * 100})

    def ask(*_: Any) -> str:
        raise AssertionError("a model was asked")

    found = graders.grade(grader, "", {"text": "x" * 100_000}, ask)
    assert (found.errors, "messages have more than" in str(found.details)) == ({"invalid_variable_error"}, True)


def test_validate_gives_the_grader_back(client: TestClient) -> None:
    assert ok(client.post(f"{URL}/validate", json={"grader": CHECK})) == {"grader": CHECK}
    assert client.post(f"{URL}/validate", json={"grader": CHECK | {"operation": "is"}}).status_code == 400


@pytest.mark.parametrize(
    ("grader", "said", "reward"),
    [
        (SCORE, "I give 0.25 of 1", 0.25),
        (SCORE, '{"result": 0.5}', 0.5),
        (SCORE, "7", None),
        (SCORE | {"range": [0, 10]}, "7", 7.0),
        (SCORE, "none", None),
        (LABEL, "good", 1.0),
        (LABEL, "It is BAD.", 0.0),
        (LABEL, "good or bad", None),
    ],
)
def test_models_that_grade(grader: dict[str, Any], said: str, reward: float | None) -> None:
    asked: list[Sequence[Mapping[str, str]]] = []

    def ask(model: str, messages: Sequence[Mapping[str, str]], most: int | None, temperature: float, seed: int) -> str:
        asked.append(messages)
        assert (model, most, temperature, seed) == ("tiny", None, 0.0, 0)
        return said

    made: GraderRequest = TypeAdapter(GraderRequest).validate_python(grader)
    found = graders.grade(made, "4", ITEM, ask)
    assert asked == [[{"role": "user", "content": "Grade 4 against four"}]]
    assert found.reward == (reward or 0.0)
    assert found.errors == (set() if reward is not None else {"model_grader_parse_error"})


def test_a_thought_is_beside_the_tokens_of_a_grade_unless_the_grader_limits_both(
    home: Context, client: TestClient
) -> None:
    engine = answering(home, lambda _: "0.5")
    assert run(client, SCORE)["reward"] == 0.5
    assert run(client, SCORE | {"sampling_params": {"max_completions_tokens": 9}})["reward"] == 0.5
    limits = [(one.max_new_tokens, one.max_thinking_tokens) for one in engine.asked if isinstance(one, TextRequest)]
    assert limits == [(256, None), (9, 0)]


def test_a_reply_that_is_cut_off_before_its_verdict_is_no_grade(home: Context, client: TestClient) -> None:
    start = "To be good it needs 1 " + "more " * 300
    engine = CutEngine(lambda _: start + '{"result": 0.25}')
    home.__dict__["inference_client"] = engine
    assert run(client, SCORE)["reward"] == 0.25
    engine.say = lambda _: start + '{"result": "bad"}'
    assert run(client, LABEL)["reward"] == 0.0
    limits = [(one.max_new_tokens, one.max_thinking_tokens) for one in engine.asked if isinstance(one, TextRequest)]
    assert limits == [(256, None), (4096, None)] * 2
    engine.say = lambda _: start + "more " * 5000
    assert run(client, LABEL)["metadata"]["errors"]["model_grader_server_error"]


def test_a_stored_grader_with_a_reasoning_effort_goes_on_grading() -> None:
    made: GraderRequest = TypeAdapter(GraderRequest).validate_python(
        SCORE | {"sampling_params": {"reasoning_effort": "high"}}
    )
    assert graders.grade(made, "4", ITEM, lambda *_: "0.5").reward == 0.5


def test_a_model_that_does_not_answer_is_told() -> None:
    def ask(*_: Any) -> str:
        raise WorkError("no", expected="yes", do="wait")

    made: GraderRequest = TypeAdapter(GraderRequest).validate_python(SCORE)
    assert graders.grade(made, "4", ITEM, ask).errors == {"model_grader_server_error"}
    with pytest.raises(UnsupportedError):
        graders.grade(TypeAdapter(GraderRequest).validate_python(LIKE | {"evaluation_metric": "cosine"}), "", {}, ask)


def test_who_may_not_ask_models_may_not_by_a_grader(client_of: Callable[..., TestClient]) -> None:
    trainer = client_of("default", ("train",))
    body = {"grader": SCORE, "model_sample": "4", "item": ITEM}
    assert trainer.post(f"{URL}/run", json=body).status_code == 403
    assert ok(trainer.post(f"{URL}/validate", json={"grader": SCORE}))["grader"]["name"] == "score"
