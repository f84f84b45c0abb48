"""The newest check of each base model, by the digest of its weights, for the page of the model.

A file of the cache: it may be deleted at any time, and the model is checked again.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from luthier.core.system.files import replace_text
from luthier.features.model_checks.service import ModelCheck
from luthier.platform.home.context import Context


@dataclass(frozen=True, slots=True)
class StoredCheck:
    """A check that was made before.

    Attributes:
        check: Its result.
        at: When it ended, in seconds since 1970.
    """

    check: ModelCheck
    at: float


def store_check(context: Context, sha256: str, found: ModelCheck) -> None:
    """Store a check in the place of an earlier one.

    Args:
        context: The home.
        sha256: Of the weights that were checked.
        found: The check.

    Raises:
        StorageFullError: The disk is full.
    """
    path = _place(context, sha256)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, found.model_dump_json())


def stored_check(context: Context, sha256: str) -> StoredCheck | None:
    """The newest check of these weights; None where there is none that can be read."""
    path = _place(context, sha256)
    try:
        return StoredCheck(ModelCheck.model_validate_json(path.read_bytes()), path.stat().st_mtime)
    except (OSError, ValidationError):
        return None


def _place(context: Context, sha256: str) -> Path:
    return context.home / "cache" / "model_checks" / f"{sha256}.json"
