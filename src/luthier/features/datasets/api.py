"""/api/v1/dataset-imports: have the server import rows from the hub, an address or an object store into a dataset."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from luthier.core.errors import NotFoundError
from luthier.features.datasets import data_jobs, remote_imports
from luthier.features.datasets.data_jobs import DataJob
from luthier.features.datasets.imports import RemoteOrder
from luthier.features.datasets.service import MAX_NOTE_CHARACTERS, get_version
from luthier.platform.http.authentication import HomeContext, Reader, Trainer
from luthier.platform.http.errors import documented
from luthier.platform.http.idempotency import once
from luthier.platform.http.path_redaction import redact_paths, reference_paths
from luthier.platform.http.routes import Id
from luthier.platform.jobs.records import JobStatus

router = APIRouter(prefix="/api/v1/dataset-imports", tags=["datasets"])

_Name = Annotated[str, Field(max_length=200)]


class SourceBody(BaseModel):
    """Where rows are.

    address: `ORGANISATION/DATASET` or `hub:ORGANISATION/DATASET@REVISION/CONFIG[SPLIT]`, `https://...`, `s3://...` or
    `gs://...`. config, split: of a dataset on the hub, where the address does not name them.
    """

    model_config = ConfigDict(extra="forbid")

    address: Annotated[str, Field(min_length=1, max_length=2000)]
    config: _Name = ""
    split: _Name = ""


class ImportBody(SourceBody):
    """What is to be imported.

    max_rows: at most so many rows; fraction: a share of them; without both all rows. kept_columns: the columns that are
    kept, all if empty. columns: field of the shape to column, such as `{"prompt": "question", "completion": "answer"}`.
    dataset_id: the dataset that gets a new version where something has changed; without it a new dataset is made,
    called `name`, or as the source is.
    """

    max_rows: Annotated[int | None, Field(ge=1, lt=2**53)] = None
    fraction: Annotated[float | None, Field(gt=0.0, le=1.0)] = None
    kept_columns: Annotated[list[_Name], Field(max_length=200)] = []
    columns: Annotated[dict[str, _Name], Field(max_length=50)] = {}
    name: _Name = ""
    dataset_id: Annotated[str | None, Field(min_length=1, max_length=64)] = None
    note: Annotated[str, Field(max_length=MAX_NOTE_CHARACTERS)] = ""


class ImportProgress(BaseModel):
    """How far an import is. total_bytes: null where it is not known, as seconds_left."""

    num_bytes: int
    total_bytes: int | None
    num_rows: int
    seconds: float | None
    seconds_left: float | None


class DatasetImport(BaseModel):
    """An import.

    Attributes:
        job_id: Of its job.
        address: Where the rows are, without a query.
        status: Of its job.
        progress: How far it is.
        dataset_id: The dataset; null before there is one.
        version: Its version with these rows.
        file_id: The file of that version, to be named in recipes.
        num_rows: Its rows.
        is_unchanged: Whether the source was as before, so that no version was made.
        origin: Where the rows come from: revision, licence, digests.
        error: Why it failed.
    """

    object: Literal["dataset.import"] = "dataset.import"
    job_id: str
    address: str
    status: JobStatus
    progress: ImportProgress
    dataset_id: str | None
    version: int | None
    file_id: str | None
    num_rows: int | None
    is_unchanged: bool
    origin: dict[str, Any] | None
    error: dict[str, Any] | None


class SourcePreview(BaseModel):
    """What is at an address, with its first rows.

    Attributes:
        address: Without a query.
        revision: The commit of a dataset, the ETag or date of change of a file.
        licence: As the hub states it; empty where it does not.
        num_bytes: The size of all files; null where a server does not state it.
        num_files: How many there are.
        columns: Of the first rows.
        shape: What a model could learn from them; null where the columns have to be chosen.
        rows: The first rows, as lists of cells with text.
        problem: Why no row can be shown.
    """

    object: Literal["dataset.preview"] = "dataset.preview"
    address: str
    revision: str
    licence: str
    num_bytes: int | None
    num_files: int
    columns: list[str]
    shape: str | None
    rows: list[dict[str, Any]]
    problem: dict[str, Any] | None


@router.post("", status_code=201, summary="Import rows", response_model=DatasetImport, responses=documented(404, 409))
def start(context: HomeContext, caller: Trainer, asked: ImportBody, request: Request) -> Any:
    """Queue it; a worker of this server downloads the rows and makes a dataset, or a version of one.

    The server connects to the public internet alone, and to the places that its operator allows.
    """
    return once(request, caller, context, lambda: _started(context, caller, asked), status_code=201)


def _started(context: HomeContext, caller: Trainer, asked: ImportBody) -> DatasetImport:
    order = RemoteOrder(
        address=remote_imports.address_of(asked.address, asked.config, asked.split),
        max_rows=asked.max_rows,
        fraction=asked.fraction,
        kept_columns=tuple(asked.kept_columns),
        columns=asked.columns,
    )
    job = remote_imports.start_import(
        context, caller, order, name=asked.name, dataset_id=asked.dataset_id or "", note=asked.note
    )
    return _document(context, caller, data_jobs.show_job(context, caller, job.job_id))


@router.post("/preview", summary="First rows of a source", responses=documented(404))
def preview(context: HomeContext, _caller: Trainer, asked: SourceBody) -> SourcePreview:
    """Revision, licence, size, columns and the first rows, without importing them; takes up to a minute."""
    address = remote_imports.address_of(asked.address, asked.config, asked.split)
    found = remote_imports.preview(context, RemoteOrder(address=address))
    rows = found["page"]["rows"] if found["page"] else []
    return SourcePreview(**{name: found[name] for name in SourcePreview.model_fields if name in found}, rows=rows)


@router.get("/{job_id}", summary="Show an import", responses=documented(404))
def show(context: HomeContext, caller: Reader, job_id: Id) -> DatasetImport:
    """How far it is, and what it has made."""
    return _document(context, caller, _shown(context, caller, job_id))


@router.post("/{job_id}/cancel", summary="Cancel an import", responses=documented(404, 409))
def cancel(context: HomeContext, caller: Trainer, job_id: Id) -> DatasetImport:
    """End it; nothing of what has arrived is kept."""
    _shown(context, caller, job_id)
    data_jobs.cancel(context, caller, job_id)
    return _document(context, caller, _shown(context, caller, job_id))


@router.post("/{job_id}/resume", summary="Resume an import", responses=documented(404, 409))
def resume(context: HomeContext, caller: Trainer, job_id: Id) -> DatasetImport:
    """Continue one that has failed: its download continues where it ended."""
    _shown(context, caller, job_id)
    data_jobs.go_on(context, caller, job_id)
    return _document(context, caller, _shown(context, caller, job_id))


def _shown(context: HomeContext, caller: Reader, job_id: str) -> DataJob:
    view = data_jobs.show_job(context, caller, job_id)
    if view.source is None:
        raise NotFoundError(
            f"job {job_id} imports nothing from elsewhere",
            expected="the id of such an import",
            do="see the list of datasets",
        )
    return view


def _document(context: HomeContext, caller: Reader, view: DataJob) -> DatasetImport:
    job, found, figures = view.job, view.found, view.progress
    assert view.source is not None
    made = found["datasets"][0] if found.get("datasets") else None
    return DatasetImport(
        job_id=job.job_id,
        address=view.source.shown,
        status=job.status,
        progress=ImportProgress(
            num_bytes=figures.done,
            total_bytes=figures.total or None,
            num_rows=figures.made,
            seconds=figures.seconds,
            seconds_left=figures.seconds_left,
        ),
        dataset_id=made["dataset_id"] if made else view.order.dataset_id or None,
        version=made["version"] if made else None,
        file_id=_file_id(context, caller, made),
        num_rows=made["num_rows"] if made else None,
        is_unchanged=bool(found.get("is_unchanged")),
        origin=found.get(remote_imports.SOURCE),
        error=None if job.error is None else redact_paths(job.error, reference_paths(context, job.document)),
    )


def _file_id(context: HomeContext, caller: Reader, made: dict[str, Any] | None) -> str | None:
    if made is None:
        return None
    try:
        return get_version(context, caller, made["dataset_id"], made["version"]).file_id
    except NotFoundError:  # the dataset was removed since
        return None
