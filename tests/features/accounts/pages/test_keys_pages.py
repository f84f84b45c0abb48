"""Keys by the page: shown once, within the project, and gone when revoked."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient
from tests.fixtures.pages import shown

from luthier.platform.auth.service import caller_of, create_key, create_project, list_keys
from luthier.platform.home.context import Context

Browser = Callable[..., TestClient]
ADDRESS = "/settings/keys"
FORM = {"name": "ci", "scopes": ["train", "read"], "expires": "30d", "requests_per_minute": "60", "tokens_per_day": ""}


def test_a_key_is_shown_once_and_lets_in(home: Context, browser: Browser) -> None:
    one = browser("admin")
    led = one.post(ADDRESS, data=FORM)
    answer = shown(one, led)
    assert answer.status_code == 200
    assert "sk-" not in led.text + str(led.headers), "the secret is in no address and no cookie"
    assert answer.headers["cache-control"] == "no-store"
    found = re.search(r'<code id="secret" class="secret">([^<]+)</code>', answer.text)
    assert found is not None
    caller = caller_of(home, found[1])
    assert caller is not None
    assert caller.scopes == ("read", "train")
    made = list_keys(home)[0]
    assert (made.name, made.requests_per_minute, made.tokens_per_day) == ("ci", 60, None)
    assert made.expires_at is not None
    assert made.expires_at - made.created_at == pytest.approx(30 * 86400, abs=5)
    assert home.audit_log.newest(limit=1)[0].actor.endswith(" k"), "who made it is written down"
    page = one.get(ADDRESS).text
    assert found[1] not in page
    assert "60 requests a minute" in page


def test_a_key_belongs_to_the_project_of_who_makes_it(home: Context, browser: Browser) -> None:
    mine = create_project(home, "mine")
    browser("admin", project="mine").post(ADDRESS, data=FORM | {"name": "theirs"})
    assert {key.name: key.project_id for key in list_keys(home)}["theirs"] == mine.project_id
    assert "theirs" not in browser("admin").get(ADDRESS).text


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"name": " "}, "1 to 100 printable characters"),
        ({"scopes": []}, "one or more of read, train, infer, admin"),
        ({"requests_per_minute": "many"}, "requests a minute &#39;many&#39;"),
        ({"requests_per_minute": "0"}, "a whole number from 1"),
        ({"tokens_per_day": "99999999999"}, "a whole number from 1"),
        ({"expires": "soon"}, "is not a duration"),
    ],
)
def test_a_wrong_form_is_explained_and_kept(home: Context, browser: Browser, wrong: dict[str, Any], words: str) -> None:
    one = browser("admin")
    answer = one.post(ADDRESS, data=FORM | {"name": "kept-name"} | wrong)
    assert answer.status_code == 422
    assert words in answer.text
    assert "name" in wrong or 'value="kept-name"' in answer.text
    assert len(list_keys(home)) == 1


def test_a_scope_that_is_none_is_refused(browser: Browser) -> None:
    assert browser("admin").post(ADDRESS, data=FORM | {"scopes": ["root"]}).status_code == 422


def test_a_revoked_key_lets_nobody_in(home: Context, browser: Browser) -> None:
    one = browser("admin")
    made, key = create_key(home, '<script>alert(1)</script>"><img src=x>', scopes=("read",))
    page = one.get(ADDRESS).text
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert f'action="/settings/keys/{made.key_id}/revoke" data-confirm="Revoke' in page
    assert one.post(f"{ADDRESS}/{made.key_id}/revoke").headers["location"] == ADDRESS
    assert caller_of(home, key) is None
    assert "1 revoked or expired" in one.get(ADDRESS).text


def test_a_key_of_another_project_is_not_there(home: Context, browser: Browser) -> None:
    create_project(home, "mine")
    made, key = create_key(home, "theirs", scopes=("read",), project="mine")
    assert browser("admin").post(f"{ADDRESS}/{made.key_id}/revoke").status_code == 404
    assert caller_of(home, key) is not None


def test_who_revokes_their_own_key_is_out(home: Context, browser: Browser) -> None:
    one = browser("admin")
    own = list_keys(home)[0]
    assert "you will be signed out" in one.get(ADDRESS).text
    one.post(f"{ADDRESS}/{own.key_id}/revoke")
    assert one.get(ADDRESS).headers["location"].startswith("/sign-in")


@pytest.mark.parametrize(("language", "text"), [("en", "10,000"), ("de", "10.000"), ("de", "10000")])
def test_limits_may_have_the_separators_of_the_language(
    home: Context, browser: Browser, language: str, text: str
) -> None:
    one = browser("admin")
    one.headers["Accept-Language"] = language
    assert one.post(ADDRESS, data=FORM | {"tokens_per_day": text}).status_code == 303
    assert list_keys(home)[0].tokens_per_day == 10_000
    assert ("10,000 tokens a day" if language == "en" else "10.000 Tokens") in one.get(ADDRESS).text


@pytest.mark.parametrize(("language", "text"), [("en", "10.000"), ("de", "10,000"), ("en", "1,5"), ("en", "9" * 30)])
def test_a_limit_that_could_be_two_numbers_is_refused_and_stays_in_the_form(
    home: Context, browser: Browser, language: str, text: str
) -> None:
    num = len(list_keys(home))
    one = browser("admin")
    one.headers["Accept-Language"] = language
    refused = one.post(ADDRESS, data=FORM | {"tokens_per_day": text})
    assert refused.status_code == 422
    assert f'name="tokens_per_day" value="{text}"' in refused.text
    assert len(list_keys(home)) == num + 1, "the key of the browser alone"


def test_scopes_are_in_the_language_of_the_page(browser: Browser) -> None:
    one = browser("admin")
    one.post(ADDRESS, data=FORM)
    german = one.get(ADDRESS, headers={"Accept-Language": "de"}).text
    assert "<td>lesen, trainieren" in german
    assert "read, train" not in german
    refused = browser("infer").get("/runs", headers={"Accept-Language": "de"})
    assert refused.status_code == 403
    assert "darf hier: Modelle nutzen" in refused.text
    assert "jemand, der das darf: lesen" in refused.text
