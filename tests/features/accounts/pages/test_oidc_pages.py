"""Sign-in by an identity provider: a real one on loopback, groups to projects and roles, and what attackers try."""

from __future__ import annotations

import base64
import hmac
import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx2
import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr
from tests.fixtures.oidc_provider import CLIENT, SECRET, Provider, key, running_provider, signed, unsigned
from tests.fixtures.one_loop import OneLoop

from luthier.core.access import Caller
from luthier.core.errors import ConflictError
from luthier.features.accounts import oidc_pages, sign_in_pages
from luthier.platform.audit_log.service import newest_entries
from luthier.platform.auth import members, oidc_members
from luthier.platform.auth.rate_limiter import TokenBuckets
from luthier.platform.auth.service import create_project
from luthier.platform.home.context import Context
from luthier.platform.ui.work_progress import Stage
from luthier.server.home import create_home_app

ME = Caller()
CALLBACK = "http://127.0.0.1/sign-in/oidc/callback"


@pytest.fixture(scope="module")
def service() -> Iterator[Provider]:
    with running_provider() as provider:
        yield provider


@pytest.fixture
def provider(service: Provider) -> Provider:
    """The provider as it is at first."""
    fresh = Provider(issuer=service.issuer, redirect_urls=(CALLBACK,))
    for name, value in vars(fresh).items():
        setattr(service, name, value)
    return service


Visitors = Callable[[], TestClient]


@pytest.fixture
def visitor(home: Context, provider: Provider, patient: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Visitors]:
    """Makes browsers of a server that knows the provider."""
    monkeypatch.setattr(oidc_pages, "_starts", TokenBuckets())
    configured = {
        "oidc_issuer": provider.issuer,
        "oidc_client_id": CLIENT,
        "oidc_client_secret": SecretStr(SECRET),
        "oidc_name": "Acme",
    }
    home.settings = home.settings.model_copy(update=configured)
    app, loop = create_home_app(home), OneLoop()

    def make() -> TestClient:
        one = loop.client(app, base_url="http://127.0.0.1", client=("192.0.2.9", 50000), follow_redirects=False)
        one.headers["Sec-Fetch-Site"] = "same-origin"
        return one

    with loop:
        yield make


def to_provider(one: TestClient, next_address: str = "/runs") -> str:
    """Begin a sign-in; the address at the provider."""
    answer = one.get(f"/sign-in/oidc?{urlencode({'next': next_address})}")
    assert answer.status_code == 303
    return str(answer.headers["location"])


def at_provider(address: str) -> str:
    """Be signed in there; the address here that the browser is sent back to."""
    answer = httpx2.get(address)
    assert answer.status_code == 302
    return str(answer.headers["location"])


def signed_in(one: TestClient, next_address: str = "/runs") -> Any:
    """The answer to the callback of a whole sign-in."""
    return one.get(at_provider(to_provider(one, next_address)))


def refused(answer: Any, words: str) -> None:
    assert answer.status_code in (422, 503), answer.text[:500]
    assert words in answer.text
    assert "luthier_session" not in answer.cookies


def test_who_is_in_a_mapped_group_becomes_a_member_and_is_led_on(
    home: Context, provider: Provider, visitor: Visitors
) -> None:
    oidc_members.map_group(home, ME, "ml-team", "default", "trainer")
    provider.person = {"sub": "u-1", "preferred_username": "ada", "groups": ["ml-team", "others"]}
    one = visitor()
    page = one.get("/sign-in?next=/studies").text
    assert 'href="/sign-in/oidc?next=/studies"' in page
    assert "Continue to Acme" in page
    answer = signed_in(one, "/studies")
    assert (answer.status_code, answer.headers["location"]) == (303, "/studies")
    assert "by the identity provider" in one.get("/settings/account").text
    (member,) = members.list_members(home, ME)
    assert (member.name, member.role) == ("ada", "trainer")
    actions = [(entry.actor, entry.action) for entry in newest_entries(home, limit=5)]
    assert ("identity provider", "member.created") in [(actor.partition(" (")[0], what) for actor, what in actions]
    assert signed_in(visitor()).status_code == 303
    assert len(members.list_members(home, ME)) == 1, "the same person, by the subject"


def test_the_highest_of_several_roles_counts_and_the_next_sign_in_lowers_or_removes(
    home: Context, provider: Provider, visitor: Visitors
) -> None:
    oidc_members.map_group(home, ME, "staff", "default", "viewer")
    oidc_members.map_group(home, ME, "admins", "default", "admin")
    provider.person["groups"] = ["admins", "staff"]
    first = visitor()
    assert signed_in(first).status_code == 303
    assert first.get("/settings/members").status_code == 200
    provider.person["groups"] = ["staff"]
    assert signed_in(visitor()).status_code == 303
    assert [one.role for one in members.list_members(home, ME)] == ["viewer"]
    assert first.get("/settings/members").status_code == 403, "the older session has the lower role, too"
    provider.person["groups"] = ["elsewhere"]
    refused(signed_in(visitor()), "names elsewhere")
    assert members.list_members(home, ME) == []
    assert first.get("/").status_code == 303, "its sessions have ended"


def test_groups_of_several_projects_give_a_choice(home: Context, provider: Provider, visitor: Visitors) -> None:
    other = create_project(home, "support")
    oidc_members.map_group(home, ME, "ml", "default", "trainer")
    oidc_members.map_group(home, ME, "ml", "support", "viewer")
    provider.person["groups"] = ["ml"]
    one = visitor()
    page = signed_in(one, "/datasets").text
    assert "Choose a project" in page
    choice = page.partition('name="choice" value="')[2].partition('"')[0]
    wrong = visitor().post("/sign-in/oidc/choose", data={"choice": choice, "project": "default"})
    refused(wrong, "does not belong to a sign-in")
    refused(one.post("/sign-in/oidc/choose", data={"choice": choice, "project": "proj-x"}), "one of the offered ones")
    page = signed_in(one, "/datasets").text
    choice = page.partition('name="choice" value="')[2].partition('"')[0]
    answer = one.post("/sign-in/oidc/choose", data={"choice": choice, "project": other.project_id})
    assert (answer.status_code, answer.headers["location"]) == (303, "/datasets")
    assert "project support" in one.get("/").text
    again = visitor()
    again.cookies.set("luthier_sign_in", one.cookies.get("luthier_sign_in", ""))
    refused(
        again.post("/sign-in/oidc/choose", data={"choice": choice, "project": "default"}),
        "does not belong to a sign-in",
    )
    third = visitor()
    choice = signed_in(third, "/datasets").text.partition('name="choice" value="')[2].partition('"')[0]
    refused(third.get(f"/sign-in/oidc/callback?code=x&state={choice}"), "names a choice of a project")


def test_a_name_that_is_taken_gives_no_access_to_its_owner(
    home: Context, provider: Provider, visitor: Visitors
) -> None:
    owner = members.add_member(home, ME, "ada", "correct horse battery", "admin")
    oidc_members.map_group(home, ME, "ml", "default", "viewer")
    provider.person["groups"] = "ml"  # a claim with one text in place of a list
    one = visitor()
    assert signed_in(one).status_code == 303
    assert sorted((m.name, m.role) for m in members.list_members(home, ME)) == [
        ("ada", "admin"),
        ("ada (Acme)", "viewer"),
    ]
    made = next(m for m in members.list_members(home, ME) if m.member_id != owner.member_id)
    with pytest.raises(ConflictError, match="identity provider"):
        members.change_role(home, ME, made.member_id, "admin")
    with pytest.raises(ConflictError, match="identity provider"):
        members.change_password(home, ME, made.member_id, "correct horse battery")
    assert one.post("/sign-in", data={"name": made.name, "password": "correct horse battery"}).status_code == 422


def test_groups_may_be_in_a_nested_claim_or_in_the_userinfo(
    home: Context, provider: Provider, visitor: Visitors
) -> None:
    oidc_members.map_group(home, ME, "ml", "default", "viewer")
    provider.person = {"sub": "u-2", "email": "bo@example.org"}
    provider.userinfo = {"sub": "u-2", "groups": ["ml"]}
    assert signed_in(visitor()).status_code == 303
    assert [one.name for one in members.list_members(home, ME)] == ["bo@example.org"]
    provider.userinfo = {"sub": "u-3", "groups": ["ml"]}
    refused(signed_in(visitor()), "another subject")


WRONG: dict[str, tuple[Callable[[dict[str, Any]], dict[str, Any]], str]] = {
    "nonce": (lambda claims: claims | {"nonce": "of another sign-in"}, "nonce"),
    "no nonce": (lambda claims: {name: value for name, value in claims.items() if name != "nonce"}, "nonce"),
    "audience": (lambda claims: claims | {"aud": "another-client"}, "aud"),
    "authorised party": (lambda claims: claims | {"aud": [CLIENT, "other"], "azp": "other"}, "azp"),
    "issuer": (lambda claims: claims | {"iss": "https://evil.example"}, "iss"),
    "expired": (lambda claims: claims | {"exp": int(time.time()) - 3600}, "expired"),
    "not yet": (lambda claims: claims | {"nbf": int(time.time()) + 3600}, "not valid"),
    "no subject": (lambda claims: {name: value for name, value in claims.items() if name != "sub"}, "sub"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_token_with_a_wrong_claim_signs_nobody_in(
    home: Context, provider: Provider, visitor: Visitors, case: str
) -> None:
    oidc_members.map_group(home, ME, "ml", "default", "admin")
    provider.person["groups"] = ["ml"]
    provider.spoil, words = WRONG[case]
    refused(signed_in(visitor()), words)
    assert members.list_members(home, ME) == []


def test_a_refusal_is_said_in_the_language_of_the_page(home: Context, provider: Provider, visitor: Visitors) -> None:
    provider.spoil = WRONG["nonce"][0]
    one = visitor()
    one.headers["accept-language"] = "de"
    refused(signed_in(one), "die Identität von Acme ist nicht gültig")


def test_a_token_that_the_provider_has_not_signed_signs_nobody_in(
    home: Context, provider: Provider, visitor: Visitors
) -> None:
    oidc_members.map_group(home, ME, "ml", "default", "admin")
    provider.person["groups"] = ["ml"]
    provider.forge = unsigned
    refused(signed_in(visitor()), "not valid")
    provider.forge = lambda claims: signed(claims, "attacker")
    refused(signed_in(visitor()), "no key of the provider")
    provider.forge = _with_another_signature
    refused(signed_in(visitor()), "not valid")
    provider.forge = _with_public_key_as_secret
    refused(signed_in(visitor()), "not valid")
    assert members.list_members(home, ME) == []


def _with_another_signature(claims: dict[str, Any]) -> str:
    """Header and claims as they should be, with the id of the provider's key, signed by another one."""
    return f"{signed(claims).rpartition('.')[0]}.{signed(claims, 'attacker').rpartition('.')[2]}"


def _with_public_key_as_secret(claims: dict[str, Any]) -> str:
    """The confusion of algorithms: the public key as the key of a symmetric signature."""
    header = base64.urlsafe_b64encode(b'{"alg":"HS256","kid":"one"}').rstrip(b"=").decode()
    content = f"{header}.{signed(claims).split('.')[1]}"
    made = hmac.new(key("one").as_pem(private=False), content.encode(), "sha256").digest()
    return f"{content}.{base64.urlsafe_b64encode(made).rstrip(b'=').decode()}"


def test_a_new_key_of_the_provider_is_fetched_when_a_token_names_it(
    home: Context, provider: Provider, visitor: Visitors, monkeypatch: pytest.MonkeyPatch
) -> None:
    from luthier.platform.auth import oidc

    oidc_members.map_group(home, ME, "ml", "default", "viewer")
    provider.person["groups"] = ["ml"]
    assert signed_in(visitor()).status_code == 303
    assert provider.num_key_requests == 1
    provider.signing_key, provider.published_keys = "two", ("one", "two")
    refused(signed_in(visitor()), "no key of the provider")
    assert provider.num_key_requests == 1, "not again within half a minute, whatever tokens name"
    monkeypatch.setattr(oidc, "_LEAST_REFRESH_SECONDS", 0.0)
    assert signed_in(visitor()).status_code == 303
    assert provider.num_key_requests == 2


def test_a_token_that_names_no_key_is_checked_against_all_of_them(
    home: Context, provider: Provider, visitor: Visitors, monkeypatch: pytest.MonkeyPatch
) -> None:
    from luthier.platform.auth import oidc

    oidc_members.map_group(home, ME, "ml", "default", "viewer")
    provider.person["groups"] = ["ml"]
    provider.published_keys = ("one", "two")
    assert "kid" not in json.loads(base64.urlsafe_b64decode(signed({}, names_key=False).partition(".")[0] + "=="))
    for name in ("one", "two"):
        provider.forge = partial(signed, name=name, names_key=False)
        assert signed_in(visitor()).status_code == 303
    assert provider.num_key_requests == 1
    provider.forge = partial(signed, name="attacker", names_key=False)
    refused(signed_in(visitor()), "not valid")
    provider.published_keys = ("one", "attacker")
    monkeypatch.setattr(oidc, "_LEAST_REFRESH_SECONDS", 0.0)
    assert signed_in(visitor()).status_code == 303
    assert provider.num_key_requests == 2


def test_an_answer_works_once_and_only_in_the_browser_that_asked(
    home: Context, provider: Provider, visitor: Visitors
) -> None:
    oidc_members.map_group(home, ME, "ml", "default", "viewer")
    provider.person["groups"] = ["ml"]
    one, other = visitor(), visitor()
    back = at_provider(to_provider(one))
    refused(other.get(back), "does not belong to a sign-in")
    assert one.get(back).status_code == 303
    refused(one.get(back), "does not belong to a sign-in")
    to_provider(other)
    state = parse_qs(urlsplit(back).query)["state"][0]
    refused(
        other.get(f"/sign-in/oidc/callback?{urlencode({'code': 'x', 'state': state})}"), "does not belong to a sign-in"
    )
    refused(other.get("/sign-in/oidc/callback?code=x"), "does not belong to a sign-in")


def test_an_answer_of_another_issuer_is_refused_before_its_code_is_sent(
    home: Context, provider: Provider, visitor: Visitors
) -> None:
    oidc_members.map_group(home, ME, "ml", "default", "viewer")
    provider.person["groups"] = ["ml"]
    one = visitor()
    parts = urlsplit(at_provider(to_provider(one)))
    query = {name: values[0] for name, values in parse_qs(parts.query).items()}
    refused(one.get(f"{parts.path}?{urlencode(query | {'iss': 'https://evil.example'})}"), "of the issuer")
    assert len(provider.codes) == 1, "the code was not spent"
    parts = urlsplit(at_provider(to_provider(one)))
    query = {name: values[0] for name, values in parse_qs(parts.query).items() if name != "iss"}
    refused(one.get(f"{parts.path}?{urlencode(query)}"), "of the issuer")


def test_a_discovery_document_of_another_issuer_is_not_believed(provider: Provider, visitor: Visitors) -> None:
    provider.more_metadata = {"issuer": "https://evil.example"}
    answer = visitor().get("/sign-in/oidc")
    assert answer.status_code == 503
    assert "describes the issuer" in answer.text
    provider.more_metadata = {"token_endpoint": "http://evil.example/token"}
    answer = visitor().get("/sign-in/oidc")
    assert (answer.status_code, "token_endpoint" in answer.text) == (422, True)


@pytest.mark.parametrize("address", ["https://evil.example/", "//evil.example", "/\\evil.example", "javascript:x"])
def test_nobody_is_led_to_another_host(home: Context, provider: Provider, visitor: Visitors, address: str) -> None:
    oidc_members.map_group(home, ME, "ml", "default", "viewer")
    provider.person["groups"] = ["ml"]
    answer = signed_in(visitor(), address)
    assert (answer.status_code, answer.headers["location"]) == (303, "/")


def test_what_the_provider_refuses_is_shown_as_text(provider: Provider, visitor: Visitors) -> None:
    one = visitor()
    state = parse_qs(urlsplit(to_provider(one)).query)["state"][0]
    query = {"error": "access_denied", "error_description": "<b>no</b>", "state": state, "iss": provider.issuer}
    answer = one.get(f"/sign-in/oidc/callback?{urlencode(query)}")
    refused(answer, "access_denied: &lt;b&gt;no")


def test_signing_out_ends_the_session_and_offers_that_of_the_provider(
    home: Context, provider: Provider, visitor: Visitors
) -> None:
    oidc_members.map_group(home, ME, "ml", "default", "viewer")
    provider.person["groups"] = ["ml"]
    one = visitor()
    signed_in(one)
    answer = one.post("/sign-out")
    assert answer.headers["location"] == "/sign-in?signed_out=1"
    assert f"{provider.issuer}/logout?client_id=luthier" in one.get("/sign-in?signed_out=1").text
    assert one.get("/").status_code == 303


def test_too_many_sign_ins_of_one_address_have_to_wait(visitor: Visitors) -> None:
    one = visitor()
    answers = [one.get("/sign-in/oidc").status_code for _ in range(sign_in_pages.STARTS_PER_MINUTE + 1)]
    assert answers == [303] * sign_in_pages.STARTS_PER_MINUTE + [429]


def test_groups_are_mapped_on_the_page_by_admins_of_default_alone(
    home: Context, provider: Provider, visitor: Visitors
) -> None:
    other = create_project(home, "support")
    oidc_members.map_group(home, ME, "ops", "default", "admin")
    oidc_members.map_group(home, ME, "leads", "support", "admin")
    provider.person["groups"] = ["ops"]
    admin = visitor()
    signed_in(admin)
    page = admin.get("/settings/sign-in").text
    for words in (provider.issuer, CALLBACK, "leads", "luthier users map"):
        assert words in page
    assert SECRET not in page
    given = {"name": " ml-team ", "project": other.project_id, "role": "trainer"}
    assert admin.post("/settings/sign-in/groups", data=given).status_code == 303
    assert ("ml-team", other.project_id, "trainer") in [
        (one.name, one.project_id, one.role) for one in oidc_members.list_groups(home, ME)
    ]
    bad = admin.post("/settings/sign-in/groups", data=given | {"role": "owner"})
    assert (bad.status_code, "one of viewer, trainer, admin" in bad.text) == (422, True)
    gone = {"name": "ml-team", "project": other.project_id}
    assert admin.post("/settings/sign-in/groups/remove", data=gone).status_code == 303
    assert admin.post("/settings/sign-in/groups/remove", data=gone).status_code == 404
    assert admin.post("/settings/sign-in/check").status_code == 303
    provider.person = {"sub": "u-9", "preferred_username": "lea", "groups": ["leads"]}
    lead = visitor()
    signed_in(lead)
    page = lead.get("/settings/sign-in").text
    assert ("leads" in page, "ops" in page, "A new group" in page) == (True, False, False)
    assert lead.post("/settings/sign-in/groups", data=given).status_code == 422
    actions = [entry.action for entry in newest_entries(home, limit=20)]
    assert {"group.mapped", "group.unmapped"} <= set(actions)


def test_the_check_asks_again_and_the_wait_counts_the_documents(
    home: Context, provider: Provider, visitor: Visitors, stages: list[Stage]
) -> None:
    oidc_members.map_group(home, ME, "ops", "default", "admin")
    provider.person["groups"] = ["ops"]
    admin = visitor()
    signed_in(admin)
    before = provider.num_key_requests
    assert admin.post("/settings/sign-in/check").status_code == 303
    assert provider.num_key_requests == before + 1, "what a sign-in has fetched says nothing of now"
    host = urlsplit(provider.issuer).hostname
    assert [one.words for one in stages] == [
        "Checking the provider: 2 of 2 documents",
        f"Waiting for the discovery document of {host}",
        f"Waiting for the keys of {host}",
    ]
    provider.published_keys = ()
    refused_check = admin.post("/settings/sign-in/check")
    assert refused_check.status_code == 503
    assert "lists no key" in refused_check.text


def test_without_a_provider_the_sign_in_page_has_no_button(browser: Callable[..., TestClient]) -> None:
    one = browser()
    assert "/sign-in/oidc" not in one.get("/sign-in").text
    assert one.get("/sign-in/oidc").status_code == 404
    assert "LUTHIER_OIDC_ISSUER" in browser("admin").get("/settings/sign-in").text
    assert browser("train").get("/settings/sign-in").status_code == 403
