"""Runs code of others in a sandboxed child: Python with tests, graders in Python, and read-only SQL in SQLite."""

from __future__ import annotations

import functools
import math
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from luthier.core.errors import RequestError, are_library_words_hidden
from luthier.core.system import facilities
from luthier.ml.evaluation.sandbox.bubblewrap import bubblewrap
from luthier.ml.evaluation.sandbox.process import Child, ChildError, cannot_isolate

OutcomeWord = Literal["passed", "failed", "error", "timeout", "memory"]
# Time limit for the start of the child; slow on a loaded machine.
_SECONDS_TO_START = 60.0
_SCRIPT = "code_child.py"
# Appended to the tests of an answer that passed. An answer that passes this as well tampers with the tests.
_IMPOSSIBLE = "\n\nassert not 1, 'nothing passes this'\n"


@dataclass(frozen=True, slots=True)
class Outcome:
    """Result of running the tests.

    Attributes:
        word: the result in one word; see `run_tests`.
        message: truncated error text, or empty.
    """

    word: OutcomeWord
    message: str = ""


@dataclass(frozen=True, slots=True)
class Isolation:
    """The restrictions supported by this machine's kernel. Without seccomp no code is run.

    Attributes:
        seccomp: whether system calls are filtered.
        landlock: whether files are restricted by path.
        network_namespace: whether the child has a separate empty network.
        outer: the outer sandbox, from `bubblewrap.Bubblewrap.sentence`.
    """

    seccomp: bool
    landlock: bool
    network_namespace: bool
    outer: str = ""

    @property
    def holds(self) -> str:
        """The sandbox for generated code on this machine, as a phrase."""
        if not self.seccomp:
            return "none: code and queries of others are not run here (no seccomp filters)"
        return self.outer if self.landlock else f"{self.outer} (this kernel has no Landlock)"

    @property
    def sentence(self) -> str:
        """A description for readers of the results."""
        reads = "reads Python's own library only" if self.landlock else "may read what the user may read (no Landlock)"
        network = "no socket, in an empty network namespace" if self.network_namespace else "no socket (by seccomp)"
        inner = f"Code was run in a locked-down child: no new process, no signal, {network}, no writing; it {reads}."
        return f"{inner} Sandbox: {self.outer}." if self.outer else inner


def run_tests(answer: str, tests: str, *, seconds: float, most_memory_bytes: int) -> Outcome:
    """Run the answer, then the tests in its namespace, then each function named test_ that they define.

    passed: all tests passed. failed: an assertion of the tests failed. error: any other exception, or the process ended
    before the tests did. timeout, memory: a limit was exceeded; seconds count from the start of the answer. An answer
    that passes is run again with an assertion that cannot hold: if it passes again, it has tampered with the tests
    and counts as failed.

    Args:
        answer: generated Python source.
        tests: Python source that runs in the answer's namespace.
        seconds: wall time for the answer and its tests together.
        most_memory_bytes: limit of the child's address space.

    Raises:
        RequestError: this machine cannot sandbox a process.
    """
    outcome = _run_once(answer, tests, seconds, most_memory_bytes)
    if outcome.word != "passed":
        return outcome
    if _run_once(answer, tests + _IMPOSSIBLE, seconds, most_memory_bytes).word == "passed":
        return Outcome("failed", "passes what nothing can pass: it changes how tests are run")
    return outcome


@functools.cache
def isolation() -> Isolation:
    """The available restrictions, detected by restricting a child."""
    if not facilities.is_linux():
        return Isolation(False, False, False)
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
    # The reply crosses a trust boundary: an answer that found the pipe could have written it.
    if word not in ("passed", "failed", "error", "memory"):
        return Outcome("error", "its reply is not an outcome")
    return Outcome(word, str(reply.get("message", ""))[:500])


def _without_reply(error: ChildError) -> Outcome:
    if error.is_late:
        return Outcome("timeout")
    # Only the kernel's out-of-memory killer sends this before the parent does.
    if error.signal_number == facilities.SIGKILL:
        return Outcome("memory", "killed by the system")
    if error.signal_number:
        return Outcome("error", f"ended by signal {error.signal_number}")
    return Outcome("error", "ended before its tests did")


GRADER_SECONDS = 10.0
"""Wall time for one answer that a grader in Python grades."""


@dataclass(frozen=True, slots=True)
class PythonGrade:
    """What a grader in Python gave for one answer.

    Attributes:
        word: `graded`; `error` where its code raised or ended; `timeout`, `memory` where it exceeded a limit.
        score: the number that it returned; 0 if it returned none.
        message: truncated error text, or empty.
    """

    word: Literal["graded", "error", "timeout", "memory"]
    score: float = 0.0
    message: str = ""


class PythonGrader:
    """A grader that is Python source with a function `grade(sample, item)`. Use it in a `with` block. Thread-safe.

    A child that times out or ends fails only the answer that it was grading: the next one gets a new child.

    Args:
        source: the code.
        seconds: for one answer, the loading of the code included.
        most_memory_bytes: limit of the child's address space.
    """

    def __init__(self, source: str, *, seconds: float = GRADER_SECONDS, most_memory_bytes: int = 2**29) -> None:
        self._source, self._seconds, self._memory = source, seconds, most_memory_bytes
        self._child: Child | None = None
        self._lock = threading.Lock()

    def grade(self, sample: Mapping[str, Any], item: Mapping[str, Any]) -> PythonGrade:
        """Grade one answer.

        Args:
            sample: the fields of the answer.
            item: the fields of the row.

        Raises:
            RequestError: this machine cannot sandbox a process.
        """
        with self._lock:
            deadline = time.monotonic() + self._seconds
            try:
                reply: Mapping[str, Any] = {"word": "loaded"}
                if self._child is None:
                    reply = self._started()
                    # Starting the child is not the grader's fault.
                    deadline = time.monotonic() + self._seconds
                    assert self._child is not None
                    reply = self._child.ask({"source": self._source}, self._seconds)
                if reply.get("word") == "loaded":
                    asked = {"sample": dict(sample), "item": dict(item)}
                    reply = self._child.ask(asked, max(0.1, deadline - time.monotonic()))
                else:
                    self._close()
            except ChildError as error:
                self._close()
                found = _without_reply(error)
                word = found.word if found.word in ("timeout", "memory") else "error"
                return PythonGrade(word, message=found.message)
            return _grade_of(reply)

    def close(self) -> None:
        """End the child."""
        with self._lock:
            self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _close(self) -> None:
        if self._child is not None:
            self._child.close()
            self._child = None

    def _started(self) -> Mapping[str, Any]:
        child = Child("grade_child.py", seconds=_MAX_CHILD_SECONDS, most_memory_bytes=self._memory)
        self._child = child
        reply = child.ask({"policy": child.policy}, _SECONDS_TO_START)
        in_force = reply.get("in_force", {})
        # The code comes from a caller: files must be out of reach by Landlock, or by bubblewrap's own file system.
        if not (in_force.get("seccomp") and (in_force.get("landlock") or child.is_wrapped)):
            self._close()
            raise cannot_isolate()
        return reply


def _grade_of(reply: Mapping[str, Any]) -> PythonGrade:
    """The reply crosses a trust boundary: a grader that found the pipe could have written it."""
    word, score = reply.get("word"), reply.get("score", 0.0)
    message = str(reply.get("message", ""))[:500]
    if word == "graded" and isinstance(score, int | float) and math.isfinite(score):
        return PythonGrade("graded", float(score))
    if word == "memory":
        return PythonGrade("memory", message=message)
    return PythonGrade("error", message=message or "its reply is not a grade")


# Additional time for building a database and for clock checks between steps.
_GRACE_SECONDS = 10.0
_MAX_MEMORY_BYTES = 2**29
_MAX_CHILD_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class Database:
    """A SQLite file, or statements that create one in memory; the other field is empty.

    Attributes:
        script: SQL statements that create and fill tables.
        file: path of a SQLite file, one of the runner's `files`.
    """

    script: str = ""
    file: str = ""


@dataclass(frozen=True, slots=True)
class Result:
    """The result of a query as digests of its rows, ordered and unordered; or its error.

    Numbers are compared by value regardless of type, fractions to ten digits; column names are ignored.

    Attributes:
        in_order: hex digest of the rows in their order.
        in_any_order: hex digest of the sorted rows.
        num_rows: rows of the result.
        error: why there is no result, or None.
    """

    in_order: str = ""
    in_any_order: str = ""
    num_rows: int = 0
    error: str | None = None


class SqlRunner:
    """Runs queries sequentially. Use it in a `with` block.

    A child that times out or exits fails only its own queries: the next ones get a new child.

    Args:
        seconds: for each query.
        files: databases that it may open; they are placed into the child's folder, and nothing else is readable.
        needs_isolation: whether to reject machines without file isolation, as for remote callers.
    """

    def __init__(self, *, seconds: float, files: Sequence[Path] = (), needs_isolation: bool = False) -> None:
        self._seconds, self._needs_isolation = seconds, needs_isolation
        # Numbered names: a path of this machine neither reaches the child nor can collide with another.
        self._names = {str(file): f"{number}.db" for number, file in enumerate(dict.fromkeys(files))}
        self._child: Child | None = None

    def run(self, database: Database, queries: Sequence[str]) -> list[Result]:
        """The result of each query.

        Raises:
            RequestError: the database cannot be opened, or its statements fail; or the machine cannot sandbox a process
                and `needs_isolation` is set.
        """
        job = {
            "script": database.script,
            # "none" is a file that does not exist in the child's folder: SQLite then fails to open it.
            "file": self._names.get(database.file, "none") if database.file else "",
            "queries": list(queries),
            "seconds": self._seconds,
            "hides_words": are_library_words_hidden(),
        }
        try:
            reply = self._started().ask(job, self._seconds * len(queries) + _GRACE_SECONDS)
        except ChildError as error:
            self.close()
            return [Result(error="timeout" if error.is_late else "ended SQLite's process") for _ in queries]
        if "broken" in reply:
            raise RequestError(
                f"a database cannot be made: {reply['broken']}",
                expected=f"a SQLite file, or statements that create and fill tables; got {_shown(database)}",
                do="correct the task's database, or the field that holds it",
            )
        return [Result(**one) for one in reply["results"]]

    def close(self) -> None:
        """End the child."""
        if self._child is not None:
            self._child.close()
            self._child = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _started(self) -> Child:
        if self._child is None:
            self._child = Child(
                "sql_child.py",
                seconds=_MAX_CHILD_SECONDS,
                most_memory_bytes=_MAX_MEMORY_BYTES,
                # Never None: even without files the child may read only its own folder.
                placed={name: Path(file) for file, name in self._names.items() if Path(file).is_file()},
            )
            reply = self._child.ask({"policy": self._child.policy}, _SECONDS_TO_START)
            in_force = reply.get("in_force", {})
            # Landlock or chroot alone keeps files out of reach; seccomp is needed in any case.
            if self._needs_isolation and not (in_force["seccomp"] and (in_force["landlock"] or in_force["root"])):
                self.close()
                raise cannot_isolate()
        return self._child


def _shown(database: Database) -> str:
    return database.file or repr(" ".join(database.script.split())[:120])
