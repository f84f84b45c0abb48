"""Use cases: have the server export a model, by a job, and look after what was made."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from luthier.core.access import Caller
from luthier.core.errors import ConflictError, NotFoundError, RequestError
from luthier.core.ids import is_id, new_id
from luthier.core.records.export import ExportAsked, ExportFormat, ExportPrecision, ServerExport
from luthier.core.registry import EXPORTERS
from luthier.features.exports import bundles
from luthier.features.serving.made_exports import export_folder, made_export
from luthier.features.serving.targets import EXPORT, base_model, is_tuned_name
from luthier.platform.audit_log.service import make_audit_event, record
from luthier.platform.home.context import Context
from luthier.platform.jobs.event_records import JobEvent
from luthier.platform.jobs.records import ENDED, Job

if TYPE_CHECKING:
    from luthier.ml.export.bundle.verify import VerifyReport


@dataclass(frozen=True, slots=True)
class FormatView:
    """A format that the server can export to.

    Attributes:
        name: The format.
        precisions: The precisions that it has, widest first.
        missing: Packages that have to be installed first.
        install: What `pip install` takes to get them.
    """

    name: ExportFormat
    precisions: tuple[ExportPrecision, ...]
    missing: tuple[str, ...]
    install: str


@dataclass(frozen=True, slots=True)
class ExportView:
    """An export and its job.

    Attributes:
        export: The export, with its document once it is made.
        job: The job that makes it.
        asked: What was requested.
        last_word: The newest event of the job; None before the first, and in lists.
    """

    export: ServerExport
    job: Job
    asked: ExportAsked
    last_word: JobEvent | None = None

    @property
    def has_ended(self) -> bool:
        """Whether nothing more happens to it."""
        return self.job.status in ENDED


def formats() -> list[FormatView]:
    """All formats; what of them can be made here is told by `missing`."""
    return [
        FormatView(name, tuple(format.precisions), format.missing, format.install)
        for name, format in EXPORTERS.declarations().items()
    ]


def start(context: Context, caller: Caller, source: str, to: str, quantise: str | None = None) -> ServerExport:
    """Queue the export of a run that has succeeded, a tuned model or a base model on this machine.

    Args:
        source: A run id, a tuned model (`ft:...`) or a base model.
        to: The format.
        quantise: The precision; None takes the format's own.

    Raises:
        NotFoundError: No such source in the project.
        ConflictError: The run has not succeeded.
        RequestError: An unknown format or precision, a missing package, or a checkpoint.
    """
    format = _checked_format(to, quantise)
    shown, source_name = _source(context, caller, source)
    export_id = new_id("exp")
    asked = ExportAsked(export_id=export_id, source=source_name, to=format, quantise=quantise)
    job = Job(
        job_id=new_id("job"),
        kind="export",
        document={"export": asked.model_dump(mode="json")},
        run_id="",
        project_id=caller.project_id,
    )
    # Both ids exist before anything is stored: export and job name each other.
    made = ServerExport(export_id=export_id, project_id=caller.project_id, job_id=job.job_id, source=shown)
    audit_event = make_audit_event(
        caller, "export.started", export_id, {"source": shown, "format": format, "precision": quantise}
    )
    return context.exports.add(made, job, audit_event)


def list_exports(context: Context, caller: Caller, *, sources: Sequence[str] | None = None) -> list[ExportView]:
    """The exports of the project, newest first; of some sources (run ids, base models) where they are named."""
    return [_view(context, one) for one in context.exports.list(caller.project_id, sources=sources)]


def show_export(context: Context, caller: Caller, export_id: str) -> ExportView:
    """One export. Raises NotFoundError."""
    view = _view(context, context.exports.get(caller.project_id, export_id))
    told, _ = context.job_events.page(view.job.job_id, limit=1)
    return ExportView(view.export, view.job, view.asked, told[0] if told else None)


def cancel(context: Context, caller: Caller, export_id: str) -> None:
    """Give an export up; nothing of it is left. Raises NotFoundError, ConflictError where it has ended."""
    found = context.exports.get(caller.project_id, export_id)
    context.jobs.ask(found.job_id, "cancel")
    record(context, caller, "export.cancelled", export_id)


def retry(context: Context, caller: Caller, export_id: str) -> None:
    """Make an export that has failed once more, from the beginning. Raises NotFoundError, ConflictError."""
    found = context.exports.get(caller.project_id, export_id)
    context.jobs.resume(found.job_id)
    record(context, caller, "export.retried", export_id)


def remove(context: Context, caller: Caller, export_id: str) -> ServerExport:
    """Forget an export and delete its files; returns it as it was.

    Raises NotFoundError, and ConflictError while it is being made, or where a deployment routes to it.
    """
    view = show_export(context, caller, export_id)
    if not view.has_ended:
        raise ConflictError(
            f"the export {export_id} is {view.job.shown_status}",
            expected="an export that has ended",
            do="cancel it first, or wait",
        )
    # A deployment keeps only the id of the export; without its files every request to that name would fail.
    if names := context.deployments.routing_to(f"{EXPORT}{export_id}"):
        raise ConflictError(
            f"the export {export_id} answers as {', '.join(names)}",
            expected="an export that no deployment routes to",
            do="deploy another model under that name first, or remove the deployment",
        )
    # Row first, files second: a crash in between leaves unreferenced files, never a listed export without files.
    context.exports.remove(caller.project_id, export_id, make_audit_event(caller, "export.removed", export_id))
    remove_files(context, export_id)
    return view.export


def remove_files(context: Context, export_id: str) -> None:
    """Delete what lies of an export, with what a killed attempt has left beside it."""
    final = export_folder(context, export_id)
    # The glob repeats the prefix of `folders._prefix`: staging folders lie beside the final one.
    for folder in (final, *final.parent.glob(f".{export_id}.partial-*")):
        shutil.rmtree(folder, ignore_errors=True)


def verify(context: Context, caller: Caller, export_id: str) -> VerifyReport:
    """Compare every file of an export with its manifest. Raises NotFoundError, ConflictError while it is not made."""
    _, folder = made_export(context, caller, export_id)
    return bundles.verify_bundle(context, folder)


def _view(context: Context, export: ServerExport) -> ExportView:
    job = context.jobs.get(export.job_id, export.project_id)
    return ExportView(export, job, ExportAsked.model_validate(job.document["export"]))


def _checked_format(to: str, quantise: str | None) -> ExportFormat:
    known = {view.name: view for view in formats()}
    if to not in known:
        raise RequestError(f"the format {to[:40]!r}", expected=f"one of {', '.join(known)}", do="choose one of them")
    view = known[to]
    if quantise is not None and quantise not in view.precisions:
        raise RequestError(
            f"the precision {quantise[:40]!r} for the format {to}",
            expected=f"one of {', '.join(view.precisions)}",
            do="choose one of them, or none to take the format's own",
        )
    if view.missing:
        raise RequestError(
            f"the format {to} needs {', '.join(view.missing)}, which is not installed here",
            expected="the runtime that the export is proved in",
            do=f"on the server: pip install {view.install}",
        )
    return view.name


def _source(context: Context, caller: Caller, name: str) -> tuple[str, str]:
    """What is exported: as the project knows it, and as `find_source` takes it."""
    if is_tuned_name(name):
        tuned = context.tuned_models.get(caller.project_id, name)
        if tuned.step is not None:
            raise RequestError(
                f"{name!r} is a checkpoint",
                expected="the outcome of a run",
                do="export the model that its run has made",
            )
        name = tuned.run_id
    if not is_id(name, "run"):
        return name, base_model(context, name).name
    # The error is that of an unknown id, so that a caller cannot probe which runs other projects have.
    if context.runs.project_of(name) != caller.project_id:
        raise NotFoundError(f"no run {name!r}", expected="the id of a run of this project", do="see the list of runs")
    status = context.runs.get(name).status
    if status != "succeeded":
        raise ConflictError(
            f"run {name} is {status}", expected="a run that has succeeded", do="wait for it, or go on with it"
        )
    return name, name
