"""Downloads from a hub with the Hugging Face API, and explanations of its errors; HF_ENDPOINT is read at every call.

Only safetensors, JSON, jinja, the tokenizer and the licence texts are fetched, never pickles or code. Every file is
verified against the digest that the hub reports (SHA-256 for large files, git's object id for small ones); a file
without one is rejected. Small files come first, so that a config that requires code is detected before any weights.
Files are written as `NAME.part` first; an interrupted download resumes, also in another process.

If a hub denies access, the error explains why and how to get it.
"""

from __future__ import annotations

import fnmatch
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Literal

import httpx2
from huggingface_hub import HfApi, get_token, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

from luthier.core.errors import (
    DataSourceError,
    LuthierError,
    ModelSourceError,
    NotFoundError,
    StorageFullError,
    first_line,
)
from luthier.core.ids import sha256_file
from luthier.core.ports import Progress
from luthier.core.system.download import Opened, RemoteFile, RemoteSource
from luthier.core.system.download import download as download_file
from luthier.core.system.files import git_id, replace_file, sync
from luthier.ml.inference.models.architecture import TEMPLATES_FOLDER, TOKENIZER_FILES
from luthier.ml.inference.models.weights import no_safetensors


def endpoint() -> str:
    """The hub's address: the current HF_ENDPOINT, or the public hub."""
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"


RepositoryKind = Literal["model", "dataset"]
_FAILED: Final[dict[RepositoryKind, type[ModelSourceError] | type[DataSourceError]]] = {
    "model": ModelSourceError,
    "dataset": DataSourceError,
}


def explained(
    repo: str, revision: str, error: Exception, what: str = "", kind: RepositoryKind = "model"
) -> ModelSourceError | DataSourceError | NotFoundError:
    """Convert an error of the hub's client to a Luthier error. It never contains a token.

    Args:
        repo: `org/name`.
        revision: as requested.
        error: of the client.
        what: the item that could not be fetched, if it is not `repo`.
        kind: what the repository holds.
    """
    hub = endpoint()
    failed = _FAILED[kind]
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if isinstance(error, GatedRepoError):
        return _gated(repo, hub, kind)
    if isinstance(error, RevisionNotFoundError):
        return NotFoundError(
            f"{repo} on {hub} has no revision {revision!r}",
            expected="a branch, tag or commit of that repository",
            do=f"try hub:{repo}@main",
        )
    if isinstance(error, RepositoryNotFoundError):
        return NotFoundError(
            f"there is no {kind} {repo!r} on {hub}, or it is private",
            expected=f"org/name as on the {kind}'s page",
            do=f"check the spelling; for a private {kind} {_how_to_sign_in(hub)}",
        )
    if status in (401, 403) and get_token():
        return failed(
            f"{hub} refuses {_token_name()} for {what or repo} (HTTP {status})",
            expected="a valid token that may read this repository",
            do=f"create a token with read access on {hub}/settings/tokens (a fine-grained one needs read access to "
            "gated "
            f"repositories, too) and set HF_TOKEN to it; for a public {kind} leave the token out",
        )
    if status in (401, 403):
        return failed(
            f"{hub} gives {what or repo} only with a token (HTTP {status})",
            expected="a repository that this machine may read",
            do=_how_to_sign_in(hub),
        )
    return failed(
        f"{what or repo} could not be fetched from {hub}: {type(error).__name__}: {first_line(error, '')}",
        expected="an answer from the hub",
        do="check the network (and HF_ENDPOINT, HF_HUB_OFFLINE, proxies), then try again: it resumes",
    )


def _gated(repo: str, hub: str, kind: RepositoryKind) -> ModelSourceError | DataSourceError:
    failed = _FAILED[kind]
    page = f"{hub}/{'datasets/' if kind == 'dataset' else ''}{repo}"
    if get_token():
        return failed(
            f"{repo} on {hub} is gated, and the account of {_token_name()} may not read it",
            expected=f"an account that has accepted the {kind}'s terms, where its makers ask for that let in by them",
            do=f"open {page} with that account and accept the terms; where it says that the request is pending, "
            "wait for its makers; a fine-grained token needs read access to gated repositories, too",
        )
    return failed(
        f"{repo} on {hub} is gated: its makers give it to accounts that have accepted its terms, and no token is set",
        expected="a token of such an account",
        do=f"accept the terms on {page}, {_how_to_sign_in(hub)}",
    )


def _how_to_sign_in(hub: str) -> str:
    return f"create a token with read access on {hub}/settings/tokens, set HF_TOKEN to it, and try again"


def _token_name() -> str:
    """Where the token in use comes from; never the token itself."""
    return "the token in HF_TOKEN" if os.environ.get("HF_TOKEN") else "the token that `hf auth login` has kept"


_WANTED = (
    "*.safetensors", "*.json", "*.jinja", *TOKENIZER_FILES, "LICENSE*", "LICENCE*", "NOTICE*", "README.md",
)  # fmt: skip
# Files of these folders are read by transformers, or say how a published embedding model makes its vectors.
_WANTED_INSIDE = {TEMPLATES_FOLDER: "*.jinja", "1_Pooling": "config.json"}
_CODE = ("*.py", "*.so", "*.dll")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_. ()+=-]{0,199}")
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_TIMEOUT_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class RemoteModel:
    """A repository at one commit.

    Attributes:
        repo: `org/name`.
        commit: the commit that the revision resolves to.
        licence: as stated in its card, or "not stated".
        files: the files to fetch, smallest first.
        never_fetched: its code and pickle files.
    """

    repo: str
    commit: str
    licence: str
    files: tuple[RemoteFile, ...]
    never_fetched: tuple[str, ...] = ()


def look_up(repo: str, revision: str) -> RemoteModel:
    """Resolve a revision to a commit and list what to fetch.

    Raises:
        NotFoundError: no such repository or revision, or it is private.
        ModelSourceError: gated, offline, no answer, or without safetensors.
    """
    try:
        info = HfApi(endpoint=endpoint()).model_info(
            repo, revision=revision, files_metadata=True, timeout=_TIMEOUT_SECONDS
        )
    except (httpx2.HTTPError, OfflineModeIsEnabled, OSError, ValueError) as error:
        raise explained(repo, revision, error) from error
    if info.sha is None or not _COMMIT.fullmatch(info.sha):  # it becomes a folder name
        raise ModelSourceError(
            f"{endpoint()} states {str(info.sha)[:100]!r} as the commit of {repo}",
            expected="the id of a commit: 40 or 64 hexadecimal digits",
            do="use a hub or mirror that speaks the whole API (HF_ENDPOINT)",
        )
    # A commit identifies its content: a hub that returns another one is broken or hostile.
    if _COMMIT.fullmatch(revision) and info.sha != revision:
        raise ModelSourceError(
            f"{endpoint()} states {info.sha} as the commit of {repo}@{revision}",
            expected="exactly the requested commit",
            do="use a hub or mirror that keeps commits (HF_ENDPOINT)",
        )
    siblings = {sibling.rfilename: sibling for sibling in info.siblings or []}
    weights = _weight_names(repo, list(siblings))
    files = []
    for name, sibling in siblings.items():
        wanted = _is_wanted(name)
        if not wanted or (name.endswith(".safetensors") and name not in weights):
            continue
        sha256 = sibling.lfs.sha256 if sibling.lfs else None
        if sibling.size is None or not (sha256 or sibling.blob_id):
            raise ModelSourceError(
                f"{endpoint()} states no {'size' if sibling.size is None else 'digest'} for {name} of {repo}",
                expected="size and digest of every file",
                do="use a hub or mirror that speaks the whole API (HF_ENDPOINT)",
            )
        url = hf_hub_url(repo, name, revision=info.sha, endpoint=endpoint())
        blob_id = None if sha256 else sibling.blob_id
        files.append(RemoteFile(name, sibling.size, partial(open_at, url), sha256, blob_id))
    licence = (info.card_data.get("license") if info.card_data else None) or "not stated"
    never = sorted(name for name in siblings if any(fnmatch.fnmatch(name, pattern) for pattern in (*_CODE, *_PICKLES)))
    # Small ones first: the config before any weights.
    by_size = tuple(sorted(files, key=lambda file: file.num_bytes or 0))
    return RemoteModel(repo, info.sha, str(licence), by_size, tuple(never))


def download(model: RemoteModel, folder: Path, progress: Progress) -> None:
    """Fetch all files of a model into a folder; existing complete or partial files are not fetched again.

    An existing file is first compared with the hub's digest, and fetched again if it differs.

    Raises:
        ModelSourceError: the connection failed permanently (received data is kept), or a file has the wrong digest (it
            is deleted). StorageFullError: the disk has no room for the remaining files; nothing is fetched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _remove_damaged(model, folder)
    source = RemoteSource(
        model.commit,
        model.files,
        partial(_explained_download, model),
        is_passing,
        repo=model.repo,
        failed=ModelSourceError,
    )
    total = source.num_bytes or 0
    present = sum(_present_bytes(folder, file) for file in model.files)
    if total - present > (free := shutil.disk_usage(folder).free):
        raise StorageFullError(
            f"{model.repo} has {total - present:,} bytes left to download, the disk of {folder} has {free:,} bytes "
            "left",
            expected="room for the whole model",
            do="free some space, pass --home on a larger disk, or choose a smaller model",
        )
    with progress.task(f"Downloading {model.repo}", total, "bytes", done=present) as task:
        for file in model.files:
            if not (folder / file.name).is_file():
                task.note(file.name)
                part = folder / f"{file.name}.part"
                part.parent.mkdir(exist_ok=True)
                download_file(source, file, part, task)
                # The content is on the disk before its name, and its name before the next file: a power loss leaves a
                # `.part` file.
                replace_file(part, folder / file.name)
                sync(part.parent)


def _is_wanted(name: str) -> bool:
    """Whether a file of a repository is fetched, by its name alone."""
    folder, _, own = name.rpartition("/")
    patterns = (_WANTED_INSIDE[folder],) if folder in _WANTED_INSIDE else () if folder else _WANTED
    return _NAME.fullmatch(own) is not None and any(fnmatch.fnmatch(own, pattern) for pattern in patterns)


def _weight_names(repo: str, names: list[str]) -> set[str]:
    """The safetensors files that transformers would load, without second copies of the weights."""
    at_top = [name for name in names if "/" not in name]
    if "model.safetensors" in at_top:
        return {"model.safetensors"}
    shards = {name for name in at_top if fnmatch.fnmatch(name, "model-*-of-*.safetensors")}
    if shards and "model.safetensors.index.json" in at_top:
        return shards
    raise no_safetensors(
        f"{repo} on {endpoint()}", sorted(n for n in at_top if any(fnmatch.fnmatch(n, p) for p in _PICKLES))
    )


def _explained_download(model: RemoteModel, error: Exception, what: str) -> LuthierError | None:
    """The error of a connection for people; None for one that has another cause, such as the disk."""
    if not isinstance(error, httpx2.HTTPError | HfHubHTTPError | OfflineModeIsEnabled):
        return None
    return explained(model.repo, model.commit, error, what)


@contextmanager
def open_at(url: str, start: int) -> Iterator[Opened]:
    """Open a file of the hub from a byte on, or from its beginning where the server knows no ranges."""
    # No compression: ranges and sizes refer to the stored file.
    headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    with get_session().stream("GET", url, headers=headers, timeout=_TIMEOUT_SECONDS, follow_redirects=True) as response:
        hf_raise_for_status(response)
        is_rest = response.status_code == httpx2.codes.PARTIAL_CONTENT
        yield Opened(start if is_rest else 0, response.iter_bytes())


def _digest(file: RemoteFile, path: Path) -> str:
    """The digest of the file at a path, of the kind that the hub reports for it."""
    return sha256_file(path) if file.sha256 else git_id(path)


def _remove_damaged(model: RemoteModel, folder: Path) -> None:
    """Delete files of an earlier pull whose digest differs from the hub's: a bad disk or a power loss changed them.

    An existing name proves nothing, and the model's manifest would record the damaged bytes.
    """
    for file in model.files:
        path = folder / file.name
        if path.is_file() and _digest(file, path) != (file.sha256 or file.git_id):
            path.unlink()


def _present_bytes(folder: Path, file: RemoteFile) -> int:
    if (folder / file.name).is_file():
        return file.num_bytes or 0
    part = folder / f"{file.name}.part"
    return part.stat().st_size if part.is_file() else 0


def is_passing(error: Exception) -> bool:
    """Whether a retry may help: broken connections and busy servers, not refusals."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in (408, 429, 500, 502, 503, 504)
    return isinstance(error, httpx2.TransportError)
