"""Tools about rows: list and show datasets, make one, audit its rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import Field

from luthier.core.errors import NotAllowedError, NotFoundError, RequestError
from luthier.core.system.files import blocks_of
from luthier.core.text.counted import counted
from luthier.features.datasets import service as datasets
from luthier.features.datasets.imports import fitting_columns
from luthier.features.datasets.store import Dataset, DatasetVersion
from luthier.features.files.references import AuditRequest, audit_of
from luthier.features.mcp_server.records import Arguments, Call, Name, NoArguments, Tool, ToolResult
from luthier.ml.data.rows.outputs import json_line
from luthier.platform.files.service import incoming_file

MAX_ROWS: Final = 10_000
"""Rows in one call; larger files are uploaded (`POST /v1/files`) or, over stdio, named by their path."""
_MAX_FINDINGS: Final = 50


class DatasetArguments(Arguments):
    """One dataset."""

    dataset_id: Annotated[Name, Field(description="The id of a dataset, from list_datasets.")]


class CreateArguments(Arguments):
    """Rows for a new dataset, or for the next version of one."""

    name: Annotated[
        str | None, Field(max_length=100, description="The name of a new dataset, free in the project.")
    ] = None
    dataset_id: Annotated[
        str | None,
        Field(max_length=64, description="In place of name: the dataset that gets the rows as its next version."),
    ] = None
    rows: Annotated[
        list[dict[str, Any]] | None,
        Field(
            min_length=1,
            max_length=MAX_ROWS,
            description="Rows, such as {'prompt': ..., 'completion': ...}, {'messages': [...]} or {'text': ..., "
            "'label': ...}; all of one form.",
        ),
    ] = None
    path: Annotated[
        str | None,
        Field(
            max_length=4_096,
            description="In place of rows: a file on this machine (JSONL, CSV, Parquet, XLSX). Only over stdio, "
            "without LUTHIER_API_KEY.",
        ),
    ] = None
    note: Annotated[str, Field(max_length=1_000, description="Where the rows are from.")] = ""


class AuditArguments(Arguments):
    """A file to check."""

    file_id: Annotated[Name, Field(description="The file_id of a version of a dataset, or of an uploaded file.")]
    against: Annotated[Name | None, Field(description="A file of held-out rows: finds rows that are in both.")] = None


def list_datasets(call: Call, _asked: NoArguments) -> ToolResult:
    """All of the project, each with its newest version."""
    found = datasets.list_datasets(call.context, call.caller)
    return ToolResult(
        f"{counted(len(found), 'dataset')}.", {"datasets": [_shown(one, version) for one, version in found]}
    )


def get_dataset(call: Call, asked: DatasetArguments) -> ToolResult:
    """A dataset with its versions."""
    dataset, versions = datasets.show_dataset(call.context, call.caller, asked.dataset_id)
    document = _shown(dataset, versions[0]) | {"versions": [_version(one) for one in versions]}
    return ToolResult(f"Dataset {dataset.name} has {counted(len(versions), 'version')}.", document)


def create_dataset(call: Call, asked: CreateArguments) -> ToolResult:
    """Make a dataset of rows, or add a version.

    Raises:
        RequestError: Both or neither of two exclusive arguments, a path that cannot be read, or a name that is taken.
    """
    if (asked.name is None) == (asked.dataset_id is None):
        raise RequestError(
            "both name and dataset_id" if asked.name is not None else "neither name nor dataset_id",
            expected="a name for a new dataset, or the id of the one that gets a new version",
            do="give one of the two",
        )
    if (asked.rows is None) == (asked.path is None):
        raise RequestError(
            "both rows and path" if asked.rows is not None else "neither rows nor path",
            expected="rows, or the path of a file on this machine",
            do="give one of the two",
        )
    context, caller = call.context, call.caller
    # A name that is taken is refused before rows are stored.
    if (
        asked.name is not None
        and context.datasets.find(caller.project_id, datasets.checked_name(asked.name)) is not None
    ):
        raise RequestError(
            f"the project has a dataset called {asked.name!r}",
            expected="a name that is free",
            do="choose another name, or give its dataset_id to add a version",
        )
    if asked.dataset_id is not None:
        datasets.show_dataset(context, caller, asked.dataset_id)
    blocks, filename = _blocks(call, asked)
    with incoming_file(context) as incoming:
        for block in blocks:
            incoming.write(block)
        file = datasets.bring_file(context, caller, incoming, filename)
    if asked.dataset_id is None:
        dataset, version = datasets.create_dataset(context, caller, asked.name or "", file, note=asked.note)
    else:
        newest = datasets.get_version(context, caller, asked.dataset_id)
        version = datasets.add_version(
            context,
            caller,
            asked.dataset_id,
            file,
            origin="upload",
            parent=newest.number,
            note=asked.note,
            columns=fitting_columns(context, caller, newest, file),
        )
        dataset = datasets.show_dataset(context, caller, asked.dataset_id)[0]
    count = "rows" if version.num_rows is None else counted(version.num_rows, "row")
    summary = f"Dataset {dataset.name} has version {version.number} with {count}; recipes name it as {version.file_id}."
    return ToolResult(summary, _shown(dataset, version))


def _blocks(call: Call, asked: CreateArguments) -> tuple[Iterator[bytes], str]:
    """The bytes to store, and the name that people see.

    Raises:
        NotAllowedError: A path by a caller who is not at this machine.
        NotFoundError: No file at the path.
    """
    if asked.path is None:
        rows = asked.rows or []
        return (json_line(row) + b"\n" for row in rows), "rows.jsonl"
    if not call.caller.is_local:
        raise NotAllowedError(
            "a path by a caller with a key",
            expected="rows in the call: only a person at this machine may name its files",
            do="give rows, or upload the file with POST /v1/files and name it by its id",
        )
    path = Path(asked.path).expanduser()
    # No pipe and no device: reading them could wait forever.
    if not path.is_absolute() or not path.is_file():
        raise NotFoundError(
            f"no file {asked.path!r}", expected="the absolute path of a file on this machine", do="correct the path"
        )
    datasets.check_filename(path.name)
    return blocks_of(path), path.name


def audit_dataset(call: Call, asked: AuditArguments) -> ToolResult:
    """Check rows: duplicates, empty fields, personal data, leakage and others."""
    found = audit_of(call.context, call.caller.project_id, AuditRequest(asked.file_id, against=asked.against))
    findings = found.get("findings") or []
    document = found | {"findings": findings[:_MAX_FINDINGS], "num_findings": len(findings)}
    grade = found.get("grade")
    return ToolResult(f"Grade {grade}: {counted(len(findings), 'finding')}, most severe first.", document)


def _shown(dataset: Dataset, newest: DatasetVersion) -> dict[str, Any]:
    return {"dataset_id": dataset.dataset_id, "name": dataset.name, "newest": _version(newest)}


def _version(version: DatasetVersion) -> dict[str, Any]:
    return {
        "number": version.number,
        "file_id": version.file_id,
        "filename": version.filename,
        "num_rows": version.num_rows,
        "num_bytes": version.num_bytes,
        "origin": version.origin,
        "columns": version.columns,
        "note": version.note,
        "created_at": int(version.created_at),
    }


TOOLS: Final[tuple[Tool, ...]] = (
    Tool(
        "list_datasets",
        "List datasets",
        "Datasets of the project with their newest version; recipes name rows by its file_id.",
        ("read",),
        NoArguments,
        list_datasets,
        is_read_only=True,
    ),
    Tool(
        "get_dataset",
        "Show a dataset",
        "One dataset with all of its versions.",
        ("read",),
        DatasetArguments,
        get_dataset,
        is_read_only=True,
    ),
    Tool(
        "create_dataset",
        "Make a dataset",
        "Store rows as a new dataset, or as the next version of one; earlier versions stay as they are.",
        ("train",),
        CreateArguments,
        create_dataset,
    ),
    Tool(
        "audit_dataset",
        "Audit rows",
        "Check rows for duplicates, empty fields, personal data, leakage and other faults; gives a grade and findings.",
        ("train",),
        AuditArguments,
        audit_dataset,
        is_read_only=True,
    ),
)
