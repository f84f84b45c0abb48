"""Uploads of a run that is being trained: a thread that never makes a step wait.

The training thread offers a checkpoint right after it was written: its files get a second name (a hard link), so that
the run's own pruning does not remove them meanwhile. One checkpoint is uploaded at a time, and at most one waits: a
newer one takes its place. Where the store is slow or does not answer, training continues, the run has a warning,
and its newest checkpoint is uploaded once the store answers again.
"""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from luthier.core.errors import LuthierError
from luthier.core.events import CheckpointUploaded, WarningRaised
from luthier.core.system.process_setup import start_daemon
from luthier.features.training.checkpoint_uploads.bucket import SIGNATURE, RunBucket, StoredFile, Upload
from luthier.features.training.checkpoint_uploads.lease import LeaseLostError, RunLease

STAGED: Final = ".uploads"
"""The folder in that of the run that holds what is to be uploaded."""
_MANIFEST: Final = "manifest.json"
_FIRST_WAIT_SECONDS: Final = 1.0
_LONGEST_WAIT_SECONDS: Final = 60.0


class Gather(Protocol):
    """What a run is besides its checkpoints."""

    def state(self) -> dict[str, Any]:
        """Record, plan, evaluation and ledger."""
        ...

    def events(self, after: int) -> tuple[list[dict[str, Any]], int]:
        """Events after a position, and the position to continue from."""
        ...


@dataclass(slots=True)
class _Item:
    """What one upload is to hold. result: files by the name under which they are restored."""

    step: int
    checkpoints: dict[str, Path] = field(default_factory=dict)
    result: dict[str, Path] = field(default_factory=dict)


class Uploader:
    """Uploads the states of a run; one object for each process that trains it.

    Args:
        bucket: Of the run.
        lease: Taken.
        gather: Reads what belongs to an upload besides checkpoints.
        folder: Of the run.
        plan_hash: Of its plan.
        num_kept: Uploads that are kept, as many as checkpoints on disk.
        clock: In seconds.
    """

    def __init__(
        self,
        bucket: RunBucket,
        lease: RunLease,
        gather: Gather,
        folder: Path,
        plan_hash: str,
        num_kept: int,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._bucket, self._lease, self._gather, self._folder = bucket, lease, gather, folder
        self._plan_hash, self._num_kept, self._clock = plan_hash, max(1, num_kept), clock
        self._changed = threading.Condition()
        self._waiting: _Item | None = None
        self._is_busy = self._is_closed = False
        self._ended = threading.Event()
        self._reported: deque[CheckpointUploaded | WarningRaised] = deque()
        self._files: dict[str, tuple[StoredFile, ...]] = {}
        self._bests: dict[str, str] = {}
        self._kept: list[Upload] = []
        self._pieces: list[StoredFile] = []
        self._position = self._number = self._last_step = 0
        self._is_failing = False
        self.problem = ""
        self._thread: threading.Thread | None = None

    def start(self, newest: Path | None) -> None:
        """Start the thread, after the first upload of a run without a checkpoint.

        Args:
            newest: The checkpoint that a resumed run has; None where there is none.

        Raises:
            WorkError: The store does not answer.
        """
        shutil.rmtree(self._folder / STAGED, ignore_errors=True)
        if newest is None:
            # Small, and in this thread: from now on another machine finds the run.
            self._send(_Item(0))
        else:
            # Its objects may be of an earlier generation, which stays until this upload is whole.
            self.offer(step_of(newest), newest)
        self._thread = start_daemon(self._work, "checkpoint-uploads")

    def offer(self, step: int, checkpoint: Path) -> None:
        """Let a checkpoint be uploaded; returns after some links. One that waits is replaced.

        Raises:
            OSError: The checkpoint is not there any more, or cannot be linked or copied.
        """
        folders = {checkpoint.name: checkpoint}
        # Kept by name: the folder of the upload is gone once it is sent.
        best = checkpoint.with_name(f"step-{_best_step(checkpoint, step):08d}")
        self._bests[checkpoint.name] = best.name
        if best.name not in self._files and best.is_dir():
            folders[best.name] = best
        self._put(_Item(step, {name: self._staged(step, path) for name, path in folders.items()}))

    def finish(self, result: dict[str, Path]) -> None:
        """Let the end of the run be uploaded: its record, and the files of its result by name."""
        with self._changed:
            before = self._waiting or _Item(self._last_step)
            self._waiting = _Item(before.step, before.checkpoints, result)
            self._changed.notify_all()

    def wait(self, seconds: float) -> bool:
        """Wait until all is uploaded; False where the time is up or the run is lost."""
        deadline = self._clock() + seconds
        with self._changed:
            while self._waiting is not None or self._is_busy:
                left = deadline - self._clock()
                if left <= 0 or self._lease.lost is not None:
                    return False
                self._changed.wait(min(left, 1.0))
        return self._lease.lost is None

    def close(self, seconds: float = 5.0) -> None:
        """End the thread, where the store answers within some seconds; the lease stays."""
        with self._changed:
            self._is_closed = True
            self._waiting = None
            self._changed.notify_all()
        self._ended.set()
        if self._thread is not None:
            self._thread.join(seconds)
        shutil.rmtree(self._folder / STAGED, ignore_errors=True)

    def take_reports(self) -> Iterator[CheckpointUploaded | WarningRaised]:
        """The events since the last call, for the training thread to record; each is taken once it was recorded.

        Raises:
            LeaseLostError: Another machine continues the run.
        """
        if self._lease.lost is not None:
            raise self._lease.lost
        while self._reported:
            yield self._reported[0]
            self._reported.popleft()

    def _put(self, item: _Item) -> None:
        self._last_step = item.step
        with self._changed:
            replaced, self._waiting = self._waiting, item
            self._changed.notify_all()
        if replaced is not None:
            self._forget_staged(replaced, kept=item)

    def _staged(self, step: int, source: Path) -> Path:
        """A second name for the files of a checkpoint, which its pruning does not remove."""
        target = self._folder / STAGED / f"for-{step:08d}" / source.name
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        for file in source.iterdir():
            try:
                (target / file.name).hardlink_to(file)
            except OSError:
                if not file.is_file():
                    raise
                # A file system without hard links: the copy takes about as long as writing the checkpoint took.
                shutil.copyfile(file, target / file.name)
        return target

    def _forget_staged(self, item: _Item, kept: _Item | None = None) -> None:
        for path in item.checkpoints.values():
            if kept is None or path not in kept.checkpoints.values():
                shutil.rmtree(path, ignore_errors=True)

    def _work(self) -> None:
        wait = _FIRST_WAIT_SECONDS
        while (item := self._next()) is not None:
            try:
                self._send(item)
            except LeaseLostError as error:
                self._lose(error)
                return
            except Exception as error:  # noqa: BLE001 - no error of an upload may end a training
                self._fail(item, error)
                self._put_back(item)
                if self._ended.wait(wait):
                    return
                wait = min(_LONGEST_WAIT_SECONDS, 2 * wait)
            else:
                wait = _FIRST_WAIT_SECONDS
                self._forget_staged(item)
                with self._changed:
                    self._is_busy = False
                    self._changed.notify_all()

    def _put_back(self, item: _Item) -> None:
        """What has failed waits for the next attempt, unless a newer checkpoint waits."""
        with self._changed:
            self._is_busy = False
            newer = self._waiting
            if newer is None or not newer.checkpoints:
                result = item.result if newer is None else newer.result
                self._waiting = None if self._is_closed else _Item(item.step, item.checkpoints, result)
            else:
                self._forget_staged(item, kept=newer)
            self._changed.notify_all()

    def _next(self) -> _Item | None:
        with self._changed:
            while self._waiting is None:
                if self._is_closed:
                    return None
                self._changed.wait()
            item, self._waiting, self._is_busy = self._waiting, None, True
        return item

    def _lose(self, error: LeaseLostError) -> None:
        with self._changed:
            self._lease.lost = error
            self._is_busy = False
            self._changed.notify_all()

    def _fail(self, item: _Item, error: Exception) -> None:
        self.problem = error.came if isinstance(error, LuthierError) else f"{type(error).__name__}: {error}"
        if self._is_failing:
            return
        # Once an outage, not once an attempt.
        self._is_failing = True
        message = (
            f"the checkpoint of step {item.step} is not uploaded yet ({self.problem}): training continues, and the "
            "newest checkpoint is uploaded once the store answers"
        )
        self._reported.append(WarningRaised(step=item.step, code="checkpoint_not_uploaded", message=message))

    def _send(self, item: _Item) -> None:
        """One upload: objects first, then the document that names them, then what is not needed any more."""
        began = self._clock()
        self._lease.check()
        generation = f"g{self._lease.generation:08d}"
        for name, folder in item.checkpoints.items():
            if name not in self._files:
                self._files[name] = self._put_checkpoint(folder, f"{generation}/{name}")
        checkpoints = self._needed(item)
        result = tuple(
            self._bucket.put(path, f"{generation}/result/{name}", name=name) for name, path in item.result.items()
        )
        self._number += 1
        suffix = f"{self._number:08d}.json"
        events, position = self._gather.events(self._position)
        if events:
            self._pieces.append(self._bucket.put_json(f"{generation}/events-{suffix}.gz", events))
            self._position = position
        upload = Upload(
            run_id=self._bucket.run_id,
            number=self._number,
            generation=self._lease.generation,
            step=max((step_of(Path(name)) for name in checkpoints), default=0),
            plan_hash=self._plan_hash,
            checkpoints=checkpoints,
            state=self._bucket.put_json(f"{generation}/state-{suffix}.gz", self._gather.state()),
            events=tuple(self._pieces),
            result=result,
        )
        # A lease that was lost meanwhile: the document would only be of an earlier generation, and is not written.
        self._lease.check()
        self._bucket.store.write_signed(
            self._bucket.path(f"{generation}/upload-{suffix}"), upload.model_dump_json(indent=1).encode()
        )
        # Of one step the newer upload counts, as when the end of the run is added to its last checkpoint.
        earlier = [one for one in self._kept if one.step != upload.step]
        self._kept = [*earlier, upload][-self._num_kept :]
        self._prune()
        self._is_failing, self.problem = False, ""
        if item.checkpoints:
            files = [file for name in item.checkpoints for file in self._files.get(name, ())]
            self._reported.append(
                CheckpointUploaded(
                    step=item.step,
                    num_bytes=sum(file.num_bytes for file in files),
                    seconds=max(0.0, self._clock() - began),
                )
            )

    def _put_checkpoint(self, folder: Path, place: str) -> tuple[StoredFile, ...]:
        # The digests are those that were computed when the checkpoint was written: damage since then is found.
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        return tuple(
            self._bucket.put(file, f"{place}/{file.name}", sha256=manifest.get(file.name, {}).get("sha256"))
            for file in sorted(folder.iterdir())
        )

    def _needed(self, item: _Item) -> dict[str, tuple[StoredFile, ...]]:
        """The uploaded checkpoints that a resume from this step reads."""
        name = f"step-{item.step:08d}"
        if name not in self._files:
            # The end of a run whose newest checkpoint was uploaded in an earlier upload, or the start of one.
            return dict(self._kept[-1].checkpoints) if self._kept else {}
        names = dict.fromkeys((name, self._bests.get(name, name)))
        return {one: self._files[one] for one in names if one in self._files}

    def _prune(self) -> None:
        """Remove what no kept upload needs, of this generation and of earlier ones."""
        own = self._lease.generation
        needed = {file.path for upload in self._kept for file in upload.files()}
        documents = {f"g{upload.generation:08d}/upload-{upload.number:08d}.json" for upload in self._kept}
        needed |= documents | {path + SIGNATURE for path in documents}
        # Documents first: a kill in between must not leave one whose objects are gone.
        for path in sorted(self._bucket.names(), key=lambda name: "/upload-" not in name):
            generation = path.partition("/")[0].removeprefix("g")
            if generation.isdigit() and int(generation) <= own and path not in needed:
                self._bucket.store.remove(self._bucket.path(path))
        self._lease.forget_earlier()
        names = {name for upload in self._kept for name in upload.checkpoints}
        self._files = {name: files for name, files in self._files.items() if name in names}


def step_of(checkpoint: Path) -> int:
    """The step of a checkpoint, by the name of its folder."""
    return int(checkpoint.name.removeprefix("step-"))


def _best_step(checkpoint: Path, step: int) -> int:
    """The best step that a checkpoint refers to; its own where it refers to none that can be read."""
    try:
        document = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
        return int(document["early_stopping"]["best_step"])
    except (OSError, ValueError, KeyError, TypeError):
        return step
