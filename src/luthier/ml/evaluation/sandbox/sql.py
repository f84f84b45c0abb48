"""Runs SQL that a model wrote, in SQLite, in a locked-down child that can only read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from luthier.core.errors import RequestError
from luthier.core.library_errors import are_library_words_hidden
from luthier.ml.evaluation.sandbox.process import Child, ChildError, cannot_isolate

_SECONDS_TO_START = 60.0
# What building a database and looking at the clock between steps may take beside the queries themselves.
_GRACE_SECONDS = 10.0
_MAX_MEMORY_BYTES = 2**29
_MAX_CHILD_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class Database:
    """A SQLite file, or statements that make one in memory; the other is empty.

    Attributes:
        script: SQL statements that create and fill tables.
        file: path of a SQLite file, one of the runner's `files`.
    """

    script: str = ""
    file: str = ""


@dataclass(frozen=True, slots=True)
class Result:
    """What a query gives, as digests of its rows, in order and in any; or why it gives nothing.

    Equal numbers are the same, whatever their type, fractions to ten digits; the names of columns do not count.

    Attributes:
        in_order: hex digest of the rows in their order.
        in_any_order: hex digest of the sorted rows.
        num_rows: rows of the result.
        error: why there is no result; None where there is one.
    """

    in_order: str = ""
    in_any_order: str = ""
    num_rows: int = 0
    error: str | None = None


class SqlRunner:
    """Runs queries one after another. Use it in a `with` block.

    A child that is not heard of in time, or ends, costs its own queries only: the next ones get a new child.

    Args:
        seconds: for each query.
        files: databases that it may open; they are put into the child's folder, and it can read nothing else.
        needs_isolation: refuse to run where the machine cannot hold a process to that, as for callers over the network.
    """

    def __init__(self, *, seconds: float, files: Sequence[Path] = (), needs_isolation: bool = False) -> None:
        self._seconds, self._needs_isolation = seconds, needs_isolation
        # Numbered names: a path of this machine neither reaches the child nor can collide with another.
        self._names = {str(file): f"{number}.db" for number, file in enumerate(dict.fromkeys(files))}
        self._child: Child | None = None

    def run(self, database: Database, queries: Sequence[str]) -> list[Result]:
        """What each query gives.

        Raises:
            RequestError: the database cannot be opened, or its own statements fail; or the machine cannot lock a
                process down, and `needs_isolation`.
        """
        job = {
            "script": database.script,
            # "none" is a file that does not exist in the child's folder: SQLite then refuses to open it.
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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _started(self) -> Child:
        if self._child is None:
            self._child = Child(
                "sql_child.py",
                seconds=_MAX_CHILD_SECONDS,
                most_memory_bytes=_MAX_MEMORY_BYTES,
                # Never None: even without files the child may read its own folder alone.
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
