"""The uploads of a run for as long as a process works on it; without the setting `checkpoints` nothing of this happens.

with uploads_of(context, run_id) as uploads:
    uploads.fetch_newer()           # a resumed run: what another machine has uploaded
    uploads.begin(plan)
    ... train, with uploads.observing(listener) as a listener of its events ...
    notes = uploads.end()
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from luthier.core.errors import ConflictError, NotFoundError, RequestError, WorkError
from luthier.core.events import CheckpointSaved, CheckpointUploaded, Event, RunStarted, WarningRaised
from luthier.core.ids import is_id
from luthier.core.plan import Plan
from luthier.core.ports import EventSink
from luthier.core.run import RunRecord
from luthier.core.system.files import file_lock
from luthier.features.training.checkpoint_uploads.lease import OWN_LEASE, RunLease
from luthier.features.training.recorder import RunLog
from luthier.platform.home.context import Context

if TYPE_CHECKING:
    from luthier.features.training.checkpoint_uploads.bucket import ObjectStore, RunBucket
    from luthier.features.training.checkpoint_uploads.uploader import Uploader

LAUNCH_ID: Final = "LUTHIER_LAUNCH_ID"
"""The variable with the name of a launch, set by job files."""
_LOCK_SECONDS: Final = 1.0
_SECONDS_OF_PAUSE: Final = 45.0
"""For the uploads of a run that pauses outside a job file: a worker kills what takes a minute to pause."""


class RunUploads:
    """The uploads of one run; use it in a `with` block, under the run's lock.

    Args:
        context: The home.
        run_id: The run.
        store: Where they go; None uploads nothing.
    """

    def __init__(self, context: Context, run_id: str, store: ObjectStore | None) -> None:
        self._context, self._run_id = context, run_id
        self._folder = context.settings.run_folder(run_id)
        self._log = RunLog(self._folder)
        self._bucket = None if store is None else _bucket_of(store, run_id)
        self._uploader: Uploader | None = None
        self._lease: RunLease | None = None
        self._broken: list[str] = []
        self._is_ended = False

    def __enter__(self) -> Self:
        if self._bucket is not None:
            if self._bucket.store.signer is not None:
                # Uploads are to be signed: a public key is refused before anything is computed.
                self._bucket.store.signer.private_key()
            self._lease = RunLease(
                self._bucket,
                self._folder,
                seconds=self._context.settings.lease_seconds,
                progress=self._context.progress,
            )
            self._lease.take()
            # From now on: reading rows and fetching checkpoints may take longer than a lease.
            self._lease.keep()
        return self

    def __exit__(self, *_: object) -> None:
        if self._lease is None:
            return
        try:
            if self._uploader is not None:
                self._close(self._uploader, self._lease)
        finally:
            self._lease.end()

    def _close(self, uploader: Uploader, lease: RunLease) -> None:
        try:
            # A run that failed or was interrupted, too, has a newest checkpoint and events.
            if not self._is_ended and lease.lost is None:
                uploader.finish({})
                uploader.wait(min(self._context.settings.upload_wait_seconds, _SECONDS_OF_PAUSE))
        finally:
            uploader.close()

    def fetch_newer(self) -> None:
        """Restore what another machine has uploaded, where it is newer than what this home has.

        Raises:
            CheckpointError: There are uploads and all are damaged.
            WorkError: The store does not answer.
        """
        if self._bucket is not None:
            from luthier.features.training.checkpoint_uploads.state import restore

            self._broken = restore(self._context, self._bucket)

    def begin(self, plan: Plan) -> None:
        """Start to upload; a run without a checkpoint is known in the store from now on.

        Raises:
            WorkError: The store does not answer.
        """
        if self._bucket is None or self._lease is None:
            return
        from luthier.features.training.checkpoint_uploads.state import GatheredRun, newest_checkpoint
        from luthier.features.training.checkpoint_uploads.uploader import Uploader

        uploader = Uploader(
            self._bucket,
            self._lease,
            GatheredRun(self._context, self._run_id),
            self._folder,
            plan.hash,
            plan.training.keep_checkpoints,
        )
        uploader.start(newest_checkpoint(self._folder))
        self._uploader = uploader

    def observing(self, listener: EventSink | None) -> EventSink | None:
        """A listener that offers checkpoints to the uploads and records what became of them, then calls `listener`."""
        uploader = self._uploader
        if uploader is None:
            return listener

        def listen(event: Event) -> None:
            self._report_broken(event)
            for report in uploader.take_reports():
                self._record(report)
            if isinstance(event, CheckpointSaved):
                self._offer(uploader, event)
            if listener is not None:
                listener(event)

        return listen

    def end(self, record: RunRecord) -> list[str]:
        """Upload the end of the run and wait for it, a limited time.

        Returns:
            What a person should know: that something is not uploaded.
        """
        if self._uploader is None or self._bucket is None:
            return []
        from luthier.features.training.checkpoint_uploads.state import result_files

        self._is_ended = True
        self._uploader.finish(result_files(self._context, record))
        seconds = self._context.settings.upload_wait_seconds
        if record.status == "paused" and LAUNCH_ID not in os.environ:
            seconds = min(seconds, _SECONDS_OF_PAUSE)
        is_whole = self._uploader.wait(seconds)
        for report in self._uploader.take_reports():
            self._record(report)
        if is_whole:
            return []
        reason = f" ({self._uploader.problem})" if self._uploader.problem else ""
        # With its place: the option of this command is not among the settings of the next one.
        place = shlex.quote(self._bucket.store.name)
        line = (
            f"the end of this run is not in object storage after {seconds:g} s{reason}; upload it with: luthier runs "
            f"upload {self._run_id} --checkpoints {place}"
        )
        self._log.say(line)
        return [line]

    def _report_broken(self, event: Event) -> None:
        """Record that uploads could not be used, at the first event of the loop."""
        if not self._broken:
            return
        step = event.from_step if isinstance(event, RunStarted) else event.step
        message = f"damaged uploads were skipped, and an earlier one was used: {'; '.join(self._broken)}"
        self._record(WarningRaised(step=step, code="broken_upload", message=message))
        self._broken = []

    def _record(self, report: CheckpointUploaded | WarningRaised) -> None:
        self._context.runs.append(self._run_id, report)
        self._log.write(report)

    def _offer(self, uploader: Uploader, event: CheckpointSaved) -> None:
        try:
            uploader.offer(event.step, Path(event.path))
        except OSError as error:
            # Pruned before its event arrived, or no room for a copy: the next checkpoint is offered, too.
            message = f"the checkpoint of step {event.step} is not uploaded ({type(error).__name__}): the next one is"
            self._record(WarningRaised(step=event.step, code="checkpoint_not_uploaded", message=message))


def uploads_of(context: Context, run_id: str) -> RunUploads:
    """The uploads of a run, as the settings say.

    Raises:
        RequestError: The place of the settings cannot be used.
    """
    return RunUploads(context, run_id, _store(context))


def check_known(context: Context, run_id: str) -> None:
    """Raise NotFoundError where neither this home nor the uploads know a run."""
    try:
        context.runs.get(run_id)
    except NotFoundError:
        # Any other text than an id must not become part of a path.
        store = _store(context) if is_id(run_id, "run") else None
        if store is None or not _bucket_of(store, run_id).uploads():
            raise


def launched_elsewhere(context: Context, launch: str) -> str | None:
    """The run that a launch has begun on another machine; None where it is not known."""
    if (store := _store(context)) is None:
        return None
    from luthier.features.training.checkpoint_uploads.bucket import run_of_launch

    return run_of_launch(store, launch)


def remember_launch(context: Context, launch: str, run_id: str) -> None:
    """Let other machines find the run of a launch."""
    if (store := _store(context)) is not None:
        from luthier.features.training.checkpoint_uploads.bucket import note_launch

        note_launch(store, launch, run_id)


def fetch_run(context: Context, run_id: str) -> RunRecord:
    """Make this home know a run as it was uploaded: record, events, and, where it has ended, weights and report.

    Raises:
        RequestError: No place is set.
        NotFoundError: Nothing was uploaded of such a run.
        CheckpointError: All uploads are damaged.
        WorkError: The store does not answer.
    """
    from luthier.features.training.checkpoint_uploads.state import restore

    store = _required(context)
    folder, bucket = context.settings.run_folder(run_id), _bucket_of(store, run_id)
    if not bucket.uploads():
        raise NotFoundError(
            f"no upload of run {run_id} in {store.name}",
            expected="a run whose checkpoints were uploaded there",
            do="check the id and the place (LUTHIER_CHECKPOINTS or --checkpoints)",
        )
    with file_lock(folder / "lock", what=f"run {run_id}", timeout_seconds=_LOCK_SECONDS):
        restore(context, bucket, with_checkpoints=False)
    return context.runs.get(run_id)


def upload_run(context: Context, run_id: str) -> RunRecord:
    """Upload what is missing of a run that no process works on: its newest checkpoint, its record and its result.

    Raises:
        RequestError: No place is set.
        NotFoundError: There is no such run.
        ConflictError: A process works on it, here or on another machine.
        WorkError: The store does not answer.
    """
    from luthier.features.training.checkpoint_uploads.state import is_behind

    store, record = _required(context), context.runs.get(run_id)
    folder = context.settings.run_folder(run_id)
    with (
        file_lock(folder / "lock", what=f"run {run_id}", timeout_seconds=_LOCK_SECONDS),
        RunUploads(context, run_id, store) as uploads,
    ):
        if is_behind(context, _bucket_of(store, run_id)):
            raise ConflictError(
                f"another machine has uploaded more of run {run_id} than this home has",
                expected="a run whose newest state is here",
                do=f"fetch it with `luthier runs fetch {run_id}`, or resume it",
            )
        uploads.begin(context.runs.plan(run_id))
        if lines := uploads.end(record):
            raise WorkError(
                lines[0], expected=f"{store.name} to take it in time", do="check the store, then upload it again"
            )
    return record


def is_continued_elsewhere(context: Context, run_id: str, folder: Path) -> bool:
    """Whether another machine has taken a run that this home has uploaded.

    Args:
        context: The home.
        run_id: The run.
        folder: Of the run, wherever it is now.

    Raises:
        RequestError: The place of the settings cannot be used.
        WorkError: The store does not answer.
    """
    store = _store(context)
    if store is None or not (folder / OWN_LEASE).is_file():
        return False
    return RunLease(_bucket_of(store, run_id), folder, seconds=context.settings.lease_seconds).is_elsewhere()


def forget_uploads(context: Context, run_id: str, folder: Path) -> None:
    """Remove what this home has uploaded of a run that is deleted; nothing where another machine has taken the run.

    Args:
        context: The home.
        run_id: The run.
        folder: Of the run, wherever it is now.

    Raises:
        RequestError: The place of the settings cannot be used.
        WorkError: The store does not answer.
    """
    store = _store(context)
    # The other machine may be training from these very objects.
    if store is not None and not is_continued_elsewhere(context, run_id, folder):
        _bucket_of(store, run_id).remove_all()


def _store(context: Context) -> ObjectStore | None:
    """Where uploads go; None where the settings name no place, for which nothing is imported."""
    if context.settings.checkpoints is None:
        return None
    from luthier.features.training.checkpoint_uploads.bucket import store_of

    return store_of(context.settings)


def _bucket_of(store: ObjectStore, run_id: str) -> RunBucket:
    from luthier.features.training.checkpoint_uploads.bucket import RunBucket

    return RunBucket(store, run_id)


def _required(context: Context) -> ObjectStore:
    if (store := _store(context)) is not None:
        return store
    raise RequestError(
        "no place for uploaded checkpoints is set",
        expected="LUTHIER_CHECKPOINTS or --checkpoints, such as s3://bucket/folder",
        do="write for example: --checkpoints s3://bucket/folder",
    )
