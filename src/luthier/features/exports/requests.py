"""Use cases: exports that the server makes by a job: request, follow, hand out, remove.

An export's files can be fetched individually or as a tar, with its card. `carry_out` is the attempt of such a job in a
worker's child: what is missing is made from the beginning.
"""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from luthier.core.access import Caller
from luthier.core.errors import ConflictError, NotFoundError, RequestError
from luthier.core.ids import is_id, new_id
from luthier.core.records.export import ExportAsked, ExportFormat, ExportPrecision, ServerExport
from luthier.core.registry import EXPORTERS
from luthier.core.system.extras import command_for
from luthier.core.system.files import blocks_of
from luthier.core.task_head import TaskHeadKind, task_head_in
from luthier.features.exports import bundles
from luthier.features.exports.service import export
from luthier.features.files.references import stored_file
from luthier.features.models.names import is_tuned_name
from luthier.features.serving.targets import EXPORT, base_model, export_folder, made_export
from luthier.ml.export.exporters.head_formats import HEAD_FORMATS, missing_modules
from luthier.platform.audit_log.service import record
from luthier.platform.home.context import Context
from luthier.platform.jobs import orders
from luthier.platform.jobs.attempt import JobProgress, exit_on_sigterm, own_copy
from luthier.platform.jobs.events import JobEvent
from luthier.platform.jobs.named_models import NamedModel
from luthier.platform.jobs.records import ENDED, Job
from luthier.platform.jobs.twins import open_twin
from luthier.platform.processes.process import Outcome

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

    @property
    def mark(self) -> str:
        """Changes with each thing that can be seen to happen."""
        return orders.mark_of(self.job, self.last_word)


def formats(head: TaskHeadKind | None = None) -> list[FormatView]:
    """All formats of models that write text, or of those with such a head; `missing` says what can be made here."""
    if head is not None:
        return [
            FormatView(name, tuple(one.precisions), missing_modules(one), one.install)
            for name, one in HEAD_FORMATS.items()
            if head in one.kinds
        ]
    return [
        FormatView(name, tuple(format.precisions), format.missing, format.install)
        for name, format in EXPORTERS.declarations().items()
    ]


def start(
    context: Context,
    caller: Caller,
    source: str,
    to: str,
    quantise: str | None = None,
    *,
    file_id: str | None = None,
    joins: bool = False,
) -> ServerExport:
    """Queue the export of a run that has succeeded, a tuned model or a base model on this machine.

    Args:
        context: The home.
        caller: Whose project it is.
        source: A run id, a tuned model (`ft:...`) or a base model.
        to: The format.
        quantise: The precision; None takes the format's own.
        file_id: A file of the project with the rows that it is proved on; None takes those of the run.
        joins: Give the same export that waits or runs already, in place of a second one.

    Raises:
        NotFoundError: No such source in the project.
        ConflictError: The run has not succeeded.
        RequestError: An unknown format or precision, a missing package, a checkpoint, or no such file.
    """
    shown, source_name = export_source(context, caller, source)
    format = _checked_format(to, quantise, _head_of(context, source_name))
    if file_id is not None:
        stored_file(context, caller.project_id, "Rows of the proof", file_id)
    export_id = new_id("exp")
    asked = ExportAsked(export_id=export_id, source=source_name, to=format, quantise=quantise, file_id=file_id)
    job = Job(
        job_id=new_id("job"),
        kind="export",
        document={"export": asked.model_dump(mode="json")},
        run_id="",
        project_id=caller.project_id,
    )
    # Both ids exist before anything is stored: export and job name each other.
    made = ServerExport(export_id=export_id, project_id=caller.project_id, job_id=job.job_id, source=shown)
    with context.database.transaction():
        if joins and (twin := open_twin(context, job, "export", apart_from="export_id")) is not None:
            return context.exports.get(caller.project_id, twin.document["export"]["export_id"])
        stored = context.exports.add(made, job)
        facts = {"source": shown, "format": format, "precision": quantise}
        record(context, caller, "export.started", export_id, facts)
    return stored


def models_of(_context: Context, job: Job) -> Iterator[NamedModel]:
    """The model that an export is made of."""
    yield NamedModel(str(job.document["export"]["source"]))


def list_exports(context: Context, caller: Caller, *, sources: Sequence[str] | None = None) -> list[ExportView]:
    """The exports of the project, newest first; of some sources (run ids, base models) where they are named."""
    return [_view(context, one) for one in context.exports.list(caller.project_id, sources=sources)]


def show_export(context: Context, caller: Caller, export_id: str) -> ExportView:
    """One export.

    Raises:
        NotFoundError: The project has no such export.
    """
    view = _view(context, context.exports.get(caller.project_id, export_id))
    return replace(view, last_word=orders.newest_event(context, view.job))


def cancel(context: Context, caller: Caller, export_id: str) -> None:
    """Cancel an export; nothing is left of it.

    Raises:
        NotFoundError: There is none in the project.
        ConflictError: It has ended.
    """
    job = _view(context, context.exports.get(caller.project_id, export_id)).job
    orders.cancel(context, caller, job, "export.cancelled", subject=export_id)


def retry(context: Context, caller: Caller, export_id: str) -> None:
    """Make a failed export again, from the beginning.

    Raises:
        NotFoundError: The project has no such export.
        ConflictError: The export has neither failed nor paused.
    """
    job = _view(context, context.exports.get(caller.project_id, export_id)).job
    orders.resume(context, caller, job, "export.retried", subject=export_id)


def remove(context: Context, caller: Caller, export_id: str) -> ServerExport:
    """Delete an export and its files; returns the deleted one.

    Raises:
        NotFoundError: There is none in the project.
        ConflictError: It is being made, or a deployment routes to it.
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
    with context.database.transaction():
        context.exports.remove(caller.project_id, export_id)
        record(context, caller, "export.removed", export_id)
    remove_files(context, export_id)
    return view.export


def remove_files(context: Context, export_id: str) -> None:
    """Delete the files of an export, with the remains of killed attempts next to it."""
    final = export_folder(context, export_id)
    # The glob repeats the prefix of `folders._prefix`: staging folders are next to the final one.
    for folder in (final, *final.parent.glob(f".{export_id}.partial-*")):
        shutil.rmtree(folder, ignore_errors=True)


def forget_unfinished(context: Context, job: Job) -> None:
    """Remove the files of a cancelled export that was not finished; those of one that was removed are gone."""
    asked = ExportAsked.model_validate(job.document.get("export"))
    with suppress(NotFoundError):
        if context.exports.get(job.project_id, asked.export_id).document is None:
            remove_files(context, asked.export_id)


def verify(context: Context, caller: Caller, export_id: str) -> VerifyReport:
    """Compare every file of an export with its manifest.

    Raises:
        NotFoundError: There is none in the project.
        ConflictError: It is not made.
    """
    _, folder = made_export(context, caller, export_id)
    return bundles.verify_bundle(context, folder)


def _view(context: Context, export: ServerExport) -> ExportView:
    job = context.jobs.get(export.job_id, export.project_id)
    return ExportView(export, job, ExportAsked.model_validate(job.document["export"]))


def _head_of(context: Context, name: str) -> TaskHeadKind | None:
    """The kind of the head that a run has trained; None where it writes text, and for a base model."""
    result = context.runs.get(name).result if is_id(name, "run") else None
    head = task_head_in(None if result is None else result.adapter_path)
    return None if head is None else head.kind


def _checked_format(to: str, quantise: str | None, head: TaskHeadKind | None) -> ExportFormat:
    known = {view.name: view for view in formats(head)}
    if to not in known:
        raise RequestError(f"the format {to[:40]!r}", expected=f"one of {', '.join(known)}", do="choose one of them")
    view = known[to]
    if quantise is not None and quantise not in view.precisions:
        raise RequestError(
            f"the precision {quantise[:40]!r} for the format {to}",
            expected=f"one of {', '.join(view.precisions)}",
            do="choose one of them, or none for the format's own",
        )
    if view.missing:
        raise RequestError(
            f"the format {to} needs {', '.join(view.missing)}, which is not installed here",
            expected="the runtime in which the export is proved",
            do=f"on the server: {command_for(view.install)}",
        )
    return view.name


def export_source(context: Context, caller: Caller, name: str) -> tuple[str, str]:
    """What is exported: as the project knows it, and as `find_source` takes it.

    Raises:
        NotFoundError: No such source in the project.
        ConflictError: The run has not succeeded.
        RequestError: A checkpoint.
    """
    if is_tuned_name(name):
        tuned = context.tuned_models.get(caller.project_id, name)
        if tuned.step is not None:
            raise RequestError(
                f"{name!r} is a checkpoint",
                expected="the outcome of a run",
                do="export the model of its run",
            )
        name = tuned.run_id
    if not is_id(name, "run"):
        return name, base_model(context, name, caller.project_id).name
    # The error is that of an unknown id, so that a caller cannot probe which runs other projects have.
    if context.runs.project_of(name) != caller.project_id:
        raise NotFoundError(f"no run {name!r}", expected="the id of a run of this project", do="see the list of runs")
    status = context.runs.get(name).status
    if status != "succeeded":
        raise ConflictError(
            f"run {name} is {status}", expected="a run that has succeeded", do="wait for it, or resume it"
        )
    return name, name


_MAX_CARD_BYTES: Final = 256 << 10
_RECORD_BYTES: Final = tarfile.RECORDSIZE
_FILE_MODE: Final = 0o644


@dataclass(frozen=True, slots=True)
class Archive:
    """A tar that is made while it is read.

    Attributes:
        name: The file name to offer.
        num_bytes: The exact size of the whole archive.
        blocks: Its content, in pieces of at most 1 MiB.
    """

    name: str
    num_bytes: int
    blocks: Iterator[bytes]


def file_of(context: Context, caller: Caller, export_id: str, path: str) -> Path:
    """A file of an export, by its path below the folder. Raises NotFoundError for all that is not listed in it."""
    found, folder = made_export(context, caller, export_id)
    # Membership in the manifest is the traversal guard: `../x` and absolute paths are never listed there.
    if found.document is None or path not in found.document.files or not (folder / path).is_file():
        raise NotFoundError(
            f"no file {path[:200]!r} in the export {export_id}",
            expected="one of the files that it lists",
            do="see its page",
        )
    return folder / path


def card_of(context: Context, caller: Caller, export_id: str) -> str:
    """The card of an export, as Markdown.

    Raises:
        NotFoundError: There is none in the project.
        ConflictError: It is not made.
    """
    from luthier.ml.export.bundle.manifest import CARD

    # A card is Markdown from the disk and goes into a page: the bound keeps a damaged file from filling memory.
    with file_of(context, caller, export_id, CARD).open("rb") as file:
        return file.read(_MAX_CARD_BYTES).decode("utf-8", "replace")


def archive_of(context: Context, caller: Caller, export_id: str) -> Archive:
    """All files of an export as one tar, in a folder named by its id.

    Raises:
        NotFoundError: No such export, or one of its files is gone.
        ConflictError: The export is not made yet.
    """
    found, folder = made_export(context, caller, export_id)
    entries = [_entry(found, folder, path) for path in sorted(found.document.files)] if found.document else []
    # A tar ends with two zero blocks and is padded to a full record of 20 blocks. The size has to be exact
    # because it is sent as Content-Length before the first byte is read.
    num_bytes = sum(len(head) + _padded(size) for head, _, size in entries) + 2 * tarfile.BLOCKSIZE
    total = -(-num_bytes // _RECORD_BYTES) * _RECORD_BYTES
    return Archive(f"{export_id}.tar", total, _written(entries, total))


def _entry(found: ServerExport, folder: Path, path: str) -> tuple[bytes, Path, int]:
    file = folder / path
    if not file.is_file():
        raise NotFoundError(
            f"{path} of the export {found.export_id} is gone",
            expected="the files as they were written",
            do="export again",
        )
    about = tarfile.TarInfo(f"{found.export_id}/{path}")
    # Fixed owner, mode and time: two downloads of one export are the same bytes.
    about.size, about.mode, about.mtime = file.stat().st_size, _FILE_MODE, int(found.created_at)
    # PAX, not USTAR: names over 100 characters and files over 8 GiB need its extended headers.
    return about.tobuf(tarfile.PAX_FORMAT), file, about.size


def _written(entries: list[tuple[bytes, Path, int]], total: int) -> Iterator[bytes]:
    written = 0
    for head, path, size in entries:
        yield head
        yield from blocks_of(path)
        yield b"\0" * (_padded(size) - size)
        written += len(head) + _padded(size)
    yield b"\0" * (total - written)


def _padded(size: int) -> int:
    return -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


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
    rows = None if asked.file_id is None else own_copy(context, job, asked.file_id, asked.file_id)
    with exit_on_sigterm():
        made = export(context, asked.source, to=asked.to, output=folder, quantise=asked.quantise, held_out=rows)
    context.exports.finish(asked.export_id, made)
    return Outcome(status="succeeded")
