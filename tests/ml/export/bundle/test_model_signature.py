"""`model.sig` in the format of OpenSSF Model Signing: written, checked, and exchanged with its own client."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, SECP384R1, SECP521R1, EllipticCurve
from tests.ml.export.bundle.keys import write_curve_keys, write_keys

from luthier.core.errors import ConflictError
from luthier.ml.export.bundle import push, verify
from luthier.ml.export.bundle.write import add_signature


def statement(bundle: Path) -> dict[str, Any]:
    document = json.loads((bundle / "model.sig").read_bytes())
    found: dict[str, Any] = json.loads(base64.b64decode(document["dsseEnvelope"]["payload"]))
    return found


def rewrite(bundle: Path, change: Callable[[dict[str, Any]], object], *, of_statement: bool = False) -> None:
    """Change the signature's document, or the statement within it, and leave the signature as it was."""
    path = bundle / "model.sig"
    document = json.loads(path.read_bytes())
    if of_statement:
        inner = statement(bundle)
        change(inner)
        document["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(inner).encode()).decode()
    else:
        change(document)
    path.chmod(0o644)
    path.write_text(json.dumps(document), encoding="utf-8")


@pytest.mark.parametrize("curve", [SECP256R1(), SECP384R1(), SECP521R1()], ids=lambda curve: str(curve.name))
def test_signed_and_proved(bundle: Path, tmp_path: Path, curve: EllipticCurve) -> None:
    private, public = write_curve_keys(tmp_path, "a", curve)
    signer = add_signature(bundle, private)
    assert signer == f"ecdsa:{hashlib.sha256(public.read_bytes()).hexdigest()}"
    proved, alone = verify(bundle, key=public), verify(bundle)
    assert (proved.is_whole, proved.signed_by, proved.is_signer_proved) == (True, signer, True)
    assert proved.unchecked_signer is None
    assert (alone.is_whole, alone.signed_by, alone.is_signer_proved) == (True, None, False)
    assert alone.unchecked_signer == signer
    before = (bundle / "model.sig").read_bytes()
    assert add_signature(bundle, private) == signer
    assert (bundle / "model.sig").read_bytes() == before


def test_every_file_but_signatures_is_covered(bundle: Path, tmp_path: Path) -> None:
    add_signature(bundle, write_keys(tmp_path, "a")[0])
    add_signature(bundle, write_curve_keys(tmp_path, "b")[0])
    found = statement(bundle)
    digests = {one["name"]: one["digest"] for one in found["predicate"]["resources"]}
    there = {path.relative_to(bundle).as_posix(): path for path in bundle.rglob("*") if path.is_file()}
    assert there.keys() - digests.keys() == {"model.sig", "bundle.dsse.json"}
    assert digests == {name: hashlib.sha256(there[name].read_bytes()).hexdigest() for name in digests}
    root = hashlib.sha256(b"".join(bytes.fromhex(digest) for digest in digests.values())).hexdigest()
    assert found["subject"] == [{"name": bundle.name, "digest": {"sha256": root}}]


def test_both_kinds_of_signature_beside_each_other(bundle: Path, tmp_path: Path) -> None:
    old, old_public = write_keys(tmp_path, "a")
    new, new_public = write_curve_keys(tmp_path, "b")
    first, second = add_signature(bundle, old), add_signature(bundle, new)
    for key, signer in ((old_public, first), (new_public, second)):
        report = verify(bundle, key=key)
        assert (report.is_whole, report.signed_by, report.is_signer_proved) == (True, signer, True)
    report = verify(bundle)
    assert (report.signed_by, report.unchecked_signer) == (first, second)
    assert {file.path for file in push.load(bundle).files} >= {"model.sig", "bundle.dsse.json", "bundle.json"}
    assert push.load(bundle).files[-1].path == "bundle.json"


def test_another_key_and_no_signature(bundle: Path, tmp_path: Path) -> None:
    private, _ = write_curve_keys(tmp_path, "a")
    other_private, other = write_curve_keys(tmp_path, "b")
    add_signature(bundle, write_keys(tmp_path, "c")[0])
    (fault,) = verify(bundle, key=other).faults
    assert (fault.path, fault.what) == ("model.sig", "is missing: this is not signed")
    assert verify(bundle, key=other).signed_by is None
    add_signature(bundle, private)
    report = verify(bundle, key=other)
    assert "is by another key" in report.faults[0].what
    assert (report.signed_by, report.is_signer_proved) == (None, False)
    with pytest.raises(ConflictError, match="is signed by ecdsa:"):
        add_signature(bundle, other_private)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s["predicate"]["resources"].pop(), "contradicts itself"),
        (lambda s: s["predicate"]["resources"][0].update(digest="00" * 32), "contradicts itself"),
        (lambda s: s["predicate"]["resources"].append(s["predicate"]["resources"][0]), "contradicts itself"),
        (lambda s: s["subject"][0]["digest"].update(sha256="00" * 32), "contradicts itself"),
        (lambda s: s.update(predicateType="https://slsa.dev/provenance/v1"), "another version of the format"),
        (lambda s: s["predicate"]["serialization"].update(hash_type="blake3"), "over files by blake3"),
        (lambda s: s["predicate"]["serialization"].update(method="shards"), "over shards by sha256"),
        (lambda s: s.pop("predicate"), "cannot be understood"),
        (lambda s: s["subject"][0].update(name="another"), "does not hold"),
        (lambda s: s["predicate"]["serialization"].update(ignore_paths=["weights"]), "does not hold"),
    ],
)
def test_a_statement_that_was_changed(
    bundle: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object], words: str
) -> None:
    private, public = write_curve_keys(tmp_path, "a")
    add_signature(bundle, private)
    rewrite(bundle, change, of_statement=True)
    (fault,) = verify(bundle, key=public).faults
    assert (fault.kind, fault.path) == ("signature", "model.sig")
    assert words in fault.what


def test_a_statement_that_leaves_out_a_file(bundle: Path, tmp_path: Path) -> None:
    """As a signer may who ignores it: what is not signed is a fault, also where the signature holds."""
    private, public = write_curve_keys(tmp_path, "a")
    add_signature(bundle, private)

    def leave_out(found: dict[str, Any]) -> None:
        resources = found["predicate"]["resources"]
        resources.pop(0)
        root = hashlib.sha256(b"".join(bytes.fromhex(one["digest"]) for one in resources)).hexdigest()
        found["subject"][0]["digest"]["sha256"] = root

    first = statement(bundle)["predicate"]["resources"][0]["name"]
    rewrite(bundle, leave_out, of_statement=True)
    for key in (None, public):
        (fault,) = verify(bundle, key=key).faults
        assert fault.what == f"is about another {first!r} than the bundle"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.update(verificationMaterial={"certificate": {"rawBytes": ""}}), "by a certificate or a Sigstore"),
        (lambda d: d.update(mediaType="application/json"), "another version of the format"),
        (lambda d: d["dsseEnvelope"].update(signatures=[]), "cannot be understood"),
        (lambda d: d["dsseEnvelope"]["signatures"][0].update(sig="AAAA"), "does not hold"),
    ],
)
def test_an_envelope_that_was_changed(
    bundle: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object], words: str
) -> None:
    private, public = write_curve_keys(tmp_path, "a")
    add_signature(bundle, private)
    rewrite(bundle, change)
    (fault,) = verify(bundle, key=public).faults
    assert words in fault.what


@pytest.mark.parametrize("content", ["", "{}", "[]", "null", '{"verificationMaterial": 1, "dsseEnvelope": 2}'])
def test_a_file_that_is_no_signature(bundle: Path, content: str) -> None:
    (bundle / "model.sig").write_text(content, encoding="utf-8")
    (fault,) = verify(bundle).faults
    assert fault.what.startswith("cannot be understood")


def test_a_changed_file_is_found_under_a_signature_that_holds(bundle: Path, tmp_path: Path) -> None:
    private, public = write_curve_keys(tmp_path, "a")
    add_signature(bundle, private)
    card = bundle / "README.md"
    card.chmod(0o644)
    card.write_text("another", encoding="utf-8")
    assert [fault.path for fault in verify(bundle, key=public).faults] == ["README.md"]


@pytest.fixture
def client() -> str:
    """The command of the OpenSSF client; its packages are heavy, so it is no dependency."""
    found = shutil.which("model_signing")
    if found is None:
        pytest.skip("the OpenSSF client model_signing is not on PATH")
    tried = subprocess.run([found, "--version"], capture_output=True, text=True, check=False)
    if tried.returncode != 0:
        pytest.skip(f"{found} does not run: {tried.stderr.strip().splitlines()[-1:]}")
    return found


def test_the_client_of_openssf_accepts_ours(bundle: Path, tmp_path: Path, client: str) -> None:
    private, public = write_curve_keys(tmp_path, "a")
    add_signature(bundle, write_keys(tmp_path, "b")[0])
    add_signature(bundle, private)
    command = [client, "verify", "key", str(bundle), "--public_key", str(public), "--signature", bundle / "model.sig"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, "Verification succeeded" in ended.stdout) == (0, True), ended.stderr
    (bundle / "README.md").chmod(0o644)
    (bundle / "README.md").write_text("another", encoding="utf-8")
    assert subprocess.run(command, capture_output=True, check=False).returncode != 0


@pytest.mark.parametrize("is_signed_before", [False, True])
def test_a_signature_of_the_client_is_accepted(
    bundle: Path, tmp_path: Path, client: str, is_signed_before: bool
) -> None:
    private, public = write_curve_keys(tmp_path, "a")
    if is_signed_before:
        add_signature(bundle, write_keys(tmp_path, "b")[0])
    command = [client, "sign", "key", str(bundle), "--private_key", str(private), "--signature", bundle / "model.sig"]
    subprocess.run(command, capture_output=True, check=True)
    report = verify(bundle, key=public)
    assert (report.faults, report.is_signer_proved) == ((), True)
    assert verify(bundle, key=write_curve_keys(tmp_path, "c")[1]).faults
