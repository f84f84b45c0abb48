"""Passkeys (WebAuthn): a member adds one, and signs in with it in place of the password.

    here -> browser, with a challenge
    browser -> authenticator, with the challenge and the origin of the page
    authenticator -> browser -> here, with a signature over challenge, origin and the hash of the relying party's id

The private key stays in the authenticator, which signs for the host alone that the passkey was made for: another site
gets no signature that is good here. A challenge is valid once, for ten minutes, in the browser that it was made for.
The relying party is the one address of the server's links: the setting LUTHIER_PUBLIC_URL, else that of the project.

Sources: W3C, Web Authentication Level 2, sections 7.1 (registration) and 7.2 (authentication).
"""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from luthier.core.access import Caller
from luthier.core.errors import ConflictError, LuthierError, RequestError
from luthier.core.ids import new_id
from luthier.core.system.extras import missing_modules, require_extra
from luthier.platform.audit_log.service import record
from luthier.platform.auth.members import begin_session, caller_for, member_by_password
from luthier.platform.auth.members_store import Member
from luthier.platform.auth.passkeys_store import Passkey
from luthier.platform.auth.public_address import checked_address, learn_public_address, public_address
from luthier.platform.auth.service import digest_of
from luthier.platform.home.context import Context

log = logging.getLogger("luthier.service")

_EXTRA: Final = "passkeys"
_NUM_CHALLENGE_BYTES: Final = 32
_TIMEOUT_MS: Final = 300_000
"""How long a browser waits for the person; the challenge is valid longer."""
_MOST_NAME_CHARACTERS: Final = 100
_MOST_SHOWN_CHARACTERS: Final = 200
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_Kind = Literal["registration", "sign-in"]


class PasskeyRefusedError(RequestError):
    """The answer of the browser proves nobody's identity."""


@dataclass(frozen=True, slots=True)
class RelyingParty:
    """This server, as authenticators know it.

    Attributes:
        rp_id: Its host.
        origin: Scheme, host and port of its pages, as browsers write them.
    """

    rp_id: str
    origin: str


@dataclass(frozen=True, slots=True)
class Ceremony:
    """What a page asks a browser for.

    Attributes:
        challenge: What the answer has to be signed over, base64url; it also names the ceremony.
        options: The options of `navigator.credentials`, as JSON values with bytes in base64url.
    """

    challenge: str
    options: dict[str, Any]


def relying_party_of(url: str) -> RelyingParty:
    """The relying party of an address.

    Args:
        url: The address of a server.

    Raises:
        RequestError: Browsers have no passkeys for this address: its host is an IP address, or it is plain HTTP and not
            of this machine.
    """
    parts = urlsplit(url)
    host, port = (parts.hostname or "").lower(), parts.port
    try:
        ip_address(host)
    except ValueError:
        pass
    else:
        raise RequestError(
            f"passkeys for {url[:_MOST_SHOWN_CHARACTERS]}, whose host is an IP address",
            expected="an address with a name, such as https://luthier.example.org, or localhost on this machine",
            do="open the pages by a name of the server, which an admin enters under Settings, Members",
        )
    if parts.scheme != "https" and host != "localhost" and not host.endswith(".localhost"):
        raise RequestError(
            f"passkeys for {url[:_MOST_SHOWN_CHARACTERS]}, which is not encrypted",
            expected="an address with https://, or localhost on this machine",
            do="set TLS up, and have an admin enter the new address under Settings, Members",
        )
    with suppress(UnicodeError):
        # As browsers write names with other letters than those of ASCII.
        host = host.encode("idna").decode("ascii")
    shown_port = "" if port is None or port == _DEFAULT_PORTS[parts.scheme] else f":{port}"
    return RelyingParty(host, f"{parts.scheme}://{host}{shown_port}")


def relying_party(context: Context, project_id: str) -> RelyingParty:
    """The relying party of a project's members.

    Raises:
        RequestError: No address is known yet, or browsers have no passkeys for it.
    """
    address = public_address(context, project_id)
    if not address.is_known:
        raise RequestError(
            "passkeys belong to the address of the server, which is not known yet",
            expected="the address at which people open these pages",
            do="ask an admin to enter it under Settings, Members",
        )
    return relying_party_of(address.url)


def is_installed() -> bool:
    """Whether the extra is installed."""
    return not missing_modules(_EXTRA)


def is_offered_at(context: Context, host: str) -> bool:
    """Whether the sign-in page at a host offers passkeys: somebody has one for it, and the extra is installed."""
    return is_installed() and context.passkeys.has_any(host)


def registration_problem(context: Context, caller: Caller, root: str) -> LuthierError | None:
    """Why a member cannot add a passkey in the pages that they see; None where they can.

    Args:
        context: The home.
        caller: The member.
        root: Scheme and host of these pages.
    """
    try:
        _check_installed()
        if caller.may("admin") and not public_address(context, caller.project_id).is_known:
            # An admin is asked for it: most likely it is the one that they use.
            relying_party_of(root)
        else:
            _check_host(relying_party(context, caller.project_id), (urlsplit(root).hostname or "").lower())
    except LuthierError as error:
        return error
    return None


def begin_registration(
    context: Context, caller: Caller, *, name: str, password: str, browser: str, public_url: str = ""
) -> Ceremony:
    """Begin to add a passkey. It needs the password: a browser that was left open must not become a lasting access.

    Args:
        context: The home.
        caller: The member.
        name: What the member calls it.
        password: The member's.
        browser: The secret of the browser's session.
        public_url: The address of the server, from an admin where none is known yet.

    Raises:
        RequestError: The password or the name is wrong, the caller is not a member, there is no usable address, or the
            extra is not installed.
        ConflictError: The member signs in by the identity provider.
    """
    _check_installed()
    member = _member(context, caller)
    name = name.strip() or "Passkey"
    if len(name) > _MOST_NAME_CHARACTERS or not name.isprintable():
        raise RequestError(
            f"the name {name[: _MOST_NAME_CHARACTERS + 1]!r} for a passkey",
            expected=f"at most {_MOST_NAME_CHARACTERS} printable characters",
            do="choose such a name",
        )
    if member_by_password(context, member.name, password) is None:
        raise RequestError(
            "the current password is not this one", expected="the password that you signed in with", do="enter it again"
        )
    if caller.may("admin") and not public_address(context, caller.project_id).is_known:
        # Before it is kept: an address that passkeys cannot have is not the one that was asked for.
        relying_party_of(checked_address(public_url))
        learn_public_address(context, caller, public_url)
    party = relying_party(context, caller.project_id)
    known = [one.credential_id for one in context.passkeys.list(member.member_id) if one.rp_id == party.rp_id]
    made = _registration(party, member, known)
    facts = {"name": name, "rp_id": party.rp_id, "origin": party.origin}
    _remember(context, "registration", made.challenge, browser, facts)
    return made


def finish_registration(context: Context, caller: Caller, *, challenge: str, credential: str, browser: str) -> Passkey:
    """Add the passkey that an authenticator has made.

    Args:
        context: The home.
        caller: The member.
        challenge: Of the ceremony.
        credential: The answer of `navigator.credentials.create`, as JSON.
        browser: The secret of the browser's session.

    Raises:
        PasskeyRefusedError: The answer is not one to this ceremony, or does not fit it.
        ConflictError: There is this passkey already, or the member signs in by the identity provider.
        RequestError: The caller is not a member, or the extra is not installed.
    """
    _check_installed()
    from webauthn import base64url_to_bytes, verify_registration_response
    from webauthn.helpers import bytes_to_base64url

    member = _member(context, caller)
    known = _take(context, "registration", challenge, browser)
    with _verification():
        made = verify_registration_response(
            credential=credential,
            expected_challenge=base64url_to_bytes(challenge),
            expected_rp_id=str(known["rp_id"]),
            expected_origin=str(known["origin"]),
        )
    passkey = Passkey(
        passkey_id=new_id("passkey"),
        member_id=member.member_id,
        name=str(known["name"]),
        credential_id=bytes_to_base64url(made.credential_id),
        rp_id=str(known["rp_id"]),
        public_key=bytes_to_base64url(made.credential_public_key),
        sign_count=made.sign_count,
    )
    with context.database.transaction():
        added = context.passkeys.add(passkey)
        facts = {"name": added.name, "member": member.member_id, "host": added.rp_id}
        record(context, caller, "passkey.added", added.passkey_id, facts)
    return added


def remove_passkey(context: Context, caller: Caller, passkey_id: str) -> Passkey:
    """Remove one of one's passkeys; the browsers that have signed in with it are signed out.

    Returns:
        The removed one.

    Raises:
        NotFoundError: The caller has no such passkey.
    """
    with context.database.transaction():
        removed = context.passkeys.remove(caller.member_id or "", passkey_id)
        record(context, caller, "passkey.removed", passkey_id, {"name": removed.name})
    return removed


def begin_sign_in(context: Context, *, host: str, browser: str) -> Ceremony:
    """Begin a sign-in; the authenticator shows the person which passkeys of theirs are for this host.

    Args:
        context: The home.
        host: That of the page.
        browser: The secret in the browser's cookie.

    Raises:
        RequestError: Nobody has a passkey for this host, or the extra is not installed.
    """
    _check_installed()
    if not context.passkeys.has_any(host):
        raise RequestError(
            f"no member has a passkey for {host[:_MOST_SHOWN_CHARACTERS]}",
            expected="the address at which your passkey was added",
            do="open the pages at that address, or sign in another way and add a passkey under Settings, You",
        )
    made = _authentication(host)
    _remember(context, "sign-in", made.challenge, browser, {})
    return made


def finish_sign_in(context: Context, *, challenge: str, credential: str, browser: str) -> str:
    """Sign in the member whose passkey has signed the challenge; returns the secret of the new session.

    Args:
        context: The home.
        challenge: Of the ceremony.
        credential: The answer of `navigator.credentials.get`, as JSON.
        browser: The secret in the browser's cookie.

    Raises:
        PasskeyRefusedError: The answer proves nobody's identity.
        RequestError: The server's address has no passkeys any more, or the extra is not installed.
    """
    _check_installed()
    from webauthn import base64url_to_bytes, verify_authentication_response
    from webauthn.helpers import bytes_to_base64url, parse_authentication_credential_json

    _take(context, "sign-in", challenge, browser)
    with _verification():
        answer = parse_authentication_credential_json(credential)
    found = context.passkeys.by_credential(bytes_to_base64url(answer.raw_id))
    # The same words for an unknown passkey as for one of somebody else: they do not reveal which passkeys exist.
    unknown = PasskeyRefusedError(
        "this passkey is not known here",
        expected="one that a member has added here, and not removed",
        do="sign in another way, and add a passkey under Settings, You",
    )
    if found is None:
        raise unknown
    passkey, member = found
    if answer.response.user_handle != member.member_id.encode() or context.oidc.has_identity(member.member_id):
        raise unknown
    party = relying_party(context, member.project_id)
    with _verification():
        proved = verify_authentication_response(
            credential=answer,
            expected_challenge=base64url_to_bytes(challenge),
            # That of the passkey, which the signature covers; the origin is that of the server's address today.
            expected_rp_id=passkey.rp_id,
            expected_origin=party.origin,
            credential_public_key=base64url_to_bytes(passkey.public_key),
            credential_current_sign_count=passkey.sign_count,
        )
    with context.database.transaction():
        # False: it was removed meanwhile, or another sign-in had the same count.
        if not context.passkeys.record_use(passkey.passkey_id, proved.new_sign_count):
            raise unknown
        return begin_session(context, caller_for(member), how="passkey", passkey_id=passkey.passkey_id)


def _member(context: Context, caller: Caller) -> Member:
    """The member that a caller is, who decides on their own sign-in."""
    if caller.member_id is None:
        raise RequestError(
            f"{caller.name!r} has no passkeys",
            expected="a member, who signs in by name and password",
            do="sign in as a member; a key needs no passkey",
        )
    if context.oidc.has_identity(caller.member_id):
        # A passkey would let somebody in whom the provider lets in no more.
        raise ConflictError(
            "this member signs in by the identity provider, which decides on the sign-in",
            expected="a member with a password of this server",
            do="use the passkeys of the provider, if it has them",
        )
    return context.members.get(caller.project_id, caller.member_id)


def _registration(party: RelyingParty, member: Member, known: list[str]) -> Ceremony:
    from webauthn import base64url_to_bytes, generate_registration_options, options_to_json
    from webauthn.helpers.structs import (
        AuthenticatorSelectionCriteria,
        PublicKeyCredentialDescriptor,
        ResidentKeyRequirement,
        UserVerificationRequirement,
    )

    challenge = secrets.token_bytes(_NUM_CHALLENGE_BYTES)
    options = generate_registration_options(
        rp_id=party.rp_id,
        rp_name="Luthier",
        # No secret, and no name: authenticators return it to whoever has them.
        user_id=member.member_id.encode(),
        user_name=member.name,
        challenge=challenge,
        timeout=_TIMEOUT_MS,
        authenticator_selection=AuthenticatorSelectionCriteria(
            # On the authenticator itself, so that a sign-in needs no name.
            resident_key=ResidentKeyRequirement.REQUIRED,
            user_verification=UserVerificationRequirement.PREFERRED,
        ),
        exclude_credentials=[PublicKeyCredentialDescriptor(id=base64url_to_bytes(one)) for one in known],
    )
    found: dict[str, Any] = json.loads(options_to_json(options))
    return Ceremony(str(found["challenge"]), found)


def _authentication(host: str) -> Ceremony:
    from webauthn import generate_authentication_options, options_to_json
    from webauthn.helpers.structs import UserVerificationRequirement

    options = generate_authentication_options(
        rp_id=host,
        challenge=secrets.token_bytes(_NUM_CHALLENGE_BYTES),
        timeout=_TIMEOUT_MS,
        user_verification=UserVerificationRequirement.PREFERRED,
    )
    found: dict[str, Any] = json.loads(options_to_json(options))
    return Ceremony(str(found["challenge"]), found)


def _remember(context: Context, kind: _Kind, challenge: str, browser: str, facts: dict[str, Any]) -> None:
    context.oidc.put_flow(digest_of(challenge), digest_of(browser), {"passkey": kind, **facts})


def _take(context: Context, kind: _Kind, challenge: str, browser: str) -> dict[str, Any]:
    """What was remembered of a ceremony of this browser, once."""
    found = context.oidc.take_flow(digest_of(challenge), digest_of(browser)) if browser and challenge else None
    # Sign-ins by a provider in progress are in the same place.
    if found is None or found.get("passkey") != kind:
        raise PasskeyRefusedError(
            "this answer does not belong to a request of this browser in the last ten minutes, or was already used",
            expected="one answer to one request, in the same browser",
            do="go back and try again",
        )
    return found


@contextmanager
def _verification() -> Iterator[None]:
    """What the library finds wrong with an answer, as our error."""
    from webauthn.helpers.exceptions import WebAuthnException

    try:
        yield
    except WebAuthnException as error:
        raise PasskeyRefusedError(
            f"the answer of the authenticator is not valid: {str(error)[:_MOST_SHOWN_CHARACTERS]}",
            expected="an answer to this request, at the address of this server, by a passkey that was added here",
            do="go back and try again",
        ) from error
    except Exception as error:  # of JSON, CBOR, base64 or a key that a stranger has sent
        log.info("an answer of an authenticator cannot be read: %s", type(error).__name__)
        raise PasskeyRefusedError(
            "the answer of the authenticator cannot be read",
            expected="JSON as browsers write it",
            do="go back and try again",
        ) from error


def _check_host(party: RelyingParty, host: str) -> None:
    if party.rp_id != host:
        raise RequestError(
            f"these pages are open at {host[:_MOST_SHOWN_CHARACTERS]}, and passkeys belong to {party.rp_id}",
            expected=f"the pages at {party.origin}",
            do=f"open {party.origin}/settings/account",
        )


def _check_installed() -> None:
    require_extra(_EXTRA, "a passkey")
