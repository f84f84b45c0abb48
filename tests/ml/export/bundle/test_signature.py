"""Signatures: who has signed, and what does not hold."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256K1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from tests.ml.export.bundle.keys import write_keys

from luthier.core.errors import ConflictError, NotFoundError, RequestError
from luthier.ml.export.bundle import verify
from luthier.ml.export.bundle.write import add_signature


def test_signed_and_proved(bundle: Path, tmp_path: Path) -> None:
    private, public = write_keys(tmp_path, "a")
    signer = add_signature(bundle, private)
    alone, proved = verify(bundle), verify(bundle, key=public)
    assert (alone.is_whole, alone.signed_by, alone.is_signer_proved) == (True, signer, False)
    assert (proved.is_whole, proved.signed_by, proved.is_signer_proved) == (True, signer, True)
    before = (bundle / "bundle.dsse.json").read_bytes()
    assert add_signature(bundle, private) == signer
    assert (bundle / "bundle.dsse.json").read_bytes() == before


def test_the_envelope_is_as_dsse_says(bundle: Path, tmp_path: Path) -> None:
    private, _ = write_keys(tmp_path, "a")
    signer = add_signature(bundle, private)
    envelope = json.loads((bundle / "bundle.dsse.json").read_bytes())
    manifest = (bundle / "bundle.json").read_bytes()
    assert base64.b64decode(envelope["payload"]) == manifest
    kind = envelope["payloadType"].encode()
    signed = b"DSSEv1 " + b" ".join([str(len(kind)).encode(), kind, str(len(manifest)).encode(), manifest])
    key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(signer.removeprefix("ed25519:")))
    key.verify(base64.b64decode(envelope["signatures"][0]["sig"]), signed)


def test_another_key_and_no_signature(bundle: Path, tmp_path: Path) -> None:
    private, _ = write_keys(tmp_path, "a")
    other_private, other = write_keys(tmp_path, "b")
    (fault,) = verify(bundle, key=other).faults
    assert (fault.kind, fault.what) == ("signature", "is missing: this is not signed")
    add_signature(bundle, private)
    report = verify(bundle, key=other)
    assert [fault.kind for fault in report.faults] == ["signature"]
    assert (report.signed_by, report.is_signer_proved) == (None, False)
    assert "is by another key" in report.faults[0].what
    with pytest.raises(ConflictError, match="is signed by"):
        add_signature(bundle, other_private)


def test_a_signature_of_another_bundle(bundle: Path, tmp_path: Path) -> None:
    private, public = write_keys(tmp_path, "a")
    add_signature(bundle, private)
    signature = bundle / "bundle.dsse.json"
    content = json.loads(signature.read_bytes())
    content["payload"] = base64.b64encode(b"{}").decode()
    signature.chmod(0o644)
    signature.write_text(json.dumps(content, sort_keys=True, separators=(",", ":")), encoding="utf-8")
    (fault,) = verify(bundle, key=public).faults
    assert (fault.kind, fault.what) == ("signature", "is over another manifest, or was changed")


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"signatures": []}', '{"signatures":[{"keyid":1,"sig":"x"}]}'])
def test_an_envelope_that_is_none(bundle: Path, content: str) -> None:
    (bundle / "bundle.dsse.json").write_text(content, encoding="utf-8")
    (fault,) = verify(bundle).faults
    assert (fault.kind, fault.what) == ("signature", "cannot be understood")


def test_what_is_not_whole_is_not_signed(bundle: Path, tmp_path: Path) -> None:
    private, _ = write_keys(tmp_path, "a")
    (bundle / "more").touch()
    with pytest.raises(RequestError, match="not a complete bundle: more is not part"):
        add_signature(bundle, private)


def test_keys_that_cannot_be_used(bundle: Path, tmp_path: Path) -> None:
    private, public = write_keys(tmp_path, "a")
    with pytest.raises(NotFoundError):
        verify(bundle, key=tmp_path / "not-there")
    with pytest.raises(RequestError, match="no public key"):
        verify(bundle, key=private)
    with pytest.raises(RequestError, match="no private key"):
        add_signature(bundle, public)
    curve = generate_private_key(SECP256K1())
    (tmp_path / "curve.pem").write_bytes(curve.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (tmp_path / "curve.pub").write_bytes(
        curve.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    with pytest.raises(RequestError, match="another kind"):
        add_signature(bundle, tmp_path / "curve.pem")
    with pytest.raises(RequestError, match="another kind"):
        verify(bundle, key=tmp_path / "curve.pub")
