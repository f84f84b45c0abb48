"""Passkeys: which addresses have them, and whose they are."""

from __future__ import annotations

import pytest

from luthier.core.access import Caller
from luthier.core.errors import NotFoundError, RequestError
from luthier.platform.auth import members, passkeys
from luthier.platform.auth.members_store import Member
from luthier.platform.auth.passkeys import RelyingParty
from luthier.platform.auth.passkeys_store import Passkey
from luthier.platform.home.context import Context

ME, PASSWORD = Caller(), "correct horse battery"


@pytest.mark.parametrize(
    ("url", "rp_id", "origin"),
    [
        ("https://luthier.example.org", "luthier.example.org", "https://luthier.example.org"),
        ("https://Luthier.Example.org:443/tuning", "luthier.example.org", "https://luthier.example.org"),
        ("https://luthier:8443", "luthier", "https://luthier:8443"),
        ("https://müller.example", "xn--mller-kva.example", "https://xn--mller-kva.example"),
        ("http://localhost:8520", "localhost", "http://localhost:8520"),
        ("http://localhost:80", "localhost", "http://localhost"),
        ("http://luthier.localhost", "luthier.localhost", "http://luthier.localhost"),
    ],
)
def test_the_relying_party_is_host_and_origin_as_browsers_write_them(url: str, rp_id: str, origin: str) -> None:
    assert passkeys.relying_party_of(url) == RelyingParty(rp_id, origin)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://127.0.0.1:8520", "IP address"),
        ("https://192.0.2.1", "IP address"),
        ("https://[::1]:8520", "IP address"),
        ("http://luthier.example.org", "not encrypted"),
        ("http://localhost.example.org", "not encrypted"),
    ],
)
def test_addresses_for_which_browsers_have_no_passkeys_are_refused(url: str, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        passkeys.relying_party_of(url)


def passkey(member: Member, number: int, sign_count: int = 0) -> Passkey:
    return Passkey(
        passkey_id=f"passkey-{number}",
        member_id=member.member_id,
        name=f"number {number}",
        credential_id=f"credential-{number}",
        rp_id="localhost",
        public_key="",
        sign_count=sign_count,
    )


def test_a_use_needs_a_higher_count_where_the_authenticator_counts(context: Context) -> None:
    ada = members.add_member(context, ME, "Ada", PASSWORD, "viewer")
    for number, count in ((1, 0), (2, 5)):
        context.passkeys.add(passkey(ada, number, count))
    found = [context.passkeys.record_use(f"passkey-{number}", count) for number, count in ((1, 0), (1, 0), (1, 3))]
    assert found == [True, True, True]
    found = [context.passkeys.record_use("passkey-2", count) for count in (5, 4, 0, 6, 6, 4_294_967_295)]
    assert found == [False, False, False, True, False, True]
    assert not context.passkeys.record_use("passkey-3", 9)
    assert [one.sign_count for one in context.passkeys.list(ada.member_id)] == [3, 4_294_967_295]


def test_a_session_that_was_begun_with_a_passkey_ends_with_it(context: Context) -> None:
    ada = members.add_member(context, ME, "Ada", PASSWORD, "viewer")
    for number in (1, 2):
        context.passkeys.add(passkey(ada, number))
    caller = members.caller_for(ada)
    first, second = (
        members.begin_session(context, caller, how="passkey", passkey_id=f"passkey-{number}") for number in (1, 2)
    )
    by_password = members.sign_in_as(context, ada)
    found = [members.session_of(context, secret) for secret in (first, second, by_password)]
    assert [one and one.how for one in found] == ["passkey", "passkey", "password"]
    passkeys.remove_passkey(context, caller, "passkey-1")
    assert members.session_of(context, first) is None
    assert members.session_of(context, second) is not None
    assert members.session_of(context, by_password) is not None
    with pytest.raises(NotFoundError, match="no passkey 'passkey-1'"):
        passkeys.remove_passkey(context, caller, "passkey-1")


def test_without_a_member_no_passkey_can_be_removed(context: Context) -> None:
    ada = members.add_member(context, ME, "Ada", PASSWORD, "viewer")
    context.passkeys.add(passkey(ada, 1))
    with pytest.raises(NotFoundError):
        passkeys.remove_passkey(context, ME, "passkey-1")
    assert len(context.passkeys.list(ada.member_id)) == 1
