"""Who comes in, by what, and who does not."""

from __future__ import annotations

import http.client
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from html import unescape
from pathlib import Path
from urllib.parse import unquote, urlencode

import pytest
from fastapi.testclient import TestClient

from luthier.core.access import Caller
from luthier.features.accounts import sign_in_pages as sign_in
from luthier.platform.auth.members import add_member, change_password, make_link, remove_member
from luthier.platform.auth.password_hashing import SignInQueue
from luthier.platform.auth.rate_limiter import LONGEST_WAIT_SECONDS, FailureLimit, Taken
from luthier.platform.auth.service import create_key, revoke_key
from luthier.platform.home.context import Context
from luthier.server import pages as server_pages
from luthier.server.pages import page_routes
from luthier.testing.servers import home_server

Browser = Callable[..., TestClient]
PASSWORD = "correct horse battery"


def test_without_a_session_every_page_leads_to_the_sign_in(browser: Browser) -> None:
    one = browser()
    answer = one.get("/?sort=name")
    assert (answer.status_code, answer.headers["location"]) == (303, "/sign-in?next=/%3Fsort%3Dname")
    piece = one.get("/", headers={"HX-Request": "true"})
    assert (piece.status_code, piece.headers["hx-redirect"]) == (401, "/sign-in?next=/")


def test_a_key_lets_in_until_it_is_revoked(home: Context, browser: Browser) -> None:
    one = browser()
    key, text = create_key(home, "mine", scopes=("read",))
    answer = one.post("/sign-in", data={"key": text, "next": "/runs"})
    assert (answer.status_code, answer.headers["location"]) == (303, "/runs")
    assert "HttpOnly" in answer.headers["set-cookie"]
    assert "mine" in one.get("/").text
    revoke_key(home, key.key_id)
    assert one.get("/").status_code == 303


def test_a_wrong_key_lets_nobody_in_and_too_many_have_to_wait(browser: Browser) -> None:
    one = browser()
    answers = [one.post("/sign-in", data={"key": f"sk-{n}"}) for n in range(sign_in.FAILURES_PER_MINUTE + 1)]
    assert [a.status_code for a in answers] == [422] * sign_in.FAILURES_PER_MINUTE + [429]
    assert "this key is not valid" in answers[0].text
    assert "luthier_session" not in one.cookies


def test_a_member_comes_in_by_name_and_password(home: Context, browser: Browser) -> None:
    member = add_member(home, Caller(), "Ada", PASSWORD, "viewer")
    one = browser()
    refused = one.post("/sign-in", data={"name": "Ada", "password": "wrong password"})
    assert refused.status_code == 422
    assert 'name="name" value="Ada"' in refused.text
    assert "wrong password" not in refused.text
    assert one.post("/sign-in", data={"name": "Ada", "password": PASSWORD}).status_code == 303
    assert "Ada" in one.get("/").text
    change_password(home, Caller(), member.member_id, PASSWORD + "!")
    assert one.get("/").status_code == 303, "another password ends the sessions"
    assert one.post("/sign-in", data={"name": "Ada", "password": PASSWORD + "!"}).status_code == 303
    remove_member(home, Caller(), member.member_id)
    assert one.get("/").status_code == 303


def test_a_link_works_once(home: Context, browser: Browser) -> None:
    one, token = browser(), make_link(home)
    assert one.get(f"/welcome/{token}").status_code == 303
    assert one.get("/").status_code == 200
    assert browser().get(f"/welcome/{token}").status_code == 422


def test_who_signs_out_is_out(browser: Browser) -> None:
    one = browser("read")
    cookie = one.cookies["luthier_session"]
    one.post("/sign-out")
    one.cookies.set("luthier_session", cookie)
    assert one.get("/").status_code == 303


@pytest.mark.parametrize(
    "address", ["https://evil.example", "//evil.example", "/\\evil.example", "javascript:alert(1)"]
)
def test_nobody_is_led_elsewhere(home: Context, browser: Browser, address: str) -> None:
    key = create_key(home, "k", scopes=("read",))[1]
    assert browser().post("/sign-in", data={"key": key, "next": address}).headers["location"] == "/"


def test_forms_of_other_sites_are_refused(browser: Browser) -> None:
    one = browser("admin")
    for headers in (
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "none"},
    ):
        assert one.post("/sign-out", headers=headers).status_code == 403
    del one.headers["Sec-Fetch-Site"]
    assert one.post("/sign-out").status_code == 403
    assert one.post("/sign-out", headers={"Origin": "http://evil.example"}).status_code == 403
    assert one.post("/sign-out", headers={"Origin": "http://127.0.0.1"}).status_code == 303


def test_pages_allow_no_foreign_code_and_the_api_stays_as_it_is(browser: Browser) -> None:
    one = browser("read")
    policy = one.get("/").headers["content-security-policy"]
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy
    assert one.get("/v1/nothing").json()["error"]["code"] == "missing_api_key"
    assert one.get("/no/such/page").status_code == 404
    assert "no page /no/such/page" in one.get("/no/such/page").text


def test_links_are_held_to_the_limit_too(home: Context, browser: Browser) -> None:
    one = browser()
    answers = [one.get(f"/welcome/guess-{n}") for n in range(sign_in.FAILURES_PER_MINUTE + 1)]
    assert [a.status_code for a in answers] == [422] * sign_in.FAILURES_PER_MINUTE + [429]
    assert int(answers[-1].headers["retry-after"]) >= 1
    assert one.get(f"/welcome/{make_link(home)}").status_code == 429


def _sign_in(url: str, password: str, together: threading.Barrier) -> int:
    host, port = url.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=1800)
    headers = {"Sec-Fetch-Site": "same-origin", "Content-Type": "application/x-www-form-urlencoded"}
    try:
        together.wait(1800)
        connection.request("POST", "/sign-in", urlencode({"name": "Ada", "password": password}), headers)
        return connection.getresponse().status
    finally:
        connection.close()


_FASTER = 5.0


class _QuickLimit(FailureLimit):
    """A limit whose minute takes twelve seconds: nobody waits for real ones."""

    def __init__(self, what: str, per_minute: int) -> None:
        super().__init__(what, per_minute, clock=lambda: _FASTER * time.monotonic())

    def begin(self, block: str) -> Taken:
        taken = super().begin(block)
        return replace(taken, wait_seconds=taken.wait_seconds / _FASTER)


def test_sixty_at_once_all_end_and_the_right_ones_are_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_pages, "FailureLimit", _QuickLimit)
    queue = partial(SignInQueue, longest_wait_seconds=LONGEST_WAIT_SECONDS / _FASTER)
    monkeypatch.setattr(server_pages, "SignInQueue", queue)
    with Context.open(tmp_path / "home") as home:
        add_member(home, Caller(), "Ada", PASSWORD, "viewer")
    wrong = [f"wrong password {number}" for number in range(sign_in.FAILURES_PER_MINUTE)]
    with home_server(tmp_path / "home") as server, ThreadPoolExecutor(60) as pool:
        together = threading.Barrier(60)
        passwords = [password for group in zip(*[iter([PASSWORD] * 50)] * 5, wrong, strict=True) for password in group]
        ends = list(pool.map(lambda password: _sign_in(server.url, password, together), passwords))
        assert [end for end, password in zip(ends, passwords, strict=True) if password == PASSWORD] == [303] * 50
        assert set(ends) <= {303, 422, 429}
        began = time.monotonic()
        again = list(pool.map(lambda number: _sign_in(server.url, f"not it {number}", together), range(60)))
        most = _FASTER * (time.monotonic() - began) / 60 * sign_in.FAILURES_PER_MINUTE
        assert 429 in again
        assert set(again) <= {422, 429}
        assert again.count(422) <= sign_in.FAILURES_PER_MINUTE + most


OPEN = ("/sign-in", "/sign-out", "/welcome", "/rate", "/invite", "/assets", "/language")
"""What needs no session; `/pipelines` alone is the home page by another name."""
SCRIPT = {"Sec-Fetch-Mode": "cors", "Accept": "*/*"}


def closed(method: str) -> list[str]:
    """The addresses of the pages that a session is needed for."""
    found = {
        route.path.replace("{deed}", "renew").replace("{file_format}", "csv").replace("{key_id}", "k")
        for route in page_routes()
        if method in route.methods
    }
    return sorted(re.sub(r"{[^}]*}", "x", path) for path in found if not path.startswith(OPEN) and path != "/pipelines")


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_scripts_and_forms_of_an_ended_session_lead_back_to_a_page(browser: Browser, method: str) -> None:
    one, paths, pages = browser(), closed(method), closed("GET")
    assert len(paths) > 30
    for path in paths:
        for headers in (SCRIPT, {"HX-Request": "true"}, {"Accept": "application/json"}):
            answer = one.request(method, path, headers=headers)
            assert answer.status_code == 401, path
            led = unquote(answer.headers["hx-redirect"].removeprefix("/sign-in?next="))
            assert led in {*pages, "/pipelines"}, f"{path} leads to {led}"
            assert len(led) < len(path) or method == "POST" or path == "/", "never to the piece itself"
            at = {"HX-Current-URL": "http://127.0.0.1/runs/x?tab=2#curves"}
            assert one.request(method, path, headers=headers | at).headers["hx-redirect"] == (
                "/sign-in?next=/runs/x%3Ftab%3D2"
            )


@pytest.mark.parametrize(
    "page",
    [
        "https://evil.example/x",
        "https://evil.example@127.0.0.1/x",
        "http://127.0.0.1//evil.example",
        "http://127.0.0.1/\\evil.example",
        "javascript:alert(1)",
        "//evil.example",
        "http://127.0.0.1.evil.example/",
        "",
    ],
)
def test_the_page_to_come_back_to_is_never_elsewhere(browser: Browser, page: str) -> None:
    one = browser()
    answer = one.get("/runs/x/series", headers=SCRIPT | {"HX-Current-URL": page})
    assert answer.headers["hx-redirect"] in ("/sign-in?next=/", "/sign-in?next=/runs/x")
    form = one.post("/runs/x/pause", headers={"HX-Current-URL": page})
    assert form.headers["location"] in ("/sign-in?next=/", "/sign-in?next=/runs/x")


def test_a_form_that_is_sent_after_the_end_leads_to_its_page(browser: Browser) -> None:
    answer = browser().post("/runs/run-1/pause")
    assert (answer.status_code, answer.headers["location"]) == (303, "/sign-in?next=/runs/run-1")


def test_a_link_to_a_page_of_another_role_is_explained_after_the_sign_in(home: Context, browser: Browser) -> None:
    add_member(home, Caller(), "Vera", PASSWORD, "viewer")
    one, link = browser(), "/start?dataset=data-1"
    refused = one.get(link)
    assert refused.headers["location"] == "/sign-in?next=/start%3Fdataset%3Ddata-1"
    led = one.post("/sign-in", data={"name": "Vera", "password": PASSWORD, "next": link})
    assert led.headers["location"] == link
    page = one.get(link)
    assert page.status_code == 403
    text = unescape(page.text)
    assert "'Vera' may read, infer here" in text
    assert "someone who may train" in text
    assert "ask an admin of the project for that, or sign in as somebody else" in text
