"""What a bundle is made of, and that it is closed afterwards."""

from __future__ import annotations

import json
import os
import shutil
import stat
from pathlib import Path

import pytest
from tests.ml.export.bundle.conftest import make_export, make_facts, make_parity, write_model
from tests.vacuous import nonempty

from luthier.core.errors import RequestError, WorkError
from luthier.core.ids import sha256_file
from luthier.core.plan import Plan
from luthier.ml.export.bundle import add_bundle_files, verify
from luthier.ml.export.bundle.manifest import read_manifest

DOCUMENTS = {"README.md", "plan.json", "evaluation.json", "parity.json", "LICENSE", "sbom.cdx.json"}
OWN = {"model.gguf", "adapters/a.bin", "Modelfile"}


def test_every_file_is_named_and_the_manifest_names_the_bundle(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "bundle")
    made = add_bundle_files(folder, make_export(parity=make_parity()), make_facts())
    assert set(made.files) == OWN | DOCUMENTS | {"lineage.intoto.json", "bundle.json"}
    for name, digest in made.files.items():
        assert sha256_file(folder / name) == digest
    assert made.num_bytes == sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert made.bundle_sha256 == sha256_file(folder / "bundle.json")
    assert (made.source, made.format, made.warnings) == (make_export().source, "gguf", make_export().warnings)


def test_the_same_facts_give_the_same_bytes(tmp_path: Path) -> None:
    names = []
    for place in ("a", "b"):
        folder = write_model(tmp_path / place)
        names.append(add_bundle_files(folder, make_export(parity=make_parity()), make_facts()).bundle_sha256)
    assert names[0] == names[1]
    again = add_bundle_files(writable(tmp_path / "a"), make_export(parity=make_parity()), make_facts())
    assert again.bundle_sha256 == names[0]


def writable(folder: Path) -> Path:
    for path in folder.rglob("*"):
        path.chmod(0o755)
    return folder


def test_files_are_closed_to_writing_and_the_folder_can_be_moved_and_removed(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "staging")
    add_bundle_files(folder, make_export(), make_facts())
    for path in nonempty(folder.rglob("*")):
        if path.is_file():
            assert not path.stat().st_mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH)
    if os.geteuid() != 0:
        with pytest.raises(PermissionError):
            (folder / "model.gguf").open("ab")
    final = folder.rename(tmp_path / "final")
    assert verify(final).is_whole
    shutil.rmtree(final)
    assert not final.exists()


def test_a_file_with_another_name_elsewhere_becomes_its_own(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "bundle")
    elsewhere = tmp_path / "weights"
    elsewhere.write_bytes(b"shared")
    (folder / "shared.bin").hardlink_to(elsewhere)
    add_bundle_files(folder, make_export(), make_facts())
    elsewhere.write_bytes(b"changed")
    assert elsewhere.stat().st_mode & stat.S_IWUSR
    assert verify(folder).is_whole


@pytest.mark.parametrize("kind", ["link", "folder link", "fifo"])
def test_what_no_bundle_can_hold(tmp_path: Path, kind: str) -> None:
    folder = write_model(tmp_path / "bundle")
    if kind == "fifo":
        os.mkfifo(folder / "x")
    else:
        (folder / "x").symlink_to(tmp_path if kind == "folder link" else folder / "model.gguf")
    with pytest.raises(WorkError, match="cannot hold 'x'"):
        add_bundle_files(folder, make_export(), make_facts())


def test_a_key_that_cannot_be_used_writes_nothing(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "bundle")
    (tmp_path / "key.pem").write_text("no key", encoding="utf-8")
    with pytest.raises(RequestError, match="no private key"):
        add_bundle_files(folder, make_export(), make_facts(), signing_key=tmp_path / "key.pem")
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == OWN


def test_no_row_and_no_folder_of_this_machine_goes_along(whole_bundle: Path) -> None:
    evaluation = json.loads((whole_bundle / "evaluation.json").read_text(encoding="utf-8"))
    assert [system["samples"] for system in evaluation["systems"]] == [[], []]
    for path in nonempty(whole_bundle.rglob("*")):
        if path.is_file():
            assert b"/home/somebody" not in path.read_bytes(), path


def test_the_plan_in_the_bundle_is_the_plan(whole_bundle: Path) -> None:
    plan = Plan.model_validate_json((whole_bundle / "plan.json").read_bytes())
    assert plan.hash == make_facts().run.plan_hash  # type: ignore[union-attr]


def test_a_base_model_that_no_run_has_changed(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "bundle")
    made = add_bundle_files(folder, make_export(run_id=None), make_facts(run=False))
    assert set(made.files) == OWN | {"README.md", "LICENSE", "sbom.cdx.json", "lineage.intoto.json", "bundle.json"}
    assert verify(folder).is_whole


def test_what_the_exporter_has_written_of_licences_stays(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "bundle")
    (folder / "LICENSE").write_text("its own", encoding="utf-8")
    (folder / "README.md").write_text("that of the maker", encoding="utf-8")
    add_bundle_files(folder, make_export(), make_facts())
    assert (folder / "LICENSE").read_text(encoding="utf-8") == "its own"
    assert "that of the maker" not in (folder / "README.md").read_text(encoding="utf-8")


def test_the_manifest_is_canonical(whole_bundle: Path) -> None:
    content = (whole_bundle / "bundle.json").read_bytes()
    files = read_manifest(content).files
    first = files[0]
    expected = f'{{"files":[{{"num_bytes":{first.num_bytes},"path":"{first.path}","sha256":"{first.sha256}"}},'
    assert content.decode().startswith(expected)
    assert content.decode().endswith('],"format":1}')


def test_the_name_of_a_document_is_on_the_disk_when_it_is_reported(tmp_path: Path, monkeypatch) -> None:
    unflushed: set[str] = set()
    replace = Path.replace

    def renaming(self: Path, target: Path) -> Path:
        unflushed.add(target.name)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", renaming)
    synced: set[str] = set()

    def sync(folder: Path) -> None:
        assert folder == tmp_path
        synced.update(unflushed)
        unflushed.clear()

    monkeypatch.setattr("luthier.core.system.files.sync", sync)
    write_model(tmp_path)
    add_bundle_files(tmp_path, make_export(), make_facts())
    assert {"README.md", "bundle.json", "sbom.cdx.json"} <= synced
    assert unflushed == set()
