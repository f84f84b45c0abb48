"""The manifest of a bundle: every file with its digest and size. Its own digest names the bundle.

`bundle.json` is canonical JSON (RFC 8785: keys sorted, no spaces, UTF-8), so that equal files give equal bytes and
`sha256sum bundle.json` prints the bundle's digest.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final, Literal

from pydantic import ValidationError

from luthier.core.errors import WorkError
from luthier.core.frozen_model import FrozenModel
from luthier.core.ids import canonical_json, sha256_bytes, sha256_file

CARD: Final = "README.md"
PLAN, EVALUATION, PARITY = "plan.json", "evaluation.json", "parity.json"
GGUF_PARITY = "parity-gguf.json"
SBOM, LINEAGE = "sbom.cdx.json", "lineage.intoto.json"
MANIFEST, SIGNATURE, MODEL_SIGNATURE = "bundle.json", "bundle.dsse.json", "model.sig"
SIGNATURES: Final = (SIGNATURE, MODEL_SIGNATURE)
"""Signatures: Ed25519 over the manifest; ECDSA over all files in the format of OpenSSF Model Signing."""
DOCUMENTS: Final = (CARD, PLAN, EVALUATION, PARITY, GGUF_PARITY, SBOM, LINEAGE, MANIFEST, *SIGNATURES)
"""Files that a bundle adds to an export, in addition to the licence texts of the base."""
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


class BundleFile(FrozenModel):
    """One file of a bundle.

    Attributes:
        num_bytes: size of the file.
        path: path below the bundle's folder, with slashes.
        sha256: digest of its content, hexadecimal.
    """

    num_bytes: int
    path: str
    sha256: str


class Manifest(FrozenModel):
    """Every file of a bundle except the manifest itself and its signatures.

    Attributes:
        files: sorted by path.
        format: version of this document.
    """

    files: tuple[BundleFile, ...]
    format: Literal[1] = 1

    def as_bytes(self) -> bytes:
        """The canonical document. Equal files give equal bytes."""
        # Keys are ASCII and there are no fractions, so plain canonical JSON equals that of RFC 8785.
        return canonical_json(self.model_dump(mode="json")).encode()

    @property
    def digest(self) -> str:
        """The name of the bundle: SHA-256 of the document."""
        return sha256_bytes(self.as_bytes())

    @property
    def by_path(self) -> dict[str, BundleFile]:
        """The files by their paths."""
        return {file.path: file for file in self.files}


class ManifestError(Exception):
    """An invalid manifest. The text gives the reason as the end of a sentence."""


def read_manifest(content: bytes) -> Manifest:
    """The manifest from its bytes.

    Raises:
        ManifestError: anything that `Manifest.as_bytes` would not write.
    """
    try:
        manifest = Manifest.model_validate_json(content, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the document"
        raise ManifestError(f"cannot be understood: {place}: {first['msg']}") from error
    # Write it again and compare: two documents with the same files must not have different digests.
    if manifest.as_bytes() != content:
        raise ManifestError("is not in canonical form")
    paths = [file.path for file in manifest.files]
    if paths != sorted(set(paths)):
        raise ManifestError("names files out of order or more than once")
    for file in manifest.files:
        # A manifest may be untrusted, and its paths are joined to a folder later.
        if not is_safe(file.path) or file.path in (MANIFEST, SIGNATURE):
            raise ManifestError(f"names {file.path!r}, which no bundle may")
        if not _SHA256.fullmatch(file.sha256) or file.num_bytes < 0:
            raise ManifestError(f"states an impossible digest or size for {file.path!r}")
    return manifest


def is_safe(path: str) -> bool:
    """Whether a path stays below its folder on every system and displays unchanged."""
    parts = path.split("/")
    # `:` is a drive or a stream on Windows. Control and direction characters can make a path display as another one.
    return path.isprintable() and not any(part in ("", ".", "..") or "\\" in part or ":" in part for part in parts)


def make_manifest(folder: Path) -> Manifest:
    """Make the manifest of a folder's files, without an existing manifest and signatures.

    Raises:
        WorkError: the folder has links, sockets or names that are invalid on other systems.
    """
    files = []
    # Sorted by the path as text, as `read_manifest` requires; `Path` would sort by parts.
    for path in sorted(walk(folder), key=lambda one: one.relative_to(folder).as_posix()):
        name = path.relative_to(folder).as_posix()
        if name in (MANIFEST, *SIGNATURES):
            continue
        if path.is_symlink() or not path.is_file() or not is_safe(name):
            raise WorkError(
                f"a bundle cannot hold {name!r}",
                expected="plain files, with names that every system can have",
                do="export again; if it stays, this is a fault of the exporter",
            )
        files.append(BundleFile(path=name, sha256=sha256_file(path), num_bytes=path.stat().st_size))
    return Manifest(files=tuple(files))


def walk(folder: Path) -> list[Path]:
    """Everything below a folder except folders. Links are not followed; empty folders are included."""
    found = []
    for place, folders, names in os.walk(folder):
        here = Path(place)
        found += [here / name for name in names]
        # `os.walk` lists links to folders as folders and does not enter them.
        found += [here / name for name in folders if (here / name).is_symlink()]
        # Listed so that it is refused: a manifest cannot name an empty folder.
        if not names and not folders and here != folder:
            found.append(here)
    return found
