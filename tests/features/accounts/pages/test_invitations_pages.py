"""Invitations by the pages: made, shown once, accepted, used twice, withdrawn, opened by somebody who is a member."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from fastapi.testclient import TestClient
from tests.fixtures.pages import shown

from luthier.core.access import Caller
from luthier.platform.auth import invitations as invites
from luthier.platform.auth.members import add_member, list_members
from luthier.platform.auth.service import create_project
from luthier.platform.home.context import Context

Browser = Callable[..., TestClient]
ADDRESS, LIST = "/settings/members", "/settings/members/invitations"
PASSWORD = "correct horse battery"
FORM = {"role": "trainer", "recipient": "Ben", "expires": "7d", "public_url": "https://luthier.example"}
ACCEPT = {"name": "Ben", "password": PASSWORD, "again": PASSWORD}


def made_link(page: str) -> str:
    found = re.search(r'<code id="secret" class="secret">([^<]+)</code>', page)
    assert found is not None
    return found[1]


def test_an_invitation_is_made_shown_once_and_accepted(home: Context, browser: Browser) -> None:
    admin = browser("admin")
    assert 'name="public_url"' in admin.get(ADDRESS).text, "the address is asked for the first time"
    led = admin.post(LIST, data=FORM)
    page = shown(admin, led)
    link = made_link(page.text)
    assert link.startswith("https://luthier.example/invite/")
    assert link.rpartition("/")[2] not in str(led.headers) + admin.get(ADDRESS).text
    assert "Only this machine reaches" not in page.text
    again = admin.get(ADDRESS).text
    assert "Open invitations" in again
    assert again.count('name="public_url"') == 1, "it is not asked for again, only changed"
    ben, path = browser(), link.removeprefix("https://luthier.example")
    form = ben.get(path).text
    assert "Join the project default" in form
    assert "trainer" in form
    accepted = ben.post(path, data=ACCEPT)
    assert (accepted.status_code, accepted.headers["location"]) == (303, "/")
    assert "You are a member now, Ben." in ben.get("/").text
    assert [(one.name, one.role) for one in list_members(home, Caller())] == [("Ben", "trainer")]
    assert "accepted by Ben" in admin.get(ADDRESS).text


def test_an_invitation_used_twice_is_refused_with_a_page(home: Context, browser: Browser) -> None:
    made = invites.invite(home, Caller(), "viewer")
    assert browser().post(made.path, data=ACCEPT).status_code == 303
    second = browser()
    for answer in (second.get(made.path), second.post(made.path, data=ACCEPT | {"name": "Eve"})):
        assert answer.status_code == 409
        assert "This invitation cannot be used" in answer.text
        assert "accepted already" in answer.text
        assert "<form" not in answer.text
    assert [one.name for one in list_members(home, Caller())] == ["Ben"]


def test_wrong_forms_are_explained_and_the_name_is_kept(home: Context, browser: Browser) -> None:
    add_member(home, Caller(), "Ada", PASSWORD, "admin")
    made, one = invites.invite(home, Caller(), "viewer", recipient="Ben"), browser()
    assert 'value="Ben"' in one.get(made.path).text
    for wrong, status, words in (
        ({"again": PASSWORD + "!"}, 422, "the two passwords differ"),
        ({"password": "short", "again": "short"}, 422, "at least 10 characters"),
        ({"name": "Ada"}, 409, "exists already"),
    ):
        answer = one.post(made.path, data=ACCEPT | {"name": "Kept <b>"} | wrong)
        assert (answer.status_code, words in answer.text) == (status, True), answer.text[:500]
        assert "name" in wrong or 'value="Kept &lt;b&gt;"' in answer.text
        assert PASSWORD not in answer.text
    assert one.post(made.path, data=ACCEPT).status_code == 303


def test_who_is_a_member_already_is_asked_to_sign_out_first(home: Context, browser: Browser) -> None:
    add_member(home, Caller(), "Vera", PASSWORD, "viewer")
    made, vera = invites.invite(home, Caller(), "admin"), browser()
    vera.post("/sign-in", data={"name": "Vera", "password": PASSWORD})
    page = vera.get(made.path)
    assert page.status_code == 409
    assert "You are signed in already" in page.text
    assert "Vera" in page.text
    assert vera.post(made.path, data=ACCEPT).status_code == 409
    assert len(list_members(home, Caller())) == 1, "a viewer does not become an admin by a link for somebody else"
    out = vera.post(f"{made.path}/sign-out")
    assert (out.status_code, out.headers["location"]) == (303, made.path)
    assert vera.post(made.path, data=ACCEPT).status_code == 303


def test_links_that_are_none_wait_after_ten(home: Context, browser: Browser) -> None:
    one = browser()
    answers = [one.get(f"/invite/none-{number}") for number in range(11)]
    assert [answer.status_code for answer in answers] == [404] * 10 + [429]
    assert "this invitation is not valid" in answers[0].text
    assert int(answers[-1].headers["retry-after"]) > 0


def test_a_withdrawn_link_is_refused(home: Context, browser: Browser) -> None:
    made, admin = invites.invite(home, Caller(), "viewer"), browser("admin")
    place = f"{LIST}/{made.invitation.invitation_id}/revoke"
    assert admin.post(place).headers["location"] == ADDRESS
    assert "was withdrawn" in browser().get(made.path).text
    assert "withdrawn" in admin.get(ADDRESS).text
    create_project(home, "mine")
    other = invites.invite(home, Caller(), "viewer")
    mine = browser("admin", project="mine")
    assert mine.post(f"{LIST}/{other.invitation.invitation_id}/revoke").status_code == 404
    assert other.invitation.invitation_id not in mine.get(ADDRESS).text


def test_only_admins_invite_and_an_invalid_form_makes_nothing(home: Context, browser: Browser) -> None:
    assert browser("read", "train", "infer").post(LIST, data=FORM).status_code == 403
    admin = browser("admin")
    for wrong, words in (
        ({"public_url": "somewhere"}, "the address of links"),
        ({"expires": "soon"}, "is not a duration"),
        ({"expires": "365d"}, "90 days"),
    ):
        answer = admin.post(LIST, data=FORM | {"recipient": "kept"} | wrong)
        assert (answer.status_code, words in answer.text) == (422, True)
        assert 'value="kept"' in answer.text
    assert invites.list_invitations(home, Caller()) == []


def test_a_loopback_address_is_warned_about_and_changed(home: Context, browser: Browser) -> None:
    admin = browser("admin")
    page = shown(admin, admin.post(LIST, data=FORM | {"public_url": "http://127.0.0.1"})).text
    assert "Only this machine reaches this address" in page
    answer = admin.post(f"{ADDRESS}/address", data={"public_url": "nowhere"})
    assert answer.status_code == 422
    led = admin.post(f"{ADDRESS}/address", data={"public_url": "https://luthier.example"})
    assert led.headers["location"] == ADDRESS
    page = admin.get(ADDRESS).text
    assert "Links begin with https://luthier.example from now on." in page
    assert "Only this machine" not in page


@pytest.mark.parametrize("scopes", [("read",), ("train", "infer")])
def test_the_api_is_for_admins_of_the_project(visitor, home: Context, scopes: tuple[str, ...]) -> None:  # type: ignore[no-untyped-def]
    place = "/api/v1/invitations"
    assert visitor(*scopes).post(place, json={"role": "viewer"}).status_code == 403
    admin = visitor("admin")
    made = admin.post(place, json={"role": "viewer", "recipient": "Ben", "expires_in_seconds": 3600})
    assert made.status_code == 201
    assert made.json()["url"].startswith("http://testserver/invite/")
    assert invites.open_invitation(home, made.json()["url"].rpartition("/")[2]).recipient == "Ben"
    (listed,) = admin.get(place).json()["data"]
    assert listed == {key: value for key, value in made.json().items() if key != "url"}
    create_project(home, "mine")
    assert visitor("admin", project="mine").get(place).json()["data"] == []
    assert visitor("admin", project="mine").delete(f"{place}/{listed['id']}").status_code == 404
    assert admin.delete(f"{place}/{listed['id']}").json()["status"] == "revoked"
    assert admin.post(place, json={"role": "owner"}).status_code == 400


def test_an_invitation_says_in_german_what_its_role_may_do(home: Context, browser: Browser) -> None:
    made = invites.invite(home, Caller(), "viewer")
    page = browser().get(made.path, headers={"Accept-Language": "de"}).text
    assert "als <strong>Leser</strong> eingeladen: das ganze Projekt sehen und seine Modelle nutzen" in page
    admin = browser("admin").get(ADDRESS, headers={"Accept-Language": "de"}).text
    assert '<span class="badge quiet">Leser</span>' in admin
    assert "> viewer <" not in admin
