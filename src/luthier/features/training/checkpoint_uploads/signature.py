"""Signatures of uploads: what a run resumes from was written with the key, not by anybody who may write to the store.

The document of an upload names all its objects with their digests, so that its signature covers them. The signature is
over the place of the document and its digest, in the formats of signed bundles (`ml/export/bundle/signature.py`): an
ECDSA key writes OpenSSF Model Signing, an Ed25519 key a DSSE envelope.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from luthier.core.errors import RequestError
from luthier.core.ids import canonical_json, sha256_bytes
from luthier.ml.export.bundle import signature

if TYPE_CHECKING:
    from luthier.ml.export.bundle.signature import PrivateKey, PublicKey

SETTING: Final = "LUTHIER_CHECKPOINT_KEY"
_KIND: Final = "application/vnd.luthier.checkpoint-upload+json"
_PEM: Final = "-----BEGIN "


class UploadSigner:
    """Signs documents of uploads, and verifies them.

    Args:
        given: The key as PEM, or the path of a file with it. A public key verifies alone.

    Raises:
        RequestError: It is no key that can be used, or there is no such file.
    """

    def __init__(self, given: str) -> None:
        content, name = _content(given)
        self._private: PrivateKey | None = None
        if b"PUBLIC KEY" in content:
            self._public: PublicKey = signature.parse_public_key(content, name)
        else:
            self._private = signature.parse_private_key(content, name)
            self._public = self._private.public_key()

    def private_key(self) -> PrivateKey:
        """The key that signs.

        Raises:
            RequestError: There is a public key alone.
        """
        if self._private is None:
            raise RequestError(
                f"{SETTING} holds a public key, and uploads are to be signed",
                expected="the private key, where a run is trained; the public one is enough to fetch a run",
                do=f"set {SETTING} to the private key",
            )
        return self._private

    def sign(self, path: str, content: bytes) -> bytes:
        """The signature of an object.

        Args:
            path: Of the object in its store: a signature holds at no other place.
            content: Of the object.

        Raises:
            RequestError: There is a public key alone.
        """
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        key = self.private_key()
        if isinstance(key, Ed25519PrivateKey):
            return signature.sign(_statement(path, content), key, _KIND)
        return signature.sign_files(path, {path: sha256_bytes(content)}, key)

    def check(self, path: str, content: bytes, signed: bytes) -> None:
        """Raise SignatureError unless it is the signature of this object by this key.

        Args:
            path: Of the object.
            content: Of the object.
            signed: The signature.
        """
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        if isinstance(self._public, Ed25519PublicKey):
            signature.check(signed, _statement(path, content), self._public, _KIND)
        else:
            signature.check_files(signed, {path: sha256_bytes(content)}, {}, self._public)


def _statement(path: str, content: bytes) -> bytes:
    return canonical_json({"path": path, "sha256": sha256_bytes(content)}).encode()


def _content(given: str) -> tuple[bytes, str]:
    """The PEM of a key, and what errors call it."""
    if _PEM in given:
        # As some launchers pass a text of several lines.
        return given.replace("\\n", "\n").encode(), SETTING
    path = Path(given).expanduser()
    try:
        return path.read_bytes(), str(path)
    except OSError as error:
        raise RequestError(
            f"{SETTING}: {path}: {error.strerror or error}",
            expected="a PEM file with a key, or the key itself",
            do="check the path, or make a key: openssl genpkey -algorithm ed25519 -out checkpoints.pem",
        ) from error
