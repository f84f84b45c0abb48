"""A signature over all files of a bundle, in the format of OpenSSF Model Signing 1.0 (`model.sig`).

A Sigstore bundle (application/vnd.dev.sigstore.bundle.v0.3+json) holds a DSSE envelope with an in-toto statement: one
digest a file, and a root digest over these. `model_signing verify key` accepts what is written here, and what
`model_signing sign key` has written is accepted here. The format takes ECDSA keys and names the key by a digest alone,
so that nothing can be proved without the public key.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Final

from luthier.core.json_limits import json_utf8
from luthier.ml.export.bundle.manifest import MODEL_SIGNATURE, SIGNATURE
from luthier.ml.export.bundle.signature import SignatureError, pre_authentication_encoding

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePrivateKey, EllipticCurvePublicKey

_MEDIA_TYPE: Final = "application/vnd.dev.sigstore.bundle.v0.3+json"
_PAYLOAD_TYPE: Final = "application/vnd.in-toto+json"
_STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
_PREDICATE_TYPE: Final = "https://model_signing/signature/v1.0"
# Files that are no part of the model: signatures, and what git and a hub put beside a copy.
_IGNORED: Final = (
    MODEL_SIGNATURE, SIGNATURE, ".git", ".gitattributes", ".github", ".gitignore", ".cache/huggingface",
)  # fmt: skip
_PREFIX: Final = "ecdsa:"


@dataclass(frozen=True, slots=True)
class Signer:
    """Whose key a signature names.

    Attributes:
        key_id: `ecdsa:` and the digest of the public key.
        is_checked: whether the signature was proved with that very key.
    """

    key_id: str
    is_checked: bool


def sign_files(name: str, files: Mapping[str, str], key: EllipticCurvePrivateKey) -> bytes:
    """The signature as a file. The same files, name and key give the same bytes where OpenSSL can (RFC 6979).

    Args:
        name: What the model is called, for people; nothing checks it.
        files: Path below the bundle -> SHA-256 in hexadecimal, of every file that is signed.
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
    """Prove that a signature is over these files, and by this key where one is given.

    Args:
        content: The signature's file.
        files: Path -> SHA-256 of every file that it must cover.
        beside: The same of files that it may cover, such as another signature.
        key: The public key; None checks the files alone.

    Returns:
        The key that it names.

    Raises:
        SignatureError: it does not hold, or is of another form of the format.
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
    # Both ways: a file that is not signed, and a signed file that is not here.
    for path in sorted(files.keys() | covered.keys()):
        if files.get(path, beside.get(path)) != covered.get(path):
            raise SignatureError(f"is about another {path!r} than the bundle")
    # Without a key only the digests were compared, which anybody can write: not a proof of the signer.
    if key is None:
        return Signer(_PREFIX + (hint or "a key that it does not name"), is_checked=False)
    # The hint is not signed: it can refuse a key with a clear message, but only `_check_signature` proves one.
    if hint not in (None, _hint(key)):
        raise SignatureError(f"is by another key, '{_PREFIX}{hint}'")
    _check_signature(key, signature, payload)
    return Signer(model_key_id(key), is_checked=True)


def model_key_id(key: EllipticCurvePublicKey) -> str:
    """`ecdsa:` and the SHA-256 of the public key's PEM, by which signatures of this format name it."""
    return _PREFIX + _hint(key)


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
    """The digest of the key; None in signatures of early clients, which named none."""
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
    """The files that a statement is about. Raises SignatureError where it contradicts itself."""
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

    # The digest of the curve's own size, as Sigstore's bundles fix it (P-521 with SHA-512).
    by_bits: dict[int, hashes.HashAlgorithm] = {256: hashes.SHA256(), 384: hashes.SHA384(), 521: hashes.SHA512()}
    return ECDSA(by_bits[key.curve.key_size], deterministic_signing=deterministic)
