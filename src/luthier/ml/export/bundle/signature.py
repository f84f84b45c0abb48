"""Signatures of a bundle: Ed25519 over its manifest (DSSE), and OpenSSF Model Signing over all its files.

`bundle.dsse.json` is Ed25519 (RFC 8032) in a DSSE envelope (secure-systems-lab/dsse, protocol 1.0.2). The key's id in
the envelope is the public key itself, so that damage is found without a key. The signer is proved only against a public
key from another source.

`model.sig` is in the format of OpenSSF Model Signing 1.0: a Sigstore bundle
(application/vnd.dev.sigstore.bundle.v0.3+json) holds a DSSE envelope with an in-toto statement, one digest a file,
and a root digest over these. `model_signing verify key` accepts these signatures, and those of `model_signing sign key`
are accepted here. The format uses ECDSA keys and names the key only by a digest, so that nothing can be proved without
the public key.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final

from luthier.core.errors import NotFoundError, RequestError, first_line
from luthier.core.ids import canonical_json
from luthier.core.json_limits import json_utf8
from luthier.ml.export.bundle.manifest import MODEL_SIGNATURE, SIGNATURE

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePrivateKey, EllipticCurvePublicKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

    PrivateKey = Ed25519PrivateKey | EllipticCurvePrivateKey
    PublicKey = Ed25519PublicKey | EllipticCurvePublicKey

PAYLOAD_TYPE: Final = "application/vnd.luthier.bundle+json"
_PREFIX: Final = "ed25519:"
_CURVES: Final = ("secp256r1", "secp384r1", "secp521r1")
_KINDS: Final = "ECDSA on P-256, P-384 or P-521 (OpenSSF Model Signing), or Ed25519"


class SignatureError(Exception):
    """An invalid signature. The text gives the reason as the end of a sentence."""


def read_private_key(path: Path) -> PrivateKey:
    """Read the private key in a PEM file (PKCS #8 or SEC 1, without a password).

    Raises:
        NotFoundError: the file cannot be read.
        RequestError: it has no private key, or one of another type.
    """
    return parse_private_key(_content(path), str(path))


def parse_private_key(content: bytes, name: str) -> PrivateKey:
    """The private key in the content of a PEM file.

    Args:
        content: of the file.
        name: what errors call it, a path as a rule.

    Raises:
        RequestError: it has no private key, or one of another type.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    make = f"make one: openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out {name}"
    try:
        key = load_pem_private_key(content, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise RequestError(
            f"{name} holds no private key that can be read: {first_line(error)[:120]}",
            expected=f"a private key as PEM, without a password: {_KINDS}",
            do=make,
        ) from error
    if isinstance(key, Ed25519PrivateKey):
        return key
    if isinstance(key, EllipticCurvePrivateKey) and key.curve.name in _CURVES:
        return key
    raise RequestError(
        f"{name} holds a key of another kind ({_kind(key)})", expected=f"a private key: {_KINDS}", do=make
    )


def read_public_key(path: Path) -> PublicKey:
    """Read the public key in a PEM file.

    Raises:
        NotFoundError: the file cannot be read.
        RequestError: it has no public key, or one of another type.
    """
    return parse_public_key(_content(path), str(path))


def parse_public_key(content: bytes, name: str) -> PublicKey:
    """The public key in the content of a PEM file.

    Args:
        content: of the file.
        name: what errors call it, a path as a rule.

    Raises:
        RequestError: it has no public key, or one of another type.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(content)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise RequestError(
            f"{name} holds no public key that can be read: {first_line(error)[:120]}",
            expected=f"a public key as PEM: {_KINDS}",
            do="take it from the private one: openssl pkey -in key.pem -pubout -out key.pub",
        ) from error
    if isinstance(key, Ed25519PublicKey):
        return key
    if isinstance(key, EllipticCurvePublicKey) and key.curve.name in _CURVES:
        return key
    raise RequestError(
        f"{name} holds a key of another kind ({_kind(key)})",
        expected=f"a public key: {_KINDS}",
        do="take the one that belongs to the key that has signed",
    )


def sign(manifest: bytes, key: Ed25519PrivateKey, kind: str = PAYLOAD_TYPE) -> bytes:
    """The envelope: the manifest with its signature. Equal keys and manifests give equal bytes.

    Args:
        manifest: what is signed.
        key: the private key.
        kind: the payload type; a signature of one kind is none of another.
    """
    signature = key.sign(pre_authentication_encoding(kind, manifest))
    return _envelope(manifest, key_id(key.public_key()), signature, kind)


def key_id(key: Ed25519PublicKey) -> str:
    """`ed25519:` and the 32 bytes of the public key in hexadecimal."""
    return _PREFIX + key.public_bytes_raw().hex()


def check(envelope: bytes, manifest: bytes, key: Ed25519PublicKey | None, kind: str = PAYLOAD_TYPE) -> str:
    """Verify that an envelope signs this manifest, with this key if one is given.

    Args:
        envelope: content of `bundle.dsse.json`.
        manifest: content of `bundle.json`.
        key: the required key; None uses the key that the envelope names.
        kind: the payload type.

    Returns:
        The id of the key.

    Raises:
        SignatureError: the signature is invalid.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        document = json.loads(envelope)
        named = document["signatures"][0]["keyid"]
        signature = base64.b64decode(document["signatures"][0]["sig"], validate=True)
        # From the envelope itself: without `key` this proves that nothing is damaged, not who signed.
        signer = Ed25519PublicKey.from_public_bytes(bytes.fromhex(named.removeprefix(_PREFIX)))
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise SignatureError("cannot be understood") from error
    if key is not None and key_id(key) != named:
        raise SignatureError(f"is by another key, {named!r}")
    # Rebuilt and compared byte for byte: this checks payload, type and form together, and nothing can be added.
    if _envelope(manifest, key_id(signer), signature, kind) != envelope:
        raise SignatureError("is over another manifest, or was changed")
    try:
        signer.verify(signature, pre_authentication_encoding(kind, manifest))
    except InvalidSignature as error:
        raise SignatureError("does not hold") from error
    return key_id(signer)


def _envelope(manifest: bytes, key: str, signature: bytes, kind: str) -> bytes:
    document = {
        "payload": base64.b64encode(manifest).decode(),
        "payloadType": kind,
        "signatures": [{"keyid": key, "sig": base64.b64encode(signature).decode()}],
    }
    return canonical_json(document).encode()


def pre_authentication_encoding(kind: str, payload: bytes) -> bytes:
    """The bytes that a DSSE envelope signs, with the payload type separated from the payload."""
    # Each part is preceded by its length: no two pairs of type and payload give the same bytes.
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


_MEDIA_TYPE: Final = "application/vnd.dev.sigstore.bundle.v0.3+json"
_PAYLOAD_TYPE: Final = "application/vnd.in-toto+json"
_STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
_PREDICATE_TYPE: Final = "https://model_signing/signature/v1.0"
# Files that are not part of the model: signatures, and files that git and a hub add to a copy.
_IGNORED: Final = (
    MODEL_SIGNATURE, SIGNATURE, ".git", ".gitattributes", ".github", ".gitignore", ".cache/huggingface",
)  # fmt: skip
_ECDSA_PREFIX: Final = "ecdsa:"


@dataclass(frozen=True, slots=True)
class Signer:
    """The key that a signature names.

    Attributes:
        key_id: `ecdsa:` and the digest of the public key.
        is_checked: whether the signature was verified with that key.
    """

    key_id: str
    is_checked: bool


def sign_files(name: str, files: Mapping[str, str], key: EllipticCurvePrivateKey) -> bytes:
    """The signature as a file. Equal inputs give equal bytes if OpenSSL supports it (RFC 6979).

    Args:
        name: Display name of the model, which is not checked.
        files: Path below the bundle -> SHA-256 in hexadecimal, for every signed file.
        key: The private key, on the curve P-256, P-384 or P-521.

    Returns:
        JSON, one line.
    """
    from cryptography.exceptions import UnsupportedAlgorithm

    payload = json_utf8(_statement(name, files))
    signed = pre_authentication_encoding(_PAYLOAD_TYPE, payload)
    try:
        signature = key.sign(signed, _algorithm(key.public_key(), deterministic=True))
    except UnsupportedAlgorithm:  # an OpenSSL before 3.2
        signature = key.sign(signed, _algorithm(key.public_key()))
    document = {
        "mediaType": _MEDIA_TYPE,
        "verificationMaterial": {"publicKey": {"hint": _hint(key.public_key())}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": _PAYLOAD_TYPE,
            "signatures": [{"sig": base64.b64encode(signature).decode(), "keyid": ""}],
        },
    }
    return json.dumps(document).encode()


def check_files(
    content: bytes, files: Mapping[str, str], beside: Mapping[str, str], key: EllipticCurvePublicKey | None
) -> Signer:
    """Verify that a signature covers these files, and is by this key if one is given.

    Args:
        content: The content of the signature file.
        files: Path -> SHA-256 of every file that it must cover.
        beside: The same for files that it may cover, such as another signature.
        key: The public key; None checks only the files.

    Returns:
        The key that the signature names.

    Raises:
        SignatureError: the signature is invalid, or of another variant of the format.
    """
    try:
        document = json.loads(content)
        material, envelope = document["verificationMaterial"], document["dsseEnvelope"]
        payload = base64.b64decode(envelope["payload"], validate=True)
        signature = base64.b64decode(envelope["signatures"][0]["sig"], validate=True)
        kinds = (document["mediaType"], envelope["payloadType"])
        hint = _named_hint(material)
        statement = json.loads(payload)
        _check_statement(statement, kinds)
        covered = _covered(statement)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise SignatureError(f"cannot be understood ({type(error).__name__})") from error
    # In both directions: a file that is not signed, and a signed file that is missing.
    for path in sorted(files.keys() | covered.keys()):
        if files.get(path, beside.get(path)) != covered.get(path):
            raise SignatureError(f"is about another {path!r} than the bundle")
    # Without a key only the digests were compared, which anybody can write: this does not prove the signer.
    if key is None:
        return Signer(_ECDSA_PREFIX + (hint or "a key that it does not name"), is_checked=False)
    # The hint is not signed: it allows a clear message for a wrong key, but only `_check_signature` proves a key.
    if hint not in (None, _hint(key)):
        raise SignatureError(f"is by another key, '{_ECDSA_PREFIX}{hint}'")
    _check_signature(key, signature, payload)
    return Signer(model_key_id(key), is_checked=True)


def model_key_id(key: EllipticCurvePublicKey) -> str:
    """`ecdsa:` and the SHA-256 of the public key's PEM, as signatures of this format name it."""
    return _ECDSA_PREFIX + _hint(key)


def _statement(name: str, files: Mapping[str, str]) -> dict[str, Any]:
    # The order of `model_signing`, which sorts by parts of paths: the root digest depends on it.
    paths = sorted(files, key=PurePosixPath)
    return {
        "_type": _STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": _root_digest([files[path] for path in paths])}}],
        "predicateType": _PREDICATE_TYPE,
        "predicate": {
            "serialization": {
                "method": "files",
                "hash_type": "sha256",
                "allow_symlinks": False,
                "ignore_paths": list(_IGNORED),
            },
            "resources": [{"name": path, "algorithm": "sha256", "digest": files[path]} for path in paths],
        },
    }


def _root_digest(digests: list[str]) -> str:
    return hashlib.sha256(b"".join(bytes.fromhex(digest) for digest in digests)).hexdigest()


def _named_hint(material: Mapping[str, Any]) -> str | None:
    """The digest of the key; None in signatures of early clients, which do not name one."""
    if "publicKey" not in material:
        raise SignatureError(
            "is by a certificate or a Sigstore identity, which needs `model_signing verify`; here only keys are checked"
        )
    hint = material["publicKey"].get("hint")
    return None if hint is None else str(hint)


def _check_statement(statement: Mapping[str, Any], kinds: tuple[str, str]) -> None:
    found = (*kinds, statement["_type"], statement["predicateType"])
    if found != (_MEDIA_TYPE, _PAYLOAD_TYPE, _STATEMENT_TYPE, _PREDICATE_TYPE):
        raise SignatureError(f"is of another version of the format: {', '.join(map(str, found))}")
    made = statement["predicate"]["serialization"]
    if (made["method"], made["hash_type"]) != ("files", "sha256"):
        raise SignatureError(
            f"is over {made['method']} by {made['hash_type']}; here files by sha256 are checked: sign it that way"
        )


def _covered(statement: Mapping[str, Any]) -> dict[str, str]:
    """The files that a statement covers. Raises SignatureError if it contradicts itself."""
    resources = statement["predicate"]["resources"]
    found = {str(one["name"]): str(one["digest"]) for one in resources}
    (subject,) = statement["subject"]
    if len(found) != len(resources) or _root_digest(list(found.values())) != subject["digest"]["sha256"]:
        raise SignatureError("contradicts itself: its root digest is not that of its files")
    return found


def _check_signature(key: EllipticCurvePublicKey, signature: bytes, payload: bytes) -> None:
    from cryptography.exceptions import InvalidSignature

    try:
        key.verify(signature, pre_authentication_encoding(_PAYLOAD_TYPE, payload), _algorithm(key))
    except InvalidSignature as error:
        raise SignatureError("does not hold") from error


def _hint(key: EllipticCurvePublicKey) -> str:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return hashlib.sha256(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def _algorithm(key: EllipticCurvePublicKey, *, deterministic: bool = False) -> ECDSA:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric.ec import ECDSA

    # The digest that matches the size of the curve, as Sigstore bundles require (P-521 with SHA-512).
    by_bits: dict[int, hashes.HashAlgorithm] = {256: hashes.SHA256(), 384: hashes.SHA384(), 521: hashes.SHA512()}
    return ECDSA(by_bits[key.curve.key_size], deterministic_signing=deterministic)
