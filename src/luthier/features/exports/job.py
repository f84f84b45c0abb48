"""An attempt of a job that exports: what is not made is made from the beginning. Runs in the child of a worker."""

from __future__ import annotations

from luthier.core.records.export import ExportAsked
from luthier.features.exports.requests import remove_files
from luthier.features.exports.service import export
from luthier.features.serving.made_exports import export_folder
from luthier.platform.home.context import Context
from luthier.platform.jobs.progress import JobProgress, exit_on_sigterm
from luthier.platform.jobs.records import Job
from luthier.platform.processes.process import Outcome


def carry_out(context: Context, job: Job) -> Outcome:
    """Export, prove and bundle. On SIGTERM what was begun is removed.

    Raises:
        LuthierError: The export cannot be made; see `exports.export`.
    """
    asked = ExportAsked.model_validate(job.document["export"])
    if context.exports.get(job.project_id, asked.export_id).document is not None:
        return Outcome(status="succeeded")  # the attempt before died between the end of its work and its last word
    remove_files(context, asked.export_id)  # of one that died before it could write down what it had made
    context.progress = JobProgress(context, job)
    folder = export_folder(context, asked.export_id)
    with exit_on_sigterm():
        made = export(context, asked.source, to=asked.to, output=folder, quantise=asked.quantise)
    context.exports.finish(asked.export_id, made)
    return Outcome(status="succeeded")
