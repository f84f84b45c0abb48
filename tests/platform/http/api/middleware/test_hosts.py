"""Names that a server may be reached by."""

from __future__ import annotations

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from luthier.platform.http.middleware import HostCheck

LOOPBACK, ELSEWHERE = "http://127.0.0.1:8520", "http://192.0.2.7:8520"


def status(base_url: str, host: str, allowed: str = "") -> int:
    app = FastAPI()
    app.add_api_route("/", lambda: "here")
    app.add_middleware(HostCheck, allowed_hosts=allowed)
    answer = TestClient(app, base_url=base_url).get("/", headers={"Host": host})
    if answer.status_code == 421:
        assert answer.json()["error"]["code"] == "host_not_allowed"
    return int(answer.status_code)


@pytest.mark.parametrize("host", ["localhost", "LocalHost:8520", "127.0.0.1:8520", "[::1]:8520", "localhost."])
def test_this_machine_is_called_so(host: str) -> None:
    assert status(LOOPBACK, host) == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8520", "localhost.evil.example", "127.0.0.2", ""])
def test_a_page_that_points_its_own_name_here_is_refused(host: str) -> None:
    assert status(LOOPBACK, host) == 421


def test_loopback_has_several_addresses() -> None:
    for address in ("http://[::1]:8520", "http://[::ffff:127.0.0.1]:8520", "http://127.9.9.9"):
        assert status(address, "evil.example") == 421


def test_names_can_be_allowed() -> None:
    assert status(LOOPBACK, "tunes.example:443", "tunes.example other.example") == 200
    assert status(LOOPBACK, "evil.example", "tunes.example") == 421
    assert status(LOOPBACK, "anything", "*") == 200


def test_elsewhere_any_name_will_do_until_some_are_set() -> None:
    assert status(ELSEWHERE, "gpu-box:8520") == 200
    assert status(ELSEWHERE, "gpu-box:8520", "gpu-box") == 200
    assert status(ELSEWHERE, "evil.example", "gpu-box") == 421
