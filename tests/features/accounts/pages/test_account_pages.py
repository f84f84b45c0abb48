"""Oneself: what one may do, one's password, and where one is signed in."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from fastapi.testclient import TestClient

from luthier.core.access import Caller
from luthier.features.accounts import account_pages as account
from luthier.platform.auth.members import add_member
from luthier.platform.home.context import Context

Browser = Callable[..., TestClient]
PASSWORD, OTHER = "correct horse battery", "another long password"
ADDRESS = "/settings/account/password"


@pytest.fixture(autouse=True)
def no_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(account, "_tries", type(account._tries)())


@pytest.fixture
def ada(home: Context, browser: Browser) -> Callable[[], TestClient]:
    """Makes browsers in which Ada, a viewer, is signed in."""
    add_member(home, Caller(), "Ada", PASSWORD, "viewer")

    def make() -> TestClient:
        one = browser()
        assert one.post("/sign-in", data={"name": "Ada", "password": PASSWORD}).status_code == 303
        return one

    return make


def test_one_sees_who_one_is_and_what_one_may_do(ada: Callable[[], TestClient], browser: Browser) -> None:
    page = ada().get("/settings/account").text
    assert "with name and password" in page
    assert page.count(">yes<") == 2
    assert "An admin of the project can give you more." in page
    page = browser("admin").get("/settings/account").text
    assert page.count(">yes<") == 4
    assert "New password" not in page, "a key has none"


def test_a_new_password_signs_others_out_and_this_browser_not(ada: Callable[[], TestClient]) -> None:
    here, there = ada(), ada()
    answer = here.post(ADDRESS, data={"current": PASSWORD, "password": OTHER, "again": OTHER})
    assert (answer.status_code, answer.headers["location"]) == (303, "/settings/account")
    page = here.get("/settings/account")
    assert page.status_code == 200
    assert "Your password is changed" in page.text
    assert there.get("/settings/account").status_code == 303
    assert there.post("/sign-in", data={"name": "Ada", "password": PASSWORD}).status_code == 422
    assert there.post("/sign-in", data={"name": "Ada", "password": OTHER}).status_code == 303


@pytest.mark.parametrize(
    ("current", "password", "again", "words"),
    [
        ("wrong", OTHER, OTHER, "the current password is not this one"),
        (PASSWORD, OTHER, OTHER + "!", "the two new passwords differ"),
        (PASSWORD, "short", "short", "at least 10 characters"),
    ],
)
def test_a_password_that_cannot_be_is_explained(
    ada: Callable[[], TestClient], current: str, password: str, again: str, words: str
) -> None:
    one = ada()
    answer = one.post(ADDRESS, data={"current": current, "password": password, "again": again})
    assert answer.status_code == 422
    assert words in answer.text
    assert one.get("/settings/account").status_code == 200


def test_who_guesses_a_password_has_to_wait(ada: Callable[[], TestClient]) -> None:
    one = ada()
    for _ in range(account.TRIES_PER_MINUTE):
        one.post(ADDRESS, data={"current": "wrong", "password": OTHER, "again": OTHER})
    answer = one.post(ADDRESS, data={"current": PASSWORD, "password": OTHER, "again": OTHER})
    assert "too many attempts" in answer.text


def test_a_key_has_no_password_to_change(browser: Browser) -> None:
    answer = browser("read").post(ADDRESS, data={"current": "x", "password": OTHER, "again": OTHER})
    assert (answer.status_code, "has no password" in answer.text) == (422, True)


def test_one_signs_ones_other_browsers_out(ada: Callable[[], TestClient], browser: Browser) -> None:
    here, there, other = ada(), ada(), browser("read")
    page = here.get("/settings/account").text
    assert (page.count("<tr>") - 1, page.count(">this browser<")) == (2, 1)
    here.post("/settings/account/end-others")
    assert "1 other session ended." in here.get("/settings/account").text
    assert there.get("/settings/account").status_code == 303
    assert other.get("/settings/account").status_code == 200
    assert "Sign the others out" not in here.get("/settings/account").text


def test_the_cookie_outlives_a_session_that_is_used(ada: Callable[[], TestClient]) -> None:
    one = ada()
    cookie = next(cookie for cookie in one.cookies.jar if cookie.name == "luthier_session")
    assert cookie.expires is not None
    answer = one.post("/sign-in", data={"name": "Ada", "password": PASSWORD})
    assert f"Max-Age={400 * 24 * 3600}" in answer.headers["set-cookie"]
