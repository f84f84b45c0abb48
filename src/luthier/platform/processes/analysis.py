"""Questions whose answers take heavy libraries and many seconds: each is answered by a process of its own.

So a server stays small and quick while somebody has a file of a million rows planned: its memory and its threads are
not what that takes. The process is `python -m luthier.platform.processes.analysis_child`; it dies with the one that
asked.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from typing import Any, Final, Literal

from luthier.core.errors import RequestError, WorkError, error_from
from luthier.platform.home.context import Context

log = logging.getLogger("luthier.questions")

Question = Literal["wake", "plan", "audit", "look", "repair", "tokens", "map", "diff", "split", "index", "watch"]

MAX_SECONDS: Final = 600.0
_MOST_AT_ONCE: Final = 2
_WAIT_SECONDS: Final = 10.0
_LAST_BYTES: Final = 2000
_turns = threading.BoundedSemaphore(_MOST_AT_ONCE)


def answer_to(context: Context, question: Question, given: dict[str, Any]) -> dict[str, Any]:
    """The answer, as a plain document.

    given: what the question is about, as `question_child` reads it.

    Raises what the services raise that answer it, and WorkError where it takes too long, ends without an answer, or too
    many are being answered already.
    """
    if not _turns.acquire(timeout=_WAIT_SECONDS):
        raise WorkError(
            f"{_MOST_AT_ONCE} such questions are being answered already",
            expected="one of them to end soon",
            do="ask again in a moment",
        )
    try:
        answer = _ask(context, {"question": question, **given})
    finally:
        _turns.release()
    return answered(answer)


def answered(answer: dict[str, Any]) -> dict[str, Any]:
    """What the process has answered. Raises the error that it told of."""
    if "error" in answer:
        raise error_from(answer["error"])
    found: dict[str, Any] = answer["answer"]
    return found


def _ask(context: Context, document: dict[str, Any]) -> dict[str, Any]:
    command, environment = child_command(context)
    try:
        ended = subprocess.run(
            command,
            input=as_line(document),
            capture_output=True,
            timeout=MAX_SECONDS,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise too_long() from error
    if ended.returncode != 0:
        raise no_answer(ended.returncode, ended.stderr[-_LAST_BYTES:])
    answer: dict[str, Any] = json.loads(ended.stdout)
    return answer


def child_command(context: Context) -> tuple[list[str], dict[str, str]]:
    """The command of a process that answers, and its environment."""
    command = [sys.executable, "-m", "luthier.platform.processes.analysis_child", str(os.getpid())]
    return command, os.environ | {"LUTHIER_HOME": str(context.home)}


def as_line(document: dict[str, Any]) -> bytes:
    """A question as the process reads it. Raises RequestError for one that is nested too deep."""
    try:
        return json.dumps(document).encode() + b"\n"
    except RecursionError as error:
        raise RequestError(
            "the request holds values in values in values", expected="a plain document", do="write it out flat"
        ) from error


def too_long() -> WorkError:
    """The error of a question that nobody waits for any longer."""
    return WorkError(
        f"it took longer than {MAX_SECONDS:.0f} s",
        expected="less to look at",
        do="ask about fewer rows, or use the commands on the server",
    )


def no_answer(code: int | None, last_words: bytes) -> WorkError:
    """The error of a process that died; its last words go to the log."""
    log.error("a question ended with code %s: %s", code, last_words.decode("utf-8", "replace"))
    return WorkError(
        "the process that was to answer ended without an answer",
        expected="enough memory, and no bug of ours",
        do="see the server's log",
    )
