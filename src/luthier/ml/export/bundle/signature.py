"""A signature over the manifest: Ed25519 (RFC 8032) in a DSSE envelope (secure-systems-lab/dsse, protocol 1.0.2).

The key's id in the envelope is the public key itself, so that a damaged envelope is found without any key. Who made the
bundle is proved only against a public key that came another way.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import TYPE_CHECKING, Final

from luthier.core.digest import canonical_json
from luthier.core.errors import NotFoundError, RequestError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

PAYLOAD_TYPE: Final = "application/vnd.luthier.bundle+json"
_PREFIX: Final = "ed25519:"


class SignatureError(Exception):
    """A signature that does not hold; the text says why, as the end of a sentence."""


def read_private_key(path: Path) -> Ed25519PrivateKey:
    """The private key in a PEM file (PKCS #8, without a password). Raises NotFoundError and RequestError."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(_content(path), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise RequestError(
            f"{path} holds no private key that can be read: {_first_line(error)}",
            expected="an Ed25519 private key as PEM, without a password",
            do=f"make one: openssl genpkey -algorithm ed25519 -out {path}",
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise RequestError(
            f"{path} holds a key of another kind ({type(key).__name__})",
            expected="an Ed25519 private key",
            do="make one: openssl genpkey -algorithm ed25519 -out key.pem",
        )
    return key


def read_public_key(path: Path) -> Ed25519PublicKey:
    """The public key in a PEM file. Raises NotFoundError and RequestError."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(_content(path))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise RequestError(
            f"{path} holds no public key that can be read: {_first_line(error)}",
            expected="an Ed25519 public key as PEM",
            do="take it from the private one: openssl pkey -in key.pem -pubout -out key.pub",
        ) from error
    if not isinstance(key, Ed25519PublicKey):
        raise RequestError(
            f"{path} holds a key of another kind ({type(key).__name__})",
            expected="an Ed25519 public key",
            do="take the one that belongs to the key that has signed",
        )
    return key


def sign(manifest: bytes, key: Ed25519PrivateKey) -> bytes:
    """The envelope: the manifest with a signature over it. The same key and manifest give the same bytes."""
    return _envelope(manifest, key_id(key.public_key()), key.sign(_signed(manifest)))


def key_id(key: Ed25519PublicKey) -> str:
    """`ed25519:` and the 32 bytes of the public key in hexadecimal."""
    return _PREFIX + key.public_bytes_raw().hex()


def check(envelope: bytes, manifest: bytes, key: Ed25519PublicKey | None) -> str:
    """Prove that an envelope signs this manifest, with this key where one is given; returns the id of the key.

    Raises SignatureError where it does not.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        document = json.loads(envelope)
        named = document["signatures"][0]["keyid"]
        signature = base64.b64decode(document["signatures"][0]["sig"], validate=True)
        signer = Ed25519PublicKey.from_public_bytes(bytes.fromhex(named.removeprefix(_PREFIX)))
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise SignatureError("cannot be understood") from error
    if key is not None and key_id(key) != named:
        raise SignatureError(f"is by another key, {named!r}")
    if _envelope(manifest, key_id(signer), signature) != envelope:
        raise SignatureError("is over another manifest, or was changed")
    try:
        signer.verify(signature, _signed(manifest))
    except InvalidSignature as error:
        raise SignatureError("does not hold") from error
    return key_id(signer)


def _envelope(manifest: bytes, key: str, signature: bytes) -> bytes:
    document = {
        "payload": base64.b64encode(manifest).decode(),
        "payloadType": PAYLOAD_TYPE,
        "signatures": [{"keyid": key, "sig": base64.b64encode(signature).decode()}],
    }
    return canonical_json(document).encode()


def _signed(manifest: bytes) -> bytes:
    """What is signed: DSSE's pre-authentication encoding, which separates the payload's type from the payload."""
    return b"DSSEv1 %d %s %d %s" % (len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode(), len(manifest), manifest)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise NotFoundError(
            f"{path}: {error.strerror or error}", expected="a PEM file with a key", do="check the path"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]
