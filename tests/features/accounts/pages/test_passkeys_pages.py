"""Passkeys: a member adds one and signs in with it, and what attackers try. The authenticator is one in software."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator
from html import unescape
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from fastapi.testclient import TestClient
from tests.fixtures.authenticator import NONSENSE, PRESENT, VERIFIED, Authenticator, to_bytes, to_text
from tests.fixtures.one_loop import OneLoop

from luthier.core.access import Caller
from luthier.features.accounts import account_pages, passkeys_pages, sign_in_pages
from luthier.platform.audit_log.service import newest_entries
from luthier.platform.auth import members, oidc_store, passkeys
from luthier.platform.auth.members_store import Member, Role
from luthier.platform.auth.public_address import public_address
from luthier.platform.auth.rate_limiter import TokenBuckets
from luthier.platform.auth.service import create_key
from luthier.platform.home.context import Context
from luthier.server.home import create_home_app

ME = Caller()
ORIGIN, PASSWORD, OTHER = "http://localhost:8520", "correct horse battery", "another long password"
ACCOUNT, LIST, SIGN_IN = "/settings/account", "/settings/account/passkeys", "/sign-in/passkey"
Visitors = Callable[..., TestClient]


@pytest.fixture
def visitor(home: Context, patient: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Visitors]:
    """Makes browsers at the server's address, signed in by name and password where a name is given."""
    monkeypatch.setattr(passkeys_pages, "_starts", TokenBuckets())
    monkeypatch.setattr(account_pages, "_tries", TokenBuckets())
    home.settings = home.settings.model_copy(update={"public_url": ORIGIN})
    app, loop = create_home_app(home), OneLoop()

    def make(name: str = "", origin: str = ORIGIN) -> TestClient:
        one = loop.client(app, base_url=origin, client=("192.0.2.9", 50000), follow_redirects=False)
        one.headers["Sec-Fetch-Site"] = "same-origin"
        if name:
            assert one.post("/sign-in", data={"name": name, "password": PASSWORD}).status_code == 303
        return one

    with loop:
        yield make


@pytest.fixture
def add(home: Context) -> Callable[..., Member]:
    """Makes a member."""

    def make(name: str, role: Role = "trainer") -> Member:
        return members.add_member(home, ME, name, PASSWORD, role)

    return make


def options_in(page: str) -> dict[str, Any]:
    """What a page has the browser ask the authenticator for."""
    found = re.search(r'data-passkey="\w+" data-options="([^"]+)"', page)
    assert found, "the page asks for a passkey"
    options: dict[str, Any] = json.loads(unescape(found[1]))
    assert f'name="challenge" value="{options["challenge"]}"' in page
    return options


def begun(one: TestClient, *, name: str = "Laptop", password: str = PASSWORD, **more: str) -> Any:
    return one.post(f"{LIST}/begin", data={"name": name, "current": password, **more})


def registration(one: TestClient, name: str = "Laptop", **more: str) -> dict[str, Any]:
    """What the browser is to ask for after the form for a new passkey."""
    led = begun(one, name=name, **more)
    assert led.status_code == 303, led.text[:500]
    return options_in(one.get(led.headers["location"]).text)


def added(one: TestClient, authenticator: Authenticator, name: str = "Laptop") -> Any:
    """The answer to a whole registration."""
    options = registration(one, name)
    sent = {"challenge": options["challenge"], "credential": authenticator.create(options, ORIGIN)}
    return one.post(LIST, data=sent)


def asked(one: TestClient, next_address: str = "/") -> dict[str, Any]:
    """What the browser is to ask for at a sign-in."""
    page = one.get(SIGN_IN, params={"next": next_address})
    assert page.status_code == 200, page.text[:500]
    return options_in(page.text)


def sent(one: TestClient, options: dict[str, Any], credential: str, **more: str) -> Any:
    return one.post(SIGN_IN, data={"challenge": options["challenge"], "credential": credential, **more})


def signed_in(one: TestClient, authenticator: Authenticator, **changed: Any) -> Any:
    """The answer to a whole sign-in."""
    options = asked(one)
    return sent(one, options, authenticator.get(options, changed.pop("origin", ORIGIN), **changed))


def refused(answer: Any, words: str) -> None:
    assert answer.status_code == 422, answer.text[:500]
    assert words in unescape(answer.text)
    assert "luthier_session" not in answer.cookies


def test_a_member_adds_a_passkey_and_signs_in_with_it(
    home: Context, visitor: Visitors, add: Callable[..., Member]
) -> None:
    ada, authenticator = add("Ada"), Authenticator()
    first, second = visitor("Ada"), visitor()
    assert "/sign-in/passkey" not in second.get("/sign-in").text, "nobody has one yet"
    options = registration(first)
    assert options["rp"] == {"id": "localhost", "name": "Luthier"}
    assert options["attestation"] == "none"
    chosen = options["authenticatorSelection"]
    assert (chosen["residentKey"], chosen["userVerification"]) == ("required", "preferred")
    answer = added(first, authenticator)
    assert (answer.status_code, answer.headers["location"]) == (303, ACCOUNT)
    page = first.get(ACCOUNT).text
    assert "You can now sign in with the passkey Laptop." in page
    assert '<th scope="row">Laptop</th>' in page
    assert 'href="/sign-in/passkey?next=/runs"' in second.get("/sign-in?next=/runs").text
    options = asked(second, "/runs")
    assert (options["rpId"], options["userVerification"]) == ("localhost", "preferred")
    assert not options.get("allowCredentials"), "it reveals nobody's passkeys"
    answer = sent(second, options, authenticator.get(options, ORIGIN), next="/runs")
    assert (answer.status_code, answer.headers["location"]) == (303, "/runs")
    page = second.get(ACCOUNT).text
    assert "with a passkey" in page
    assert "New password" in page, "the password can still be changed"
    (passkey,) = home.passkeys.list(ada.member_id)
    assert passkey.used_at is not None
    assert passkey.sign_count == authenticator.count
    logged = {entry.action: json.loads(entry.document) for entry in reversed(newest_entries(home, limit=3))}
    assert logged["passkey.added"] == {"name": "Laptop", "member": ada.member_id, "host": "localhost"}
    assert logged["session.begun"] == {"how": "passkey", "passkey": passkey.passkey_id}


def test_the_page_after_the_sign_in_is_one_of_this_server(visitor: Visitors, add: Callable[..., Any]) -> None:
    add("Ada")
    authenticator, one = Authenticator(), visitor()
    added(visitor("Ada"), authenticator)
    options = asked(one, "//evil.example")
    answer = sent(one, options, authenticator.get(options, ORIGIN), next="//evil.example")
    assert (answer.status_code, answer.headers["location"]) == (303, "/")


def test_an_answer_is_good_once_and_to_its_own_challenge(visitor: Visitors, add: Callable[..., Any]) -> None:
    add("Ada")
    authenticator, one = Authenticator(counts=False), visitor()
    added(visitor("Ada"), authenticator)
    options = asked(one)
    credential = authenticator.get(options, ORIGIN)
    browser = one.cookies["luthier_passkey"]
    assert sent(one, options, credential).status_code == 303
    one.cookies.clear()
    one.cookies.set("luthier_passkey", browser)
    refused(sent(one, options, credential), "was already used")
    later = asked(one)
    refused(sent(one, later, credential), "is not valid")
    assert sent(visitor(), later, authenticator.get(later, ORIGIN)).status_code == 422


def test_a_challenge_is_of_one_browser_and_of_one_kind(visitor: Visitors, add: Callable[..., Any]) -> None:
    add("Ada")
    authenticator, one, other = Authenticator(), visitor("Ada"), visitor()
    added(one, authenticator)
    mine = asked(other)
    asked(third := visitor())
    refused(sent(third, mine, authenticator.get(mine, ORIGIN)), "does not belong to a request of this browser")
    of_registration = registration(one)
    other.cookies.set("luthier_passkey", one.cookies["luthier_session"])
    answer = authenticator.get(of_registration, ORIGIN)
    refused(sent(other, of_registration, answer), "does not belong to a request of this browser")


def test_a_challenge_expires(visitor: Visitors, add: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    add("Ada")
    authenticator, one = Authenticator(), visitor()
    added(visitor("Ada"), authenticator)
    with monkeypatch.context() as patch:
        patch.setattr(oidc_store, "FLOW_SECONDS", -1.0)
        options = asked(one)
    refused(sent(one, options, authenticator.get(options, ORIGIN)), "in the last ten minutes")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"origin": "https://evil.example"}, "evil.example"),
        ({"origin": "http://localhost:9999"}, "localhost:9999"),
        ({"rp_id": "evil.example"}, "is not valid"),
        ({"key": ec.generate_private_key(ec.SECP256R1())}, "is not valid"),
        ({"flags": VERIFIED}, "is not valid"),
        ({"kind": "webauthn.create"}, "is not valid"),
        ({"user_handle": b""}, "is not known here"),
    ],
    ids=["origin", "port", "host", "key", "nobody-there", "kind", "no-user"],
)
def test_what_an_authenticator_signed_for_something_else_signs_nobody_in(
    visitor: Visitors, add: Callable[..., Any], changed: dict[str, Any], words: str
) -> None:
    add("Ada")
    authenticator, one = Authenticator(), visitor()
    added(visitor("Ada"), authenticator)
    refused(signed_in(one, authenticator, **changed), words)
    assert one.get("/").status_code == 303
    assert signed_in(one, authenticator, flags=PRESENT).status_code == 303, "recognising the person is preferred"


def test_a_passkey_signs_in_its_own_member_alone(visitor: Visitors, add: Callable[..., Member]) -> None:
    ada, of_eva = add("Ada", "admin"), Authenticator()
    add("Eva", "viewer")
    added(visitor("Ada"), Authenticator())
    added(visitor("Eva"), of_eva)
    refused(signed_in(visitor(), of_eva, user_handle=ada.member_id.encode()), "is not known here")
    stranger = Authenticator(copy.copy(of_eva.credentials))
    stranger.credentials[-1] = copy.copy(stranger.credentials[-1])
    stranger.credentials[-1].credential_id = b"x" * 32
    refused(signed_in(visitor(), stranger), "is not known here")


def test_a_removed_passkey_signs_in_no_more_and_its_sessions_end(
    home: Context, visitor: Visitors, add: Callable[..., Member]
) -> None:
    ada, authenticator = add("Ada"), Authenticator()
    by_password, by_passkey, later = visitor("Ada"), visitor(), visitor()
    added(by_password, Authenticator(), "Phone")
    added(by_password, authenticator)
    signed_in(by_passkey, authenticator)
    assert by_passkey.get(ACCOUNT).status_code == 200
    (laptop,) = [one for one in home.passkeys.list(ada.member_id) if one.name == "Laptop"]
    options = asked(later)
    answer = by_password.post(f"{LIST}/{laptop.passkey_id}/remove")
    assert (answer.status_code, answer.headers["location"]) == (303, ACCOUNT)
    assert by_password.get(ACCOUNT).status_code == 200
    assert by_passkey.get(ACCOUNT).status_code == 303
    refused(sent(later, options, authenticator.get(options, ORIGIN)), "is not known here")
    assert [one.name for one in home.passkeys.list(ada.member_id)] == ["Phone"]
    newest = newest_entries(home, limit=1)[0]
    assert (newest.action, newest.subject) == ("passkey.removed", laptop.passkey_id)


def test_nobody_removes_the_passkey_of_another(home: Context, visitor: Visitors, add: Callable[..., Any]) -> None:
    ada = add("Ada")
    add("Eva", "admin")
    added(visitor("Ada"), Authenticator())
    (passkey,) = home.passkeys.list(ada.member_id)
    assert visitor("Eva").post(f"{LIST}/{passkey.passkey_id}/remove").status_code == 404
    assert home.passkeys.list(ada.member_id) == [passkey]


def test_the_passkeys_of_a_removed_member_go_with_them(
    home: Context, visitor: Visitors, add: Callable[..., Member]
) -> None:
    ada, authenticator, one = add("Ada"), Authenticator(), visitor()
    add("Eva")
    added(visitor("Eva"), Authenticator())
    added(visitor("Ada"), authenticator)
    signed_in(one, authenticator)
    members.remove_member(home, ME, ada.member_id)
    assert one.get("/").status_code == 303
    refused(signed_in(visitor(), authenticator), "is not known here")
    assert home.passkeys.list(ada.member_id) == []


def test_a_copy_of_an_authenticator_is_recognised_by_its_count(visitor: Visitors, add: Callable[..., Any]) -> None:
    add("Ada")
    authenticator = Authenticator()
    added(visitor("Ada"), authenticator)
    copied = copy.copy(authenticator)
    assert signed_in(visitor(), authenticator).status_code == 303
    refused(signed_in(visitor(), copied), "is not valid")
    assert signed_in(visitor(), authenticator).status_code == 303


def test_who_has_a_new_password_of_an_admin_has_no_passkeys_left(
    home: Context, visitor: Visitors, add: Callable[..., Member]
) -> None:
    ada, authenticator = add("Ada"), Authenticator()
    one = visitor("Ada")
    added(one, authenticator)
    changed = one.post(f"{ACCOUNT}/password", data={"current": PASSWORD, "password": OTHER, "again": OTHER})
    assert changed.status_code == 303
    assert signed_in(visitor(), authenticator).status_code == 303, "one's own new password leaves them"
    members.change_password(home, ME, ada.member_id, PASSWORD)
    assert home.passkeys.list(ada.member_id) == []
    newest = newest_entries(home, limit=1)[0]
    assert (newest.action, json.loads(newest.document)) == ("member.password_changed", {"num_passkeys_removed": 1})


def test_a_new_passkey_needs_the_password(home: Context, visitor: Visitors, add: Callable[..., Member]) -> None:
    ada, one = add("Ada"), visitor("Ada")
    for _ in range(account_pages.TRIES_PER_MINUTE):
        answer = begun(one, name="My <phone>", password="wrong password")
        assert answer.status_code == 422
        assert "the current password is not this one" in answer.text
        assert 'value="My &lt;phone&gt;"' in answer.text
    assert "too many attempts" in begun(one).text
    assert home.passkeys.list(ada.member_id) == []


def test_what_one_member_began_another_does_not_finish(
    home: Context, visitor: Visitors, add: Callable[..., Member]
) -> None:
    eva = add("Eva")
    add("Ada")
    options = registration(visitor("Ada"))
    form = {"challenge": options["challenge"], "credential": Authenticator().create(options, ORIGIN)}
    answer = visitor("Eva").post(LIST, data=form)
    assert answer.status_code == 422
    assert "does not belong to a request of this browser" in answer.text
    assert home.passkeys.list(eva.member_id) == []


@pytest.mark.parametrize(
    ("origin", "rp_id"), [("https://evil.example", ""), (ORIGIN, "evil.example")], ids=["origin", "host"]
)
def test_a_passkey_that_was_made_elsewhere_is_not_added(
    home: Context, visitor: Visitors, add: Callable[..., Member], origin: str, rp_id: str
) -> None:
    ada, one = add("Ada"), visitor("Ada")
    options = registration(one)
    form = {"challenge": options["challenge"], "credential": Authenticator().create(options, origin, rp_id=rp_id)}
    answer = one.post(LIST, data=form)
    assert answer.status_code == 422
    assert "is not valid" in answer.text
    assert home.passkeys.list(ada.member_id) == []


def test_a_passkey_is_added_once(visitor: Visitors, add: Callable[..., Any]) -> None:
    add("Ada")
    authenticator, one = Authenticator(), visitor("Ada")
    added(one, authenticator)
    options = registration(one)
    (known,) = options["excludeCredentials"]
    assert to_bytes(known["id"]) == authenticator.credentials[0].credential_id
    add("Eva")
    other = visitor("Eva")
    options = registration(other)
    twin = Authenticator()
    answer = json.loads(twin.create(options, ORIGIN))
    # An authenticator that claims the id of another one's credential.
    mine, theirs = twin.credentials[0].credential_id, authenticator.credentials[0].credential_id
    object_ = to_bytes(answer["response"]["attestationObject"]).replace(mine, theirs)
    answer["response"]["attestationObject"] = to_text(object_)
    answer["id"] = answer["rawId"] = to_text(theirs)
    form = {"challenge": options["challenge"], "credential": json.dumps(answer)}
    assert other.post(LIST, data=form).status_code == 409
    assert signed_in(visitor(), authenticator).status_code == 303


@pytest.mark.parametrize("credential", NONSENSE, ids=range(len(NONSENSE)))
def test_an_answer_that_cannot_be_read_is_refused(visitor: Visitors, add: Callable[..., Any], credential: str) -> None:
    add("Ada")
    one, other = visitor("Ada"), visitor()
    added(one, Authenticator())
    refused(sent(other, asked(other), credential), "answer of the authenticator")
    options = registration(one)
    answer = one.post(LIST, data={"challenge": options["challenge"], "credential": credential})
    assert answer.status_code == 422
    assert "answer of the authenticator" in answer.text


@pytest.mark.parametrize("path", [SIGN_IN, LIST, f"{LIST}/begin", f"{LIST}/passkey-1/remove"])
def test_forms_of_other_sites_are_refused(visitor: Visitors, add: Callable[..., Any], path: str) -> None:
    add("Ada")
    one = visitor("Ada")
    assert one.post(path, headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403


def test_the_cookie_of_a_sign_in_is_for_its_path_and_for_no_script(visitor: Visitors, add: Callable[..., Any]) -> None:
    add("Ada")
    added(visitor("Ada"), Authenticator())
    cookie = visitor().get(SIGN_IN).headers["set-cookie"]
    assert "Path=/sign-in/passkey" in cookie
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie


def test_sign_ins_that_only_begin_are_limited_and_failures_count(visitor: Visitors, add: Callable[..., Any]) -> None:
    add("Ada")
    added(visitor("Ada"), Authenticator())
    one = visitor()
    found = [one.get(SIGN_IN).status_code for _ in range(sign_in_pages.STARTS_PER_MINUTE + 1)]
    assert (set(found[:-1]), found[-1]) == ({200}, 429)
    answers = [one.post(SIGN_IN, data={"challenge": "x", "credential": "{}"}).status_code for _ in range(11)]
    assert (set(answers[:-1]), answers[-1]) == ({422}, 429)
    wrong = one.post("/sign-in", data={"name": "Ada", "password": PASSWORD})
    assert wrong.status_code == 429, "counted with wrong passwords"


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("http://127.0.0.1:8520", "whose host is an IP address"),
        ("https://[2001:db8::1]", "whose host is an IP address"),
        ("http://luthier.example.org", "which is not encrypted"),
        ("https://luthier.example.org", "passkeys belong to luthier.example.org"),
        ("", "is not known yet"),
    ],
)
def test_an_address_without_passkeys_is_explained(
    home: Context, visitor: Visitors, add: Callable[..., Any], address: str, words: str
) -> None:
    add("Ada")
    one = visitor("Ada")
    home.settings = home.settings.model_copy(update={"public_url": address})
    page = one.get(ACCOUNT).text
    assert words in page
    assert f'action="{LIST}/begin"' not in page
    if "belong to" not in words:
        answer = begun(one)
        assert answer.status_code == 422
        assert words in answer.text


def test_an_admin_is_asked_for_the_address_once(home: Context, visitor: Visitors, add: Callable[..., Any]) -> None:
    add("Ada", "admin")
    authenticator, one = Authenticator(), visitor("Ada")
    home.settings = home.settings.model_copy(update={"public_url": ""})
    assert f'name="public_url" type="url" value="{ORIGIN}"' in one.get(ACCOUNT).text
    answer = begun(one, public_url="http://192.0.2.1:8520")
    assert answer.status_code == 422
    assert "whose host is an IP address" in answer.text
    assert not public_address(home, "default").is_known
    options = registration(one, public_url=ORIGIN)
    form = {"challenge": options["challenge"], "credential": authenticator.create(options, ORIGIN)}
    assert one.post(LIST, data=form).status_code == 303
    assert public_address(home, "default").url == ORIGIN
    assert 'name="public_url"' not in one.get(ACCOUNT).text
    assert signed_in(visitor(), authenticator).status_code == 303


def test_at_an_ip_address_an_admin_reads_what_to_do(home: Context, visitor: Visitors, add: Callable[..., Any]) -> None:
    add("Ada", "admin")
    home.settings = home.settings.model_copy(update={"public_url": ""})
    page = visitor("Ada", "http://127.0.0.1:8520").get(ACCOUNT).text
    assert "whose host is an IP address" in page
    assert f'action="{LIST}/begin"' not in page


def test_passkeys_of_another_host_are_neither_offered_nor_accepted(
    home: Context, visitor: Visitors, add: Callable[..., Any]
) -> None:
    add("Ada")
    authenticator = Authenticator()
    added(visitor("Ada"), authenticator)
    other = visitor(origin="http://luthier.localhost:8520")
    assert "/sign-in/passkey" not in other.get("/sign-in").text
    refused(other.get(SIGN_IN), "no member has a passkey for luthier.localhost")
    here = visitor()
    options = asked(here)
    home.settings = home.settings.model_copy(update={"public_url": "https://luthier.example.org"})
    refused(sent(here, options, authenticator.get(options, ORIGIN)), "is not valid")
    forged = authenticator.get(asked(here), "https://luthier.example.org", rp_id="luthier.example.org")
    refused(sent(here, asked(here), forged), "is not valid")


def test_whom_the_identity_provider_lets_in_has_no_passkeys(
    home: Context, visitor: Visitors, add: Callable[..., Member]
) -> None:
    ada, authenticator, one = add("Ada"), Authenticator(), visitor("Ada")
    added(one, authenticator)
    home.oidc.add_identity(ada.member_id, "https://issuer.example", "subject")
    assert begun(one).status_code == 409
    assert 'id="passkeys"' not in one.get(ACCOUNT).text
    refused(signed_in(visitor(), authenticator), "is not known here")


def test_a_key_has_no_passkeys(home: Context, visitor: Visitors) -> None:
    one = visitor()
    assert one.post("/sign-in", data={"key": create_key(home, "k", scopes=("admin",))[1]}).status_code == 303
    assert 'id="passkeys"' not in one.get(ACCOUNT).text
    answer = begun(one)
    assert (answer.status_code, "has no passkeys" in answer.text) == (422, True)
    assert one.post(f"{LIST}/passkey-1/remove").status_code == 404


def test_without_the_extra_an_admin_reads_how_to_get_it_and_others_see_nothing(
    visitor: Visitors, add: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    add("Ada")
    add("Eva", "admin")
    ada, eva = visitor("Ada"), visitor("Eva")
    monkeypatch.setattr(passkeys, "missing_modules", lambda _extra: ("webauthn",))
    monkeypatch.setattr("luthier.core.system.extras.missing_modules", lambda _extra: ("webauthn",))
    assert 'id="passkeys"' not in ada.get(ACCOUNT).text
    assert "luthier[passkeys]" in eva.get(ACCOUNT).text
    assert begun(eva).status_code == 422
    assert "/sign-in/passkey" not in visitor().get("/sign-in").text
