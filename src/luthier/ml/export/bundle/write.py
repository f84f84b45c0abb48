"""Make a bundle of an export: write the documents next to its files, list every file, and make all read-only.

    facts, export --> plan.json, evaluation.json, parity.json, licence texts
                  --> sbom.cdx.json     what it is made of
                  --> README.md         the card
                  --> lineage.intoto.json   all files so far, and what they came from
                  --> bundle.json       all files; its digest is the bundle's name
                  --> model.sig         the signature, where there is an ECDSA key (OpenSSF Model Signing)
                  --> bundle.dsse.json  the same of an Ed25519 key

No document names folders of this machine.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any, Final

from luthier.core.errors import ConflictError, RequestError
from luthier.core.evaluation import Evaluation
from luthier.core.ids import sha256_bytes
from luthier.core.json_limits import json_utf8
from luthier.core.ports import Progress
from luthier.core.records.export import Export
from luthier.core.system.artifact_transfer import copy_local
from luthier.core.system.files import forbid_writing, replacing
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
# in a sentence: from the possible start of a path to its last slash
_FOLDERS: Final = re.compile(r"(?<![^\s'\"`(\[=])(?:~?/|\.\.?/|[A-Za-z]:\\)(?:[^\s'\"`,;:()\[\]]*[/\\])")


def without_folders(value: Any) -> Any:
    """The document with every path cut to its last part, alone or within a sentence."""
    if isinstance(value, dict):
        return {key: without_folders(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_folders(inner) for inner in value]
    if not isinstance(value, str):
        return value
    # The whole text is a path. With a blank in the last part it may be a sentence.
    if _ABSOLUTE.fullmatch(value) and " " not in last_part(value):
        return last_part(value)
    return _FOLDERS.sub("", value)


def last_part(path: str) -> str:
    """The name of a file or folder, for paths of any system."""
    return PureWindowsPath(PurePosixPath(path).name or path).name or path


def add_bundle_files(folder: Path, export: Export, facts: BundleFacts, *, signing_key: Path | None = None) -> Export:
    """Add the documents of a bundle to an export and make all files read-only. Returns the updated export.

    Folders stay writable, so that a bundle can be moved and removed like any other folder. Equal files, export and
    facts give equal bytes.

    Args:
        folder: the present folder of the files, before the rename; existing documents with these names are replaced.
        export: the record of the export.
        facts: the origin of the model.
        signing_key: a PEM file with a private key, ECDSA or Ed25519.

    Returns:
        The export with the names and digests of all files, and the bundle's digest.

    Raises:
        NotFoundError: the key file cannot be read; nothing is written.
        RequestError: the key cannot be used; nothing is written.
        WorkError: a file that a bundle cannot contain.
    """
    # First, so that a bad key leaves the folder unchanged.
    key = read_private_key(signing_key) if signing_key is not None else None
    for name in DOCUMENTS:  # a README of the base, or documents of an earlier attempt
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
    # Before the manifest: digests are taken of files that cannot change by accident any more.
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
    """Sign a complete bundle: all files with an ECDSA key, the manifest with an Ed25519 key.

    Signing again with the same key changes nothing.

    Returns:
        The key: `ecdsa:` and the digest of its public half, or `ed25519:` and the public key.

    Raises:
        NotFoundError: the folder or key does not exist.
        RequestError: the key cannot be used, or the bundle is incomplete.
        ConflictError: another key has signed, or the bundle has a file with the name of the signature.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = read_private_key(signing_key)
    # A signature over a damaged bundle would vouch for the damage.
    report = verify(folder, progress=progress)
    if not report.is_whole:
        raise RequestError(
            f"{folder} is not a complete bundle: {report.faults[0].path} {report.faults[0].what}",
            expected="an unchanged bundle",
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
            expected="an unsigned bundle, or this key",
            do=f"delete {name} there first, if that signature is no longer needed",
        )
    _put(folder / name, envelope, closed=True)
    return signer


def _signature(title: str, manifest: Manifest, content: bytes, key: PrivateKey) -> tuple[str, bytes]:
    """Name and content of the signature for a key of this type."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    if isinstance(key, Ed25519PrivateKey):
        return SIGNATURE, sign(content, key)
    files = {file.path: file.sha256 for file in manifest.files} | {MANIFEST: sha256_bytes(content)}
    return MODEL_SIGNATURE, sign_files(title, files, key)


def _without_folders(export: Export) -> Export:
    """The messages of exporter and parity check, with names in place of paths of this machine."""
    changed: dict[str, object] = {"warnings": tuple(without_folders(export.warnings))}
    reports = {name: getattr(export, name) for name in ("parity", "gguf_parity", "head_parity")}
    for name, parity in reports.items():
        if parity is not None:
            changed[name] = parity.model_copy(update={"reasons": tuple(without_folders(parity.reasons))})
    return export.model_copy(update=changed)


def _without_rows(evaluation: Evaluation) -> Evaluation:
    """Only the figures: samples contain held-out rows, which may be confidential."""
    bare = tuple(system.model_copy(update={"samples": ()}) for system in evaluation.systems)
    forgetting = evaluation.forgetting
    if forgetting is not None:
        others = tuple(system.model_copy(update={"samples": ()}) for system in forgetting.systems)
        forgetting = forgetting.model_copy(update={"systems": others})
    return evaluation.model_copy(update={"systems": bare, "forgetting": forgetting})


def _write(path: Path, document: Any) -> None:
    # `allow_nan=False`: NaN is not JSON, and other readers would fail on it.
    _put(path, json_utf8(document, indent=2, sort_keys=True, allow_nan=False) + b"\n")


def _put(path: Path, content: bytes, *, closed: bool = False) -> None:
    """Write a file whole or not at all; a closed one is never there with the right to write it."""
    with replacing(path) as file:
        file.write(content)
        if closed:
            forbid_writing(Path(file.name))


def _close(folder: Path) -> None:
    """Make every file read-only. A file with other hard links is first copied."""
    for file in make_manifest(folder).files:
        path = folder / file.path
        if path.stat().st_nlink > 1:  # a write through another hard link would change the bundle
            copy_local(path, path)
        forbid_writing(path)
