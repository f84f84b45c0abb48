"""Use cases: add files of any kind to a project: rows become a version at once, documents become passages by a job.

one file of rows ------------------------------> a version of a dataset, in the request
several files, a folder, documents, ZIP files -> kept as files of the project -> job `import` (`import_job`)
"""

from __future__ import annotations

import contextlib
import gzip
import shutil
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Final, Literal

from pydantic import Field, model_validator

from luthier.core.access import Caller
from luthier.core.data_sources import DATA_SUFFIXES
from luthier.core.errors import ConflictError, LuthierError, NotFoundError, RequestError
from luthier.core.frozen_model import FrozenModel
from luthier.core.ids import new_id
from luthier.features.datasets import service as dataset_versions
from luthier.features.datasets.rows import look
from luthier.features.datasets.service import checked_name, free_name
from luthier.features.datasets.store import DatasetVersion
from luthier.platform.audit_log.service import record
from luthier.platform.files import service as files
from luthier.platform.files.service import IncomingFile
from luthier.platform.files.store import StoredFile
from luthier.platform.home.context import Context
from luthier.platform.jobs.child import JOB_NAME
from luthier.platform.jobs.records import Job

FileKind = Literal["rows", "conversations", "document", "archive", "convert first", "unknown"]

IMPORT: Final = "import"
"""The kind of these jobs, and the key of their order in the job document."""
MAX_FILES: Final = 2_000
MAX_ADDRESS: Final = 2_000
"""Characters of the address of rows from elsewhere."""
MAX_ASSISTANTS: Final = 100
PASSAGE_TOKENS: Final = 256
"""Shorter than on the command line: a small model writes better questions from short passages."""
OVERLAP_TOKENS: Final = 0
"""None: a sentence in two passages would make the same question twice."""
KEPT_SECONDS: Final = 7 * 24 * 3600
"""Files that were added are deleted after the import; those of one that never ends, after a week."""
_MAX_NAME_CHARACTERS: Final = 600
_MAX_PART_BYTES: Final = 200


class ImportFile(FrozenModel):
    """A file of an import.

    Attributes:
        file_id: The file of the project.
        name: The name that it came under; of a folder with its path.
    """

    file_id: str
    name: str


class RemoteOrder(FrozenModel):
    """Rows to import from where they are, and which of them.

    Attributes:
        address: `hub:`, `https://`, `s3://`, `gs://` or `az://`. Its query may hold a signature, and is never shown.
        max_rows: At most so many rows; None for all.
        fraction: The share of the rows; None for all. Of this and `max_rows` one at most.
        kept_columns: The columns that are kept; none for all.
        columns: Field of a shape -> column, as a person has chosen; empty where the file shows it.
    """

    address: Annotated[str, Field(min_length=1, max_length=MAX_ADDRESS)]
    max_rows: Annotated[int, Field(ge=1, lt=2**53)] | None = None
    fraction: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    kept_columns: Annotated[tuple[str, ...], Field(max_length=200)] = ()
    columns: dict[str, str] = Field(default_factory=dict)

    @property
    def shown(self) -> str:
        """The address without its query."""
        return self.address.partition("?")[0]

    @property
    def selection(self) -> dict[str, Any]:
        """Which rows and columns of the source are taken, as plain values; empty for all."""
        chosen = {"max_rows": self.max_rows, "fraction": self.fraction, "kept_columns": list(self.kept_columns)}
        return {name: value for name, value in chosen.items() if value}


class ImportOrder(FrozenModel):
    """What a job of the kind `import` is to read: files that were added, or rows from elsewhere.

    Attributes:
        files: The files, in the order in which they came.
        source: Rows from elsewhere; None for files.
        name: The name of the dataset that is made.
        dataset_id: The dataset that gets a new version of the passages; empty for a new one.
        note: Why, in the author's words.
        author: Who added them.
        passage_tokens: The longest passage, in tokens of the default base model, or in words without it.
        assistants: Who answers in exports of conversations; none goes by each export.
    """

    files: Annotated[tuple[ImportFile, ...], Field(max_length=MAX_FILES)] = ()
    source: RemoteOrder | None = None
    name: str
    dataset_id: str = ""
    note: str = ""
    author: str = "local"
    passage_tokens: Annotated[int, Field(ge=16, le=100_000)] = PASSAGE_TOKENS
    assistants: Annotated[tuple[str, ...], Field(max_length=MAX_ASSISTANTS)] = ()

    @model_validator(mode="after")
    def _has_one_kind(self) -> ImportOrder:
        if bool(self.files) == (self.source is not None):
            raise ValueError("files or a source: one of the two")
        return self


@dataclass(frozen=True, slots=True)
class Added:
    """What became of files that were added.

    Attributes:
        version: The version of the rows, where they became one at once; else None.
        job: The job that reads them; None where there is none.
    """

    version: DatasetVersion | None = None
    job: Job | None = None


def kind_of(name: str) -> FileKind:
    """What a file holds by its name. A workbook counts as rows: a job decides by its columns."""
    from luthier.ml.data.conversations.mbox import is_mbox_name
    from luthier.ml.data.documents.archives import ARCHIVE_SUFFIX
    from luthier.ml.data.readers.document import CONVERT_FIRST, READERS

    # By name alone: this is asked while files are still on their way in, and the job looks into them.
    suffix = files.suffix_of(name)
    if is_mbox_name(PurePosixPath(name).name):
        return "conversations"
    if suffix.removesuffix(".gz") in DATA_SUFFIXES:
        return "rows"
    if suffix in READERS:
        return "document"
    if suffix in CONVERT_FIRST:
        return "convert first"
    return "archive" if suffix == ARCHIVE_SUFFIX else "unknown"


ACCEPTED_NAMES: Final = ("mbox",)
"""Names of files that can be added although they have no ending: Apple Mail's archives."""


def accepted_suffixes() -> tuple[str, ...]:
    """Endings of files that can be added, in the order in which pages name them."""
    from luthier.ml.data.documents.archives import ARCHIVE_SUFFIX
    from luthier.ml.data.readers.document import READERS

    return tuple(dict.fromkeys((*READERS, *DATA_SUFFIXES, ".mbox", ARCHIVE_SUFFIX)))


def add(
    context: Context,
    caller: Caller,
    incoming: Sequence[tuple[IncomingFile, str]],
    *,
    name: str = "",
    dataset_id: str = "",
    note: str = "",
    passage_tokens: int = PASSAGE_TOKENS,
    assistants: Sequence[str] = (),
) -> Added:
    """Add files that came in; on any error nothing of them is kept.

    Args:
        context: The home.
        caller: Whose project it is.
        incoming: The files with the names that they came under.
        name: Of a new dataset; empty takes the name of the file or folder.
        dataset_id: The dataset that gets a new version; empty for a new dataset.
        note: Why, in the author's words.
        passage_tokens: The longest passage of a document.
        assistants: Who answers in exports of conversations; none goes by each export.

    Raises:
        RequestError: No file, only files of kinds that are not read, or an empty or overlong name.
        ConflictError: The name is taken.
        NotFoundError: No such dataset.
        DataError: A file of rows or a ZIP file that cannot be read, or is not safe.
        StorageFullError: The disk is full.
    """
    if not incoming:
        raise RequestError("no file was chosen", expected="at least one file", do="choose files, or drop them here")
    names = [_clean_path(one) for _, one in incoming]
    _check_kinds(names)
    if dataset_id:
        context.datasets.get(caller.project_id, dataset_id)
        called = ""
    else:
        called = checked_name(name) if name.strip() else free_name(context, caller.project_id, _name_from(names))
        check_is_free(context, caller, called)
    if len(assistants) > MAX_ASSISTANTS:
        raise RequestError(
            f"{len(assistants):,} people who answer",
            expected=f"at most {MAX_ASSISTANTS}",
            do="name a domain, as @domain",
        )
    if len(incoming) == 1 and kind_of(names[0]) == "rows" and not _has_tickets(incoming[0][0].path, names[0]):
        return Added(version=_add_rows(context, caller, *incoming[0], called, dataset_id, note))
    # In the request and not in the job: who uploads learns at once that a file cannot be read.
    _check_archives(incoming)
    kept = _keep(context, caller, incoming, names)
    try:
        order = ImportOrder(
            files=tuple(ImportFile(file_id=file.file_id, name=one) for file, one in zip(kept, names, strict=True)),
            name=called,
            dataset_id=dataset_id,
            note=note[: dataset_versions.MAX_NOTE_CHARACTERS],
            author=caller.name,
            passage_tokens=passage_tokens,
            assistants=tuple(assistants),
        )
        return Added(job=start(context, caller, order))
    except BaseException:
        _forget(context, caller.project_id, kept)
        raise


def start(context: Context, caller: Caller, order: ImportOrder) -> Job:
    """Queue an import.

    Raises:
        FileQuotaError: The files of the project take as much as they may.
    """
    context.files.check_room(caller.project_id)
    document = {IMPORT: order.model_dump(mode="json")}
    job = Job(
        job_id=new_id("job"),
        kind="import",
        document=document,
        run_id="",
        project_id=caller.project_id,
        lane="infer" if order.source is None else "remote",
    )
    what = {"num_files": len(order.files)} if order.source is None else {"source": order.source.shown}
    facts = what | {"name": order.name, "dataset_id": order.dataset_id}
    with context.database.transaction():
        made = context.jobs.submit(job)
        record(context, caller, "import.started", job.job_id, facts)
    return made


def order_of(job: Job) -> ImportOrder:
    """What a job of this kind is to read."""
    return ImportOrder.model_validate(job.document[IMPORT])


def work_folder(context: Context, job: Job) -> Path:
    """Where an import lays out its files and keeps what it has read."""
    return context.settings.jobs_folder / job.job_id / "import"


def forget_work(context: Context, job: Job) -> None:
    """Remove what an import that is never resumed has on the disk: its work, and the orders of its attempts."""
    shutil.rmtree(work_folder(context, job), ignore_errors=True)
    # The query of an address in them may hold a signature or a key.
    for order in (context.settings.jobs_folder / job.job_id).glob(f"attempt-*/{JOB_NAME}"):
        order.unlink(missing_ok=True)


def forget_cancelled(context: Context, job: Job) -> None:
    """Remove what a cancelled import has left: the files that were added, and its work."""
    forget_files(context, job)
    forget_work(context, job)


def forget_abandoned(context: Context) -> None:
    """Remove the work of failed and cancelled imports that nobody has resumed for a week: it counts nowhere."""
    for work in context.settings.jobs_folder.glob("*/import"):
        # OSError: another attempt is at the same folder.
        with contextlib.suppress(NotFoundError, OSError):
            if context.jobs.get(work.parent.name).status not in ("failed", "cancelled"):
                continue
            newest = max((file.stat().st_mtime for file in work.rglob("*")), default=work.stat().st_mtime)
            if time.time() - newest >= KEPT_SECONDS:
                shutil.rmtree(work, ignore_errors=True)


def forget_files(context: Context, job: Job) -> None:
    """Delete the files that an import has read; what was deleted before is no error."""
    for one in order_of(job).files:
        with contextlib.suppress(NotFoundError, ConflictError):
            files.delete_file(context, job.project_id, one.file_id)


def _has_tickets(path: Path, name: str) -> bool:
    """Whether a file that came in holds tickets of a help desk, of which a job makes rows."""
    from luthier.ml.data.conversations.exports import HEAD_BYTES, kind_of_json

    suffix = files.suffix_of(name)
    if suffix.removesuffix(".gz") not in (".json", ".jsonl", ".ndjson"):
        return False
    try:
        with gzip.open(path) if suffix.endswith(".gz") else path.open("rb") as file:
            return kind_of_json(file.read(HEAD_BYTES)) is not None
    except (OSError, EOFError, zlib.error):  # damaged: whoever reads the rows says so
        return False


def _add_rows(
    context: Context,
    caller: Caller,
    incoming: IncomingFile,
    filename: str,
    name: str,
    dataset_id: str,
    note: str,
) -> DatasetVersion:
    file = dataset_versions.bring_file(context, caller, incoming, filename)
    try:
        dataset_versions.check_header(context, file)
        if not dataset_id:
            return dataset_versions.create_dataset(context, caller, name, file, note=note)[1]
        newest = dataset_versions.get_version(context, caller, dataset_id)
        if newest.sha256 == file.sha256:  # the form was sent twice: the rows are there already
            files.delete_file(context, caller.project_id, file.file_id)
            return newest
        columns = fitting_columns(context, caller, newest, file)
        return dataset_versions.add_version(
            context, caller, dataset_id, file, origin="upload", parent=newest.number, note=note, columns=columns
        )
    except BaseException:
        files.delete_file(context, caller.project_id, file.file_id)
        raise


def fitting_columns(context: Context, caller: Caller, before: DatasetVersion, file: StoredFile) -> dict[str, str]:
    """The columns that were chosen for a version, where a new file has all of them; else none."""
    if not before.columns:
        return {}
    try:
        found = look(context, caller.project_id, file)
    except LuthierError:  # its own page says what is wrong with it
        return {}
    if found.answer is None:  # a large file, which is still being read: its page says where they do not fit
        return before.columns
    return before.columns if set(before.columns.values()) <= set(found.answer["columns"]) else {}


def _check_kinds(names: Sequence[str]) -> None:
    """Refuse files of which none can be read; a job names single ones that cannot."""
    kinds = {kind_of(name) for name in names}
    if kinds & {"rows", "conversations", "document", "archive"}:
        return
    from luthier.ml.data.readers.document import CONVERT_FIRST

    first = PurePosixPath(names[0]).name
    if "convert first" in kinds:
        convert = next(name for name in names if kind_of(name) == "convert first")
        raise RequestError(
            f"{PurePosixPath(convert).name!r} has a type that Luthier cannot read",
            expected=f"a file that ends in {', '.join(accepted_suffixes())}",
            do=f"convert it first: {CONVERT_FIRST[files.suffix_of(convert)]}",
        )
    others = f" and {len(names) - 1:,} more" if len(names) > 1 else ""
    raise RequestError(
        f"{first!r}{others}: not a supported kind of file",
        expected=f"a file that ends in {', '.join(accepted_suffixes())}",
        do="save it as one of these kinds, for example as PDF or CSV",
    )


def check_is_free(context: Context, caller: Caller, name: str) -> None:
    """Raise ConflictError where the project has a dataset of this name."""
    if context.datasets.find(caller.project_id, name) is not None:
        raise ConflictError(
            f"a dataset {name!r} exists already",
            expected="a name that is free",
            do="choose another name, or add the files as a new version of that one",
        )


def _check_archives(incoming: Sequence[tuple[IncomingFile, str]]) -> None:
    """Refuse an unsafe or oversized ZIP by its directory, before anything is unpacked."""
    from luthier.ml.data.documents.archives import check_archive_size

    for one, name in incoming:
        if kind_of(name) == "archive":
            check_archive_size(one.path, PurePosixPath(name).name)


def _keep(
    context: Context, caller: Caller, incoming: Sequence[tuple[IncomingFile, str]], names: Sequence[str]
) -> list[StoredFile]:
    kept: list[StoredFile] = []
    try:
        for (one, _), name in zip(incoming, names, strict=True):
            kept.append(
                files.keep_file(
                    context,
                    caller.project_id,
                    one,
                    filename=PurePosixPath(name).name,
                    purpose="user_data",
                    expires_after_seconds=KEPT_SECONDS,
                    may_be_empty=True,  # one of many: the import names it, and reads the others
                )
            )
    except BaseException:
        _forget(context, caller.project_id, kept)
        raise
    return kept


def _forget(context: Context, project_id: str, kept: Sequence[StoredFile]) -> None:
    for file in kept:
        with contextlib.suppress(LuthierError):
            files.delete_file(context, project_id, file.file_id)


def _clean_path(name: str) -> str:
    """The name that a client gives, with the folders of an upload of a folder, and nothing that leads elsewhere."""
    parts = [part for part in name.replace("\\", "/").split("/") if part.strip() not in ("", ".", "..")]
    cleaned = "/".join(_short(files.safe_filename(part)) for part in parts)
    return cleaned if 0 < len(cleaned) <= _MAX_NAME_CHARACTERS else _short(files.safe_filename(name))


def _short(part: str) -> str:
    """A name that file systems take, by its bytes, with its ending."""
    stem, dot, suffix = part.rpartition(".")
    # Names are limited in bytes and cut by characters, so that no character is torn.
    while len(part.encode()) > _MAX_PART_BYTES and stem:
        stem = stem[:-1]
        part = f"{stem}{dot}{suffix}"
    return part if len(part.encode()) <= _MAX_PART_BYTES else "file"


def _name_from(names: Sequence[str]) -> str:
    """A name for a dataset: that of the folder, else of the first file without its ending."""
    first = PurePosixPath(names[0])
    if len(first.parts) > 1 and all(PurePosixPath(one).parts[0] == first.parts[0] for one in names):
        return first.parts[0]
    stem = first.name.split(".", 1)[0] or first.name
    return stem if len(names) == 1 else f"{stem} and {len(names) - 1} more"
