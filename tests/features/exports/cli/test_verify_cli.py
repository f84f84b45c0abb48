"""`luthier verify`, `luthier sign` and `luthier push`."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from luthier.core.records.export import Export, ExportSource
from luthier.ml.export.bundle import BundleFacts, add_bundle_files
from luthier.ml.export.bundle.facts import BaseFacts


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "model.gguf").write_bytes(b"weights")
    source = ExportSource(
        name="tiny", run_id=None, base_name="tiny", base_path="/models/tiny", base_sha256="3" * 64, precision="float32"
    )
    export = Export(
        source=source,
        format="gguf",
        precision="q8_0",
        folder=str(folder),
        num_bytes=7,
        files={},
        parity=None,
        seconds=1,
    )
    facts = BundleFacts(
        title="tiny",
        made_at="2026-11-26T09:30:00+00:00",
        base=BaseFacts(name="tiny", sha256="3" * 64),
        command="luthier export tiny --to gguf",
    )
    add_bundle_files(folder, export, facts)
    return folder


def test_whole(luthier: Any, bundle: Path) -> None:
    done = luthier("verify", str(bundle))
    assert done.code == 0
    assert "result      complete" in done.out
    assert "signed by   nobody" in done.out
    document = luthier("verify", str(bundle), "--json").document
    assert (document["is_whole"], document["faults"], document["num_files"]) == (True, [], 4)
    assert luthier("verify", str(bundle), "--digest", document["bundle_sha256"]).code == 0
    assert luthier("verify", str(bundle), "--digest", "0" * 64).code == 1


def test_each_fault_is_named_and_the_exit_code_says_so(luthier: Any, bundle: Path) -> None:
    (bundle / "model.gguf").chmod(0o644)
    (bundle / "model.gguf").write_bytes(b"other")
    (bundle / "more\x1b[31m").touch()
    (bundle / "README.md").unlink()
    done = luthier("verify", str(bundle))
    assert done.code == 1
    assert "changed: model.gguf has 5 bytes instead of 7" in done.out
    assert "missing: README.md is missing" in done.out
    assert "extra: more\u241b[31m is not part of the bundle" in done.out
    document = luthier("verify", str(bundle), "--json")
    assert document.code == 1
    assert {fault["kind"] for fault in document.document["faults"]} == {"changed", "missing", "extra"}


def test_no_folder(luthier: Any, tmp_path: Path) -> None:
    done = luthier("verify", str(tmp_path / "not-there"))
    assert (done.code, "no such folder" in done.err) == (2, True)
    done = luthier("verify", str(tmp_path))
    assert (done.code, "this is not a complete bundle" in done.out) == (1, True)


def test_keys_as_openssl_makes_them(luthier: Any, bundle: Path, tmp_path: Path) -> None:
    key, public = tmp_path / "key.pem", tmp_path / "key.pub"
    try:
        subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", str(key)], check=True)
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    subprocess.run(["openssl", "pkey", "-in", str(key), "-pubout", "-out", str(public)], check=True)
    assert luthier("verify", str(bundle), "--key", str(public)).code == 1
    signed = luthier("sign", str(bundle), "--key", str(key), "--json").document
    assert "whose key that is was not proved" in luthier("verify", str(bundle)).out
    done = luthier("verify", str(bundle), "--key", str(public))
    assert done.code == 0
    assert f"signed by   {signed['signed_by']}" in done.out
    assert luthier("sign", str(bundle), "--key", str(public)).code == 2


def test_push(luthier: Any, bundle: Path, tmp_path: Path) -> None:
    url = f"file://{tmp_path / 'target'}"
    done = luthier("push", str(bundle), url)
    assert done.code == 0
    assert "is complete there (5 of 5 files sent" in done.out
    assert luthier("push", str(bundle), url, "--json").document["num_sent"] == 0
    assert luthier("verify", str(tmp_path / "target")).code == 0
    (tmp_path / "target" / "theirs").touch()
    assert luthier("push", str(bundle), url).code == 2
