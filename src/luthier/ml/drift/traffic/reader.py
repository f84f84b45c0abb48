"""Reads exchanges back: from the files that the index names, and from the lines that are no file yet.

Both may change while one reads: lines become a file, files are joined, old ones go. Whoever reads looks again until
what was read was there throughout, so that no exchange comes twice and none is missed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import polars as pl

from luthier.core.records.traffic import TrafficFile
from luthier.ml.drift.traffic.frame import SCHEMA, frame_of_lines
from luthier.ml.drift.traffic.spool import Segment, Spool

_TRIES: Final = 6
_PAUSE_SECONDS: Final = 0.05
log = logging.getLogger("luthier.monitor")


def read(
    spool: Spool, folder: Path, listed: Callable[[], Sequence[TrafficFile]], condition: pl.Expr, columns: Sequence[str]
) -> pl.DataFrame:
    """The exchanges of a project for which a condition holds, oldest first.

    A file that is not on this machine, or that is damaged, is named in the log and left out.

    Args:
        columns: what is read of them, `at` among it.
        folder: the project's, below which its files lie.
        listed: asks the index for the files that may hold some.
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
