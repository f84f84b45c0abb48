"""Runs Python that a model wrote against tests, in a locked-down child."""

from __future__ import annotations

import functools
import signal
import time
from dataclasses import dataclass
from typing import Literal

from luthier.ml.evaluation.sandbox.bubblewrap import bubblewrap
from luthier.ml.evaluation.sandbox.process import Child, ChildError, cannot_isolate

OutcomeWord = Literal["passed", "failed", "error", "timeout", "memory"]
# Until the child has started and locked itself; on a loaded machine that takes its time.
_SECONDS_TO_START = 60.0
_SCRIPT = "code_child.py"
# Appended to the tests of an answer that passed. What passes this, too, does not pass by being right.
_IMPOSSIBLE = "\n\nassert not 1, 'nothing passes this'\n"


@dataclass(frozen=True, slots=True)
class Outcome:
    """Result of running the tests.

    Attributes:
        word: the result in one word; see `run_tests`.
        message: text of the error, cut; empty where there was none.
    """

    word: OutcomeWord
    message: str = ""


@dataclass(frozen=True, slots=True)
class Isolation:
    """Which locks the kernel of this machine supports. Without seccomp no code is run.

    Attributes:
        seccomp: system calls are filtered.
        landlock: files are restricted by path.
        network_namespace: the child has an empty network of its own.
        outer: the sandbox around these locks, as `bubblewrap.Bubblewrap.sentence` describes it.
    """

    seccomp: bool
    landlock: bool
    network_namespace: bool
    outer: str = ""

    @property
    def holds(self) -> str:
        """What holds the code that models write on this machine, as a phrase."""
        if not self.seccomp:
            return "none: code and queries of others are not run here (no seccomp filters)"
        return self.outer if self.landlock else f"{self.outer} (this kernel has no Landlock)"

    @property
    def sentence(self) -> str:
        """In words, for whoever reads the figures."""
        reads = "reads Python's own library only" if self.landlock else "may read what the user may read (no Landlock)"
        network = "no socket, in an empty network namespace" if self.network_namespace else "no socket (by seccomp)"
        inner = f"Code was run in a locked-down child: no new process, no signal, {network}, no writing; it {reads}."
        return f"{inner} Sandbox: {self.outer}." if self.outer else inner


def run_tests(answer: str, tests: str, *, seconds: float, most_memory_bytes: int) -> Outcome:
    """Run the answer, then the tests in its namespace, then each function named test_ that they define.

    passed: all ran through. failed: an assertion of the tests did not hold. error: anything else was raised, or the
    process ended before the tests did. timeout, memory: it took more than it may; seconds count from the start of the
    answer. An answer that passes is run once more with an assertion that cannot hold: one that passes that, too, has
    changed the judge, and failed.

    Args:
        answer: Python source that a model wrote.
        tests: Python source that runs in the answer's namespace.
        seconds: wall time for the answer and its tests together.
        most_memory_bytes: limit of the child's address space.

    Raises:
        RequestError: this machine cannot lock a process down.
    """
    outcome = _run_once(answer, tests, seconds, most_memory_bytes)
    if outcome.word != "passed":
        return outcome
    if _run_once(answer, tests + _IMPOSSIBLE, seconds, most_memory_bytes).word == "passed":
        return Outcome("failed", "passes what nothing can pass: it changes how tests are run")
    return outcome


@functools.cache
def isolation() -> Isolation:
    """What locks a child down here, found out by locking one."""
    with Child(_SCRIPT, seconds=_SECONDS_TO_START, most_memory_bytes=2**29) as child:
        try:
            in_force = child.ask({"policy": child.policy}, _SECONDS_TO_START)["in_force"]
        except ChildError:
            return Isolation(False, False, False)
    return Isolation(
        in_force["seccomp"], in_force["landlock"], in_force["network_namespace"], outer=bubblewrap().sentence
    )


def require_isolation() -> None:
    """Check that code can be run safely.

    Raises:
        RequestError: this machine has no seccomp filters.
    """
    if not isolation().seccomp:
        raise cannot_isolate()


def _run_once(answer: str, tests: str, seconds: float, most_memory_bytes: int) -> Outcome:
    require_isolation()
    with Child(_SCRIPT, seconds=seconds, most_memory_bytes=most_memory_bytes) as child:
        try:
            child.ask({"policy": child.policy}, _SECONDS_TO_START)
            # From here on: starting the child is not the answer's fault.
            deadline = time.monotonic() + seconds
            reply = child.ask({"answer": answer}, seconds)
            if reply.get("word") == "loaded":
                reply = child.ask({"tests": tests}, deadline - time.monotonic())
        except ChildError as error:
            return _without_reply(error)
    word = reply.get("word")
    # The reply crosses a trust border: an answer that found the pipe could have written it.
    if word not in ("passed", "failed", "error", "memory"):
        return Outcome("error", "what it told is no outcome")
    return Outcome(word, str(reply.get("message", ""))[:500])


def _without_reply(error: ChildError) -> Outcome:
    if error.is_late:
        return Outcome("timeout")
    # Only the kernel's out-of-memory killer sends this before the parent does.
    if error.signal_number == signal.SIGKILL:
        return Outcome("memory", "killed by the system")
    if error.signal_number:
        return Outcome("error", f"ended by signal {error.signal_number}")
    return Outcome("error", "ended before its tests did")
