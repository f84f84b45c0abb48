"""What work on a file of rows may use: this process, one process a core, or those of a cluster; and how much memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.core.errors import RequestError
from luthier.platform.home.context import Context

if TYPE_CHECKING:
    from luthier.ml.data.files.row_workers import RowWorkers
    from luthier.ml.data.files.spill import Spill


@contextmanager
def row_workers(context: Context, on: str | None, *files: Path | None) -> Iterator[RowWorkers]:
    """The processes that look at the rows of files.

    Args:
        context: Shows the connection, and has the settings.
        on: `ray` for the workers of a cluster; None for this machine: one process a core for large files, else this
            process.
        files: The files, for their size.

    Raises:
        RequestError: `on` is something else, or Ray is not installed.
        WorkError: The cluster cannot be reached.
        StorageFullError: There is no room for the parts that workers get.
    """
    from luthier.ml.data.files.process_workers import num_process_workers, process_workers
    from luthier.ml.data.files.row_workers import IN_PROCESS

    if on is None:
        # A file that is missing is an error of whatever opens it, with its own message.
        num_bytes = sum(file.stat().st_size for file in files if file is not None and file.is_file())
        num = num_process_workers(num_bytes, context.settings.data_workers)
        if num == 1:
            yield IN_PROCESS
        else:
            with process_workers(num, context.settings.scratch_folder) as processes:
                yield processes
        return
    if on != "ray":
        raise RequestError(
            f"--on {on}",
            expected="ray",
            do="run the command on a machine of the cluster with --on ray, or name the cluster by RAY_ADDRESS",
        )
    from luthier.ml.data.files.ray_workers import ray_workers

    with ExitStack() as stack:
        with context.progress.task("connect to Ray", 1, "cluster") as task:
            workers = stack.enter_context(ray_workers())
            task.note(f"{workers.num_cores:,} cores")
            task.advance()
        yield workers


def working_memory(context: Context) -> Spill:
    """The memory that one work on rows may take, and where rows beyond it go."""
    from luthier.ml.data.files.spill import Spill

    settings = context.settings
    return Spill(settings.data_memory_bytes or None, settings.scratch_folder)
