"""Our errors as a client is told them, and whether it should ask again."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from luthier.core.errors import (
    BusyError,
    CheckpointError,
    DefectError,
    DivergedError,
    LuthierError,
    MemoryLimitError,
    ModelSourceError,
    RequestError,
    StorageFullError,
    UnreachableError,
    WorkError,
)
from luthier.platform.http.errors import add_error_handlers, as_api_error, invalid_request


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        (ModelSourceError, 503),
        (CheckpointError, 503),
        (DivergedError, 503),
        (MemoryLimitError, 503),
        (DefectError, 500),
        (StorageFullError, 507),
    ],
)
def test_what_is_for_good_is_not_to_be_repeated(kind: type[LuthierError], status: int) -> None:
    told = as_api_error(kind("came", expected="expected", do="do"))
    assert told.status == status
    assert told.headers.get("x-should-retry") == "false"
    assert "Retry-After" not in told.headers


@pytest.mark.parametrize("kind", [WorkError, UnreachableError, BusyError])
def test_what_may_pass_says_when_to_ask_again(kind: type[LuthierError]) -> None:
    told = as_api_error(kind("came", expected="expected", do="do"))
    assert int(told.headers["Retry-After"]) >= 1
    assert "x-should-retry" not in told.headers


def test_a_wrong_request_says_neither() -> None:
    assert as_api_error(RequestError("came", expected="expected", do="do")).headers == {}


class Mark(BaseModel):
    mode: Literal["explicit"]


class Text(BaseModel):
    type: Literal["text"]
    text: str
    mark: Mark | None = None


class Image(BaseModel):
    type: Literal["image"]
    url: str


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid")

    tagged: list[Annotated[Text | Image, Field(discriminator="type")]] = []
    plain: str | Text | tuple[str | Text, ...] = ""
    named: dict[str, Annotated[Text | Image, Field(discriminator="type")]] | Text | None = None
    labels: dict[Annotated[str, Field(max_length=3)], str] = {}


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"tagged": [{"type": "text"}]}, "tagged.0.text", "Field required"),
        ({"tagged": [{"type": "text", "text": 5}]}, "tagged.0.text", "valid string"),
        ({"tagged": [{"type": "text", "text": "a", "mark": {"mode": "x"}}]}, "tagged.0.mark.mode", "'explicit'"),
        ({"tagged": [{"type": "text", "text": "a", "mark": {}}]}, "tagged.0.mark.mode", "Field required"),
        ({"tagged": [{"type": "audio"}]}, "tagged.0", "'audio'"),
        ({"plain": [{"type": "image", "url": "a"}]}, "plain.0.type", "'text'"),
        ({"plain": 5}, "plain", "valid string"),
        ({"named": {"a": {"type": "image"}}}, "named.a.url", "Field required"),
        ({"labels": {"long": "a"}}, "labels.long.[key]", "at most 3"),
        ({"labels": {"a": 1}}, "labels.a", "valid string"),
        ({"other": 1}, "other", "not permitted"),
    ],
)
def test_the_place_of_a_fault_is_that_of_the_request_without_names_of_kinds(
    body: dict[str, Any], param: str, words: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        Body.model_validate(body)
    problems = [(("body", *one["loc"]), str(one["msg"])) for one in caught.value.errors()]
    told = invalid_request(problems, body)
    assert told.param == param
    assert words in told.message
    # As in OpenAI's API.
    codes = {"Field required": "missing_required_parameter", "not permitted": "unknown_parameter"}
    assert told.code == codes.get(words, "invalid_value")


@pytest.mark.parametrize(
    ("content", "kind", "code", "words"),
    [
        (b'{"tagged": ', "application/json", "invalid_value", "not JSON (Expecting value at character 11)"),
        (b"{}", "text/plain", "invalid_content_type", "Content-Type 'text/plain'"),
        (b"{}", "", "invalid_content_type", "no Content-Type"),
        (b"", "text/plain", "invalid_value", "Field required"),
        (b"[]", "application/json", "invalid_value", "valid dictionary"),
    ],
)
def test_a_body_that_is_no_json_document_is_refused_as_such(content: bytes, kind: str, code: str, words: str) -> None:
    app = FastAPI()
    add_error_handlers(app)
    app.post("/")(_taken)
    with TestClient(app) as client:
        answer = client.post("/", content=content, headers={"Content-Type": kind} if kind else {})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, code, None)
    assert words in error["message"]


def _taken(body: Body) -> dict[str, str]:
    return {"plain": str(body.plain)}
