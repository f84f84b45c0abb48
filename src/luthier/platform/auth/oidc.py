"""OpenID Connect: the authorization code flow with PKCE, and what is believed of a provider's answer.

    browser -> provider, with state, nonce and the challenge of a verifier
    provider -> browser -> here, with a code and the state
    here -> provider, with code and verifier -> ID token, signed by a key of the provider

Nothing is believed that is not signed by a key of the configured issuer, for this client, within its time, and with the
nonce of this very sign-in. Keys are those of the issuer's discovery document; algorithms are asymmetric ones alone, so
neither `none` nor a client secret can sign.

Sources: OpenID Connect Core 1.0, sections 3.1.2 and 3.1.3; RFC 7636 (PKCE); RFC 9207 (issuer identification); RFC 9700.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlencode, urlsplit

from luthier.core.data_sources import LOOPBACK
from luthier.core.errors import RequestError, WorkError
from luthier.core.ports import Progress
from luthier.core.system.extras import require_extra
from luthier.platform.home.settings import Settings

if TYPE_CHECKING:
    import httpx2

ALGORITHMS: Final = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512")
"""Signatures that are accepted: those by a private key, which the provider alone has."""
LEEWAY_SECONDS: Final = 60
_TIMEOUT_SECONDS: Final = 10.0
_MAX_BYTES: Final = 1 << 20
_DISCOVERY: Final = "/.well-known/openid-configuration"
_KEEP_SECONDS: Final = 3600.0
_LEAST_REFRESH_SECONDS: Final = 30.0
"""Tokens with unknown key ids make this server ask for the keys again no more often than that."""
_MAX_GROUPS: Final = 1000


class SignInRefusedError(RequestError):
    """The answer of the provider is not one that signs anybody in."""


@dataclass(frozen=True, slots=True)
class Provider:
    """The configured provider.

    Attributes:
        issuer: Its address, exactly as its tokens name it.
        client_id: The id of this server there.
        client_secret: Its secret; empty for a public client.
        scopes: What is asked for.
        groups_claim: The claim with a person's groups.
        name: What people call it.
        redirect_url: The callback's address as the provider knows it; empty takes that of the browser.
    """

    issuer: str
    client_id: str
    client_secret: str = field(default="", repr=False)
    scopes: str = "openid"
    groups_claim: str = "groups"
    name: str = "single sign-on"
    redirect_url: str = ""

    @classmethod
    def of(cls, settings: Settings) -> Provider | None:
        """That of the settings; None where none is configured.

        Raises:
            RequestError: A setting is missing, the address is not HTTPS, or the package authlib is not installed.
        """
        if not settings.oidc_issuer:
            return None
        if not settings.oidc_client_id:
            raise RequestError(
                "LUTHIER_OIDC_ISSUER without LUTHIER_OIDC_CLIENT_ID",
                expected="the id that the provider gave to this server",
                do="set LUTHIER_OIDC_CLIENT_ID, or unset LUTHIER_OIDC_ISSUER",
            )
        _check_address("LUTHIER_OIDC_ISSUER", settings.oidc_issuer)
        _check_installed()
        secret = settings.oidc_client_secret
        scopes = settings.oidc_scopes.split()
        return cls(
            issuer=settings.oidc_issuer,
            client_id=settings.oidc_client_id,
            client_secret="" if secret is None else secret.get_secret_value(),
            scopes=" ".join(dict.fromkeys(["openid", *scopes])),
            groups_claim=settings.oidc_groups_claim,
            name=settings.oidc_name,
            redirect_url=settings.oidc_redirect_url,
        )


@dataclass(frozen=True, slots=True)
class Flow:
    """What this server remembers of a sign-in that it has begun. state: travels with the browser, and comes back."""

    state: str
    nonce: str
    verifier: str
    redirect_url: str


@dataclass(frozen=True, slots=True)
class Identity:
    """A person, as the provider names them.

    Attributes:
        issuer: Of the provider.
        subject: The person's id there, which never changes.
        name: What they are called.
        groups: Their groups.
    """

    issuer: str
    subject: str
    name: str
    groups: tuple[str, ...]


@dataclass(slots=True)
class _CachedDocument:
    document: dict[str, Any]
    at: float


class OidcClient:
    """The provider's client. Documents and keys are kept for an hour. Methods may be called by any thread.

    Args:
        provider: The provider.
        clock: Seconds since 1970, for the times of tokens.
    """

    def __init__(self, provider: Provider, *, clock: Callable[[], float] = time.time) -> None:
        self.provider, self._clock = provider, clock
        self._lock = threading.Lock()
        self._kept: dict[str, _CachedDocument] = {}

    def begin(self, redirect_url: str) -> tuple[str, Flow]:
        """A sign-in: the address to send the browser to, and what to remember.

        Args:
            redirect_url: Where the provider sends the browser back to.

        Raises:
            WorkError: The provider does not answer.
            WorkError: Its discovery document is not one of this issuer.
        """
        from authlib.oauth2.rfc6749.parameters import prepare_grant_uri
        from authlib.oauth2.rfc7636 import create_s256_code_challenge

        flow = Flow(
            state=secrets.token_urlsafe(32),
            nonce=secrets.token_urlsafe(32),
            # 64 characters: RFC 7636 asks for 43 to 128.
            verifier=secrets.token_urlsafe(48),
            redirect_url=redirect_url,
        )
        address: str = prepare_grant_uri(
            self.metadata()["authorization_endpoint"],
            client_id=self.provider.client_id,
            response_type="code",
            redirect_uri=redirect_url,
            scope=self.provider.scopes,
            state=flow.state,
            nonce=flow.nonce,
            code_challenge=create_s256_code_challenge(flow.verifier),
            code_challenge_method="S256",
        )
        return address, flow

    def finish(self, flow: Flow, answer: Mapping[str, str]) -> Identity:
        """Who has signed in, from the query that the browser brought back.

        Args:
            flow: What was remembered; found by the state of this very query.
            answer: The query: `code` or `error`, `state`, and `iss` of providers that identify themselves.

        Raises:
            SignInRefusedError: The answer proves nobody's identity.
            WorkError: The provider does not answer.
        """
        # Before the code is redeemed: an answer to another sign-in must not reach the token endpoint.
        self._check_answer(flow, answer)
        token = self._token(flow, answer["code"])
        claims = self._claims(flow, token)
        return self._identity(claims, token)

    def sign_out_address(self, return_to: str) -> str:
        """Where one signs out of the provider, too; empty where it has no such page, or was not asked yet.

        Nothing is fetched: the page of the sign-in is open to all, and would wait for a provider that is down.
        """
        with self._lock:
            kept = self._kept.get(self.provider.issuer.rstrip("/") + _DISCOVERY)
        address = None if kept is None else kept.document.get("end_session_endpoint")
        if not isinstance(address, str):
            return ""
        query = urlencode({"client_id": self.provider.client_id, "post_logout_redirect_uri": return_to})
        return f"{address}{'&' if urlsplit(address).query else '?'}{query}"

    def check(self, progress: Progress) -> dict[str, Any]:
        """Fetch what a sign-in needs of the provider now, kept or not: the discovery document and the keys.

        Args:
            progress: Counts the two.

        Returns:
            The discovery document.

        Raises:
            WorkError: The provider does not answer, answers something else, or has no key for signatures.
        """
        host = urlsplit(self.provider.issuer).hostname
        with progress.task("Checking the provider", 2, "documents") as task:
            with progress.task(f"Waiting for the discovery document of {host}", None, ""):
                found = self.metadata(keep_seconds=0.0)
            task.advance()
            with progress.task(f"Waiting for the keys of {host}", None, ""):
                keys = self._keys(None, keep_seconds=0.0)
            task.advance()
        if not keys:
            raise WorkError(
                f"{self.provider.name} lists no key at {urlsplit(str(found['jwks_uri'])).path}",
                expected="at least one RSA or EC key for signatures, or nobody can sign in",
                do="correct the provider's keys, then check again",
            )
        return found

    def metadata(self, *, keep_seconds: float = _KEEP_SECONDS) -> dict[str, Any]:
        """The discovery document, whose issuer is checked to be the configured one.

        Args:
            keep_seconds: How old the kept one may be; an older one is fetched again.
        """
        from authlib.oidc.discovery import OpenIDProviderMetadata

        address = self.provider.issuer.rstrip("/") + _DISCOVERY

        def checked() -> dict[str, Any]:
            found = self._fetch("GET", address)
            # Exactly: a document that names another issuer would have its tokens believed here.
            if found.get("issuer") != self.provider.issuer:
                raise WorkError(
                    f"{address} describes the issuer {str(found.get('issuer'))[:200]!r}",
                    expected=f"exactly {self.provider.issuer!r}",
                    do="correct LUTHIER_OIDC_ISSUER",
                )
            for name in ("authorization_endpoint", "token_endpoint", "jwks_uri"):
                _check_address(name, str(OpenIDProviderMetadata(found).get(name) or ""))
            return found

        return self._known(address, checked, keep_seconds)

    def _check_answer(self, flow: Flow, answer: Mapping[str, str]) -> None:
        if not secrets.compare_digest(answer.get("state", "").encode(), flow.state.encode()):
            raise _refused("the state is not that of this sign-in", "the answer to the sign-in that this browser began")
        issuer = answer.get("iss")
        identifies = bool(self.metadata().get("authorization_response_iss_parameter_supported"))
        # RFC 9207: with another provider's answer the code would be sent to the wrong place.
        if (issuer is not None or identifies) and issuer != self.provider.issuer:
            raise _refused(f"the answer is of the issuer {str(issuer)[:200]!r}", f"one of {self.provider.issuer!r}")
        if error := answer.get("error"):
            more = answer.get("error_description", "")
            words = f"{error[:100]}{': ' if more else ''}{more[:300]}"
            raise _refused(
                f"{self.provider.name} has refused the sign-in ({words})", "a sign-in that is completed there"
            )
        if not answer.get("code"):
            raise _refused("the answer has no code", "a code, which the provider sends after a sign-in")

    def _token(self, flow: Flow, code: str) -> dict[str, Any]:
        """The answer of the token endpoint."""
        from authlib.oauth2.auth import ClientAuth
        from authlib.oauth2.rfc6749.parameters import prepare_token_request

        body = prepare_token_request(
            "authorization_code", code=code, redirect_uri=flow.redirect_url, code_verifier=flow.verifier
        )
        metadata, provider = self.metadata(), self.provider
        known = metadata.get("token_endpoint_auth_methods_supported") or ["client_secret_basic"]
        # The default of OpenID Connect Discovery where the provider lists none.
        method = "client_secret_basic" if "client_secret_basic" in known else "client_secret_post"
        auth = ClientAuth(provider.client_id, provider.client_secret, method if provider.client_secret else "none")
        sent = {"Content-Type": "application/x-www-form-urlencoded", "Accept": "application/json"}
        address, headers, content = auth.prepare("POST", metadata["token_endpoint"], sent, body)
        found = self._fetch("POST", address, headers=headers, content=content)
        if not isinstance(found.get("id_token"), str):
            reason = str(found.get("error") or "no ID token")[:200]
            raise _refused(
                f"{provider.name} gives no identity for the code ({reason})", "a code that was not used before"
            )
        return found

    def _claims(self, flow: Flow, token: Mapping[str, Any]) -> dict[str, Any]:
        """The claims of the ID token, each checked."""
        from authlib.oidc.core import CodeIDToken
        from joserfc.errors import JoseError

        provider = self.provider
        try:
            decoded = self._decoded(token["id_token"])
            options: Any = {
                "iss": {"essential": True, "value": provider.issuer},
                "aud": {"essential": True, "value": provider.client_id},
                "sub": {"essential": True},
            }
            params = {
                "nonce": flow.nonce,
                "client_id": provider.client_id,
                "access_token": token.get("access_token"),
            }
            claims = CodeIDToken(decoded.claims, decoded.header, options, params)
            claims.validate(now=int(self._clock()), leeway=LEEWAY_SECONDS)
        except (JoseError, ValueError, TypeError) as error:
            # The library's words name the claim or the check, never a secret.
            raise _refused(
                f"the identity of {provider.name} is not valid: {str(error)[:200]}",
                "an ID token of this issuer, for this client, of this sign-in, signed and within its time",
            ) from error
        if not isinstance(claims["sub"], str) or not 0 < len(claims["sub"]) <= 255:
            raise _refused("the identity has no usable subject", "a `sub` of 1 to 255 characters")
        return dict(claims)

    def _algorithms(self) -> tuple[str, ...]:
        named = self.metadata().get("id_token_signing_alg_values_supported") or ["RS256"]
        # The intersection: what the provider announces, of what is accepted here.
        return tuple(one for one in ALGORITHMS if one in named)

    def _decoded(self, text: str) -> Any:
        """An ID token whose signature is that of a key of the provider.

        It is checked against the key that it names; one that names none, against each key that can have signed it. Keys
        are fetched again where none of those that are known fits.
        """
        from joserfc import jws, jwt
        from joserfc.errors import BadSignatureError, JoseError
        from joserfc.jwk import KeySet

        wanted = jws.extract_compact(text.encode()).headers().get("kid")
        algorithms = list(self._algorithms())
        failed: Exception | None = None
        for keep_seconds in (_KEEP_SECONDS, _LEAST_REFRESH_SECONDS):
            keys = self._keys(wanted, keep_seconds=keep_seconds)
            for key in keys:
                try:
                    # One key alone: among several, the library takes any one.
                    keys_of_one: Any = KeySet.import_key_set({"keys": [key]})
                    return jwt.decode(text, keys_of_one.keys[0], algorithms=algorithms)
                except (JoseError, ValueError, TypeError) as error:
                    # A wrong signature says more than a key of another type.
                    failed = error if failed is None or isinstance(error, BadSignatureError) else failed
            if keys and wanted is not None:
                break
        raise failed or ValueError("no key of the provider has the id that the token names")

    def _keys(self, wanted: str | None, *, keep_seconds: float) -> list[Any]:
        """The keys of the provider that can have signed a token; of a token that names one, those with that id."""
        address = str(self.metadata()["jwks_uri"])

        def fetched() -> dict[str, Any]:
            return self._fetch("GET", address)

        listed = self._known(address, fetched, keep_seconds).get("keys")
        usable = [key for key in listed if _signs(key)] if isinstance(listed, list) else []
        return [key for key in usable if wanted is None or key.get("kid") == wanted]

    def _identity(self, claims: Mapping[str, Any], token: Mapping[str, Any]) -> Identity:
        groups = _at(claims, self.provider.groups_claim)
        names = dict(claims)
        endpoint = self.metadata().get("userinfo_endpoint")
        if groups is None and isinstance(endpoint, str) and isinstance(token.get("access_token"), str):
            found = self._fetch("GET", endpoint, headers={"Authorization": f"Bearer {token['access_token']}"})
            # OpenID Connect Core, section 5.3.2: another subject's answer must not be used.
            if found.get("sub") != claims["sub"]:
                raise _refused("the answer on the person is about another subject", f"one about {claims['sub']!r}")
            groups, names = _at(found, self.provider.groups_claim), found | names
        listed = [groups] if isinstance(groups, str) else groups if isinstance(groups, list) else []
        # For display alone; who somebody is, is decided by issuer and subject.
        named = [names.get(key) for key in ("preferred_username", "email", "name")]
        name = next((one for one in named if isinstance(one, str) and one.strip()), claims["sub"])
        return Identity(
            issuer=self.provider.issuer,
            subject=claims["sub"],
            name=name.strip(),
            groups=tuple(one for one in listed[:_MAX_GROUPS] if isinstance(one, str)),
        )

    def _known(self, address: str, fetch: Callable[[], dict[str, Any]], keep_seconds: float) -> dict[str, Any]:
        now = time.monotonic()
        with self._lock:
            kept = self._kept.get(address)
        if kept is not None and now - kept.at < keep_seconds:
            return kept.document
        found = fetch()
        with self._lock:
            self._kept[address] = _CachedDocument(found, now)
        return found

    def _fetch(
        self, method: str, address: str, *, headers: Mapping[str, str] | None = None, content: str | None = None
    ) -> dict[str, Any]:
        """A JSON object from the provider. Redirects are not followed: a secret would go along."""
        import httpx2

        try:
            with (
                httpx2.Client(timeout=_TIMEOUT_SECONDS, follow_redirects=False) as client,
                client.stream(method, address, headers=dict(headers or {}), content=content) as answer,
            ):
                body = _bounded(answer)
                status = answer.status_code
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise WorkError(
                f"{self.provider.name} does not answer: {type(error).__name__}",
                expected=f"an answer of {urlsplit(address).hostname} within {_TIMEOUT_SECONDS:.0f} s",
                do="try again in a moment, or sign in with a key or a password",
            ) from error
        try:
            found = json.loads(body)
        except ValueError:
            found = None
        # An error of the token endpoint is a JSON object with status 400 (RFC 6749, section 5.2).
        if not isinstance(found, dict) or not (200 <= status < 300 or (method == "POST" and status in (400, 401))):
            raise WorkError(
                f"{self.provider.name} answers {status} at {urlsplit(address).path}",
                expected="a JSON object",
                do="check the provider and LUTHIER_OIDC_ISSUER; the server's settings are on /settings/sign-in",
            )
        return found


def _bounded(answer: httpx2.Response) -> bytes:
    body = b""
    for block in answer.iter_bytes():
        body += block
        if len(body) > _MAX_BYTES:
            return b""  # no document of a provider is that large: it is refused as no JSON
    return body


def _signs(key: Any) -> bool:
    """Whether a key of a set can have signed a token: a public key that is not for encryption."""
    return isinstance(key, dict) and key.get("kty") in ("RSA", "EC") and key.get("use", "sig") == "sig"


def _at(document: Mapping[str, Any], claim: str) -> Any:
    """A claim by its name, or by a path of names with dots between them; None where there is none."""
    if claim in document:
        return document[claim]
    found: Any = document
    for name in claim.split("."):
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


def _refused(came: str, expected: str) -> SignInRefusedError:
    return SignInRefusedError(came, expected=expected, do="begin the sign-in again on the sign-in page")


def _check_address(name: str, address: str) -> None:
    """HTTPS, or this machine itself: tokens and secrets go there.

    Raises:
        RequestError: The address is neither HTTPS nor of this machine.
    """
    parts = urlsplit(address)
    if parts.scheme == "https" and parts.hostname:
        return
    if parts.scheme == "http" and parts.hostname in LOOPBACK:
        return
    raise RequestError(
        f"{name} {address[:200]!r}", expected="an https:// address, or one of this machine", do="correct the address"
    )


def _check_installed() -> None:
    require_extra("oidc", "sign-in by a provider")
