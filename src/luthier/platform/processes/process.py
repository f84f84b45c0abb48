"""One attempt of a job as a process: started under a guard with a deadline, stopped, and asked how it ended."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import field_validator

from luthier.core.child_process.fork_client import ForkedProcess, ForkServer
from luthier.core.frozen_model import FrozenModel
from luthier.core.system import facilities
from luthier.core.system.clock_jump import elapsed
from luthier.core.system.files import replace_text
from luthier.core.text.utf8 import storable
from luthier.platform.home.settings import LOG_NAME
from luthier.platform.processes.guard import LOST

OUTCOME_NAME = "outcome.json"
NOT_NOW: Final = 75
"""The child's exit code where nothing is wrong with the job, but the disk is full or the database stays away."""
_LAST_BYTES = 2000


class Outcome(FrozenModel):
    """What the child says at its end.

    Attributes:
        status: `validated` where it has checked the files, and the work may begin; `waiting` where something elsewhere,
            such as a batch at a provider, has to end first.
        error: As `LuthierError.as_json` writes it.
        found: What is to be kept with the job.
        rest_seconds: Of a job that waits: when the next attempt looks again.
    """

    status: Literal["validated", "waiting", "succeeded", "paused", "failed"]
    error: dict[str, Any] | None = None
    found: dict[str, Any] | None = None
    rest_seconds: float = 0.0

    @field_validator("error")
    @classmethod
    def _of_whole_characters(cls, error: dict[str, Any] | None) -> dict[str, Any] | None:
        """Without halves of surrogate pairs, which the rows of a user may hold: it could not be written."""
        if error is None:
            return None
        shown: dict[str, Any] = json.loads(storable(json.dumps(error, ensure_ascii=False, default=str)))
        return shown


def write_outcome(folder: Path, outcome: Outcome) -> None:
    """Called by the child as its last act: after a kill there is a whole outcome or none."""
    replace_text(folder / OUTCOME_NAME, outcome.model_dump_json())


class Attempt:
    """A running attempt.

    Args:
        command: The command line of the child.
        folder: The attempt's own folder, for the child's log and, at the end, its outcome.
        deadline: When the guard kills the child where no later deadline is set, by `clock_jump.elapsed`.
        fork_server: Forks the guard, and so the child; None executes them.
        stop_requested: Called while it waits for the fork server: whether the attempt is not wanted any more.

    Raises:
        OSError: No process can be started, or it is not known whether one was.
        NotStartedError: A stop was requested while it waited. Nothing was started.
    """

    def __init__(
        self,
        command: Sequence[str],
        folder: Path,
        deadline: float,
        fork_server: ForkServer | None = None,
        stop_requested: Callable[[], bool] = lambda: False,
    ) -> None:
        self.folder = folder
        self._code: int | None = None
        guard = [sys.executable, "-m", "luthier.platform.processes.guard", repr(deadline), *command]
        # Not `core.child_process`: a guard also ends an attempt whose worker hangs, and its outcome is a file, since it
        # must outlive both.
        with (folder / LOG_NAME).open("ab") as log:
            # bufsize 0: a deadline must not wait in a buffer. A new session: Ctrl-C in a terminal reaches the worker
            # alone.
            forked: ForkedProcess | None = None
            if fork_server is not None:
                # At most half of the time that is left, since the lease is not renewed meanwhile.
                wait = min(fork_server.patience_seconds, (deadline - elapsed()) / 2)
                forked = fork_server.start_program(guard, stderr=log, wait_seconds=wait, stop_requested=stop_requested)
            self._guard: subprocess.Popen[bytes] | ForkedProcess = forked or subprocess.Popen(
                guard,
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                creationflags=facilities.GROUP_FLAGS,
            )
        assert self._guard.stdout is not None
        # Blocks until the guard has started the child; an empty line means that it could not, and its end says why.
        self._child = int(self._guard.stdout.readline() or 0)

    @property
    def has_ended(self) -> bool:
        """Whether child and guard are gone. The group of the child is swept where the guard was killed."""
        if self._code is None:
            code = self._guard.poll()
            if code is None:
                return False
            # A guard that was killed reported nothing. One that ended after its fork server did not reach us by its
            # exit code, but reported it.
            said = self._guard.stdout.read() if code < 0 and self._guard.stdout is not None else b""
            self._code = int(said) if said else code
        if self._child:
            # Only a guard that was killed leaves the group behind; otherwise there is none, and nothing happens.
            facilities.kill_group(self._child)
        return True

    def wait(self, seconds: float) -> None:
        """Wait until it has ended, for that long at most: the next job begins the sooner."""
        # At its end the guard writes the exit code of the child, or its end of the pipe is closed with it.
        if facilities.child_signal() is None or self._guard.stdout is None:  # Windows cannot wait for a pipe
            time.sleep(seconds)
        elif facilities.is_readable(self._guard.stdout, seconds):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._guard.wait(seconds)

    def extend(self, deadline: float) -> None:
        """Let the child run until a later deadline, by `clock_jump.elapsed`: the lease was renewed."""
        self._say(repr(deadline).encode())

    def terminate(self) -> None:
        """Ask the child to end in good order, with a last checkpoint."""
        self._say(b"t")

    def kill(self) -> None:
        """End the child and all that it started immediately."""
        self._say(b"k")

    def close(self) -> None:
        """Release: the guard ends all that still runs. Waits until it has."""
        if self._guard.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._guard.stdin.close()
        # The end of its stdin is the order to kill the group, so this wait is short.
        self._guard.wait()
        assert self.has_ended
        if self._guard.stdout is not None:
            self._guard.stdout.close()

    def outcome(self) -> Outcome | None:
        """The child's last report; None where it ended without one."""
        try:
            return Outcome.model_validate_json((self.folder / OUTCOME_NAME).read_bytes())
        except FileNotFoundError:
            return None

    @property
    def has_to_wait(self) -> bool:
        """Whether it ended because the machine has no room, or the database stays away: no fault of the job."""
        return self._code == NOT_NOW

    @property
    def was_lost(self) -> bool:
        """Whether its lease was not renewed, or its guard was killed: it has not crashed itself."""
        # A negative code is the guard's own: the child's signals come as 128 + number.
        return self._code is not None and (self._code == LOST or self._code < 0)

    def how_it_ended(self) -> str:
        """Exit code or signal, and the last words of the log: for a crash."""
        code = self._code
        words = f"exit code {code}"
        if code is not None and code > 128:
            with contextlib.suppress(ValueError):
                words = signal.Signals(code - 128).name
        log = (self.folder / LOG_NAME).read_bytes()[-_LAST_BYTES:].decode("utf-8", "replace").strip()
        last = log.splitlines()[-1:] or ["nothing in its log"]
        return f"{words}: {last[0]}"

    def _say(self, word: bytes) -> None:
        assert self._guard.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended: `has_ended` reports it
            self._guard.stdin.write(word + b"\n")  # shorter than PIPE_BUF: never torn apart
