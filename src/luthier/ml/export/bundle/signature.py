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
from luthier.core.library_errors import first_line

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

    PrivateKey = Ed25519PrivateKey | EllipticCurvePrivateKey
    PublicKey = Ed25519PublicKey | EllipticCurvePublicKey

PAYLOAD_TYPE: Final = "application/vnd.luthier.bundle+json"
_PREFIX: Final = "ed25519:"
_CURVES: Final = ("secp256r1", "secp384r1", "secp521r1")
_KINDS: Final = "ECDSA on P-256, P-384 or P-521 (OpenSSF Model Signing), or Ed25519"


class SignatureError(Exception):
    """A signature that does not hold; the text says why, as the end of a sentence."""


def read_private_key(path: Path) -> PrivateKey:
    """The private key in a PEM file (PKCS #8 or SEC 1, without a password).

    Raises:
        NotFoundError: the file cannot be read.
        RequestError: it holds no private key, or one of another kind.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    make = f"make one: openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out {path}"
    try:
        key = load_pem_private_key(_content(path), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise RequestError(
            f"{path} holds no private key that can be read: {first_line(error)[:120]}",
            expected=f"a private key as PEM, without a password: {_KINDS}",
            do=make,
        ) from error
    if isinstance(key, Ed25519PrivateKey):
        return key
    if isinstance(key, EllipticCurvePrivateKey) and key.curve.name in _CURVES:
        return key
    raise RequestError(
        f"{path} holds a key of another kind ({_kind(key)})", expected=f"a private key: {_KINDS}", do=make
    )


def read_public_key(path: Path) -> PublicKey:
    """The public key in a PEM file.

    Raises:
        NotFoundError: the file cannot be read.
        RequestError: it holds no public key, or one of another kind.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(_content(path))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise RequestError(
            f"{path} holds no public key that can be read: {first_line(error)[:120]}",
            expected=f"a public key as PEM: {_KINDS}",
            do="take it from the private one: openssl pkey -in key.pem -pubout -out key.pub",
        ) from error
    if isinstance(key, Ed25519PublicKey):
        return key
    if isinstance(key, EllipticCurvePublicKey) and key.curve.name in _CURVES:
        return key
    raise RequestError(
        f"{path} holds a key of another kind ({_kind(key)})",
        expected=f"a public key: {_KINDS}",
        do="take the one that belongs to the key that has signed",
    )


def sign(manifest: bytes, key: Ed25519PrivateKey) -> bytes:
    """The envelope: the manifest with a signature over it. The same key and manifest give the same bytes."""
    return _envelope(manifest, key_id(key.public_key()), key.sign(pre_authentication_encoding(PAYLOAD_TYPE, manifest)))


def key_id(key: Ed25519PublicKey) -> str:
    """`ed25519:` and the 32 bytes of the public key in hexadecimal."""
    return _PREFIX + key.public_bytes_raw().hex()


def check(envelope: bytes, manifest: bytes, key: Ed25519PublicKey | None) -> str:
    """Prove that an envelope signs this manifest, with this key where one is given.

    Args:
        envelope: content of `bundle.dsse.json`.
        manifest: content of `bundle.json`.
        key: the key that must have signed; None takes the key that the envelope names.

    Returns:
        The id of the key.

    Raises:
        SignatureError: it does not.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        document = json.loads(envelope)
        named = document["signatures"][0]["keyid"]
        signature = base64.b64decode(document["signatures"][0]["sig"], validate=True)
        # From the envelope itself: without `key` this proves that nothing was damaged, not who has signed.
        signer = Ed25519PublicKey.from_public_bytes(bytes.fromhex(named.removeprefix(_PREFIX)))
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise SignatureError("cannot be understood") from error
    if key is not None and key_id(key) != named:
        raise SignatureError(f"is by another key, {named!r}")
    # Rebuilt and compared byte for byte: payload, type and form are checked at once, and nothing can be added.
    if _envelope(manifest, key_id(signer), signature) != envelope:
        raise SignatureError("is over another manifest, or was changed")
    try:
        signer.verify(signature, pre_authentication_encoding(PAYLOAD_TYPE, manifest))
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


def pre_authentication_encoding(kind: str, payload: bytes) -> bytes:
    """What a DSSE envelope signs, in which the payload's type is separated from the payload."""
    # Lengths before each part: no two pairs of type and payload give the same bytes.
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind.encode(), len(payload), payload)


def _kind(key: object) -> str:
    curve = getattr(getattr(key, "curve", None), "name", "")
    return f"{type(key).__name__} {curve}".strip()


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise NotFoundError(
            f"{path}: {error.strerror or error}", expected="a PEM file with a key", do="check the path"
        ) from error
