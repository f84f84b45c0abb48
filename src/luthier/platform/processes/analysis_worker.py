"""A process that answers one question after the other: its libraries are loaded once, which is most of a plan's time.

It is for one thread alone, and dies with that thread: the kernel sees to it (`jobs.supervisor.end_with`).
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import tempfile
import threading
from typing import IO, Any, Final

from luthier.core.errors import WorkError
from luthier.platform.home.context import Context
from luthier.platform.processes.analysis import (
    MAX_SECONDS,
    Question,
    answered,
    as_line,
    child_command,
    no_answer,
    too_long,
)

_LAST_BYTES: Final = 2000
_GRACE_SECONDS: Final = 5.0


class WarmChild:
    """Starts the process when it is first asked, and again where it has ended. `kill` may be called by any thread."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._said: IO[bytes] | None = None
        self.was_killed = False
        """Whether the process that was last asked was ended by `kill`."""

    def answer_to(self, context: Context, question: Question, given: dict[str, Any]) -> dict[str, Any]:
        """The answer, as `questions.answer_to` gives it. Raises what that raises."""
        line = as_line({"question": question, **given})
        for is_first in (True, False):
            process, timed_out = self._running(context), threading.Event()
            answer = _asked(process, line, timed_out)
            if answer:
                return answered(json.loads(answer))
            if self.was_killed:
                raise WorkError("the question was withdrawn", expected="somebody who waits for it", do="ask again")
            if timed_out.is_set():
                raise too_long()
            if not is_first or process.wait() != 0:
                break
            # It had grown large and ended after its answer before, just as it was asked again: a new one knows as much.
        raise no_answer(process.wait(), self._last_words())

    def kill(self) -> None:
        """End it at once: whoever waits for an answer is told that there is none."""
        if self._process is not None:
            self.was_killed = True
            self._process.kill()

    def close(self) -> None:
        """Have it end, and wait until it has."""
        process, self._process = self._process, None
        if process is None:
            return
        with process:
            assert process.stdin is not None
            with contextlib.suppress(OSError):
                process.stdin.close()
            try:
                process.wait(_GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
        if self._said is not None:
            self._said.close()

    def _running(self, context: Context) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self.close()
        self.was_killed = False
        command, environment = child_command(context)
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the process
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said, env=environment
        )
        return self._process

    def _last_words(self) -> bytes:
        assert self._said is not None
        self._said.seek(0)
        return self._said.read()[-_LAST_BYTES:]


def _asked(process: subprocess.Popen[bytes], line: bytes, timed_out: threading.Event) -> bytes:
    """The line that it answers; empty where it has ended, or was ended here since it took too long."""
    assert process.stdin is not None
    assert process.stdout is not None

    def give_up() -> None:
        timed_out.set()
        process.kill()

    timer = threading.Timer(MAX_SECONDS, give_up)
    timer.daemon = True
    timer.start()
    try:
        process.stdin.write(line)
        process.stdin.flush()
        return process.stdout.readline()
    except OSError:  # it has just ended
        return b""
    finally:
        timer.cancel()
