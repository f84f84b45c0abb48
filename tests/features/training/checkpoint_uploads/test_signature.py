"""Signed uploads: who may write to the store alone can neither change what a run resumes from nor move it elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from pydantic import SecretStr

from luthier.core.errors import CheckpointError, RequestError
from luthier.features.training.checkpoint_uploads.bucket import ObjectStore, note_launch, run_of_launch, store_of
from luthier.features.training.checkpoint_uploads.signature import UploadSigner
from luthier.ml.export.bundle.signature import SignatureError
from luthier.platform.home.settings import Settings

RUN, PATH = "run-20261130-120000-00000a", "runs/run-20261130-120000-00000a/g00000001/upload-00000001.json"
Private = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


def pem(key: Private) -> str:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def public_pem(key: Private) -> str:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


@pytest.fixture(params=["ed25519", "ecdsa"])
def key(request: pytest.FixtureRequest) -> Private:
    if request.param == "ed25519":
        return ed25519.Ed25519PrivateKey.generate()
    return ec.generate_private_key(ec.SECP256R1())


def test_a_signature_holds_for_one_object_at_one_place_and_by_one_key(key: Private) -> None:
    signer = UploadSigner(pem(key))
    signed = signer.sign(PATH, b"{}")
    UploadSigner(public_pem(key)).check(PATH, b"{}", signed)
    other = ed25519.Ed25519PrivateKey.generate()
    for changed in ((PATH, b"{ }", signed), (PATH.replace("0001", "0002"), b"{}", signed), (PATH, b"{}", b"{}")):
        with pytest.raises(SignatureError):
            signer.check(*changed)
    for one in (other, ec.generate_private_key(ec.SECP256R1())):
        with pytest.raises(SignatureError):
            UploadSigner(pem(one)).check(PATH, b"{}", signed)


def test_a_key_is_given_as_text_or_by_its_file(key: Private, tmp_path: Path) -> None:
    file = tmp_path / "key.pem"
    file.write_text(pem(key))
    signed = UploadSigner(str(file)).sign(PATH, b"{}")
    # As launchers pass a text of several lines.
    UploadSigner(pem(key).replace("\n", "\\n")).check(PATH, b"{}", signed)
    with pytest.raises(RequestError, match="holds a public key"):
        UploadSigner(public_pem(key)).sign(PATH, b"{}")


@pytest.mark.parametrize("given", ["/nowhere/key.pem", "-----BEGIN PRIVATE KEY-----\nnone\n-----END PRIVATE KEY-----"])
def test_what_is_no_key_is_refused(given: str) -> None:
    with pytest.raises(RequestError):
        UploadSigner(given)


def test_keys_of_another_kind_are_refused() -> None:
    with pytest.raises(RequestError, match="RSA"):
        UploadSigner(pem(rsa.generate_private_key(public_exponent=65537, key_size=2048)))


def test_documents_are_written_and_read_with_their_signature(key: Private, tmp_path: Path) -> None:
    root, signer = str(tmp_path / "store"), UploadSigner(pem(key))
    store, plain = ObjectStore(root, signer=signer), ObjectStore(root)
    store.write_signed(PATH, b"{}")
    assert store.names() == [PATH, f"{PATH}.sig"]
    assert store.read_signed(PATH) == plain.read_signed(PATH) == b"{}"
    with pytest.raises(FileNotFoundError):
        store.read_signed("runs/other.json")
    # Whoever may write to the store replaces a document, also with another one that was signed.
    store.write_signed(f"{PATH}.other.json", b"[]")
    for suffix in ("", ".sig"):
        plain.write(PATH + suffix, plain.read(f"{PATH}.other.json{suffix}"))
    with pytest.raises(CheckpointError, match="not as it was uploaded: its signature"):
        store.read_signed(PATH)
    assert plain.read_signed(PATH) == b"[]", "without a key nothing is verified"


def test_documents_from_before_there_was_a_key_need_consent(key: Private, tmp_path: Path) -> None:
    root, signer = str(tmp_path / "store"), UploadSigner(pem(key))
    ObjectStore(root).write_signed(PATH, b"{}")
    with pytest.raises(CheckpointError, match="has no signature") as refused:
        ObjectStore(root, signer=signer).read_signed(PATH)
    assert "--allow-unsigned" in refused.value.do
    allowing = ObjectStore(root, signer=signer, allow_unsigned=True)
    assert allowing.read_signed(PATH) == b"{}"
    allowing.write(f"{PATH}.sig", b"{}")
    with pytest.raises(CheckpointError, match="its signature"):
        allowing.read_signed(PATH)


def test_a_launch_leads_to_its_own_run_alone(key: Private, tmp_path: Path) -> None:
    store = ObjectStore(str(tmp_path / "store"), signer=UploadSigner(pem(key)))
    note_launch(store, "spot-1", RUN)
    note_launch(store, "spot-2", f"{RUN[:-1]}b")
    assert run_of_launch(store, "spot-1") == RUN
    first, second = (tmp_path / "store" / name for name in store.names("launches") if name.endswith(".json"))
    first.write_bytes(second.read_bytes())
    with pytest.raises(CheckpointError, match="its signature"):
        [run_of_launch(store, name) for name in ("spot-1", "spot-2")]


def test_the_key_comes_from_the_settings(key: Private, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, checkpoints=SecretStr(str(tmp_path / "store")))
    plain = store_of(settings)
    assert plain is not None
    assert plain.signer is None
    signing = store_of(settings.model_copy(update={"checkpoint_key": SecretStr(pem(key))}))
    assert signing is not None
    assert signing.signer is not None
    with pytest.raises(RequestError, match="LUTHIER_CHECKPOINT_KEY"):
        store_of(settings.model_copy(update={"checkpoint_key": SecretStr("no key")}))
