"""Verify that a bundle is unchanged. Every fault is reported, and nothing in the folder is trusted."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from luthier.core.errors import NotFoundError
from luthier.core.frozen_model import FrozenModel
from luthier.core.ids import sha256_bytes, sha256_file
from luthier.core.ports import Progress, SilentProgress
from luthier.ml.export.bundle.manifest import (
    CARD,
    LINEAGE,
    MANIFEST,
    MODEL_SIGNATURE,
    PLAN,
    SBOM,
    SIGNATURE,
    SIGNATURES,
    BundleFile,
    Manifest,
    ManifestError,
    read_manifest,
    walk,
)
from luthier.ml.export.bundle.provenance import (
    BASE_ROLE,
    PREDICATE_TYPE,
    STATEMENT_TYPE,
    WEIGHTS_DIGEST,
    dependency,
)
from luthier.ml.export.bundle.signature import SignatureError, check, check_files, read_public_key

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

    from luthier.ml.export.bundle.signature import PublicKey, Signer

FaultKind = Literal["missing", "changed", "extra", "link", "manifest", "lineage", "base", "signature", "name"]
_UNSIGNED: Final = "is missing: this is not signed"
ADAPTER: Final = "adapter_config.json"
_MOST_MANIFEST_BYTES: Final = 64 << 20
# Files that a hub and git add to a copy; no runtime reads them.
_OF_THE_HUB: Final = (".gitattributes", ".git", ".cache/huggingface")


class Fault(FrozenModel):
    """One difference from the original bundle.

    Attributes:
        kind: kind of the fault.
        path: path below the folder.
        what: the rest of a sentence that begins with the path.
    """

    kind: FaultKind
    path: str
    what: str


class VerifyReport(FrozenModel):
    """The result of a verification.

    Attributes:
        folder: the verified folder.
        bundle_sha256: the bundle digest from the present manifest; None without a manifest.
        num_files, num_bytes: totals of the manifest.
        faults: the differences.
        signed_by: the key with a valid signature, `ed25519:` and the public key or `ecdsa:` and a digest of it.
        is_signer_proved: whether that is the given key.
        unchecked_signer: the key that `model.sig` names, if no public key was given to check it.
        base_name, base_sha256: the base model that the lineage names.
        left_aside: files added by a hub or git, which were not checked.
    """

    folder: str
    bundle_sha256: str | None
    num_files: int
    num_bytes: int
    faults: tuple[Fault, ...]
    signed_by: str | None = None
    is_signer_proved: bool = False
    unchecked_signer: str | None = None
    base_name: str | None = None
    base_sha256: str | None = None
    left_aside: tuple[str, ...] = ()

    @property
    def is_whole(self) -> bool:
        """Whether there is no fault."""
        return not self.faults


def verify(
    folder: Path,
    *,
    key: Path | None = None,
    bundle_sha256: str | None = None,
    base_sha256: str | None = None,
    progress: Progress | None = None,
) -> VerifyReport:
    """Compare every file of a bundle with its manifest, and its documents with each other.

    Args:
        folder: folder of the bundle.
        key: a PEM file with the public key of the required signer (ECDSA on P-256, P-384 or P-521, or Ed25519).
        bundle_sha256: the required digest of the manifest.
        base_sha256: the digest of the base model to be used with it.
        progress: shows the bytes read.

    Raises:
        NotFoundError: the folder or key file does not exist.
        RequestError: the key cannot be used.
    """
    if not folder.is_dir():
        raise NotFoundError(f"{folder}: no such folder", expected="the folder of a bundle", do="check the path")
    # Read first: an unusable key must fail before gigabytes are read.
    public = read_public_key(key) if key is not None else None
    no_manifest = Fault(kind="missing", path=MANIFEST, what="is missing: this is not a complete bundle")
    if not os.path.lexists(folder / MANIFEST):
        # It may be any folder, such as the current one or a user's home: it is not walked through.
        return VerifyReport(folder=str(folder), bundle_sha256=None, num_files=0, num_bytes=0, faults=(no_manifest,))
    names, faults = _present(folder)
    aside = {name for name in names if _is_of_the_hub(name)}
    content = _small_file(folder / MANIFEST)
    manifest: Manifest | None = None
    if content is None:
        faults.append(no_manifest)
    else:
        try:
            manifest = read_manifest(content)
        except ManifestError as error:
            faults.append(Fault(kind="manifest", path=MANIFEST, what=str(error)))
    stated: dict[str, Any] = {}
    if manifest is not None and content is not None:
        faults += _compare(folder, manifest, names, aside, progress or SilentProgress())
        found, stated = _documents(folder, manifest)
        faults += found
        if bundle_sha256 is not None and manifest.digest != bundle_sha256:
            what = f"has digest {manifest.digest}: this is another bundle than the requested {bundle_sha256}"
            faults.append(Fault(kind="name", path=MANIFEST, what=what))
    if base_sha256 is not None and stated.get("sha256") not in (None, base_sha256):
        what = f"names a base with digest {stated['sha256']}; the given one has {base_sha256}"
        faults.append(Fault(kind="base", path=LINEAGE, what=what))
    wrong, signed_by, unchecked = _signatures(folder, names, content, manifest, public)
    faults += wrong
    return VerifyReport(
        folder=str(folder),
        bundle_sha256=sha256_bytes(content) if content is not None and manifest is not None else None,
        num_files=len(manifest.files) if manifest is not None else 0,
        num_bytes=sum(file.num_bytes for file in manifest.files) if manifest is not None else 0,
        faults=tuple(faults),
        signed_by=signed_by,
        is_signer_proved=signed_by is not None and public is not None,
        unchecked_signer=unchecked,
        base_name=stated.get("name"),
        base_sha256=stated.get("sha256"),
        left_aside=tuple(one for one in _OF_THE_HUB if any(_is_in(name, one) for name in aside)),
    )


def _signatures(
    folder: Path, names: set[str], content: bytes | None, manifest: Manifest | None, public: PublicKey | None
) -> tuple[list[Fault], str | None, str | None]:
    """Faults of the signatures, the key with a valid signature, and the key that could not be checked."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    ed25519 = public if isinstance(public, Ed25519PublicKey) else None
    ecdsa = None if isinstance(public, Ed25519PublicKey) else public
    faults: list[Fault] = []
    signed_by = unchecked = None
    envelope = _small_file(folder / SIGNATURE)
    try:
        if envelope is not None:
            signed_by = check(envelope, content or b"", ed25519)
        # A requested signature that is missing is a fault, and so is one that cannot be read as a file.
        elif ed25519 is not None or SIGNATURE in names:
            raise SignatureError(_UNSIGNED)
    except SignatureError as error:
        faults.append(Fault(kind="signature", path=SIGNATURE, what=str(error)))
    try:
        signer = _model_signer(folder, names, content, manifest, envelope, ecdsa)
    except SignatureError as error:
        signer = None
        faults.append(Fault(kind="signature", path=MODEL_SIGNATURE, what=str(error)))
    if signer is not None and not signer.is_checked:
        unchecked = signer.key_id
    if ecdsa is not None:  # this key was required: a signature by another does not count
        signed_by = signer.key_id if signer is not None else None
    return faults, signed_by, unchecked


def _model_signer(
    folder: Path,
    names: set[str],
    content: bytes | None,
    manifest: Manifest | None,
    envelope: bytes | None,
    key: EllipticCurvePublicKey | None,
) -> Signer | None:
    """The signer of `model.sig`; None if there is none and none is required.

    Raises:
        SignatureError: the signature is missing though required, damaged, of another key, or of other content.
    """
    if manifest is None or content is None:
        if key is not None:
            raise SignatureError("cannot be checked without a manifest")
        return None
    if MODEL_SIGNATURE in manifest.by_path:  # a file of the export, from before bundles had such a signature
        if key is not None:
            raise SignatureError("is a file of the bundle, which this key has not signed")
        return None
    # It may cover `bundle.dsse.json` too if that existed first, but need not.
    signature = _small_file(folder / MODEL_SIGNATURE)
    if signature is None:
        if key is not None or MODEL_SIGNATURE in names:
            raise SignatureError(_UNSIGNED)
        return None
    files = {file.path: file.sha256 for file in manifest.files} | {MANIFEST: sha256_bytes(content)}
    return check_files(signature, files, {} if envelope is None else {SIGNATURE: sha256_bytes(envelope)}, key)


def _present(folder: Path) -> tuple[set[str], list[Fault]]:
    """The paths of the existing files, and a fault for each link."""
    names, faults = set(), []
    for path in walk(folder):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            what = f"is a link, to {str(path.readlink())!r}: a bundle has none"
            faults.append(Fault(kind="link", path=_shown(name), what=what))
        names.add(name)
    return names, faults


def _is_of_the_hub(name: str) -> bool:
    return any(_is_in(name, one) for one in _OF_THE_HUB)


def _is_in(name: str, place: str) -> bool:
    return name == place or name.startswith(f"{place}/")


def _compare(folder: Path, manifest: Manifest, names: set[str], aside: set[str], progress: Progress) -> Iterator[Fault]:
    # Links are already reported and are not followed: they may point outside the folder.
    links = {name for name in names if (folder / name).is_symlink()}
    total = sum(file.num_bytes for file in manifest.files)
    with progress.task("Verifying", total, "bytes") as task:
        for file in manifest.files:
            if file.path not in names:
                yield Fault(kind="missing", path=file.path, what="is missing")
            elif file.path not in links and (what := _difference(folder / file.path, file)) is not None:
                yield Fault(kind="changed", path=file.path, what=what)
            task.advance(file.num_bytes)
    for name in sorted(names - links - aside - manifest.by_path.keys() - {MANIFEST, *SIGNATURES}):
        yield Fault(kind="extra", path=_shown(name), what="is not part of the bundle")


def _shown(name: str) -> str:
    """A name with bytes that are not UTF-8 as `\\xNN`."""
    # File names are bytes that need not be UTF-8, but a report must be.
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _difference(path: Path, file: BundleFile) -> str | None:
    try:
        # `lstat` before any open: opening a pipe would block, and a link would be followed.
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode):
            return "is not a regular file"
        if status.st_size != file.num_bytes:
            return f"has {status.st_size:,} bytes instead of {file.num_bytes:,}"
        digest = sha256_file(path)
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    return None if digest == file.sha256 else f"has digest {digest} instead of {file.sha256}"


def _small_file(path: Path) -> bytes | None:
    """The content of a plain file; None if it is missing or far too long for its purpose."""
    try:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > _MOST_MANIFEST_BYTES:
            return None
        return path.read_bytes()
    except OSError:
        return None


def _documents(folder: Path, manifest: Manifest) -> tuple[list[Fault], dict[str, Any]]:
    """Faults in the documents, and the base model that they name."""
    faults = [
        Fault(kind="missing", path=name, what="is not in the manifest: a bundle has one")
        for name in (CARD, LINEAGE, SBOM)
        if name not in manifest.by_path
    ]
    try:
        statement = json.loads(_small_file(folder / LINEAGE) or b"")
        base = dependency(statement, BASE_ROLE)
        stated = {"name": base["name"], "sha256": base["digest"][WEIGHTS_DIGEST], "uri": base.get("uri", "")}
        subjects = {one["name"]: one["digest"]["sha256"] for one in statement["subject"]}
        kinds = (statement["_type"], statement["predicateType"])
    except (ValueError, KeyError, TypeError) as error:
        what = f"cannot be understood ({type(error).__name__})"
        return [*faults, Fault(kind="lineage", path=LINEAGE, what=what)], {}
    if kinds != (STATEMENT_TYPE, PREDICATE_TYPE):
        faults.append(Fault(kind="lineage", path=LINEAGE, what=f"is of another kind: {kinds}"))
    # The lineage cannot contain its own digest. Every other file of the manifest existed before it.
    expected = {file.path: file.sha256 for file in manifest.files if file.path != LINEAGE}
    for name in sorted(subjects.keys() | expected.keys()):
        if subjects.get(name) != expected.get(name):
            what = f"is about another {name!r} than the manifest"
            faults.append(Fault(kind="lineage", path=LINEAGE, what=what))
    return [*faults, *_other_bases(folder, manifest, stated)], stated


def _other_bases(folder: Path, manifest: Manifest, stated: dict[str, Any]) -> Iterator[Fault]:
    """Documents that name another base model than the lineage: an adapter on another base is another model."""
    found: dict[str, Any] = {}
    try:
        if PLAN in manifest.by_path:
            found[PLAN] = json.loads(_small_file(folder / PLAN) or b"")["base_model"]["sha256"]
        if SBOM in manifest.by_path:
            parts = json.loads(_small_file(folder / SBOM) or b"")["components"]
            properties = next(part["properties"] for part in parts if part["bom-ref"] == "base-model")
            found[SBOM] = next(one["value"] for one in properties if one["name"] == f"luthier:{WEIGHTS_DIGEST}")
    except (ValueError, KeyError, TypeError, StopIteration) as error:
        yield Fault(kind="base", path=SBOM, what=f"or {PLAN} cannot be understood ({type(error).__name__})")
    if ADAPTER in manifest.by_path and (named := _base_of_adapter(folder / ADAPTER)) not in _names(stated):
        yield Fault(kind="base", path=ADAPTER, what=f"is for the base {named!r}, lineage for {stated['name']!r}")
    for path, sha256 in found.items():
        if sha256 != stated["sha256"]:
            yield Fault(kind="base", path=path, what=f"names a base with digest {sha256}, lineage {stated['sha256']}")


def _base_of_adapter(path: Path) -> Any:
    """The base that PEFT loads for an adapter; None if the file does not state it."""
    try:
        document = json.loads(_small_file(path) or b"")
    except ValueError:
        return None
    return document.get("base_model_name_or_path") if isinstance(document, dict) else None


def _names(stated: dict[str, Any]) -> set[str]:
    """The names of the base: its own, and that of its hub repository."""
    repository = str(stated["name"]).removeprefix("hub:").partition("@")[0]
    return {str(stated["name"]), repository, str(stated["uri"]).removeprefix("pkg:huggingface/").partition("@")[0]}
