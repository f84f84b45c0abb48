"""Why a hub gives a model to nobody, or not to this account, and how to get it: its refusals in Luthier's words."""

from __future__ import annotations

import os

from huggingface_hub import get_token
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

from luthier.core.errors import ModelSourceError, NotFoundError
from luthier.core.library_errors import first_line


def endpoint() -> str:
    """The hub's address: HF_ENDPOINT as it is now, or the public hub."""
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"


def explained(repo: str, revision: str, error: Exception, what: str = "") -> ModelSourceError | NotFoundError:
    """The error of a client of the hub in Luthier's words. It never contains a token.

    Args:
        repo: `org/name`.
        revision: as requested.
        error: of the client.
        what: what could not be fetched, where that is not `repo`.
    """
    hub = endpoint()
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if isinstance(error, GatedRepoError):
        return _gated(repo, hub)
    if isinstance(error, RevisionNotFoundError):
        return NotFoundError(
            f"{repo} on {hub} has no revision {revision!r}",
            expected="a branch, tag or commit of that repository",
            do=f"try hub:{repo}@main",
        )
    if isinstance(error, RepositoryNotFoundError):
        return NotFoundError(
            f"there is no model {repo!r} on {hub}, or it is private",
            expected="org/name as on the model's page",
            do=f"check the spelling; for a private model {_how_to_sign_in(hub)}",
        )
    if status in (401, 403) and get_token():
        return ModelSourceError(
            f"{hub} refuses {_token_name()} for {what or repo} (HTTP {status})",
            expected="a valid token that may read this repository",
            do=f"make a token with read access on {hub}/settings/tokens (a fine-grained one needs read access to gated "
            "repositories, too) and set HF_TOKEN to it; for a public model leave the token out",
        )
    if status in (401, 403):
        return ModelSourceError(
            f"{hub} gives {what or repo} to nobody without a token (HTTP {status})",
            expected="a repository that this machine may read",
            do=_how_to_sign_in(hub),
        )
    return ModelSourceError(
        f"{what or repo} could not be fetched from {hub}: {type(error).__name__}: {first_line(error, '')}",
        expected="an answer from the hub",
        do="check the network (and HF_ENDPOINT, HF_HUB_OFFLINE, proxies), then pull again: it goes on where it stopped",
    )


def _gated(repo: str, hub: str) -> ModelSourceError:
    if get_token():
        return ModelSourceError(
            f"{repo} on {hub} is gated, and the account of {_token_name()} may not read it",
            expected="an account that has accepted the model's terms, where its makers ask for that let in by them",
            do=f"open {hub}/{repo} with that account and accept the terms; where it says that the request is pending, "
            "wait for its makers; a fine-grained token needs read access to gated repositories, too",
        )
    return ModelSourceError(
        f"{repo} on {hub} is gated: its makers give it to accounts that have accepted its terms, and no token is set",
        expected="a token of such an account",
        do=f"accept the terms on {hub}/{repo}, {_how_to_sign_in(hub)}",
    )


def _how_to_sign_in(hub: str) -> str:
    return f"make a token with read access on {hub}/settings/tokens, set HF_TOKEN to it, and pull again"


def _token_name() -> str:
    """Where the token in use was found, never the token."""
    return "the token in HF_TOKEN" if os.environ.get("HF_TOKEN") else "the token that `hf auth login` has kept"
