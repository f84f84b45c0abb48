"""Exchanges as tables: Parquet files, written complete or not at all, and read with the lines that are in none yet.

The columns are the same in memory, in lines of JSON and in Parquet files. While somebody reads, lines become a file,
files are merged and old ones are deleted. `read` looks again until what was read was there throughout, so that no
exchange comes twice and none is missed.
"""

from __future__ import annotations

import io
import json
import logging
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

import polars as pl
from pydantic import ValidationError

from luthier.core.records.traffic import TrafficFile
from luthier.core.system.files import replace_file, sync
from luthier.ml.drift.traffic.log import Segment, Spool, exchange_of

SCHEMA: Final[dict[str, pl.DataType]] = {
    "exchange_id": pl.String(),
    "project_id": pl.String(),
    "at": pl.Float64(),
    "model": pl.String(),
    "target": pl.String(),
    "is_canary": pl.Boolean(),
    "user_digest": pl.String(),
    "status": pl.Int64(),
    "error_code": pl.String(),
    "finish_reason": pl.String(),
    "num_prompt_tokens": pl.Int64(),
    "num_new_tokens": pl.Int64(),
    "seconds": pl.Float64(),
    "first_token_seconds": pl.Float64(),
    "cost_usd": pl.Float64(),
    "messages": pl.String(),
    "answer": pl.String(),
    "num_masked": pl.Int64(),
    "has_text": pl.Boolean(),
}
"""The fields of an Exchange, `messages` as JSON text; `has_text` can be read without reading the text."""
TEXTS: Final = ("messages", "answer")


def frame_of_lines(data: bytes) -> tuple[pl.DataFrame, int]:
    """Lines of JSON as a table, and how many lines were broken: of those that end, and one that a kill cut off."""
    try:
        # The fast path: only a broken line makes it necessary to parse each one.
        return pl.read_ndjson(io.BytesIO(data), schema=SCHEMA), 0
    except pl.exceptions.PolarsError:
        rows, num_broken = [], 0
        for line in data.split(b"\n"):
            if line.strip():
                try:
                    row = json.loads(line)
                    exchange_of(row)
                    rows.append(row)
                except (ValueError, TypeError, AttributeError, ValidationError):
                    num_broken += 1
        return pl.DataFrame(rows, schema=SCHEMA), num_broken


_ROWS_PER_GROUP: Final = 64 << 10
_HOUR: Final = "%Y-%m-%dT%H"


def write_file(folder: Path, project_id: str, day: str, name: str, frame: pl.DataFrame) -> TrafficFile:
    """Write exchanges of one project and day as `DAY/NAME.parquet` below the project's folder; describes what it holds.

    The file is on the disk, under its name, when this returns, and no part of it exists where this raises OSError.

    Args:
        folder: the project's.
        project_id: recorded in the index.
        day: ISO 8601, UTC.
        name: of the file, without its suffix.
        frame: one row per exchange; sorted by `at` here.
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
        replace_file(temporary, path)
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
    # Clients choose model names freely: an index entry must stay small for any input.
    most = frame["model"].value_counts(sort=True)["model"].head(TrafficFile.MOST_MODELS).to_list()
    name = pl.when(pl.col("model").is_in(most)).then("model").otherwise(pl.lit(""))
    counts = frame.group_by(name.alias("model"), hours.alias("hour")).len().sort("model", "hour")
    found: dict[str, dict[str, int]] = {}
    for model, hour, count in counts.iter_rows():
        found.setdefault(model, {})[hour] = count
    return found


_TRIES: Final = 6
_PAUSE_SECONDS: Final = 0.05
log = logging.getLogger("luthier.monitor")


def read(
    spool: Spool, folder: Path, listed: Callable[[], Sequence[TrafficFile]], condition: pl.Expr, columns: Sequence[str]
) -> pl.DataFrame:
    """The exchanges of a project for which a condition holds, oldest first.

    A file that is not on this machine, or that is damaged, is named in the log and left out.

    Args:
        spool: exchanges that are in no file yet.
        folder: the project's, which contains its files.
        listed: looks up in the index the files that may contain some.
        condition: which exchanges are read.
        columns: what is read of them, `at` among it.
    """
    for left in reversed(range(_TRIES)):
        # Segments before the index: lines that become a file in between are then found twice, and never missed.
        segments = spool.segments()
        files = listed()
        if left and not spool.holds(segments):
            continue
        missing = [one for one in files if not (folder / one.file).exists()]
        if missing and left:
            time.sleep(_PAUSE_SECONDS)
            continue
        for one in missing:
            log.warning("%d exchanges are left out: %s is not on this machine", one.num_exchanges, folder / one.file)
        there = [folder / one.file for one in files if one not in missing]
        try:
            frames = [_of_files(there, condition, columns)]
        except FileNotFoundError:  # joined to others, or old and deleted, this very moment
            if not left:
                raise
            continue
        names = {Path(one.file).stem for one in files}
        # A file has the name of the segment that it was made of.
        frames += [_of_segment(one, condition, columns) for one in segments if one.segment_id not in names]
        found = pl.concat(frames)
        return found if found["at"].is_sorted() else found.sort("at", maintain_order=True)
    raise AssertionError("the last try returns or raises")


def _of_files(paths: Sequence[Path], condition: pl.Expr, columns: Sequence[str]) -> pl.DataFrame:
    nothing = pl.DataFrame(schema=SCHEMA).select(columns)
    if not paths:
        return nothing
    try:
        return pl.scan_parquet(list(paths), glob=False).filter(condition).select(columns).collect()
    except pl.exceptions.PolarsError as error:
        if len(paths) > 1:  # one of them: read them by themselves
            return pl.concat(_of_files([path], condition, columns) for path in paths)
        log.warning("the exchanges of %s are left out, it is damaged: %s", paths[0], error)
        return nothing


def _of_segment(segment: Segment, condition: pl.Expr, columns: Sequence[str]) -> pl.DataFrame:
    frame, _ = frame_of_lines(segment.data)
    return frame.filter(condition).select(columns)
