"""Tokens that open the files of a saved adapter for an hour, in the memory of the server."""

from __future__ import annotations

import secrets
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from luthier.core.errors import NotFoundError

_KEEP_SECONDS: Final = 3600.0


@dataclass(frozen=True, slots=True)
class Download:
    """What a token opens.

    Attributes:
        folder: Of the adapter.
        base_name: The name of its base model, for people.
        expires_at: Seconds since 1970.
    """

    folder: Path
    base_name: str
    expires_at: float


@dataclass(slots=True)
class DownloadTokens:
    """The tokens of addresses, in the memory of this process. Thread-safe."""

    _known: dict[str, Download] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, folder: Path, base_name: str) -> tuple[str, float]:
        """A new token for a folder, and when it expires, seconds since 1970."""
        with self._lock:
            now = time.time()
            self._known = {token: one for token, one in self._known.items() if one.expires_at > now}
            token = secrets.token_urlsafe(32)
            self._known[token] = Download(folder, base_name, now + _KEEP_SECONDS)
            return token, now + _KEEP_SECONDS

    def find(self, token: str) -> Download:
        """What a token opens.

        Raises:
            NotFoundError: It has expired, or was never made by this process.
        """
        with self._lock:
            found = self._known.get(token)
        if found is None or found.expires_at <= time.time():
            raise NotFoundError(
                "an address that has expired, or that this server has not made",
                expected=f"one that was asked for in the last {_KEEP_SECONDS:g} s, since the server was started",
                do="ask for it again: get_external_weights_urls(path)",
            )
        return found
