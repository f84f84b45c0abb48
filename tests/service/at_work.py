"""A worker with real processes, and what happens to a job while it is at work."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

from luthier.jobs.worker import Pace
from luthier.service import jobs
from luthier.service.context import Context

QUICK = Pace(look=0.05, ping=0.1, beat=0.5)


def work(context: Context) -> None:
    """Have a worker empty the queue."""
    jobs.work(context, "w", stop_requested=lambda: None, tell=lambda _: None, until_idle=True, pace=QUICK)


def at_work(context: Context, job_id: str, word: str, act: Callable[[], None]) -> None:
    """Have a worker empty the queue, and act once the job has told something with this word."""
    worker = threading.Thread(target=work, args=(context,))
    worker.start()
    try:
        deadline = time.monotonic() + 60
        while not any(word in event.message for event in context.job_events.page(job_id)[0]):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        act()
    finally:
        worker.join()


def child_of(context: Context, job_id: str) -> int:
    """The process that works on a job."""
    folder = str(context.settings.jobs_folder / job_id)
    for place in Path("/proc").iterdir():
        if place.name.isdigit():
            try:
                words = (place / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            is_child = b"luthier.service.job_child" in words and b"luthier.jobs.guard" not in words
            if is_child and any(word.decode().startswith(folder) for word in words):
                return int(place.name)
    raise AssertionError("nobody works on it")
