"""The rows of a retraining as versions of datasets, made once however often it is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from luthier.core.access import Caller
from luthier.core.workflows.pipeline import Pipeline
from luthier.features.datasets import service as dataset_versions
from luthier.features.datasets.records import DatasetVersion
from luthier.features.model_cards.service import rows_by_digest
from luthier.platform.home.context import Context

_BLOCK: Final = 1 << 20
_TITLES: Final = {"train": "rows", "held_out": "held-out"}


def stored_version(context: Context, caller: Caller, pipeline: Pipeline, path: Path, before: str) -> DatasetVersion:
    """A file as the next version of the dataset that holds the rows before it, or as a new dataset.

    path: `train.jsonl` or `held_out.jsonl` of the pipeline. before: the digest of the rows that the last run was given.
    What it was made of, and from which run, stands in the details of the version.
    """
    model = pipeline.asked["model"]
    known = rows_by_digest(context, caller, [before]).get(before) if before else None
    title = f"{model} {_TITLES[path.stem]}"
    dataset = known[0] if known is not None else context.datasets.find(caller.project_id, title)
    versions = context.datasets.versions(dataset.dataset_id) if dataset is not None else ()
    for version in versions:
        if version.details.get("retrain") == pipeline.pipeline_id:
            return version
    rows = pipeline.came("rows")
    counted = {key: rows[key] for key in ("by_source", "num_old", "num_new", "num_replaced")}
    details = {"retrain": pipeline.pipeline_id, "model": model, "from_run": pipeline.asked["run_id"]} | counted
    with path.open("rb") as source:
        file = dataset_versions.keep_rows(context, caller, iter(lambda: source.read(_BLOCK), b""), path.name)
    note = f"reviewed rows of {model}"
    if dataset is None:
        made = dataset_versions.create_dataset(
            context, caller, title, file, origin="review", note=note, details=details
        )
        return made[1]
    return dataset_versions.add_version(
        context,
        caller,
        dataset.dataset_id,
        file,
        origin="review",
        parent=known[1].number if known is not None else versions[0].number,
        note=note,
        details=details,
    )
