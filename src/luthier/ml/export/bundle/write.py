"""Make a bundle of an export: its documents written beside its files, then every file named and closed to writing.

    facts, export --> plan.json, evaluation.json, parity.json, licence texts
                  --> sbom.cdx.json     what it is made of
                  --> README.md         the card
                  --> lineage.intoto.json   all files so far, and what they came from
                  --> bundle.json       all files; its digest is the bundle's name
                  --> model.sig         the signature, where there is an ECDSA key (OpenSSF Model Signing)
                  --> bundle.dsse.json  the same of an Ed25519 key

No document names folders of the machine that it was made on.
"""

from __future__ import annotations

import re
import stat
import uuid
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any, Final

from luthier.core.errors import ConflictError, RequestError
from luthier.core.evaluation import Evaluation
from luthier.core.ids import sha256_bytes
from luthier.core.json_limits import json_utf8
from luthier.core.ports import Progress
from luthier.core.records.export import Export
from luthier.core.system.artifact_transfer import copy_local
from luthier.core.system.files import sync, sync_file
from luthier.ml.export.bundle.card import card_text
from luthier.ml.export.bundle.facts import BundleFacts
from luthier.ml.export.bundle.manifest import (
    CARD,
    DOCUMENTS,
    EVALUATION,
    GGUF_PARITY,
    LINEAGE,
    MANIFEST,
    MODEL_SIGNATURE,
    PARITY,
    PLAN,
    SBOM,
    SIGNATURE,
    Manifest,
    make_manifest,
    read_manifest,
)
from luthier.ml.export.bundle.provenance import lineage, sbom
from luthier.ml.export.bundle.signature import key_id, model_key_id, read_private_key, sign, sign_files
from luthier.ml.export.bundle.verify import verify

if TYPE_CHECKING:
    from luthier.ml.export.bundle.signature import PrivateKey

_ABSOLUTE: Final = re.compile(r"(?:~|/|\.\.?/|[A-Za-z]:[\\/])[^\n]*")
# in a sentence: from where a path may begin to its last slash
_FOLDERS: Final = re.compile(r"(?<![^\s'\"`(\[=])(?:~?/|\.\.?/|[A-Za-z]:\\)(?:[^\s'\"`,;:()\[\]]*[/\\])")


def without_folders(value: Any) -> Any:
    """A document in which every path is its last part, alone or inside a sentence."""
    if isinstance(value, dict):
        return {key: without_folders(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_folders(inner) for inner in value]
    if not isinstance(value, str):
        return value
    # A text that is a path as a whole; one with a blank in its last part may be a sentence.
    if _ABSOLUTE.fullmatch(value) and " " not in last_part(value):
        return last_part(value)
    return _FOLDERS.sub("", value)


def last_part(path: str) -> str:
    """The name of a file or folder, whichever system the path is of."""
    return PureWindowsPath(PurePosixPath(path).name or path).name or path


_NOT_WRITING: Final = ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH)


def add_bundle_files(folder: Path, export: Export, facts: BundleFacts, *, signing_key: Path | None = None) -> Export:
    """Add a bundle's documents to the files of an export, and make all of them read-only; returns the updated export.

    Folders stay writable, so that a bundle can be moved and removed as any other folder. The same files, export and
    facts give the same bytes.

    Args:
        folder: where the files are now, before the rename; documents of these names that are there are replaced.
        export: the record of the export.
        facts: where it comes from.
        signing_key: a PEM file with a private key, ECDSA or Ed25519.

    Returns:
        The export with the names and digests of all files, and the bundle's digest.

    Raises:
        NotFoundError: the key file cannot be read; nothing is written then.
        RequestError: the key cannot be used; nothing is written then.
        WorkError: a file that no bundle can hold.
    """
    # First, so that a bad key leaves the folder as it was.
    key = read_private_key(signing_key) if signing_key is not None else None
    for name in DOCUMENTS:  # a README of the base, or those of an attempt before
        (folder / name).unlink(missing_ok=True)
    if facts.run is not None:
        _write(folder / PLAN, facts.run.plan.model_dump(mode="json"))
    if facts.evaluation is not None:
        _write(folder / EVALUATION, _without_rows(facts.evaluation).model_dump(mode="json"))
    told = _without_folders(export)
    for name, parity in ((PARITY, told.parity or told.head_parity), (GGUF_PARITY, told.gguf_parity)):
        if parity is not None:
            _write(folder / name, parity.model_dump(mode="json"))
    for name, text in facts.base.licence_texts.items():
        if not (folder / name).exists():
            _put(folder / name, text.encode())
    # In this order: each document lists, by digest, the files that were written before it.
    _write(folder / SBOM, sbom(told, facts, make_manifest(folder)))
    _put(folder / CARD, card_text(told, facts, make_manifest(folder)).encode())
    _write(folder / LINEAGE, lineage(told, facts, make_manifest(folder)))
    # Before the manifest: digests are taken of files that nobody can change by accident any more.
    _close(folder)
    manifest = make_manifest(folder)
    content = manifest.as_bytes()
    _put(folder / MANIFEST, content, closed=True)
    files = {file.path: file.sha256 for file in manifest.files} | {MANIFEST: sha256_bytes(content)}
    num_bytes = sum(file.num_bytes for file in manifest.files) + len(content)
    if key is not None:
        name, envelope = _signature(facts.title, manifest, content, key)
        _put(folder / name, envelope, closed=True)
        files[name] = sha256_bytes(envelope)
        num_bytes += len(envelope)
    return export.model_copy(update={"files": files, "num_bytes": num_bytes, "bundle_sha256": manifest.digest})


def add_signature(folder: Path, signing_key: Path, progress: Progress | None = None) -> str:
    """Sign a bundle that is whole: all its files with an ECDSA key, its manifest with an Ed25519 key.

    Signing again with the same key changes nothing.

    Returns:
        The key: `ecdsa:` and the digest of its public half, or `ed25519:` and the public key.

    Raises:
        NotFoundError: there is no such folder or key.
        RequestError: the key cannot be used, or the bundle is not whole.
        ConflictError: another key has signed, or the bundle has a file of the signature's name.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = read_private_key(signing_key)
    # A signature over a damaged bundle would vouch for the damage.
    report = verify(folder, progress=progress)
    if not report.is_whole:
        raise RequestError(
            f"{folder} is no whole bundle: {report.faults[0].path} {report.faults[0].what}",
            expected="a bundle as it was made",
            do="see all faults with `luthier verify`, and export again",
        )
    content = (folder / MANIFEST).read_bytes()
    manifest = read_manifest(content)
    name, envelope = _signature(folder.resolve().name, manifest, content, key)
    if name in manifest.by_path:
        raise ConflictError(
            f"{folder} has a file {name}, which its manifest names",
            expected="a bundle without one, since the signature is called so",
            do="sign it with an Ed25519 key, or export again",
        )
    if isinstance(key, Ed25519PrivateKey):
        signer, other = key_id(key.public_key()), report.signed_by
    else:
        signer, other = model_key_id(key.public_key()), report.unchecked_signer
    if other is not None and other != signer:
        raise ConflictError(
            f"{folder} is signed by {other}",
            expected="a bundle that nobody has signed, or this key",
            do=f"delete {name} there first, where that signature is not wanted any more",
        )
    _put(folder / name, envelope, closed=True)
    return signer


def _signature(title: str, manifest: Manifest, content: bytes, key: PrivateKey) -> tuple[str, bytes]:
    """Name and content of the signature that is made with a key of this kind."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    if isinstance(key, Ed25519PrivateKey):
        return SIGNATURE, sign(content, key)
    files = {file.path: file.sha256 for file in manifest.files} | {MANIFEST: sha256_bytes(content)}
    return MODEL_SIGNATURE, sign_files(title, files, key)


def _without_folders(export: Export) -> Export:
    """What exporter and proof have said, with names where paths of this machine stood."""
    changed: dict[str, object] = {"warnings": tuple(without_folders(export.warnings))}
    reports = {name: getattr(export, name) for name in ("parity", "gguf_parity", "head_parity")}
    for name, parity in reports.items():
        if parity is not None:
            changed[name] = parity.model_copy(update={"reasons": tuple(without_folders(parity.reasons))})
    return export.model_copy(update=changed)


def _without_rows(evaluation: Evaluation) -> Evaluation:
    """The figures alone: samples hold held-out rows, which may be confidential."""
    bare = tuple(system.model_copy(update={"samples": ()}) for system in evaluation.systems)
    forgetting = evaluation.forgetting
    if forgetting is not None:
        others = tuple(system.model_copy(update={"samples": ()}) for system in forgetting.systems)
        forgetting = forgetting.model_copy(update={"systems": others})
    return evaluation.model_copy(update={"systems": bare, "forgetting": forgetting})


def _write(path: Path, document: Any) -> None:
    # `allow_nan=False`: NaN is no JSON, and readers elsewhere would fail on it.
    _put(path, json_utf8(document, indent=2, sort_keys=True, allow_nan=False) + b"\n")


def _put(path: Path, content: bytes, *, closed: bool = False) -> None:
    """Write a file beside its place, flush it to the disk and rename it there, which is flushed too."""
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with partial.open("xb") as file:
            file.write(content)
            # The content is on the disk before the name points to it: a crash leaves the old file or the new one.
            sync_file(file)
        if closed:
            partial.chmod(partial.stat().st_mode & _NOT_WRITING)
        partial.replace(path)
        # The rename is an entry of the folder; without this fsync it may be lost with the power.
        sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def _close(folder: Path) -> None:
    """Take away the right to write from every file. One that has other names elsewhere becomes a file of its own."""
    for file in make_manifest(folder).files:
        path = folder / file.path
        if path.stat().st_nlink > 1:  # a write through the other name would change the bundle
            own = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
            try:
                copy_local(path, own)
                own.replace(path)
                sync(path.parent)
            finally:
                own.unlink(missing_ok=True)
        path.chmod(path.stat().st_mode & _NOT_WRITING)
