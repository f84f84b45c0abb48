"""The LoRA adapters of a llama.cpp engine by name. One that llama.cpp does not load is refused by its name.

A server is opened over a list of adapters and fails as a whole where one of them does not load. The one that does not
is found and left out, and all others answer. A request tries it again once its file has changed, and after ten minutes:
memory may have been short.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Final

from luthier.core.errors import ConflictError, RequestError, WorkError
from luthier.ml.inference.llama_cpp.server import LlamaServer

_REFUSED_SECONDS: Final = 600.0
"""How long an adapter that does not load is left out; each try opens the server again, for which requests wait."""


@dataclass(frozen=True, slots=True)
class _Refusal:
    """Why a file does not load. stamp: its size and time of change then. at: by the clock."""

    error: WorkError
    stamp: tuple[int, int] | None
    at: float


class Adapters:
    """The adapters that an engine was given. Used by one thread only, except for `paths` and `version`.

    Attributes:
        version: counts the files that were added again with other content: a server of an earlier version holds what
            they were.

    Args:
        clock: seconds on a clock that is never set.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._paths: dict[str, Path] = {}
        self._refused: dict[Path, _Refusal] = {}
        self._stamps: dict[Path, tuple[int, int] | None] = {}
        self._changed: dict[Path, int] = {}
        self.version = 0

    @property
    def paths(self) -> list[Path]:
        """The files that a server has to hold, each once, sorted: all but those that are refused."""
        return sorted(set(self._paths.values()) - set(self._refused))

    def add(self, name: str, file: Path) -> None:
        """Have an adapter of this name; nothing happens where it is there.

        Raises:
            ConflictError: the name belongs to another file.
        """
        if (known := self._paths.setdefault(name, file)) != file:
            raise ConflictError(
                f"adapter {name!r} from {file}, and from {known} before",
                expected="one adapter a name",
                do="unload the first, or choose another name",
            )
        stamp = _stamp(file)
        if self._stamps.setdefault(file, stamp) != stamp:
            self._stamps[file] = stamp
            self.version += 1
            self._changed[file] = self.version

    def remove(self, name: str) -> None:
        """Forget a name. That its file does not load stays known: it may be added again a moment later."""
        self._paths.pop(name, None)

    def path(self, name: str) -> Path:
        """The file of an adapter that a request asks for; one that may load by now is in `paths` from then on.

        Raises:
            RequestError: there is none of this name.
            WorkError: llama.cpp does not load it.
        """
        if (path := self._paths.get(name)) is None:
            raise RequestError(
                f"adapter {name!r}",
                expected=f"one of {', '.join(sorted(self._paths)) or 'none: no adapter is loaded'}",
                do="load the adapter before the request",
            )
        if (refusal := self._refusal(path)) is not None:
            raise WorkError(
                f"adapter {name!r} is not loaded: {refusal.error.came}",
                expected="a LoRA adapter that this build of llama.cpp loads beside the others, and memory for it",
                do=f"check the file {path.name} (`luthier verify`) or export it again; the model and its other "
                "adapters answer",
            ) from refusal.error
        return path

    def open(
        self,
        open_server: Callable[[Sequence[Path]], LlamaServer],
        before: Sequence[Path] = (),
        version: int | None = None,
    ) -> LlamaServer:
        """A server over all adapters that load; those that do not are refused from now on.

        One server is open at a time: two copies of the weights may not fit into memory.

        Args:
            open_server: opens one over adapters.
            before: adapters that have loaded before.
            version: of that time; None for the present one.

        Raises:
            WorkError: it does not open without the other adapters, either.
        """
        wanted = self.paths
        if version is not None:
            before = [path for path in before if self._changed.get(path, 0) <= version]
        late = [path for path in wanted if path not in before]
        try:
            return open_server(wanted)
        except WorkError as error:
            if not late:
                raise
            failure = error
        good = [path for path in wanted if path in before]
        # Where this fails as well, no adapter is at fault.
        server = open_server(good)
        refused: dict[Path, WorkError] = {}
        for path in late:
            if path == late[-1] and not refused:  # with the others it opens, with all of them it did not
                refused[path] = failure
                break
            server.close()
            try:
                server = open_server([*good, path])
            except WorkError as error:
                refused[path] = error
                server = open_server(good)
            else:
                good.append(path)
        for path, reason in refused.items():
            self._refused[path] = _Refusal(reason, _stamp(path), self._clock())
        return server

    def _refusal(self, path: Path) -> _Refusal | None:
        """Why a file is left out; None where it may be tried."""
        found = self._refused.get(path)
        if found is not None and (self._clock() - found.at >= _REFUSED_SECONDS or _stamp(path) != found.stamp):
            del self._refused[path]
            return None
        return found


def _stamp(path: Path) -> tuple[int, int] | None:
    """Size and time of change; None where it is not there."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns
