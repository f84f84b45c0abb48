"""What it means to push a bundle, wherever it goes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from luthier.core.digest import sha256_bytes, sha256_file
from luthier.core.errors import ConflictError, WorkError
from luthier.core.frozen_model import FrozenModel
from luthier.ml.export.bundle.manifest import MANIFEST, SIGNATURES, BundleFile, Manifest, read_manifest


class Pushed(FrozenModel):
    """Where a bundle is now, every file of it proved there.

    Attributes:
        url: the address, without credentials.
        bundle_sha256: digest of its manifest.
        num_files: files of the bundle, manifest and signatures included.
        num_sent: files that were not there before.
        num_bytes_sent: bytes of these.
    """

    url: str
    bundle_sha256: str
    num_files: int
    num_sent: int
    num_bytes_sent: int


@dataclass(frozen=True, slots=True)
class UploadPayload:
    """A bundle on this machine that is whole.

    Attributes:
        folder: where it lies.
        manifest: its manifest.
        content: the bytes of that.
        files: all files that are sent, the manifest last.
    """

    folder: Path
    manifest: Manifest
    content: bytes
    files: tuple[BundleFile, ...]


def load(folder: Path) -> UploadPayload:
    """What there is to send. The folder must have been verified."""
    content = (folder / MANIFEST).read_bytes()
    manifest = read_manifest(content)
    last = [BundleFile(path=MANIFEST, sha256=sha256_bytes(content), num_bytes=len(content))]
    for name in SIGNATURES:
        if name not in manifest.by_path and (path := folder / name).is_file():
            # Signatures before the manifest, which every target sends last.
            last.insert(0, BundleFile(path=name, sha256=sha256_file(path), num_bytes=path.stat().st_size))
    return UploadPayload(folder, manifest, content, (*manifest.files, *last))


def another_bundle(url: str, what: str) -> ConflictError:
    """The error for a place that holds something else."""
    return ConflictError(
        f"{url} {what}",
        expected="an empty place, or one that holds this very bundle: a bundle is never overwritten",
        do="push to another place (a folder named by the bundle's digest never collides), or empty that one yourself",
    )


def check_strangers(url: str, names: Iterable[str], payload: UploadPayload) -> None:
    """Check that a place holds files of this bundle only.

    Raises:
        ConflictError: it holds others.
    """
    strange = sorted(set(names) - {file.path for file in payload.files})
    if strange:
        more = f" and {len(strange) - 3} more" if len(strange) > 3 else ""
        raise another_bundle(url, f"holds files of something else: {', '.join(map(repr, strange[:3]))}{more}")


def not_proved(url: str, path: str, found: str) -> WorkError:
    """The error for a file that did not arrive as it was sent."""
    return WorkError(
        f"{path!r} at {url} is not what was sent: {found}",
        expected="the content that the manifest states",
        do="push again; if it stays, the place damages what it is given",
    )
