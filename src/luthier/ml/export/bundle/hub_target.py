"""A bundle to a model repository of a hub that speaks the Hugging Face API, in one commit.

What a push that was killed has sent is not sent again: the hub knows large files by their digests. The commit comes
last, so that a repository holds a whole bundle or none. HF_ENDPOINT and HF_TOKEN are read at every call.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import httpx2
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from luthier.core.errors import RequestError, WorkError
from luthier.core.library_errors import first_line
from luthier.core.ports import Progress
from luthier.ml.export.bundle.manifest import MANIFEST, SIGNATURES, BundleFile
from luthier.ml.export.bundle.target import Pushed, UploadPayload, another_bundle, check_strangers, not_proved
from luthier.ml.inference.models.hub_access import endpoint

SCHEME: Final = "hf://"
_ADDRESS: Final = re.compile(r"hf://(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?", re.ASCII)
_OF_THE_HUB: Final = (".gitattributes",)
_TIMEOUT_SECONDS: Final = 30.0


def push_to_hub(payload: UploadPayload, url: str, progress: Progress, *, is_public: bool = False) -> Pushed:
    """Make the repository where it is not there (private, unless `is_public`), and commit the bundle to it.

    Args:
        payload: a bundle that was verified.
        url: `hf://org/name` or `hf://org/name@branch`.
        progress: shows the bytes that are sent.
        is_public: whether a repository that is made here is public.

    Raises:
        RequestError: the URL names no repository.
        ConflictError: something else is there.
        WorkError: the hub refused, failed, or holds another file than was sent.
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
        # Looked at before anything is sent: its commit is also what ours must follow.
        before = api.model_info(repo, revision=revision, files_metadata=True, timeout=_TIMEOUT_SECONDS)
    there = {sibling.rfilename: sibling for sibling in before.siblings or []}
    _check_free(payload, there, url)
    # Digests are compared, not names: a push that was cut off goes on where it ended.
    missing = [
        file for file in payload.files if file.path not in there or not _is_same(payload, file, there[file.path])
    ]
    if missing:
        additions = [CommitOperationAdd(file.path, str(payload.folder / file.path)) for file in missing]
        with _explained(repo), _quiet():
            _send(api, additions, repo, revision, progress)
            # `parent_commit` makes the hub refuse (412) if somebody has committed since we looked.
            said = f"Bundle {payload.manifest.digest}"
            api.create_commit(repo, additions, commit_message=said, revision=revision, parent_commit=before.sha)
        with _explained(repo):
            # Read back: a commit that succeeded is no proof of what the hub has stored.
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
        # The manifest names every file by digest, so it alone tells one bundle from another.
        if not _is_same(payload, payload.files[-1], own[MANIFEST]):
            raise another_bundle(url, f"holds another bundle than {payload.manifest.digest}")
    elif own:
        raise another_bundle(url, f"holds {len(own):,} files and no manifest")
    for signature in payload.files:
        is_there = signature.path in SIGNATURES and signature.path in own
        if is_there and not _is_same(payload, signature, own[signature.path]):
            raise another_bundle(url, "holds this bundle with another signature")
    check_strangers(url, own, payload)


def _send(api: HfApi, additions: list[CommitOperationAdd], repo: str, revision: str, progress: Progress) -> None:
    """Send the content of large files, one by one; what the hub has by its digest is not sent again."""
    total = sum(addition.upload_info.size for addition in additions)
    with progress.task(f"Pushing to {repo}", total, "bytes") as task:
        for addition in additions:
            task.note(addition.path_in_repo)
            # One a call, so that progress moves file by file. `free_memory=False`: `create_commit` needs the objects
            # again.
            api.preupload_lfs_files(repo, [addition], revision=revision, free_memory=False)
            task.advance(addition.upload_info.size)


def _is_same(payload: UploadPayload, file: BundleFile, sibling: Any) -> bool:
    """Whether the hub's own digest of a file is that of ours: SHA-256 of large ones, git's object id of small ones."""
    if sibling.lfs is not None:
        return bool(sibling.lfs.sha256 == file.sha256)
    return bool(sibling.size == file.num_bytes and sibling.blob_id == _git_id(payload.folder / file.path))


def _git_id(path: Path) -> str:
    # Git's object id: SHA-1 over "blob", the size and the content. No security rests on it here.
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(8 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def _quiet() -> Iterator[None]:
    """The client shows bars of its own otherwise, beside ours."""
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
    """An error in Luthier's words for a failure of the hub; it never contains a token."""
    try:
        yield
    except (httpx2.HTTPError, OfflineModeIsEnabled, OSError, ValueError, RuntimeError) as error:
        # What goes wrong while a file is sent comes wrapped.
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
