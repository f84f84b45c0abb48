"""A session that ends while a form is open: the form comes back with what was typed, in the same browser alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from fastapi.testclient import TestClient

from luthier.core.access import Caller
from luthier.core.errors import BusyError
from luthier.features.feedback import review as review_queue
from luthier.platform.auth.members import add_member
from luthier.platform.home.context import Context
from luthier.platform.ui.form_drafts import DRAFT_SECONDS, FormDraft, FormDrafts, filled

Browser = Callable[..., TestClient]
PASSWORD = "correct horse battery"
KEY = {
    "name": 'Typed <b>"name"',
    "scopes": ["read", "infer"],
    "expires": "7d",
    "requests_per_minute": "",
    "tokens_per_day": "77",
}


@pytest.fixture
def ada(home: Context, browser: Browser) -> TestClient:
    """An admin whose session has ended while a page was open."""
    add_member(home, Caller(), "Ada", PASSWORD, "admin")
    one = browser()
    one.post("/sign-in", data={"name": "Ada", "password": PASSWORD})
    one.cookies.delete("luthier_session")
    return one


def sign_in_again(one: TestClient, answer) -> str:  # type: ignore[no-untyped-def]
    """Where the sign-in leads to."""
    assert answer.status_code == 303
    from urllib.parse import parse_qs, urlsplit

    after = parse_qs(urlsplit(answer.headers["location"]).query)["next"][0]
    led = one.post("/sign-in", data={"name": "Ada", "password": PASSWORD, "next": after})
    assert led.headers["location"] == after
    return after


def test_a_form_that_outlived_its_session_is_there_again_with_its_values(ada: TestClient, home: Context) -> None:
    refused = ada.post("/settings/keys", data=KEY)
    address = sign_in_again(ada, refused)
    assert address.startswith("/settings/keys?restored=")
    page = ada.get(address).text
    assert "was not processed: it holds what you entered" in page
    assert 'value="Typed &lt;b&gt;&quot;name&quot;"' in page
    assert page.count('name="scopes"') == 4
    boxes = [line for line in page.split("<") if 'name="scopes"' in line]
    assert [("checked" in one) for one in boxes] == [True, False, True, False]
    assert '<option value="7d" selected="">' in page
    assert '<option value="90d">' in page, "what was chosen by default is not chosen any more"
    assert 'value="77"' in page
    assert len(home.access.keys("default")) == 0, "nothing was done without a session"
    assert ada.post("/settings/keys", data=KEY).status_code == 303
    assert "holds what you entered" not in ada.get("/settings/keys").text


def test_another_browser_does_not_see_the_form(ada: TestClient, browser: Browser) -> None:
    address = sign_in_again(ada, ada.post("/settings/keys", data=KEY))
    assert "Typed" not in browser("admin").get(address).text
    assert "Typed" in ada.get(address).text


def test_passwords_are_not_kept(ada: TestClient) -> None:
    data = {"name": "Ben", "role": "viewer", "password": "a secret password"}
    page = ada.get(sign_in_again(ada, ada.post("/settings/members", data=data))).text
    assert 'value="Ben"' in page
    assert "a secret password" not in page


def test_a_text_of_several_lines_comes_back_and_what_has_no_field_can_be_copied(home: Context, ada: TestClient) -> None:
    from tests.features.monitoring.pages.test_review_pages import form_of, queued

    queued(home, 1)
    item = review_queue.accepted(home, "default")
    assert item == []
    ada.post("/sign-in", data={"name": "Ada", "password": PASSWORD})
    form = form_of(ada.get("/review?edit=1").text)
    ada.cookies.delete("luthier_session")
    sent = form | {"decision": "edit", "answer": "One\r\n</textarea><b>two"}
    page = ada.get(sign_in_again(ada, ada.post("/review/decide", data=sent))).text
    assert "What you entered" in page, "the page shows an item, and not the form of an edit"
    assert "One\r\n&lt;/textarea&gt;&lt;b&gt;two" in page
    headers = {
        "hx-current-url": f"http://127.0.0.1/review?item={form['item']}&edit=1",
        "sec-fetch-mode": "cors",
        "hx-request": "true",
    }
    ada.cookies.delete("luthier_session")
    answer = ada.post("/review/decide", data=sent, headers=headers)
    assert answer.status_code == 401
    assert "restored%3D" in answer.headers["hx-redirect"]


def test_pages_are_changed_in_the_form_alone() -> None:
    page = (
        '<input name="a" value="outside"><form method="post" action="/x?q=1"><input name="a" value="old" required>'
        '<input type="hidden" name="h" value="new"><input type="radio" name="r" value="1" checked>'
        '<input type="radio" name="r" value="2"><details><summary>more</summary>'
        '<textarea name="t">\nold & older</textarea>'
        '</details><select name="s"><option value="1" selected>one</option><option value="2">two</option></select>'
        '<button name="go" value="1">Go</button></form>'
        '<form method="post" action="/y"><input name="a" value="other"></form>'
    )
    values = {"a": ["n<e>w"], "h": ["old"], "r": ["2"], "t": ["line\n2"], "s": ["2"], "go": ["1"]}
    found, is_whole = filled(page, FormDraft("/x", values), "/x")
    assert is_whole
    assert '<input name="a" value="outside">' in found
    assert '<input name="a" required="" value="n&lt;e&gt;w">' in found
    assert '<input type="hidden" name="h" value="new">' in found
    assert '<input type="radio" name="r" value="1">' in found
    assert '<input type="radio" name="r" value="2" checked="">' in found
    assert '<details open=""><summary>more</summary><textarea name="t">\nline\n2</textarea>' in found
    assert '<option value="1">one</option><option value="2" selected="">two</option>' in found
    assert found.endswith('<input name="a" value="other"></form>')
    assert filled(page, FormDraft("/x", values | {"gone": ["typed words"]}), "/x")[1] is False
    assert filled(page, FormDraft("/x", values | {"gone": ["17"]}), "/x")[1], "a number is quickly chosen again"
    assert filled(page, FormDraft("/z", values | {"a": ["two words"]}), "/z")[1] is False


def test_forms_are_forgotten_after_half_an_hour_and_found_by_their_secret_alone() -> None:
    now = [0.0]
    shelf = FormDrafts(clock=lambda: now[0])
    name, secret = shelf.put(FormDraft("/x", {"a": ["1"]}))
    assert shelf.find(name, "another") is None
    assert shelf.find(name, secret) == FormDraft("/x", {"a": ["1"]})
    now[0] = DRAFT_SECONDS + 1
    assert shelf.find(name, secret) is None


def test_what_is_too_large_is_not_read_and_all_forms_together_are_bounded(ada: TestClient) -> None:
    headers = {"content-type": "application/x-www-form-urlencoded"}

    def endless() -> Iterator[bytes]:
        yield from (b"a=", *(b"x" * 1_000_000 for _ in range(6)))

    for body in (b"a=" + b"x" * 3_000_001, b"&".join(b"a%d=1" % n for n in range(1100))):
        answer = ada.post("/datasets/new", content=body, headers=headers)
        assert (answer.status_code, answer.headers["location"]) == (303, "/sign-in?next=/datasets/new")
    # Without a length: this address takes files, so that nothing else bounds what is sent.
    answer = ada.post("/datasets/new", content=endless(), headers=headers)
    assert (answer.status_code, answer.headers["location"]) == (303, "/sign-in?next=/datasets/new")
    shelf = FormDrafts()
    made = [shelf.put(FormDraft("/x", {"a": ["x" * 900_000]})) for _ in range(30)]
    assert [shelf.find(*one) is not None for one in made] == [False] * 8 + [True] * 22


def link_back(page: str) -> str:
    """Where the first button of an error page leads."""
    return page.partition('<a class="button primary" href="')[2].partition('"')[0].replace("&amp;", "&")


def test_a_form_that_an_error_has_ended_is_on_its_page_again(browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(*_: object, **__: object) -> None:
        raise BusyError("too many passwords at once", expected="fewer of them", do="send it again in a moment")

    one = browser("admin", "read")
    monkeypatch.setattr("luthier.features.accounts.members_pages.people.add_member", busy)
    answer = one.post("/settings/members", data={"name": "Ben Ray", "role": "viewer", "password": PASSWORD})
    assert (answer.status_code, "Back to the form" in answer.text) == (429, True)
    back = link_back(answer.text)
    assert back.startswith("/settings/members?restored=")
    page = one.get(back).text
    assert 'value="Ben Ray"' in page
    assert "The form was not processed: it holds what you entered." in page
    assert "You are signed in again" not in page
    assert PASSWORD not in page
    long = KEY | {"name": "two words " * 30}
    second = one.post("/settings/keys", data=long)
    assert second.status_code == 422, "longer than any form of ours lets a name be"
    assert "two words two words" in one.get(link_back(second.text)).text
    assert 'value="Ben Ray"' in one.get(back).text, "the form of the other tab is still there"
    one.post("/sign-out")
    assert "luthier_restored" not in one.cookies


def test_a_form_of_which_nothing_is_left_on_its_page_can_be_copied(home: Context, browser: Browser) -> None:
    one = browser("train", "read")
    answer = one.post("/runs/run-none/edit", data={"name": "A long and careful name", "note": "Two words"})
    assert answer.status_code == 404
    page = one.get(link_back(answer.text)).text
    assert "What you entered" in page
    assert "A long and careful name" in page
    assert "You are signed in again" not in page


@pytest.mark.parametrize(
    ("address", "back"),
    [
        ("/runs/run-none", "/runs"),
        ("/datasets/ds-none/split", "/datasets/ds-none"),
    ],
)
def test_an_error_leads_to_the_page_above(browser: Browser, address: str, back: str) -> None:
    page = browser("read").get(address).text
    assert link_back(page) == back
    assert page.count('class="button primary"') == 1
    assert 'href="/">Go to Home</a>' in page
