"""How large a request may be."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from starlette.testclient import TestClient

MakeClient = Callable[..., TestClient]
MIB = 1 << 20


def chunks(num_bytes: int) -> Iterator[bytes]:
    for _ in range(num_bytes // MIB):
        yield b" " * MIB


def test_a_large_request_is_refused_by_what_it_says_of_itself(client: MakeClient) -> None:
    answer = client().post("/v1/things", content=b" " * (5 * MIB))
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")
    assert "LUTHIER_MAX_REQUEST_BYTES" in answer.json()["error"]["message"]


def test_a_large_request_is_refused_when_it_has_become_too_large(client: MakeClient) -> None:
    answer = client().post("/v1/things", content=chunks(5 * MIB), headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")


def test_what_is_small_enough_passes_and_files_are_not_counted_here(client: MakeClient) -> None:
    padded = b'{"size": 1}' + b" " * (4 * MIB - 11)
    answer = client().post("/v1/things", content=padded, headers={"Content-Type": "application/json"})
    assert answer.status_code == 200
    assert client().post("/v1/files/", content=chunks(6 * MIB)).json() == {"num_bytes": 6 * MIB}
