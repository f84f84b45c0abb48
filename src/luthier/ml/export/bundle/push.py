"""Push a bundle to a store that fsspec supports (s3://bucket/folder, gs://..., a folder), or to a model hub.

To a store:

  unfinished.json   holds the manifest during the upload: a repeated push continues with the same bundle only
  files             each read back and proved
  bundle.json       last, so that a place with one holds a whole bundle; then unfinished.json goes

To a hub with the Hugging Face API, in one commit. A repeated push does not send again what a killed one has sent, as
the hub knows large files by digest. The commit comes last, so that a repository has a whole bundle or none. HF_ENDPOINT
and HF_TOKEN are read at every call.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import httpx2
from fsspec.core import url_to_fs
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from luthier.core.errors import ConflictError, RequestError, StoppedError, WorkError, first_line
from luthier.core.frozen_model import FrozenModel
from luthier.core.ids import sha256_bytes, sha256_file
from luthier.core.ports import Progress, StopCheck
from luthier.core.system.artifact_transfer import copy_to, errors_explained
from luthier.core.system.extras import install_command
from luthier.core.system.files import git_id
from luthier.core.text.counted import counted
from luthier.ml.export.bundle.manifest import MANIFEST, SIGNATURES, BundleFile, Manifest, read_manifest
from luthier.ml.inference.models.hub import endpoint


class Pushed(FrozenModel):
    """The destination of a pushed bundle, every file of which was verified there.

    Attributes:
        url: the address, without credentials.
        bundle_sha256: digest of its manifest.
        num_files: files of the bundle, including manifest and signatures.
        num_sent: files that were not yet there.
        num_bytes_sent: bytes of the sent files.
    """

    url: str
    bundle_sha256: str
    num_files: int
    num_sent: int
    num_bytes_sent: int


@dataclass(frozen=True, slots=True)
class UploadPayload:
    """A complete bundle on this machine.

    Attributes:
        folder: the folder of the bundle.
        manifest: its manifest.
        content: the bytes of the manifest.
        files: all files to send, the manifest last.
    """

    folder: Path
    manifest: Manifest
    content: bytes
    files: tuple[BundleFile, ...]


def load(folder: Path) -> UploadPayload:
    """The payload of a folder, which must have been verified."""
    content = (folder / MANIFEST).read_bytes()
    manifest = read_manifest(content)
    last = [BundleFile(path=MANIFEST, sha256=sha256_bytes(content), num_bytes=len(content))]
    for name in SIGNATURES:
        if name not in manifest.by_path and (path := folder / name).is_file():
            # Signatures come before the manifest, which every target sends last.
            last.insert(0, BundleFile(path=name, sha256=sha256_file(path), num_bytes=path.stat().st_size))
    return UploadPayload(folder, manifest, content, (*manifest.files, *last))


def another_bundle(url: str, what: str) -> ConflictError:
    """The error for a destination with other content."""
    return ConflictError(
        f"{url} {what}",
        expected="an empty place, or one that contains exactly this bundle: a bundle is never overwritten",
        do="push to another place (a folder named by the bundle's digest never collides), or empty that one yourself",
    )


def check_strangers(url: str, names: Iterable[str], payload: UploadPayload) -> None:
    """Check that a destination has only files of this bundle.

    Raises:
        ConflictError: it has other files.
    """
    strange = sorted(set(names) - {file.path for file in payload.files})
    if strange:
        more = f" and {len(strange) - 3} more" if len(strange) > 3 else ""
        raise another_bundle(url, f"holds files of something else: {', '.join(map(repr, strange[:3]))}{more}")


def not_proved(url: str, path: str, found: str) -> WorkError:
    """The error for a file that did not arrive as sent."""
    return WorkError(
        f"{path!r} at {url} is not what was sent: {found}",
        expected="the content that the manifest states",
        do="push again; if it stays, the place damages what it is given",
    )


def check_goes_on(stop_requested: StopCheck) -> None:
    """Raise StoppedError where a push is to stop."""
    if (reason := stop_requested()) is not None:
        raise StoppedError(reason)


UNFINISHED: Final = "unfinished.json"
_READ_BYTES: Final = 8 << 20


def push_to_store(
    payload: UploadPayload, url: str, progress: Progress, *, stop_requested: StopCheck = lambda: None
) -> Pushed:
    """Send the missing files, verify all of them, and mark the bundle as complete.

    Args:
        payload: a verified bundle.
        url: any fsspec URL.
        progress: shows the bytes verified or sent.
        stop_requested: called before each file and each piece of one.

    Raises:
        RequestError: there is no driver for the URL.
        ConflictError: the destination has other content.
        WorkError: the store failed, or its content differs from what was sent.
        StoppedError: it was to stop; the next push continues.
    """
    shown = shown_url(url)
    files, root = _open(url, shown)
    place = _Place(files, root, shown, stop_requested)
    present = place.names()
    # The manifest goes last, so a place that has one was complete once. Files are still verified again.
    if MANIFEST in present:
        if place.read(MANIFEST) != payload.content:
            raise another_bundle(shown, f"holds another bundle than {payload.manifest.digest}")
    elif UNFINISHED in present:
        if place.read(UNFINISHED) != payload.content:
            raise another_bundle(shown, "holds a part of another bundle, whose push was not finished")
    elif present:
        raise another_bundle(shown, f"holds {counted(len(present), 'file')} and no manifest")
    check_strangers(shown, present - {UNFINISHED}, payload)
    num_sent = num_bytes_sent = 0
    check_goes_on(stop_requested)
    if MANIFEST not in present:
        # Written before the first file: from here on another bundle is refused.
        place.send(payload.folder / MANIFEST, UNFINISHED)
    total = sum(file.num_bytes for file in payload.files)
    with progress.task(f"Pushing to {shown}", total, "bytes") as task:
        for file in payload.files:
            check_goes_on(stop_requested)
            task.note(file.path)
            # Read back in full: sizes and etags of object stores are not digests (multipart uploads).
            found = place.digest(file.path) if file.path in present else None
            if file.path in SIGNATURES and found not in (None, file.sha256):
                raise another_bundle(shown, "holds this bundle with another signature")
            if found != file.sha256:
                place.send(payload.folder / file.path, file.path)
                place.prove(file)
                num_sent, num_bytes_sent = num_sent + 1, num_bytes_sent + file.num_bytes
            task.advance(file.num_bytes)
    # Removed after the manifest is written: a crash in between leaves both, and the next push cleans up.
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
    """The URL without user and password."""
    parts = urlsplit(url)
    if not parts.scheme or "@" not in parts.netloc:
        return url.rstrip("/")
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl().rstrip("/")


def _open(url: str, shown: str) -> tuple[Any, str]:
    try:
        # Caches would hide what this push has written.
        files, root = url_to_fs(url, use_listings_cache=False, skip_instance_cache=True)
    except ImportError as error:
        raise RequestError(
            f"the driver for {shown} is not installed",
            expected="Luthier installed with its driver for object storage",
            do=f"{install_command('s3')} for s3://, {install_command('gs')} for gs://, {install_command('azure')} for "
            "az://; for others the package that fsspec requires",
        ) from error
    except ValueError as error:
        raise RequestError(
            f"{shown} cannot be reached by any driver that is known",
            expected="hf://org/name, s3://bucket/folder, or another URL of fsspec",
            do="correct the URL",
        ) from error
    return files, str(root).rstrip("/")


class _Place:
    """A folder in an fsspec file system. Listings never come from a cache."""

    def __init__(self, files: Any, root: str, shown: str, stop_requested: StopCheck) -> None:
        self._files, self._root, self._shown, self._stop_requested = files, root, shown, stop_requested
        protocol = files.protocol
        self._is_local = "file" in ((protocol,) if isinstance(protocol, str) else protocol)

    def names(self) -> set[str]:
        """The files below it; empty without such a folder."""
        with errors_explained(self._shown, is_local=False):
            try:
                found = self._files.find(self._root)
            except FileNotFoundError:
                return set()
        # Drivers differ in whether names begin with a slash.
        prefix = self._root.lstrip("/") + "/"
        # An empty object `folder/`, as consoles of stores write it for a new folder, is no file.
        return {name.lstrip("/").removeprefix(prefix) for name in found if not name.endswith("/")}

    def read(self, name: str) -> bytes:
        """A small file."""
        with errors_explained(self._shown, is_local=False):
            return bytes(self._files.cat_file(self._at(name)))

    def send(self, source: Path, name: str) -> None:
        """Write a file, replacing an existing one."""
        if self._is_local:  # elsewhere there are no folders to make, and trying may create a bucket
            Path(self._at(name)).parent.mkdir(parents=True, exist_ok=True)
        copy_to(self._files, source, self._at(name), self._shown, stop_requested=self._stop_check(name))

    def digest(self, name: str) -> str:
        """SHA-256 of the content as read back now."""
        digest = hashlib.sha256()
        with errors_explained(self._shown, is_local=False), self._files.open(self._at(name), "rb") as file:
            while block := file.read(_READ_BYTES):
                check_goes_on(self._stop_check(name))
                digest.update(block)
        return digest.hexdigest()

    def prove(self, file: BundleFile) -> None:
        """Check that a file is there as sent.

        Raises:
            WorkError: its digest differs.
        """
        if (found := self.digest(file.path)) != file.sha256:
            raise not_proved(self._shown, file.path, f"its digest is {found}")

    def remove(self, name: str) -> None:
        """Delete a file."""
        with errors_explained(self._shown, is_local=False):
            self._files.rm_file(self._at(name))

    def _stop_check(self, name: str) -> StopCheck:
        # What says which bundle is there is written whole: a part of it would be taken for another bundle.
        return (lambda: None) if name in (MANIFEST, UNFINISHED) else self._stop_requested

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}"


SCHEME: Final = "hf://"
_ADDRESS: Final = re.compile(r"hf://(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?", re.ASCII)
_OF_THE_HUB: Final = (".gitattributes",)
_TIMEOUT_SECONDS: Final = 30.0


def push_to_hub(
    payload: UploadPayload,
    url: str,
    progress: Progress,
    *,
    is_public: bool = False,
    stop_requested: StopCheck = lambda: None,
) -> Pushed:
    """Create the repository if it is missing (private unless `is_public`), and commit the bundle to it.

    Args:
        payload: a verified bundle.
        url: `hf://org/name` or `hf://org/name@branch`.
        progress: shows the bytes sent.
        is_public: whether a repository created here is public.
        stop_requested: called before each file and before the commit.

    Raises:
        RequestError: the URL names no repository.
        ConflictError: the destination has other content.
        WorkError: the hub refused, failed, or has a file that differs from what was sent.
        StoppedError: it was to stop; nothing was committed.
    """
    # The pattern allows dots, so that `../..` would pass as a repository.
    match = _ADDRESS.fullmatch(url.rstrip("/"))
    if match is None or ".." in url:
        raise RequestError(
            f"the address {url!r} names no repository",
            expected="hf://org/name or hf://org/name@branch",
            do="write it as on the repository's page",
        )
    repo, revision = match["repo"], match["revision"] or "main"
    api = HfApi(endpoint=endpoint(), library_name="luthier")
    with _explained(repo):
        api.create_repo(repo, private=not is_public, exist_ok=True)
        if revision != "main":
            api.create_branch(repo, branch=revision, exist_ok=True)
        # Read before anything is sent: its commit is also the parent of ours.
        before = api.model_info(repo, revision=revision, files_metadata=True, timeout=_TIMEOUT_SECONDS)
    there = {sibling.rfilename: sibling for sibling in before.siblings or []}
    _check_free(payload, there, url)
    # Digests are compared, not names: an interrupted push continues where it ended.
    missing = [
        file for file in payload.files if file.path not in there or not _is_same(payload, file, there[file.path])
    ]
    if missing:
        additions = [CommitOperationAdd(file.path, str(payload.folder / file.path)) for file in missing]
        with _explained(repo), _quiet():
            _send(api, additions, repo, revision, progress, stop_requested)
            check_goes_on(stop_requested)
            # With `parent_commit` the hub refuses (412) if somebody has committed since then.
            said = f"Bundle {payload.manifest.digest}"
            api.create_commit(repo, additions, commit_message=said, revision=revision, parent_commit=before.sha)
        with _explained(repo):
            # Read back: a successful commit does not prove what the hub has stored.
            after = api.model_info(repo, revision=revision, files_metadata=True, timeout=_TIMEOUT_SECONDS)
        there = {sibling.rfilename: sibling for sibling in after.siblings or []}
    for file in payload.files:
        if file.path not in there:
            raise not_proved(url, file.path, "it is not there")
        if not _is_same(payload, file, there[file.path]):
            raise not_proved(url, file.path, "its digest is another")
    return Pushed(
        url=f"{endpoint()}/{repo}" + (f"/tree/{revision}" if revision != "main" else ""),
        bundle_sha256=payload.manifest.digest,
        num_files=len(payload.files),
        num_sent=len(missing),
        num_bytes_sent=sum(file.num_bytes for file in missing),
    )


def _check_free(payload: UploadPayload, there: dict[str, Any], url: str) -> None:
    own = {name: found for name, found in there.items() if name not in _OF_THE_HUB}
    if MANIFEST in own:
        # The manifest lists every file by digest, so it alone identifies a bundle.
        if not _is_same(payload, payload.files[-1], own[MANIFEST]):
            raise another_bundle(url, f"holds another bundle than {payload.manifest.digest}")
    elif own:
        raise another_bundle(url, f"holds {counted(len(own), 'file')} and no manifest")
    for signature in payload.files:
        is_there = signature.path in SIGNATURES and signature.path in own
        if is_there and not _is_same(payload, signature, own[signature.path]):
            raise another_bundle(url, "holds this bundle with another signature")
    check_strangers(url, own, payload)


def _send(
    api: HfApi,
    additions: list[CommitOperationAdd],
    repo: str,
    revision: str,
    progress: Progress,
    stop_requested: StopCheck,
) -> None:
    """Send the content of large files, one at a time, except those whose digest the hub already has."""
    total = sum(addition.upload_info.size for addition in additions)
    with progress.task(f"Pushing to {repo}", total, "bytes") as task:
        for addition in additions:
            check_goes_on(stop_requested)
            task.note(addition.path_in_repo)
            # One per call, so that progress advances file by file. `free_memory=False`: `create_commit` needs the
            # objects again.
            api.preupload_lfs_files(repo, [addition], revision=revision, free_memory=False)
            task.advance(addition.upload_info.size)


def _is_same(payload: UploadPayload, file: BundleFile, sibling: Any) -> bool:
    """Whether the hub's digest of a file equals ours: SHA-256 for large files, git's object id for small ones."""
    if sibling.lfs is not None:
        return bool(sibling.lfs.sha256 == file.sha256)
    return bool(sibling.size == file.num_bytes and sibling.blob_id == git_id(payload.folder / file.path))


@contextmanager
def _quiet() -> Iterator[None]:
    """Otherwise the client shows its own progress bars next to ours."""
    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


@contextmanager
def _explained(repo: str) -> Iterator[None]:
    """The Luthier error for a failure of the hub. It never contains a token."""
    try:
        yield
    except (httpx2.HTTPError, OfflineModeIsEnabled, OSError, ValueError, RuntimeError) as error:
        # Errors while sending a file come wrapped.
        # Only a RuntimeError is unwrapped: other errors' causes are details of the HTTP client.
        cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ is not None else error
        if isinstance(cause, HfHubHTTPError):
            raise _refused(repo, cause) from error
        reason = first_line(cause, "")
        raise WorkError(
            f"{repo} could not be pushed to {endpoint()}: {type(cause).__name__}: {reason}",
            expected="an answer from the hub",
            do="check the network (and HF_ENDPOINT, HF_HUB_OFFLINE, proxies), then push again: what arrived is kept",
        ) from error


def _refused(repo: str, error: HfHubHTTPError) -> WorkError:
    status = error.response.status_code if error.response is not None else 0
    reason = first_line(error.server_message or "", "no reason given")
    do = {
        401: "set HF_TOKEN to a token that may write",
        403: "set HF_TOKEN to a token that may write to this organisation",
        404: "check the name of the organisation, and that HF_TOKEN may see it",
        412: "somebody has committed meanwhile: look at the repository, then push again",
    }
    return WorkError(
        f"{endpoint()} refused {repo} with status {status}: {reason}",
        expected="a repository that may be written",
        do=do.get(status, "push again: what has arrived is not sent twice"),
    )
