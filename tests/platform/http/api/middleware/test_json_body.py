"""JSON beyond the limits is refused before a route reads it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest
from starlette.testclient import TestClient

MakeClient = Callable[..., TestClient]
JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("body", "place"),
    [
        (b'{"size": 1, "more": "\\ud800"}', "more"),
        (b'{"size": 1, "more": "\xed\xa0\x80"}', "more"),
        (b'{"size": 1, "more": ' + b"[" * 70 + b"]" * 70 + b"}", "more"),
        (b'{"size": 1, "more": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "more"),
        (b'{"size": 1, "more": [' + b"1," * 1_000_000 + b"1]}", "more"),
    ],
)
@pytest.mark.parametrize("headers", [JSON, {"Content-Type": "application/problem+json; charset=utf-8"}])
def test_it_is_refused_with_its_field(
    client: MakeClient, made: list[int], body: bytes, place: str, headers: dict[str, str]
) -> None:
    answer = client().post("/v1/things", content=body, headers=headers)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"].startswith(place)
    assert "expected" in answer.json()["error"]["message"]
    assert made == []


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "latin-1"])
def test_other_encodings_are_no_way_around_it(client: MakeClient, encoding: str) -> None:
    answer = client().post("/v1/things", content='{"size": 1, "ä": 1}'.encode(encoding), headers=JSON)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_json")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1E+400", "9" * 400 + ".5"])
def test_numbers_that_json_does_not_have_are_refused(client: MakeClient, made: list[int], number: str) -> None:
    answer = client().post("/v1/things", content=f'{{"size": 1, "more": [{number}]}}', headers=JSON)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_json")
    assert number[:40] in answer.json()["error"]["message"]
    assert made == []


def test_texts_may_name_such_numbers(client: MakeClient, made: list[int]) -> None:
    body = '{"size": 1, "more": ["NaN", "Infinity", "1e999", 1e300, 1e-999, 2E+100]}'
    assert client().post("/v1/things", content=body, headers=JSON).status_code == 200
    cut = client().post("/v1/things", content='{"size": "NaN"', headers=JSON)
    assert (cut.status_code, cut.json()["error"]["code"]) == (400, "invalid_value")
    assert made == [1]


def test_what_is_no_json_is_told_by_the_route_as_before(client: MakeClient) -> None:
    answer = client().post("/v1/things", content=b'{"size": ', headers=JSON)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_value")


def test_an_ordinary_body_in_many_pieces_comes_through_whole(client: MakeClient, made: list[int]) -> None:
    text = json.dumps({"size": 7, "notes": [{"a": "\N{VIOLIN} " * 10}] * 3000}).encode()

    def pieces() -> Iterator[bytes]:
        for start in range(0, len(text), 1000):
            yield text[start : start + 1000]

    answer = client().post("/v1/things", content=pieces(), headers={**JSON, "Idempotency-Key": "k1"})
    assert answer.json() == {"size": 7, "number": 1}
    again = client().post("/v1/things", content=text, headers={**JSON, "Idempotency-Key": "k1"})
    assert again.json() == {"size": 7, "number": 1}, "the digest of the body was made all the same"
    assert made == [7]


@pytest.mark.parametrize("kind", [{}, JSON])
def test_what_brings_a_file_is_never_held_in_memory(
    client: MakeClient, monkeypatch: pytest.MonkeyPatch, kind: dict[str, str]
) -> None:
    async def hold(_receive: object) -> bytes:
        raise AssertionError("the body was read into memory")

    monkeypatch.setattr("luthier.platform.http.middleware._whole", hold)
    answer = client().post("/v1/files/", content=iter([b"[" * 1000] * 10), headers=kind)
    assert answer.json() == {"num_bytes": 10_000}
