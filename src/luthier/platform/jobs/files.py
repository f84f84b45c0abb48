"""Files of a job's own: they stay when the project deletes those that they were made from."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from luthier.core.system.durable import sync
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
    path = folder / f"{stem}{source.suffix or '.jsonl'}"
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
    partial.rename(path)
    return path
