"""Whether who started long work may still do it: a job outlives the request, and the key that came with it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

from luthier.core.access import Caller, Scope
from luthier.core.errors import NotAllowedError, NotFoundError
from luthier.platform.auth.members_store import SCOPES_OF
from luthier.platform.home.context import Context

REMEMBERED_SECONDS: Final = 1.0


class AccessCheck:
    """Checks key or member before each unit of work; the database is read once a second at most. Thread-safe.

    Args:
        context: The home.
        caller: Who started the work; a person at this machine may always continue.
        scope: What the work needs.
        clock: Seconds, never set back.
    """

    def __init__(
        self, context: Context, caller: Caller, scope: Scope, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._context, self._caller, self._scope, self._clock = context, caller, scope, clock
        self._lock, self._checked_at = threading.Lock(), float("-inf")

    def require(self) -> None:
        """Return where the work may continue.

        Raises:
            NotAllowedError: The key was revoked or has expired, the member is gone, or either has lost the scope.
        """
        if (refusal := self.refusal()) is not None:
            raise refusal

    def refusal(self) -> NotAllowedError | None:
        """The error of `require`; None where the work may continue."""
        with self._lock:
            if self._clock() - self._checked_at < REMEMBERED_SECONDS:
                return None
            if (reason := self._reason()) is not None:
                return NotAllowedError(
                    f"{reason}, so the work that was started with it cannot continue",
                    expected=f"a key or a member with the scope {self._scope}, for as long as the work lasts",
                    do="start it again with another key; the results so far are kept",
                )
            self._checked_at = self._clock()
            return None

    def _reason(self) -> str | None:
        caller = self._caller
        if caller.key_id is not None:
            key, now = self._context.access.key_by_id(caller.key_id)
            if key is None or key.project_id != caller.project_id:
                return f"the key {caller.name!r} ({caller.key_id}) is gone"
            if key.revoked_at is not None:
                return f"the key {key.name!r} ({key.key_id}) was revoked"
            if key.expires_at is not None and key.expires_at <= now:
                return f"the key {key.name!r} ({key.key_id}) has expired"
            may = Caller(scopes=key.scopes).may(self._scope)
            return None if may else f"the key {key.name!r} ({key.key_id}) has lost the scope {self._scope}"
        if caller.member_id is not None:
            try:
                member = self._context.members.get(caller.project_id, caller.member_id)
            except NotFoundError:
                return f"the member {caller.name!r} was removed from the project"
            may = Caller(scopes=SCOPES_OF[member.role]).may(self._scope)
            return None if may else f"the member {member.name!r} has lost the scope {self._scope}"
        return None
