"""What an attempt of a job uses: its own files, progress as job events, and a clean end on SIGTERM.

A job's files stay when the project deletes those that they were made from.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Self

from luthier.core.errors import LuthierError
from luthier.core.ports import ProgressTask, SilentTask
from luthier.core.system import facilities
from luthier.core.system.files import replace_file, sync
from luthier.platform.cli import figures
from luthier.platform.files import service as files
from luthier.platform.home.context import Context
from luthier.platform.jobs.records import Job


def own_copy(context: Context, job: Job, file_id: str, stem: str) -> Path:
    """The job's own copy of a file of its project: a hard link where the disk supports them. Made once.

    Args:
        context: The home.
        job: The job, whose project owns the file.
        file_id: The file.
        stem: The name of the copy in the job's folder, without its suffix.

    Returns:
        The path of the copy.

    Raises:
        NotFoundError: The file is gone and there is no copy yet.
    """
    folder = context.settings.jobs_folder / job.job_id / "files"
    folder.mkdir(parents=True, exist_ok=True)
    if there := sorted(folder.glob(f"{stem}.*")):
        return there[0]
    source = files.local_path(context, files.get_file(context, job.project_id, file_id))
    # All of `.csv.gz`: the last part alone does not say the format.
    path = folder / f"{stem}{files.suffix_of(source.name) or '.jsonl'}"
    # The dot keeps a half-made copy out of the glob above; a killed attempt leaves one, so it is removed first.
    partial = folder / f".{path.name}"
    partial.unlink(missing_ok=True)
    try:
        # A link keeps the bytes when the project deletes its file: artifacts are never changed in place.
        os.link(source, partial)
    except OSError:  # another disk, or one that knows no links
        shutil.copyfile(source, partial)
        # Before it gets its name: a copy that a power cut truncates would be taken for a whole one from then on.
        sync(partial)
    replace_file(partial, path)
    return path


_STEP_NAME: Final = "step"


def report_step(context: Context, job: Job, step: int) -> None:
    """Say how far a job is that makes no run: so that crashes with progress between them do not end it."""
    (context.settings.jobs_folder / job.job_id / _STEP_NAME).write_text(str(step), encoding="ascii")


def reported_step(context: Context, job: Job) -> int:
    """What the attempts of a job have reported last; 0 before that."""
    try:
        return int((context.settings.jobs_folder / job.job_id / _STEP_NAME).read_text(encoding="ascii"))
    except (OSError, ValueError):  # not there yet, or being written
        return 0


_REPORT_SECONDS: Final = 2.0
_TERMINATED: Final = 128 + signal.SIGTERM


@contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """Turn SIGTERM into SystemExit while the block runs, so that `finally` blocks remove half-written files.

    On Windows also SIGBREAK, which is what `facilities.request_stop` sends.
    """

    def stop(_number: int, _frame: object) -> None:
        sys.exit(_TERMINATED)

    # The default action ends the process without running any `finally`.
    numbers = [number for number in facilities.STOP_SIGNALS if number != signal.SIGINT]
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class JobProgress:
    """Progress written as events of the job: the title of each task once, then its position every few seconds.

    Args:
        context: The home.
        job: The job, as its attempt was given it.
        only: The titles of the tasks that are reported; empty for all.
        every_seconds: How often; None for every two seconds.
        names_tasks: Whether the title is reported when a task begins: not where a task is short, and begins often.
    """

    def __init__(
        self,
        context: Context,
        job: Job,
        *,
        only: Sequence[str] = (),
        every_seconds: float | None = None,
        names_tasks: bool = True,
    ) -> None:
        self._context, self._job, self._number, self._only = context, job, 0, frozenset(only)
        self.every_seconds = _REPORT_SECONDS if every_seconds is None else every_seconds
        self.names_tasks = names_tasks

    def task(self, title: str, total: float | None, unit: str, done: float = 0) -> ProgressTask:
        """A task whose progress is reported.

        Args:
            title: What is done, such as "judging".
            total: How many units there are; None if unknown, in which case only the title is reported.
            unit: What is counted, such as "rows".
            done: How many units were done before.
        """
        if self._only and title not in self._only:
            return SilentTask()
        return _Task(self, title, total, unit, done)

    def report(self, message: str) -> None:
        """Write an event. A database that is unreachable for a moment does not end the work."""
        self._number += 1
        with contextlib.suppress(LuthierError):
            # Codes are unique within a job, so the attempt is part of them: a later attempt reports its progress again.
            code = f"progress-{self._job.attempt}-{self._number}"
            self._context.job_events.append(self._job.job_id, code, message)


class _Task(SilentTask):
    def __init__(self, progress: JobProgress, title: str, total: float | None, unit: str, done: float) -> None:
        self._progress, self._title, self._total, self._unit, self._done = progress, title, total, unit, done
        self._reported_at = self._began_at = 0.0
        self._done_before = done

    def advance(self, amount: float = 1) -> None:
        """Count, and report at most every few seconds."""
        self._done += amount
        now = time.monotonic()
        if self._total and now - self._reported_at >= self._progress.every_seconds:
            self._reported_at = now
            position = f"{self._title}: {self._done:,.0f} of {self._total:,.0f} {self._unit}".rstrip()
            # At the mean speed of this attempt.
            if (num := self._done - self._done_before) > 0 and self._done < self._total:
                seconds = (self._total - self._done) * (now - self._began_at) / num
                position += f", about {figures.duration(seconds)} left"
            self._progress.report(position)

    def __enter__(self) -> Self:
        # The title is the first report: the first position follows after a full interval.
        self._reported_at = self._began_at = time.monotonic()
        if self._progress.names_tasks:
            self._progress.report(self._title)
        return self
