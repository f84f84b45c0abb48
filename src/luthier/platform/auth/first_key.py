"""The first key of a home: given by the environment, shown on a terminal, or kept in a file of its owner alone.

What a service writes to stdout ends in a journal that others read and that is kept for long, so a key that was made is
not written there unless a person or a program asked for it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from luthier.core.system.files import disk_full_explained, replace_file, sync_file
from luthier.platform.auth.service import first_key
from luthier.platform.home.context import Context

GIVEN_KEY: Final = "LUTHIER_ADMIN_KEY"
"""The variable with the first key; it matters only while there is no key at all."""
KEY_FILE: Final = "admin-key"
"""The file of the home with the first key, where it was not shown."""


@dataclass(frozen=True, slots=True)
class FirstKey:
    """A key that was made just now.

    Attributes:
        key: The key, to be shown this once; None where it is in a file.
        file: The file that holds it; None where it is to be shown.
    """

    key: str | None = None
    file: Path | None = None


def take_given_key() -> str | None:
    """The first key of the environment, which is taken out of it: no process that this one starts gets it."""
    return os.environ.pop(GIVEN_KEY, "").strip() or None


def make_first_key(context: Context, *, is_shown: bool) -> FirstKey | None:
    """Make a random first key where there is no key at all; None where there is one.

    Args:
        context: The home.
        is_shown: Whether the caller shows it to the person or program that asked for it; else it goes into a file.

    Raises:
        WorkError: The disk is full.
    """
    if is_shown:
        key = first_key(context)
        return None if key is None else FirstKey(key)
    place = context.home / KEY_FILE
    # Both or neither: a key that is in no file cannot be seen again.
    with context.database.transaction():
        key = first_key(context)
        if key is None:
            return None
        with disk_full_explained(place):
            _write(place, key)
    return FirstKey(file=place)


def _write(place: Path, key: str) -> None:
    partial = place.with_name(f".{place.name}")
    partial.unlink(missing_ok=True)
    # Made with this mode, and never there with another one.
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(f"{key}\n")
        sync_file(file)
    replace_file(partial, place)
