"""What is shown once after a form: a new key, the links of raters. A form redirects, so that a reload makes no second.

The values wait in memory, for the session that made them, and are gone soon after they were shown: nothing of a secret
is written to disk or put into an address. The address carries a random name of the place where they wait.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from fastapi import Request

from luthier.platform.auth.service import digest_of
from luthier.platform.ui.visitor import COOKIE

PARAMETER: Final = "shown"
UNSEEN_SECONDS: Final = 600.0
"""So long the values wait to be shown."""
SEEN_SECONDS: Final = 60.0
"""So long they are shown again after the first time: a second click of a double click may follow the redirect, too."""
_MAX_WAITING: Final = 1000


@dataclass(slots=True)
class _Waiting:
    owner: str
    values: Mapping[str, Any]
    until: float
    is_seen: bool = False


class ShownOnce:
    """The values of all sessions of this process. Methods may be called by any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._waiting: OrderedDict[str, _Waiting] = OrderedDict()

    def put(self, request: Request, address: str, values: Mapping[str, Any]) -> str:
        """Keep values for the page at an address; returns the address that shows them to this session alone."""
        name, now = secrets.token_urlsafe(16), self._clock()
        with self._lock:
            self._forget(now)
            self._waiting[name] = _Waiting(_owner(request), dict(values), now + UNSEEN_SECONDS)
            # The oldest go first: memory stays bounded whoever sends forms.
            while len(self._waiting) > _MAX_WAITING:
                self._waiting.popitem(last=False)
        return f"{address}{'&' if '?' in address else '?'}{PARAMETER}={name}"

    def take(self, request: Request) -> dict[str, Any]:
        """The values that the address of a request names, and whether they are gone (`is_shown_before`)."""
        name = request.query_params.get(PARAMETER, "")
        if not name:
            return {"is_shown_before": False}
        now = self._clock()
        with self._lock:
            self._forget(now)
            found = self._waiting.get(name)
            # An address that was passed on shows nothing in another browser.
            if found is None or found.owner != _owner(request):
                return {"is_shown_before": True}
            # The time starts with the first view and is not prolonged by reloading.
            if not found.is_seen:
                found.is_seen, found.until = True, now + SEEN_SECONDS
            return {**found.values, "is_shown_before": False}

    def _forget(self, now: float) -> None:
        for name in [name for name, one in self._waiting.items() if one.until < now]:
            del self._waiting[name]


def shown_once(request: Request) -> ShownOnce:
    """Of the app."""
    found: ShownOnce = request.app.state.shown_once
    return found


def _owner(request: Request) -> str:
    return digest_of(request.cookies.get(COOKIE, ""))
