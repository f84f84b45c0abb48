"""Files of a job's own: they stay when the project deletes those that they were made from."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from luthier.platform.files import service as files
from luthier.platform.home.context import Context
from luthier.platform.jobs.records import Job


def own_copy(context: Context, job: Job, file_id: str, stem: str) -> Path:
    """The job's own copy of a file of its project, a hard link where the disk knows them; made once.

    stem: what it is called in the job's folder. Raises NotFoundError where the file is gone and was never laid out.
    """
    folder = context.settings.jobs_folder / job.job_id / "files"
    folder.mkdir(parents=True, exist_ok=True)
    if there := sorted(folder.glob(f"{stem}.*")):
        return there[0]
    source = files.local_path(context, files.get_file(context, job.project_id, file_id))
    path = folder / f"{stem}{source.suffix or '.jsonl'}"
    partial = folder / f".{path.name}"
    partial.unlink(missing_ok=True)
    try:
        os.link(source, partial)
    except OSError:  # another disk, or one that knows no links
        shutil.copyfile(source, partial)
    partial.rename(path)
    return path
