"""Parquet files of exchanges: written whole or not at all, described for the index, read back."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import polars as pl

from luthier.core.records.traffic import TrafficFile
from luthier.core.system.durable import sync
from luthier.ml.drift.traffic.frame import SCHEMA

_ROWS_PER_GROUP: Final = 64 << 10
_HOUR: Final = "%Y-%m-%dT%H"


def write_file(folder: Path, project_id: str, day: str, name: str, frame: pl.DataFrame) -> TrafficFile:
    """Write exchanges of one project and day as `DAY/NAME.parquet` below the project's folder; describes what it holds.

    The file is on the disk, under its name, when this returns, and nothing of it is there where this raises OSError.
    """
    frame = frame.sort("at")
    file = f"{day}/{name}.parquet"
    path = folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{name}.{secrets.token_hex(4)}")
    try:
        frame.write_parquet(temporary, compression="zstd", row_group_size=_ROWS_PER_GROUP)
        # The data is forced to the disk before the rename, and the folder after it: else a power cut could leave the
        # name with an empty file, or the file without its name.
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return TrafficFile(
        project_id=project_id,
        day=day,
        file=file,
        num_exchanges=frame.height,
        num_bytes=path.stat().st_size,
        first_at=frame["at"][0],
        last_at=frame["at"][-1],
        num_by_hour=_by_hour(frame),
    )


def wanted(*, model: str | None, since: float, until: float | None) -> pl.Expr:
    """What is requested, as a condition on rows."""
    condition = pl.col("at") >= since
    if until is not None:
        condition &= pl.col("at") < until
    return condition if model is None else condition & (pl.col("model") == model)


def by_day(frame: pl.DataFrame) -> Iterable[tuple[str, str, pl.DataFrame]]:
    """The exchanges of each project and day (UTC)."""
    days = pl.from_epoch(pl.col("at").floor().cast(pl.Int64), time_unit="s").dt.strftime("%Y-%m-%d")
    parts = frame.with_columns(days.alias("_day")).partition_by("project_id", "_day", as_dict=True)
    for (project_id, day), part in sorted(parts.items()):
        yield str(project_id), str(day), part.select(*SCHEMA)


def _by_hour(frame: pl.DataFrame) -> dict[str, dict[str, int]]:
    hours = pl.from_epoch(pl.col("at").floor().cast(pl.Int64), time_unit="s").dt.strftime(_HOUR)
    # Clients choose model names freely: an index entry must stay small, whatever they send.
    most = frame["model"].value_counts(sort=True)["model"].head(TrafficFile.MOST_MODELS).to_list()
    name = pl.when(pl.col("model").is_in(most)).then("model").otherwise(pl.lit(""))
    counts = frame.group_by(name.alias("model"), hours.alias("hour")).len().sort("model", "hour")
    found: dict[str, dict[str, int]] = {}
    for model, hour, count in counts.iter_rows():
        found.setdefault(model, {})[hour] = count
    return found
