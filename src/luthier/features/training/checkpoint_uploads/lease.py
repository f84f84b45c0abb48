"""Who may write the uploads of a run: one machine at a time, also where another was only thought to be lost.

A machine takes a run by making the next lease, an object that only one writer can make. Its holder renews it by
changing a second object. A machine that wants the run watches that object: as long as it changes, the holder is alive;
clocks of machines are never compared. A holder that finds a newer lease than its own stops: its uploads are of an
earlier generation, which no reader prefers, and it deletes nothing of a later one.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from luthier.core.errors import ConflictError
from luthier.core.ports import Progress, SilentProgress
from luthier.core.system.process_setup import start_daemon

if TYPE_CHECKING:
    from luthier.features.training.checkpoint_uploads.bucket import RunBucket

_FOLDER: Final = "leases"
OWN_LEASE: Final = "lease.json"
"""In the folder of the run: the lease that this home holds or held."""
_RENEWALS: Final = 3
"""How often a lease is renewed in the time after which it counts as lost."""
_CHECKS: Final = 6
"""How often the renewals of another holder are read while its time runs."""


class LeaseLostError(ConflictError):
    """Another machine continues the run."""


class RunLease:
    """The right to upload for a run.

    Args:
        bucket: Of the run.
        folder: Of the run on this machine, whose lock this process holds.
        seconds: After which a holder that renews nothing counts as lost.
        progress: Shows that another holder is waited for.
        sleep: Waits some seconds.

    Attributes:
        generation: The number of the lease; 0 before it is taken.
        lost: Why it is not held any more; None while it is.
    """

    def __init__(
        self,
        bucket: RunBucket,
        folder: Path,
        *,
        seconds: float,
        progress: Progress | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._bucket, self._folder, self._seconds = bucket, folder, seconds
        self._progress, self._sleep, self._num_renewals = progress or SilentProgress(), sleep, 0
        self.generation = 0
        self.lost: LeaseLostError | None = None
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._secret = f"{os.getpid()}-{time.time_ns()}-{os.urandom(4).hex()}"

    def take(self) -> None:
        """Take the run, once no other machine holds it.

        Raises:
            ConflictError: Another machine is training the run, or took it at the same moment.
            WorkError: The store does not answer.
        """
        newest = self._newest()
        if newest and not self._is_own(newest) and not self._is_released(newest):
            self._wait_until_lost(newest)
        document = {"holder": self._holder(), "secret": self._secret}
        if not self._bucket.store.create(self._path(newest + 1, "json"), json.dumps(document).encode()):
            raise self._held(newest + 1, "took it at the same moment")
        self.generation = newest + 1
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / OWN_LEASE).write_text(
            json.dumps({"generation": self.generation, "secret": self._secret}), encoding="utf-8"
        )
        self.renew()

    def keep(self) -> None:
        """Renew the lease in a thread, until `end`."""
        self._thread = start_daemon(self._renew_until_end, "checkpoint-lease")

    def end(self, seconds: float = 5.0) -> None:
        """Release the lease, where the store answers within some seconds."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join(seconds)

    def _renew_until_end(self) -> None:
        while not self._ended.wait(self._seconds / _RENEWALS):
            try:
                self.renew()
            except LeaseLostError as error:
                self.lost = error
                return
            except Exception:  # noqa: BLE001, S112 - the store does not answer: the next renewal is soon
                continue
        with suppress(Exception):  # another machine then waits for the time of a lease
            self.release()

    def renew(self) -> None:
        """Show that this machine is alive.

        Raises:
            LeaseLostError: Another machine has taken the run.
            WorkError: The store does not answer.
        """
        self.check()
        self._num_renewals += 1
        self._bucket.store.write(self._path(self.generation, "alive"), str(self._num_renewals).encode())

    def check(self) -> None:
        """Raise LeaseLostError where another machine has taken the run."""
        if (newest := self._newest()) > self.generation:
            raise LeaseLostError(
                f"run {self._bucket.run_id} is continued by {self._named(newest)}",
                expected=f"lease {self.generation} of {self._bucket.store.name} to be the newest, and it is {newest}",
                do="nothing: the other machine continues from the newest upload; later steps of this one are dropped",
            )

    def release(self) -> None:
        """Let another machine take the run at once."""
        self._bucket.store.write(self._path(self.generation, "released"), b"")

    def is_elsewhere(self) -> bool:
        """Whether another machine has taken the run since this home had it."""
        newest = self._newest()
        return newest > 0 and not self._is_own(newest)

    def forget_earlier(self) -> None:
        """Remove the objects of earlier leases."""
        for name in self._bucket.names():
            number = _number(name)
            if number is not None and number < self.generation:
                self._bucket.store.remove(self._bucket.path(name))

    def _newest(self) -> int:
        numbers = [
            int(Path(name).stem)
            for name in self._bucket.store.names(self._bucket.path(_FOLDER))
            if name.endswith(".json") and Path(name).stem.isdigit()
        ]
        return max(numbers, default=0)

    def _is_own(self, number: int) -> bool:
        """Whether this home holds the lease: its process has ended, since the run's lock is held by this one."""
        try:
            own: dict[str, Any] = json.loads((self._folder / OWN_LEASE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return own.get("generation") == number and own.get("secret") == self._document(number).get("secret")

    def _is_released(self, number: int) -> bool:
        return self._content(number, "released") is not None

    def _wait_until_lost(self, number: int) -> None:
        before, title = self._content(number, "alive"), f"waiting whether {self._named(number)} still trains the run"
        with self._progress.task(title, self._seconds, "s") as bar:
            for _ in range(_CHECKS):
                self._sleep(self._seconds / _CHECKS)
                bar.advance(self._seconds / _CHECKS)
                if self._is_released(number):
                    return
                if self._content(number, "alive") != before:
                    raise self._held(number, "is training it")

    def _held(self, number: int, does: str) -> ConflictError:
        return ConflictError(
            f"run {self._bucket.run_id}: {self._named(number)} {does}",
            expected="a run that no other machine trains",
            do="wait until that machine has ended or is lost, or stop it, and resume the run again",
        )

    def _named(self, number: int) -> str:
        return str(self._document(number).get("holder") or "another machine")

    def _document(self, number: int) -> dict[str, Any]:
        try:
            found = json.loads(self._content(number, "json") or b"{}")
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    def _content(self, number: int, kind: str) -> bytes | None:
        try:
            return self._bucket.store.read(self._path(number, kind))
        except FileNotFoundError:
            return None

    def _path(self, number: int, kind: str) -> str:
        return self._bucket.path(f"{_FOLDER}/{number:08d}.{kind}")

    def _holder(self) -> str:
        return f"{socket.gethostname()} (process {os.getpid()})"


def _number(name: str) -> int | None:
    """The number of the lease that an object of a run belongs to; None for other objects."""
    folder, _, rest = name.partition("/")
    stem = rest.partition(".")[0]
    return int(stem) if folder == _FOLDER and stem.isdigit() else None
