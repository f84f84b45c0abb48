"""The sessions of the Tinker API in the memory of the server: clients, their requests in order, and their results.

A session lives as long as its client sends heartbeats. Requests of a training client carry numbers and are sent to the
process that trains in this order, whichever way they arrive; a number that comes again gets the request that it had.
Results wait here until they are fetched. Nothing of this survives the server: what was saved is in the database.
"""

from __future__ import annotations

import logging
import re
import secrets
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from luthier.core.access import Caller, Scope
from luthier.core.errors import BusyError, DefectError, LuthierError, NotFoundError, RequestError
from luthier.features.tinker_api.live import Answer, DownloadTokens, LiveModel, LiveSampler, LiveSession, PendingRequest
from luthier.features.tinker_api.trainer_client import TrainerClient, process_ended
from luthier.platform.home.settings import Settings

log = logging.getLogger("luthier.api")

_SESSION: Final = "session-"
_MARK_BYTES: Final = 3
"""Of the server process, in the id of each session that it opens."""
_SESSION_ID: Final = re.compile(r"session-[0-9a-f]{22}")
SILENT_SECONDS: Final = 120.0
"""A session without a heartbeat for so long has ended; the SDK sends one every ten seconds."""
GAP_SECONDS: Final = 60.0
"""A number that has not come for so long, while later ones wait, does not come any more: its call was refused."""
_KEEP_SECONDS: Final = 120.0
_MAX_CLIENTS: Final = 32
_MAX_OWN_CLIENTS: Final = 24
"""Training clients of one project: it leaves others some places."""
_MAX_SESSIONS: Final = 256
"""Of one project."""
_MAX_SAMPLERS: Final = 20_000
"""Of one session."""
_MAX_OPEN: Final = 4_000
_MAX_OPEN_BYTES: Final = 512 << 20
"""Of one project: of requests that wait, and of results until they are forgotten."""
_MAX_PROJECTS: Final = 2
"""How many projects may have as much at once: what one of them sends does not lock the others out."""
_REPEAT_SECONDS: Final = 10.0
"""A result that was fetched is kept so long in any case: the answer may not have arrived."""
_MAX_AHEAD: Final = 10_000

Send = Callable[[], dict[str, Any]]
"""Makes the request to the process that trains; an error of ours becomes that of the request."""
Finish = Callable[[dict[str, Any]], "Answer"]
"""Makes the answer from the result; may use the database."""


class TinkerSessions:
    """All sessions of a server, and the process that trains for them. All methods are thread-safe.

    Args:
        settings: of the home.
        clock: seconds that never go back.
    """

    def __init__(self, settings: Settings, *, clock: Callable[[], float] = time.monotonic) -> None:
        # Re-entrant: methods that hold the lock call others that take it (`session` and `ids` call `look`).
        self._clock, self._lock = clock, threading.RLock()
        self._sessions: dict[str, LiveSession] = {}
        self._requests: dict[str, PendingRequest] = {}
        self._num_bytes = 0
        self._mark = secrets.token_hex(_MARK_BYTES)
        self.downloads = DownloadTokens()
        self.trainer = TrainerClient(settings, tick=self.look, ended=self._lose_all)

    def open(self, caller: Caller, labels: dict[str, Any]) -> LiveSession:
        """A new session.

        Raises:
            BusyError: the project has as many as it may have.
        """
        with self._lock:
            if (num := len(self.ids(caller.project_id))) >= _MAX_SESSIONS:
                raise BusyError(
                    f"{num} sessions of the project are open",
                    expected=f"at most {_MAX_SESSIONS}",
                    do="end sessions that are done: ServiceClient.close('success'), or wait until they have ended",
                    retry_seconds=10,
                )
            session_id = f"{_SESSION}{self._mark}{secrets.token_hex(8)}"
            made = LiveSession(session_id, caller, self._clock(), labels=labels)
            self._sessions[made.session_id] = made
            return made

    def session(self, project_id: str, session_id: str) -> LiveSession:
        """A session that is alive.

        Raises:
            NotFoundError: the project has no such session, or it has ended.
        """
        with self._lock:
            self.look()
            found = self._sessions.get(session_id)
            if found is None or found.caller.project_id != project_id:
                raise self._elsewhere(session_id) or NotFoundError(
                    f"the session {session_id[:100]!r} does not exist or has ended",
                    expected=f"a session of this project with a heartbeat in the last {SILENT_SECONDS:g} s",
                    do="make a new ServiceClient, and a training client from the last saved state",
                )
            return found

    def _elsewhere(self, key: str) -> NotFoundError | None:
        """The error for a session of another server process, or for what belongs to one; None for others.

        Args:
            key: the id of the session, or one that begins with it.
        """
        session_id, mark = key.partition(":")[0], key.removeprefix(_SESSION)[: 2 * _MARK_BYTES]
        if not _SESSION_ID.fullmatch(session_id) or mark == self._mark:
            return None
        return NotFoundError(
            f"the session {session_id} was opened by another server process, or before this one was started",
            expected="all requests of a session at the server process that opened it",
            do="behind a balancer, choose the server by the header X-API-Key (docs/tinker.md, Several servers); "
            "after a restart, make a new ServiceClient, and a training client from the last saved state",
        )

    def beat(self, project_id: str, session_id: str) -> None:
        """A heartbeat.

        Raises:
            NotFoundError: the project has no such session, or it has ended.
        """
        session = self.session(project_id, session_id)
        session.seen_at = self._clock()

    def ids(self, project_id: str) -> list[str]:
        """The sessions of a project, newest first."""
        with self._lock:
            self.look()
            return [key for key, one in reversed(self._sessions.items()) if one.caller.project_id == project_id]

    def add_model(self, session: LiveSession, number: int) -> LiveModel:
        """A new training client of a session.

        Raises:
            BusyError: there are as many as this server holds, or as the project may have.
        """
        with self._lock:
            num = sum(len(one.models) for one in self._sessions.values())
            if num >= _MAX_CLIENTS:
                raise BusyError(
                    f"{num} training clients are in memory",
                    expected=f"at most {_MAX_CLIENTS} on one server",
                    do="end sessions that are done: ServiceClient.close('success'), and try again",
                    retry_seconds=10,
                )
            project_id = session.caller.project_id
            own = sum(len(one.models) for one in self._sessions.values() if one.caller.project_id == project_id)
            if own >= _MAX_OWN_CLIENTS:
                raise BusyError(
                    f"{own} training clients of the project are in memory",
                    expected=f"at most {_MAX_OWN_CLIENTS} of one project",
                    do="end sessions that are done: ServiceClient.close('success'), and try again",
                    retry_seconds=10,
                )
            made = LiveModel(f"{session.session_id}:train:{number}", session.session_id)
            session.models[made.model_id] = made
            return made

    def model(self, project_id: str, model_id: str) -> LiveModel:
        """A training client whose session is alive.

        Raises:
            NotFoundError: the project has no such session, or the session no such training client.
        """
        session = self.session(project_id, model_id.partition(":")[0])
        with self._lock:
            if model_id not in session.models:
                raise NotFoundError(
                    f"the training client {model_id[:100]!r} is not in memory",
                    expected="a client of this session that was not unloaded",
                    do="make one from its last saved state: create_training_client_from_state_with_optimizer(path)",
                )
            return session.models[model_id]

    def drop_model(self, model: LiveModel) -> None:
        """Forget a training client and its weights in memory."""
        with self._lock:
            session = self._sessions.get(model.session_id)
            if session is not None and session.models.pop(model.model_id, None) is not None:
                self._forget(session, [model.model_id], [])

    def add_sampler(self, session: LiveSession, sampler: LiveSampler) -> LiveSampler:
        """A new sampling client of a session; the one of that id, where there is one.

        Raises:
            BusyError: the session has as many as it may have.
        """
        with self._lock:
            if sampler.sampler_id not in session.samplers and len(session.samplers) >= _MAX_SAMPLERS:
                raise BusyError(
                    f"the session has {len(session.samplers):,} sampling clients",
                    expected=f"at most {_MAX_SAMPLERS:,}",
                    do="continue in a new session, from a saved state",
                )
            return session.samplers.setdefault(sampler.sampler_id, sampler)

    def sampler(self, project_id: str, sampler_id: str) -> LiveSampler:
        """A sampling client whose session is alive.

        Raises:
            NotFoundError: the project has no such session, or the session no such sampling client.
        """
        absent = NotFoundError(
            f"the sampling client {sampler_id[:100]!r} does not exist",
            expected="a sampling client of a session that is alive",
            do="make one: create_sampling_client(model_path=...)",
        )
        try:
            session = self.session(project_id, sampler_id.partition(":")[0])
        except NotFoundError:
            raise self._elsewhere(sampler_id) or absent from None
        with self._lock:
            if sampler_id not in session.samplers:
                raise absent
            return session.samplers[sampler_id]

    def join(self, sampler: LiveSampler) -> int:
        """The number of a further client of a sampler."""
        with self._lock:
            sampler.num_clients += 1
            return sampler.num_clients - 1

    def known(self, project_id: str, request_id: str) -> PendingRequest | None:
        """A request that was sent before; None where there is none."""
        with self._lock:
            found = self._requests.get(request_id)
            return found if found is not None and found.project_id == project_id else None

    def start(
        self,
        session: LiveSession,
        request_id: str,
        send: Send,
        finish: Finish,
        *,
        model: LiveModel | None = None,
        number: int | None = None,
        num_bytes: int = 0,
        scope: Scope = "train",
    ) -> PendingRequest:
        """Begin a request, or return the one that has this id.

        Args:
            session: of the client.
            request_id: the same for repetitions.
            send: makes the request to the process that trains.
            finish: makes the answer.
            model: the training client whose turn it waits for.
            number: of the request among those of this client.
            num_bytes: that it takes while it waits.
            scope: what a key needs to fetch the result.

        Raises:
            BusyError: too much waits already.
            RequestError: the number is far ahead of the others.
        """
        with self._lock:
            # Looked up under the lock: a repetition may arrive while the first one is being added.
            if (found := self.known(session.caller.project_id, request_id)) is not None:
                return found
            self._make_room(session.caller.project_id, num_bytes)
            self._refuse_too_many(session.caller.project_id, num_bytes)
            if (
                model is not None
                and number is not None
                and not model.next_number <= number < _MAX_AHEAD + (model.next_number)
            ):
                raise RequestError(
                    f"seq_id {number} of {model.model_id}",
                    expected=f"{model.next_number} or a little more: each number once",
                    do="send the requests of a training client from one process, in order",
                )
            made = PendingRequest(request_id, session.caller.project_id, session.session_id, num_bytes, scope)
            self._requests[request_id] = made
            self._num_bytes += num_bytes
            session.seen_at = self._clock()

            def go() -> None:
                self._send(made, send, finish, model)

            if model is None or number is None:
                go()
            else:
                model.waiting[number] = (made, go)
                # Sent while the lock is held: the order of sending is that of the numbers, whichever thread brought the
                # missing one.
                while model.next_number in model.waiting:
                    _, ready = model.waiting.pop(model.next_number)
                    model.next_number += 1
                    model.waits_since = None
                    ready()
            return made

    def _refuse_too_many(self, project_id: str, num_bytes: int) -> None:
        """Raises BusyError where too much waits for one more request of this size."""
        num_open, own_bytes = self._waiting_of(project_id)
        num_all, _ = self._waiting_of(None)
        if num_open >= _MAX_OPEN or own_bytes + num_bytes > _MAX_OPEN_BYTES:
            raise BusyError(
                f"{num_open:,} requests of {own_bytes:,} bytes wait",
                expected=f"at most {_MAX_OPEN:,} requests of together {_MAX_OPEN_BYTES:,} bytes of one project",
                do="fetch results before you send more",
                retry_seconds=1,
            )
        most, most_bytes = _MAX_PROJECTS * _MAX_OPEN, _MAX_PROJECTS * _MAX_OPEN_BYTES
        if num_all >= most or self._num_bytes + num_bytes > most_bytes:
            raise BusyError(
                f"{num_all:,} requests of {self._num_bytes:,} bytes of all projects wait",
                expected=f"at most {most:,} requests of together {most_bytes:,} bytes",
                do="try again once the server has carried out some of them",
                retry_seconds=10,
            )

    def _waiting_of(self, project_id: str | None) -> tuple[int, int]:
        """How many requests of a project wait (of all with None), and the bytes of these and of results."""
        found = [one for one in self._requests.values() if project_id in (None, one.project_id)]
        return sum(not one.result.done() for one in found), sum(one.num_bytes for one in found)

    def _make_room(self, project_id: str, num_bytes: int) -> None:
        """Forget results that were fetched a while ago, the oldest first, as far as their memory is needed."""
        own_excess = self._waiting_of(project_id)[1] + num_bytes - _MAX_OPEN_BYTES
        all_excess = self._num_bytes + num_bytes - _MAX_PROJECTS * _MAX_OPEN_BYTES
        latest = self._clock() - _REPEAT_SECONDS
        fetched = [(one.fetched_at, key) for key, one in self._requests.items() if one.fetched_at is not None]
        # Only as many as needed: a client may ask again for a result that it did not receive.
        for at, key in sorted(fetched) if max(own_excess, all_excess) > 0 else ():
            is_own = self._requests[key].project_id == project_id
            if at <= latest and (all_excess > 0 or (is_own and own_excess > 0)):
                freed = self._requests.pop(key).num_bytes
                self._num_bytes -= freed
                all_excess -= freed
                own_excess -= freed * is_own

    def _send(self, made: PendingRequest, send: Send, finish: Finish, model: LiveModel | None) -> None:
        def done(result: dict[str, Any] | None, error: LuthierError | None) -> None:
            if result is None:
                self._settle(made, Answer(error=error))
                return
            try:
                self._settle(made, finish(result))
            except LuthierError as refused:
                self._settle(made, Answer(error=refused))
            except Exception:
                # A defect must neither leave the client waiting forever nor end the thread that reads answers.
                log.exception("the result of %s could not be stored", made.request_id)
                self._settle(made, Answer(error=_defect()))

        try:
            if model is not None and model.is_lost:
                raise process_ended()
            self.trainer.ask(send() | {"project": made.project_id}, done)
        except LuthierError as error:
            self._settle(made, Answer(error=error))

    def _settle(self, made: PendingRequest, answer: Answer) -> None:
        with self._lock:
            if not made.result.done():
                made.result.set_result(answer)
                self._num_bytes += len(answer.message) - made.num_bytes
                made.num_bytes = len(answer.message)

    def fetch(self, project_id: str, request_id: str) -> PendingRequest:
        """A request whose result is to be fetched.

        Raises:
            NotFoundError: the project has no such request, or its result was fetched some time ago.
        """
        found = self.known(project_id, request_id)
        if found is None:
            raise self._elsewhere(request_id) or NotFoundError(
                f"the request {request_id[:200]!r} does not exist, or its result was fetched",
                expected=f"a request of a session that is alive, fetched at most {_KEEP_SECONDS:g} s ago",
                do="send it again",
            )
        # A request that still runs was not fetched: its client waits, and will ask again.
        found.fetched_at = found.fetched_at or (self._clock() if found.result.done() else None)
        return found

    def finish(self, session: LiveSession) -> None:
        """End a session: its clients and their weights in memory are dropped, and what waits fails."""
        with self._lock:
            self._sessions.pop(session.session_id, None)
            self._forget(session, list(session.models), list(session.samplers))
            gone = [one for one in self._requests.values() if one.session_id == session.session_id]
        for one in gone:
            self._settle(one, Answer(error=_session_ended(session.session_id)))

    def look(self) -> bool:
        """End sessions that are silent and forget results that were fetched; returns whether a session is left."""
        with self._lock:
            now = self._clock()
            silent = [one for one in self._sessions.values() if now - one.seen_at > SILENT_SECONDS]
            for one in silent:
                self.finish(one)
            for session in self._sessions.values():
                for model in session.models.values():
                    self._close_gap(model, now)
            for key, request in list(self._requests.items()):
                is_old = request.fetched_at is not None and now - request.fetched_at > _KEEP_SECONDS
                # Of an ended session: its errors stay for as long as a client may still ask.
                if is_old or (request.session_id not in self._sessions and self._is_over(request, now)):
                    del self._requests[key]
                    self._num_bytes -= request.num_bytes
            return bool(self._sessions)

    def _close_gap(self, model: LiveModel, now: float) -> None:
        """Fail what waits behind a number that never came; later requests of the client continue."""
        if not model.waiting:
            model.waits_since = None
            return
        model.waits_since = now if model.waits_since is None else model.waits_since
        if now - model.waits_since <= GAP_SECONDS:
            return
        missing, left = model.next_number, model.waiting
        model.next_number, model.waiting, model.waits_since = max(left) + 1, {}, None
        for made, _ in left.values():
            self._settle(made, Answer(error=_never_came(missing, model.model_id)))

    def _is_over(self, request: PendingRequest, now: float) -> bool:
        request.fetched_at = request.fetched_at or now
        return now - request.fetched_at > _KEEP_SECONDS

    def _forget(self, session: LiveSession, models: list[str], samplers: list[str]) -> None:
        if (models or samplers) and self.trainer.pid is not None:
            document = {"op": "drop", "models": models, "samplers": samplers, "project": session.caller.project_id}
            self.trainer.ask(document, None)

    def _lose_all(self) -> None:
        """The process has ended, and with it the weights of all training clients."""
        with self._lock:
            for session in self._sessions.values():
                for model in session.models.values():
                    model.is_lost = True

    def close(self) -> None:
        """End the process; requests that wait fail."""
        self.trainer.close()


def _never_came(number: int, model_id: str) -> RequestError:
    return RequestError(
        f"request {number} of {model_id} was refused or lost, and this one waited for it",
        expected="all requests before this one",
        do="see the error of the call before, then send this one again",
    )


def _session_ended(session_id: str) -> NotFoundError:
    return NotFoundError(
        f"the session {session_id} has ended",
        expected=f"a session that is not closed, with a heartbeat every {SILENT_SECONDS:g} s at least",
        do="make a new ServiceClient, and a training client from the last saved state",
    )


def _defect() -> DefectError:
    return DefectError(
        "an error of the server while a result was stored",
        expected="a stored result",
        do="see the log of the server, and report this",
    )
