"""`Idempotency-Key`: a repeated request is not carried out again, but gets the response of the first one.

Failures are not kept: a request that was refused has changed nothing, and may be corrected and sent with the same key.

The first to insert the row does the work. A row without an answer that is older than `TAKE_OVER_SECONDS` belongs to a
process that died at it: the next request takes it over, and the time in the row, which changes by that, is what rejects
the first one's late answer. One that is from the future was made before the clock was set back, and is taken over at
once: a server knows by itself what it is working on.
"""

from __future__ import annotations

import hashlib
import logging
import math
import threading
import time
from collections.abc import Callable
from typing import Any, Final, Literal

from fastapi import Request
from fastapi.encoders import jsonable_encoder
from fastapi.responses import JSONResponse, Response
from sqlalchemy import ColumnElement, delete, insert, select, update

from luthier.core.access import Caller
from luthier.core.errors import LuthierError
from luthier.core.frozen_model import FrozenModel
from luthier.core.system.clock_jump import SLACK_SECONDS
from luthier.platform.db.store import Store
from luthier.platform.db.tables import idempotency_keys as table
from luthier.platform.home.context import Context
from luthier.platform.http.errors import ApiError

KEPT_SECONDS: Final = 24 * 3600.0
TAKE_OVER_SECONDS: Final = 60.0
"""Longer than any work that is done behind such a key may take."""


class IdempotencyDecision(FrozenModel):
    """What a request with an idempotency key has to do.

    Attributes:
        kind: "work": it is the first, does the work and then calls `finish` or `forget`. "replay": it gets the stored
            answer. "wait": the first is still at work. "other": the key was used with another request before.
        ticket: Of "work": the time of the row, which proves that the row is still its own.
        status: Of "replay": the HTTP status of the first answer.
        answer: Of "replay": the body of the first answer.
        seconds: Of "wait": seconds until the row can be taken over.
    """

    kind: Literal["work", "replay", "wait", "other"]
    ticket: float = 0.0
    status: int = 0
    answer: str = ""
    seconds: float = 0.0


class IdempotencyStore(Store):
    """The idempotency keys of one database."""

    def begin(self, project_id: str, key: str, request_sha256: str) -> IdempotencyDecision:
        """Ask whose turn it is."""
        with self._write() as connection:
            now = self._database.clock(connection)
            is_it = _is(project_id, key)
            row = connection.execute(select(table).where(is_it)).mappings().first()
            mine = IdempotencyDecision(kind="work", ticket=now)
            if row is None:
                values = {"project_id": project_id, "key": key, "request_sha256": request_sha256, "created_at": now}
                connection.execute(insert(table).values(**values))
                return mine
            age = now - row["created_at"]
            is_over = age > (TAKE_OVER_SECONDS if row["status"] is None else KEPT_SECONDS)
            if row["status"] is None and age < -SLACK_SECONDS:
                is_over = True  # the clock was set back since: its own time to be taken over is hours away
            if row["request_sha256"] != request_sha256 and not is_over:
                return IdempotencyDecision(kind="other")
            if is_over:
                # The new time is the new ticket: the one who held it before can neither finish nor forget the row now.
                values = {"request_sha256": request_sha256, "created_at": now, "status": None, "answer": None}
                connection.execute(update(table).where(is_it).values(**values))
                return mine
            if row["status"] is None:
                return IdempotencyDecision(kind="wait", seconds=TAKE_OVER_SECONDS - age)
            return IdempotencyDecision(kind="replay", status=row["status"], answer=row["answer"])

    def finish(self, project_id: str, key: str, ticket: float, *, status: int, answer: str) -> None:
        """Store the answer; without effect where another request has taken the work over.

        Args:
            project_id: The project of the request.
            key: Its `Idempotency-Key`.
            ticket: Of the turn that `begin` has given.
            status: Of the response.
            answer: Its body.
        """
        is_it = _is(project_id, key) & (table.c.created_at == ticket)
        with self._write() as connection:
            connection.execute(update(table).where(is_it).values(status=status, answer=answer))

    def forget(self, project_id: str, key: str, ticket: float) -> None:
        """Let the next request with this key do the work: this one failed and has changed nothing."""
        # status NULL: an answer that was stored is never forgotten.
        is_it = _is(project_id, key) & (table.c.created_at == ticket) & table.c.status.is_(None)
        with self._write() as connection:
            connection.execute(delete(table).where(is_it))

    def sweep(self) -> int:
        """Remove the keys that are older than `KEPT_SECONDS`; returns how many."""
        with self._write() as connection:
            oldest = self._database.clock(connection) - KEPT_SECONDS
            return connection.execute(delete(table).where(table.c.created_at < oldest)).rowcount


def _is(project_id: str, key: str) -> ColumnElement[bool]:
    return (table.c.project_id == project_id) & (table.c.key == key)


log = logging.getLogger("luthier.api")

_MOST_CHARACTERS: Final = 255
_SWEEP_EVERY_SECONDS: Final = 3600.0
_LONGEST_WAIT_SECONDS: Final = 60


class _AtWork:
    """The work of this process, so that it is never taken over however long it lasts; and when it last swept."""

    def __init__(self) -> None:
        self.lock, self.keys, self.swept_at = threading.Lock(), set[tuple[str, str]](), -math.inf

    def begin(self, name: tuple[str, str]) -> bool:
        with self.lock:
            is_first = name not in self.keys
            self.keys.add(name)
            return is_first

    def is_time_to_sweep(self) -> bool:
        with self.lock:
            is_time = time.monotonic() - self.swept_at > _SWEEP_EVERY_SECONDS
            if is_time:
                self.swept_at = time.monotonic()
            return is_time

    def end(self, name: tuple[str, str]) -> None:
        with self.lock:
            self.keys.discard(name)


def once(request: Request, caller: Caller, context: Context, work: Callable[[], Any], *, status_code: int = 200) -> Any:
    """Do the work once for each idempotency key of the caller's project; without the header, simply do it.

    Call this from a plain `def` handler: the body has been read by then.

    Args:
        request: The request, with or without the header `Idempotency-Key`.
        caller: Whose project the keys belong to.
        context: The home.
        work: Makes the answer of the handler, as JSON, a model or a Response that holds JSON. What it raises passes.
        status_code: Of the answer, as the route declares it.

    Returns:
        The answer: that of `work`, or the stored one.

    Raises:
        ApiError: 400 for a key that is not allowed, 409 while the first request is still at work (worth a retry), 422
            where the key was used with another request before.
    """
    key = request.headers.get("idempotency-key")
    if key is None:
        return work()
    if not 0 < len(key) <= _MOST_CHARACTERS or not key.isascii() or not key.isprintable():
        raise ApiError(
            400,
            f"The header Idempotency-Key has {len(key):,} characters; expected: 1 to {_MOST_CHARACTERS} printable ones "
            "of ASCII; what to do: send a UUID",
            code="invalid_idempotency_key",
        )
    name, at_work = (caller.project_id, key), _at_work_of(request)
    # In memory first: this process knows what it is at, however long that takes, and need not wait for the database.
    if not at_work.begin(name):
        raise _still_at_work(key, 1)
    try:
        if at_work.is_time_to_sweep():
            context.idempotency.sweep()
        # Then across processes: the row decides which of them does the work.
        turn = context.idempotency.begin(*name, _digest_of(request))
        if turn.kind == "work":
            return _done(context, name, turn, work, status_code)
    finally:
        at_work.end(name)
    return _answer_to(key, turn)


def _done(
    context: Context, name: tuple[str, str], turn: IdempotencyDecision, work: Callable[[], Any], status_code: int
) -> Response:
    try:
        made = work()
        answer = made if isinstance(made, Response) else JSONResponse(jsonable_encoder(made), status_code=status_code)
    # Also when the request is cancelled: else the key would be blocked until it is taken over.
    except BaseException:
        _write_down(lambda: context.idempotency.forget(*name, turn.ticket))
        raise
    if answer.status_code >= 300:
        _write_down(lambda: context.idempotency.forget(*name, turn.ticket))
    else:
        text = bytes(answer.body).decode()
        _write_down(lambda: context.idempotency.finish(*name, turn.ticket, status=answer.status_code, answer=text))
    return answer


def _write_down(how_it_ended: Callable[[], None]) -> None:
    """The work is done, or has failed, by now: a database that does not answer changes nothing in what is answered."""
    try:
        how_it_ended()
    except LuthierError as error:
        log.warning("what came of a request with an Idempotency-Key is not kept: %s", error.came)


def _answer_to(key: str, turn: IdempotencyDecision) -> Response:
    if turn.kind == "replay":
        return Response(
            turn.answer,
            status_code=turn.status,
            media_type="application/json",
            # The header that Stripe's API introduced for this; clients can tell a replay from a new answer.
            headers={"idempotent-replayed": "true"},
        )
    if turn.kind == "other":
        raise ApiError(
            422,
            f"The Idempotency-Key {key!r} was used with another request before; expected: a new key for a new request; "
            "what to do: send a new UUID, or the very same request",
            code="idempotency_key_reused",
        )
    raise _still_at_work(key, min(_LONGEST_WAIT_SECONDS, max(1, math.ceil(turn.seconds))))


def _still_at_work(key: str, seconds: int) -> ApiError:
    return ApiError(
        409,
        f"The first request with the Idempotency-Key {key!r} is still at work; what to do: try again",
        code="idempotency_key_in_use",
        headers={"Retry-After": str(seconds), "x-should-retry": "true"},
    )


def _digest_of(request: Request) -> str:
    """Of method, address and body; of forms without the body, since a client draws a new boundary for each."""
    digest = hashlib.sha256(f"{request.method} {request.url.path}?{request.url.query}\n".encode())
    body = getattr(request.state, "body_digest", None)
    if body is not None and not request.headers.get("content-type", "").startswith("multipart/"):
        digest.update(body.digest())
    return digest.hexdigest()


def _at_work_of(request: Request) -> _AtWork:
    at_work: _AtWork = request.app.state.at_work
    return at_work


def add_idempotency(state: Any) -> None:
    """Give an app's state what `once` needs."""
    state.at_work = _AtWork()
