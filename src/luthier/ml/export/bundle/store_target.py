"""A bundle to any place that fsspec knows: s3://bucket/folder, gs://..., a folder.

unfinished.json   holds the manifest while files are on their way: who comes again goes on with the same bundle only
files             each read back and proved
bundle.json       last, so that a place with one holds a whole bundle; then unfinished.json goes
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from fsspec.core import url_to_fs

from luthier.core.errors import RequestError
from luthier.core.ports import Progress
from luthier.core.system.artifact_transfer import copy_to, errors_explained
from luthier.ml.export.bundle.manifest import MANIFEST, SIGNATURES, BundleFile
from luthier.ml.export.bundle.target import Pushed, UploadPayload, another_bundle, check_strangers, not_proved

UNFINISHED: Final = "unfinished.json"
_READ_BYTES: Final = 8 << 20


def push_to_store(payload: UploadPayload, url: str, progress: Progress) -> Pushed:
    """Send what is not there yet, prove all of it, and say that it is whole.

    Args:
        payload: a bundle that was verified.
        url: any URL of fsspec.
        progress: shows the bytes that are proved or sent.

    Raises:
        RequestError: there is no driver for the URL.
        ConflictError: something else is there.
        WorkError: the store failed, or what it holds is not what was sent.
    """
    shown = shown_url(url)
    files, root = _open(url, shown)
    place = _Place(files, root, shown)
    present = place.names()
    # The manifest goes last, so a place that has one was whole once: files are proved again, not trusted.
    if MANIFEST in present:
        if place.read(MANIFEST) != payload.content:
            raise another_bundle(shown, f"holds another bundle than {payload.manifest.digest}")
    elif UNFINISHED in present:
        if place.read(UNFINISHED) != payload.content:
            raise another_bundle(shown, "holds a part of another bundle, whose push was not finished")
    elif present:
        raise another_bundle(shown, f"holds {len(present):,} files and no manifest")
    check_strangers(shown, present - {UNFINISHED}, payload)
    num_sent = num_bytes_sent = 0
    if MANIFEST not in present:
        # Before the first file: from here on another bundle is refused.
        place.send(payload.folder / MANIFEST, UNFINISHED)
    total = sum(file.num_bytes for file in payload.files)
    with progress.task(f"Pushing to {shown}", total, "bytes") as task:
        for file in payload.files:
            task.note(file.path)
            # Read back in full: sizes and etags of object stores are no digests (multipart uploads).
            found = place.digest(file.path) if file.path in present else None
            if file.path in SIGNATURES and found not in (None, file.sha256):
                raise another_bundle(shown, "holds this bundle with another signature")
            if found != file.sha256:
                place.send(payload.folder / file.path, file.path)
                place.prove(file)
                num_sent, num_bytes_sent = num_sent + 1, num_bytes_sent + file.num_bytes
            task.advance(file.num_bytes)
    # After the manifest: a crash in between leaves both, which the next push cleans up.
    if UNFINISHED in place.names():
        place.remove(UNFINISHED)
    return Pushed(
        url=shown,
        bundle_sha256=payload.manifest.digest,
        num_files=len(payload.files),
        num_sent=num_sent,
        num_bytes_sent=num_bytes_sent,
    )


def shown_url(url: str) -> str:
    """The URL without a user and a password."""
    parts = urlsplit(url)
    if not parts.scheme or "@" not in parts.netloc:
        return url.rstrip("/")
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl().rstrip("/")


def _open(url: str, shown: str) -> tuple[Any, str]:
    try:
        # Caches would hide what this very push has written.
        files, root = url_to_fs(url, use_listings_cache=False, skip_instance_cache=True)
    except ImportError as error:
        raise RequestError(
            f"the driver for {shown} is not installed",
            expected="Luthier installed with its driver for object storage",
            do="pip install 'luthier[s3]' for s3://; for others the package that fsspec asks for",
        ) from error
    except ValueError as error:
        raise RequestError(
            f"{shown} cannot be reached by any driver that is known",
            expected="hf://org/name, s3://bucket/folder, or another URL of fsspec",
            do="correct the URL",
        ) from error
    return files, str(root).rstrip("/")


class _Place:
    """A folder in a file system of fsspec. Nothing is listed from a cache."""

    def __init__(self, files: Any, root: str, shown: str) -> None:
        self._files, self._root, self._shown = files, root, shown
        protocol = files.protocol
        self._is_local = "file" in ((protocol,) if isinstance(protocol, str) else protocol)

    def names(self) -> set[str]:
        """The files below it; none where there is no such folder."""
        with errors_explained(self._shown, is_local=False):
            try:
                found = self._files.find(self._root)
            except FileNotFoundError:
                return set()
        # Drivers differ in whether names begin with a slash.
        prefix = self._root.lstrip("/") + "/"
        return {name.lstrip("/").removeprefix(prefix) for name in found}

    def read(self, name: str) -> bytes:
        """A small file."""
        with errors_explained(self._shown, is_local=False):
            return bytes(self._files.cat_file(self._at(name)))

    def send(self, source: Path, name: str) -> None:
        """Write a file, replacing one that is there."""
        if self._is_local:  # elsewhere there are no folders to make, and asking for one may make a bucket
            Path(self._at(name)).parent.mkdir(parents=True, exist_ok=True)
        copy_to(self._files, source, self._at(name), self._shown)

    def digest(self, name: str) -> str:
        """SHA-256 of what the place gives back now."""
        digest = hashlib.sha256()
        with errors_explained(self._shown, is_local=False), self._files.open(self._at(name), "rb") as file:
            while block := file.read(_READ_BYTES):
                digest.update(block)
        return digest.hexdigest()

    def prove(self, file: BundleFile) -> None:
        """Check that a file is there as it was sent.

        Raises:
            WorkError: its digest is another.
        """
        if (found := self.digest(file.path)) != file.sha256:
            raise not_proved(self._shown, file.path, f"its digest is {found}")

    def remove(self, name: str) -> None:
        """Delete a file."""
        with errors_explained(self._shown, is_local=False):
            self._files.rm_file(self._at(name))

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}"
