"""The authenticator of a standalone server: open to all, or to a fixed list of keys besides those of the home."""

from __future__ import annotations

from collections.abc import Collection

from luthier.core.access import Caller
from luthier.platform.auth.authenticator import Authenticator, AuthResult
from luthier.platform.auth.service import digest_of
from luthier.platform.home.context import Context


class StaticKeyAuthenticator(Authenticator):
    """Accepts the keys that an `Authenticator` accepts, and a fixed list of others.

    Args:
        context: The open home.
        key_digests: SHA-256 digests of the other keys.
        is_open: Whether requests without a valid key are accepted too.
    """

    def __init__(self, context: Context, key_digests: Collection[str], *, is_open: bool) -> None:
        super().__init__(context)
        self._digests = frozenset(key_digests)
        self.anybody = Caller(scopes=("infer",), name="anybody on this machine") if is_open else None

    def recall(self, key: str) -> AuthResult | None:
        """What is known of a key, at once; None where it has to be looked up."""
        if digest_of(key) in self._digests:
            return AuthResult(caller=Caller(scopes=("infer",), name="a key of the file"))
        return super().recall(key)
