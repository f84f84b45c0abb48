"""Which proved split the files of a run are sides of: found by their digests, never by their names.

A split that the command line made has its `split.json` beside its files. One that a server made is kept with the
versions of the datasets, while its files are laid out elsewhere: there the database is asked.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from luthier.core.dataset import DatasetProfile
from luthier.core.plan import DataPlan
from luthier.core.split_provenance import Judging, SplitProvenance, provenance_from
from luthier.platform.home.context import Context

_SUMMARY: Final = "split.json"
_MAX_SUMMARY_BYTES: Final = 16 << 20


def with_provenance(context: Context, data: DataPlan) -> DataPlan:
    """The data part of a plan with the split that its files are sides of, if any proves one of them."""
    sides: tuple[tuple[Judging, DatasetProfile | None], ...] = (
        ("validation", data.validation),
        ("held_out", data.held_out),
    )
    judging = {name: one.sha256 for name, one in sides if one is not None and one.sha256 != data.train.sha256}
    found: list[SplitProvenance] = []
    for document in _documents(context, data) if judging else ():
        try:
            made = provenance_from(document, data.train.sha256, judging)
        except (KeyError, TypeError, ValueError, AttributeError):
            continue  # a split.json of another program, or one that was edited: it proves nothing
        found += [] if made is None else [made]
    # The proof of the held-out rows matters most: the verdict rests on these.
    best = max(found, key=lambda one: ("held_out" in one.covers, len(one.covers)), default=None)
    return data if best is None else data.model_copy(update={"split": best})


def _documents(context: Context, data: DataPlan) -> Iterator[dict[str, Any]]:
    """The contents of the split.json files that may be about the training file."""
    train = Path(data.train.file)
    beside = train.parent / _SUMMARY
    try:
        # A bound: any file of that name may lie there, and it is read into memory whole.
        if beside.is_file() and beside.stat().st_size <= _MAX_SUMMARY_BYTES:
            yield json.loads(beside.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        pass  # unreadable: it proves nothing
    # Only files that this home has laid out can be of its datasets: a plan of others needs no database.
    settings = context.settings
    if any(train.is_relative_to(folder) for folder in (settings.file_cache_folder, settings.jobs_folder)):
        yield from context.datasets.splits_of(data.train.sha256)
