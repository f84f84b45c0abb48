"""A server that is opened while another one answers, so that no answer waits until the model is open again.

llama.cpp maps the weights, which both servers share; the second one takes memory for its keys and values.
"""

from __future__ import annotations

import sys
import threading
import traceback
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path

from luthier.core.errors import BusyError, LuthierError
from luthier.core.system.process_setup import start_daemon
from luthier.ml.inference.llama_cpp.server import LlamaServer


def close_soon(server: LlamaServer) -> None:
    """Close a server in its own thread: Python waits a tenth of a second for it, in which an answer may begin."""
    try:
        start_daemon(server.close, "previous llama.cpp server")
    except BusyError:
        server.close()


class NextServer:
    """The server that will take the place of the present one. Used by one thread only.

    Args:
        open_server: opens it over adapters; called in its own thread.
        has_room: whether memory holds two servers.
    """

    def __init__(self, open_server: Callable[[list[Path]], LlamaServer], has_room: Callable[[], bool]) -> None:
        self._open_server, self._has_room = open_server, has_room
        self._opening: _Opening | None = None
        self._leaving: _Opening | None = None
        self._wanted: tuple[int, frozenset[Path], int] | None = None

    @property
    def is_opening(self) -> bool:
        """Whether one will be open soon."""
        return self._opening is not None and not self._opening.done.is_set()

    @property
    def is_done(self) -> bool:
        """Whether one is open, or has failed."""
        return self._opening is not None and self._opening.done.is_set()

    @property
    def is_blocked(self) -> bool:
        """Whether one that is not needed any more is still being opened: no other one is begun until it is closed."""
        return self._leaving is not None and not self._leaving.done.is_set()

    def begin(self, num_threads: int, adapters: Collection[Path], version: int = 0) -> None:
        """Begin to open one, if memory has room for it; once for the same threads and adapters, and one at a time.

        Args:
            num_threads: that it will have.
            adapters: that it will hold.
            version: of their files (`Adapters.version`).
        """
        wanted = num_threads, frozenset(adapters), version
        if self._wanted == wanted:
            return
        self.discard()
        if self.is_blocked:
            # It has not taken all of its memory yet, so that `has_room` does not see it. The next call tries again.
            return
        self._wanted = wanted
        if self._has_room():
            try:
                self._opening = _Opening(partial(self._open_server, sorted(wanted[1])))
            except BusyError:  # as without room
                self._opening = None

    def take(self, num_threads: int, adapters: Collection[Path], version: int = 0) -> LlamaServer | None:
        """The server that was begun with these, once it is open; None where none is opened, or it has failed."""
        opening, wanted = self._opening, (num_threads, frozenset(adapters), version)
        if opening is None or self._wanted != wanted:
            self.discard()
            return None
        self._opening = self._wanted = None
        opening.done.wait()
        server = opening.server
        # The number of threads is that of the moment in which it was opened.
        if server is not None and server.num_threads != num_threads:
            close_soon(server)
            return None
        return server

    def discard(self) -> None:
        """It is not needed any more; does not wait."""
        if self._opening is not None:
            self._opening.discard()
            self._leaving = self._opening
        self._opening = self._wanted = None


class _Opening:
    """One server that is being opened.

    Attributes:
        done: set once it is open, or has failed.
        server: None until it is open, and where it failed.
    """

    def __init__(self, open_server: Callable[[], LlamaServer]) -> None:
        self.done = threading.Event()
        self.server: LlamaServer | None = None
        self._open_server, self._lock, self._is_wanted = open_server, threading.Lock(), True
        start_daemon(self._open, "next llama.cpp server")

    def discard(self) -> None:
        with self._lock:
            self._is_wanted, server = False, self.server
        if server is not None:
            close_soon(server)

    def _open(self) -> None:
        try:
            server = self._open_server()
            with self._lock:
                self.server, is_wanted = server, self._is_wanted
            if not is_wanted:
                server.close()
        except LuthierError as error:
            # The present one continues. What opens in its place later tells its request what is wrong.
            sys.stderr.write(f"luthier: no second llama.cpp server was opened: {error.came}\n")
        except Exception:  # noqa: BLE001 - whoever waits for `done` must not wait forever
            sys.stderr.write(f"luthier: no second llama.cpp server was opened: {traceback.format_exc()}")
        finally:
            self.done.set()
