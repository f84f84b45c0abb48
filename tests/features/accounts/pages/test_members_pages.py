"""Members by the page."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from fastapi.testclient import TestClient

from luthier.core.access import Caller
from luthier.platform.auth.members import add_member, list_members, member_by_password
from luthier.platform.auth.service import create_project
from luthier.platform.home.context import Context

Browser = Callable[..., TestClient]
ADDRESS = "/settings/members"
PASSWORD, OTHER = "correct horse battery", "another long password"


def test_a_member_is_added_changed_and_removed(home: Context, browser: Browser) -> None:
    one = browser("admin")
    assert "None yet" in one.get(ADDRESS).text
    name = '<b>Ada</b>"><img src=x>'
    assert one.post(ADDRESS, data={"name": name, "password": PASSWORD, "role": "viewer"}).status_code == 303
    (ada,) = list_members(home, Caller())
    assert (ada.name, ada.role) == (name, "viewer")
    page = one.get(ADDRESS).text
    assert "&lt;b&gt;Ada&lt;/b&gt;" in page
    assert "<b>Ada" not in page
    assert PASSWORD not in page
    place = f"{ADDRESS}/{ada.member_id}"
    assert one.post(f"{place}/role", data={"role": "trainer"}).status_code == 303
    assert list_members(home, Caller())[0].role == "trainer"
    assert one.post(f"{place}/password", data={"password": OTHER}).status_code == 303
    assert member_by_password(home, name, OTHER) is not None
    assert one.post(f"{place}/remove").status_code == 303
    assert list_members(home, Caller()) == []
    assert "is removed" in one.get(ADDRESS).text


@pytest.mark.parametrize(
    ("form", "status", "words"),
    [
        ({"name": "", "password": PASSWORD, "role": "viewer"}, 422, "printable characters"),
        ({"name": "kept", "password": "short", "role": "admin"}, 422, "at least 10 characters"),
        ({"name": "Eva", "password": PASSWORD, "role": "viewer"}, 422, "exists already"),
        ({"name": "kept", "password": PASSWORD, "role": "owner"}, 422, "role"),
    ],
)
def test_a_wrong_form_is_explained(
    home: Context, browser: Browser, form: dict[str, str], status: int, words: str
) -> None:
    add_member(home, Caller(), "Eva", PASSWORD, "viewer")
    answer = browser("admin").post(ADDRESS, data=form)
    assert (answer.status_code, words in answer.text) == (status, True)
    if form["password"] == "short":
        assert 'value="kept"' in answer.text
        assert 'value="admin" checked' in answer.text
        assert 'value="short"' not in answer.text


def test_no_admin_takes_themselves_away(home: Context, browser: Browser) -> None:
    ada = add_member(home, Caller(), "Ada", PASSWORD, "admin")
    one = browser()
    one.post("/sign-in", data={"name": "Ada", "password": PASSWORD})
    page = one.get(ADDRESS).text
    place = f"{ADDRESS}/{ada.member_id}"
    assert place not in page, "no form that would be refused"
    for way, form in (("role", {"role": "viewer"}), ("remove", {})):
        answer = one.post(f"{place}/{way}", data=form)
        assert (answer.status_code, "another admin" in answer.text) == (409, True)
    assert list_members(home, Caller()) == [ada]


def test_a_member_of_another_project_is_not_there(home: Context, browser: Browser) -> None:
    other = Caller(project_id=create_project(home, "mine").project_id)
    eva = add_member(home, other, "Zoltan", PASSWORD, "admin")
    one = browser("admin")
    assert "Zoltan" not in one.get(ADDRESS).text
    place = f"{ADDRESS}/{eva.member_id}"
    for way, form in (("role", {"role": "viewer"}), ("password", {"password": OTHER}), ("remove", {})):
        assert one.post(f"{place}/{way}", data=form).status_code == 404
    assert list_members(home, other) == [eva]
