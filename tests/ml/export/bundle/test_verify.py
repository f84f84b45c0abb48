"""Whatever is done to a bundle is found."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.ml.export.bundle.conftest import BASE_SHA256, make_export, make_facts, write_model
from tests.ml.export.bundle.keys import write_keys
from tests.vacuous import nonempty

from luthier.core.errors import NotFoundError
from luthier.core.ids import canonical_json, sha256_bytes
from luthier.ml.export.bundle import add_bundle_files, verify
from luthier.ml.export.bundle.manifest import read_manifest


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A signed bundle: of all kinds of files there is one in it."""
    place = tmp_path_factory.mktemp("signed")
    private, _ = write_keys(place, "a")
    folder = write_model(place / "bundle")
    add_bundle_files(folder, make_export(), make_facts(), signing_key=private)
    return folder


def copied(bundle: Path, place: str) -> Path:
    """A copy that may be written to."""
    folder = Path(place) / "copy"
    shutil.copytree(bundle, folder)
    for path in folder.rglob("*"):
        path.chmod(0o755)
    return folder


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_as_it_was_made_it_is_whole(whole_bundle: Path, signed: Path) -> None:
    report = verify(whole_bundle)
    assert (report.is_whole, report.signed_by, report.base_name) == (True, None, "tiny")
    assert report.base_sha256 == BASE_SHA256
    assert report.num_files == len(files_of(whole_bundle)) - 1  # but for the manifest itself
    assert verify(signed).is_whole


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_one_flipped_bit_anywhere(signed: Path, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = copied(signed, place)
        path = data.draw(st.sampled_from(files_of(folder)))
        content = bytearray(path.read_bytes())
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        path.write_bytes(content)
        report = verify(folder)
        name = path.relative_to(folder).as_posix()
        assert name in {fault.path for fault in report.faults} or name == "bundle.json"
        assert not report.is_whole


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_bytes_added_or_cut_off(signed: Path, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = copied(signed, place)
        path = data.draw(st.sampled_from(files_of(folder)))
        content = path.read_bytes()
        cut = data.draw(st.integers(0, len(content) - 1))
        path.write_bytes(data.draw(st.sampled_from([content[:cut], content + b"\n", b" " + content, content * 2])))
        assert not verify(folder).is_whole


def test_each_file_removed(signed: Path, tmp_path: Path) -> None:
    for number, path in nonempty(enumerate(files_of(signed))):
        name = path.relative_to(signed).as_posix()
        if name == "bundle.dsse.json":  # unsigned bundles are whole, too: only --key asks for a signature
            continue
        folder = copied(signed, str(tmp_path / str(number)))
        (folder / name).unlink()
        assert ("missing", name) in {(fault.kind, fault.path) for fault in verify(folder).faults}


@settings(max_examples=60, deadline=None)
@given(
    name=st.text(st.characters(exclude_characters="/\x00", exclude_categories=("Cs",)), min_size=1, max_size=20).filter(
        lambda text: text not in (".", "..", ".gitattributes", ".git") and len(text.encode()) < 200
    ),
    inside=st.sampled_from(["", "adapters", "new", ".cache"]),
    content=st.binary(max_size=8),
)
def test_a_file_added(signed: Path, name: str, inside: str, content: bytes) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = copied(signed, place)
        path = folder / inside / name
        if path.exists():
            return
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        expected = path.relative_to(folder).as_posix()
        assert [(fault.kind, fault.path) for fault in verify(folder).faults] == [("extra", expected)]


def test_an_empty_folder_and_a_name_that_is_no_text(bundle: Path) -> None:
    (bundle / "empty").mkdir()
    Path(os.fsdecode(os.fsencode(bundle) + b"/bad\xff")).write_bytes(b"")
    report = verify(bundle)
    assert {(fault.kind, fault.path) for fault in report.faults} == {("extra", "empty"), ("extra", "bad\\xff")}
    assert json.loads(report.model_dump_json())["faults"]


def test_links_are_faults_wherever_they_lead(bundle: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes((bundle / "model.gguf").read_bytes())
    (bundle / "model.gguf").unlink()
    (bundle / "model.gguf").symlink_to(outside)
    (bundle / "more").symlink_to(tmp_path)
    (bundle / "nowhere").symlink_to("not-there")
    found = {(fault.kind, fault.path) for fault in verify(bundle).faults}
    assert found == {("link", "model.gguf"), ("link", "more"), ("link", "nowhere")}


def test_what_a_hub_adds_is_left_aside_and_named(bundle: Path) -> None:
    (bundle / ".gitattributes").write_text("*.gguf filter=lfs\n", encoding="utf-8")
    (bundle / ".cache" / "huggingface").mkdir(parents=True)
    (bundle / ".cache" / "huggingface" / "x").touch()
    report = verify(bundle)
    assert report.is_whole
    assert report.left_aside == (".gitattributes", ".cache/huggingface")


@pytest.mark.parametrize("path", ["../outside", "/etc/passwd", "a/../b", "a//b", "bundle.json", "c:\\d", "a\nb", ""])
def test_a_manifest_that_leads_out_is_refused(bundle: Path, path: str) -> None:
    manifest = json.loads((bundle / "bundle.json").read_bytes())
    manifest["files"][0]["path"] = path
    manifest["files"].sort(key=lambda file: file["path"])
    rewrite(bundle / "bundle.json", canonical_json(manifest))
    (fault,) = verify(bundle).faults
    assert (fault.kind, fault.path) == ("manifest", "bundle.json")


def test_a_manifest_made_anew_over_changed_files_is_another_bundle(bundle: Path) -> None:
    digest = verify(bundle).bundle_sha256
    manifest = json.loads((bundle / "bundle.json").read_bytes())
    (number,) = (n for n, file in enumerate(manifest["files"]) if file["path"] == "Modelfile")
    rewrite(bundle / "Modelfile", "FROM ./other\n")
    manifest["files"][number] |= {"sha256": sha256_bytes(b"FROM ./other\n"), "num_bytes": len("FROM ./other\n")}
    rewrite(bundle / "bundle.json", canonical_json(manifest))
    report = verify(bundle, bundle_sha256=digest)
    assert {(fault.kind, fault.path) for fault in report.faults} == {
        ("lineage", "lineage.intoto.json"),
        ("name", "bundle.json"),
    }


def test_another_base_is_found(whole_bundle: Path) -> None:
    assert verify(whole_bundle, base_sha256=BASE_SHA256).is_whole
    (fault,) = verify(whole_bundle, base_sha256="9" * 64).faults
    assert (fault.kind, fault.path) == ("base", "lineage.intoto.json")


def test_documents_that_name_different_bases(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "bundle")
    facts = make_facts()
    other = facts.base.model_copy(update={"sha256": "8" * 64})
    add_bundle_files(folder, make_export(), facts.model_copy(update={"base": other}))
    (fault,) = verify(folder).faults
    assert (fault.kind, fault.path) == ("base", "plan.json")


@pytest.mark.parametrize(("named", "is_whole"), [("tiny", True), ("org/tiny", True), ("other", False), (None, False)])
def test_an_adapter_for_another_base(tmp_path: Path, named: str | None, is_whole: bool) -> None:
    folder = write_model(tmp_path / "bundle")
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": named}), encoding="utf-8")
    add_bundle_files(folder, make_export(), make_facts())
    report = verify(folder)
    assert report.is_whole is is_whole
    assert [(fault.kind, fault.path) for fault in report.faults] == [("base", "adapter_config.json")] * (not is_whole)


def test_no_folder_and_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no such folder"):
        verify(tmp_path / "not-there")
    (fault,) = verify(tmp_path).faults
    assert (fault.kind, fault.path) == ("missing", "bundle.json")


def test_a_folder_without_a_manifest_is_not_walked_through(tmp_path: Path) -> None:
    """It may be any folder, such as a user's home: of its links and files nothing is said."""
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "link").symlink_to(tmp_path)
    assert [(fault.kind, fault.path) for fault in verify(tmp_path).faults] == [("missing", "bundle.json")]


def test_manifests_are_read_strictly(whole_bundle: Path) -> None:
    content = (whole_bundle / "bundle.json").read_bytes()
    assert read_manifest(content).as_bytes() == content


def rewrite(path: Path, text: str) -> None:
    path.chmod(0o644)
    path.write_text(text, encoding="utf-8")
