"""Documents to rows."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.errors import ModelSourceError, RequestError
from luthier.core.records.base_model import DEFAULT_BASE_MODEL
from luthier.platform.home.context import Context

if TYPE_CHECKING:
    from luthier.core.records.base_model import LocalModel
    from luthier.ml.data.documents.ingest import Ingestion


@dataclass(frozen=True, slots=True)
class IngestOutcome:
    """What was made of documents.

    Attributes:
        output: The file of rows.
        outcome: The file with what became of each document.
        unit: What lengths are counted in.
        ingestion: Counts of documents and rows.
    """

    output: Path
    outcome: Path
    unit: str
    ingestion: Ingestion

    def as_json(self) -> dict[str, Any]:
        """The document of `luthier data ingest --json`."""
        return {
            "output": str(self.output),
            "outcome": str(self.outcome),
            "unit": self.unit,
            "num_reused": self.ingestion.num_reused,
            **self.ingestion.as_json(),
        }


def ingest(
    context: Context,
    places: Sequence[Path],
    output: Path,
    *,
    model: str | None = None,
    chunk_tokens: int = 512,
    overlap_tokens: int = 64,
    licence: str | None = None,
    num_workers: int | None = None,
    timeout_seconds: float = 120.0,
    is_fresh: bool = False,
    force: bool = False,
) -> IngestOutcome:
    """Read documents into rows of text with their provenance.

    Args:
        places: Folders and files.
        model: The base model whose tokens are counted; pulled where it is missing. None takes the default base model
            where it is on this machine, else words are counted.
        chunk_tokens: The longest row.
        overlap_tokens: How much of a row the next one repeats.
        licence: The licence that the rows are marked with.
        num_workers: Processes that read; None for one a CPU.
        timeout_seconds: The limit for one document.
        is_fresh: Discard what an interrupted ingest to the same output has read.
        force: Replace an output that exists.

    Raises:
        RequestError: No documents were named, or options that cannot be.
        NotFoundError: No such file, folder or model.
        ConflictError: The output exists.
        DataError: There is not one row.
        StorageFullError: The disk is full.
        ModelSourceError: The model cannot be fetched.
    """
    if not places:
        raise RequestError("no documents named", expected="at least one folder or file", do="name what to read")
    from luthier.core.digest import sha256_file
    from luthier.ml.data.documents.ingest import ingest as ingest_documents
    from luthier.ml.data.documents.ingest import outcome_path
    from luthier.ml.data.documents.ingest_part import IngestSettings

    local, unit = _counted_in(context, model)
    settings = IngestSettings(
        chunk_tokens=chunk_tokens,
        overlap_tokens=overlap_tokens,
        licence=licence,
        tokenizer=local.path if local else None,
        # Part of the settings' identity: an interrupted ingest goes on only with the tokenizer it began with.
        tokenizer_sha256=sha256_file(Path(local.path) / "tokenizer.json") if local else None,
    )
    done = ingest_documents(
        places,
        output,
        settings=settings,
        # The CPUs this process may use; cpu_count would ignore the limits of a container's cpuset.
        num_workers=num_workers if num_workers is not None else len(os.sched_getaffinity(0)),
        progress=context.progress,
        timeout_seconds=timeout_seconds,
        is_fresh=is_fresh,
        force=force,
    )
    return IngestOutcome(output, outcome_path(output), unit, done)


def _counted_in(context: Context, model: str | None) -> tuple[LocalModel | None, str]:
    from luthier.ml.inference.models import sources

    if model is not None:
        local = sources.pull(model, context.home, context.progress)
        return local, f"tokens of {local.name}"
    try:
        found = sources.find(DEFAULT_BASE_MODEL, context.home)
    except ModelSourceError:  # damaged, which only matters to whom asks for it
        found = None
    if found is None:
        return None, f"words, as no model was given (and {DEFAULT_BASE_MODEL} is not on this machine)"
    return found, f"tokens of {found.name}, as no other model was given"
