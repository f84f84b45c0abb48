"""Which models commands at a terminal and calls of the Python API use now, so that no other process deletes them.

Jobs and runs are in the database with what they need; a command is in no table. It writes the names of its models to a
file of its own in the home and holds a lock on it, which the system releases when the process ends, however it ends.
In a file and not in the database, since weights are deleted on the machine, or the shared disk, that has them.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from luthier.core.errors import ConflictError
from luthier.core.system import facilities
from luthier.core.system.files import file_lock

log = logging.getLogger("luthier.model_leases")
_LOCK_SECONDS: Final = 1.0
_MAX_ATTEMPTS: Final = 5
_SUFFIX: Final = ".lease"
_own_files: Final = set[Path]()
"""Those of this process: by their names, since processes of two containers may have the same number."""


@dataclass(frozen=True, slots=True)
class LeasedModel:
    """A model that a running command uses.

    Attributes:
        command: The command or function, such as `luthier eval` or `luthier.evaluate`.
        process_id: Its process.
        asked: The model as the command names it.
        name: What that name means: a run, a tuned model, a base model or a path.
        run_id: The run that has made it; None for others.
        model_id: The tuned model (`ft:...`); None for others.
    """

    command: str
    process_id: int
    asked: str
    name: str
    run_id: str | None = None
    model_id: str | None = None


class ModelLeases:
    """The models that this process uses. The file is made with the first of them.

    Args:
        folder: Of the leases of all processes.
        command: What the lease is for, such as `luthier eval`.
    """

    def __init__(self, folder: Path, command: str) -> None:
        self._folder, self._command = folder, command
        self._held, self._lock = ExitStack(), threading.Lock()
        self._path: Path | None = None
        self._written = set[LeasedModel]()
        self._is_broken = False

    def hold(self, asked: str, name: str, run_id: str | None = None, model_id: str | None = None) -> None:
        """Keep a model until `close`. A home that takes no lock keeps none: a command never fails by its lease.

        Args:
            asked: The model as the command names it.
            name: What that name means.
            run_id: The run that has made it.
            model_id: The tuned model.
        """
        model = LeasedModel(self._command, os.getpid(), asked, name, run_id, model_id)
        with self._lock:
            if self._is_broken or model in self._written:
                return
            try:
                self._write(model)
            except (ConflictError, OSError) as error:
                self._is_broken = True
                log.warning("models are not protected from removal while this command runs: %s", error)
                return
            self._written.add(model)

    def close(self) -> None:
        """Release all of them."""
        with self._lock:
            if self._path is not None:
                _unlink_locked(self._path, self._held)
                _own_files.discard(self._path)
            self._path = None
            self._written.clear()

    def _write(self, model: LeasedModel) -> None:
        if self._path is None:
            self._path = self._locked_file()
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(model)) + "\n")

    def _locked_file(self) -> Path:
        for _ in range(_MAX_ATTEMPTS):
            path = self._folder / f"{os.getpid()}-{secrets.token_hex(4)}{_SUFFIX}"
            with ExitStack() as stack:
                descriptor = stack.enter_context(file_lock(path, what="a lease", timeout_seconds=_LOCK_SECONDS))
                # `leased_models` deletes files that nobody has locked; it may have done so just before the lock.
                if _is_the_same(descriptor, path):
                    self._held = stack.pop_all()
                    _own_files.add(path)
                    return path
        raise OSError(f"no lease could be made in {self._folder}")


def leased_models(folder: Path) -> Iterator[LeasedModel]:
    """The models that other running commands use; what a killed command has left is deleted.

    Args:
        folder: Of the leases of all processes.
    """
    try:
        paths = sorted(folder.glob(f"*{_SUFFIX}"))
    except OSError:
        return
    for path in paths:
        # A command may delete what it has used itself.
        if path in _own_files or _is_left_over(path):
            continue
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except OSError:  # it has ended since
            continue
        for line in lines:
            try:
                yield LeasedModel(**json.loads(line))
            except (TypeError, ValueError):  # it is being written: the model is not in use yet
                continue


def _is_left_over(path: Path) -> bool:
    """Whether no process has a lease any more; it is deleted then."""
    with ExitStack() as stack:
        try:
            descriptor = os.open(path, os.O_RDONLY | facilities.BINARY)
            stack.callback(os.close, descriptor)
            # Shared: two processes that look at the same moment do not take each other for the holder.
            if not facilities.try_lock(descriptor, is_shared=True):
                return False
        except OSError:
            return False
        _unlink_locked(path, stack)
        return True


def _is_the_same(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _unlink_locked(path: Path, lock: ExitStack) -> None:
    """Delete a file and release its lock: in this order, so that no other process locks what is about to go."""
    try:
        # Windows deletes no open file.
        if not facilities.moves_open_files():
            lock.close()
        path.unlink(missing_ok=True)
    except OSError as error:
        log.debug("%s stays until the next look: %s", path, error)
    finally:
        lock.close()
