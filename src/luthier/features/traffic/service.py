"""Use cases: show requests and answers of deployed models.

client -> api -> talk -> traffic_log (queue, separate thread: policy, masks)
                             -> spool (lines of JSON) -> traffic_files (Parquet by day, index in the database)
signals, alerts, retraining, the commands <- traffic (this file)
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Final

from luthier.core.errors import NotFoundError
from luthier.core.frozen_model import FrozenModel
from luthier.core.records.traffic import Exchange, TrafficFile
from luthier.platform.home.context import Context

if TYPE_CHECKING:
    import polars as pl

    from luthier.ml.drift.traffic.log import Spool

LOST: Final = "traffic_lost"
"""The kind of the documents in `watches` that count what was lost: one an hour (UTC), by reason."""
HOUR: Final = "%Y-%m-%dT%H"
_ELSEWHERE: Final = "in files that are not on this machine"


def exchanges(
    context: Context,
    project_id: str,
    *,
    model: str | None = None,
    since: float = 0.0,
    until: float | None = None,
    with_text: bool = False,
    columns: Sequence[str] | None = None,
) -> pl.DataFrame:
    """The exchanges of a project, oldest first, those of this moment included.

    Args:
        context: The home.
        project_id: Of the project.
        model: The name that was requested; None for all.
        since: From then on, in seconds since 1970.
        until: Before then; None for no end.
        with_text: Whether `messages` and `answer` are read; otherwise these columns are there but empty.
        columns: Read these and `at` alone, which is faster where there are many exchanges.

    Returns:
        A table with the fields of `Exchange` as columns, `messages` as JSON text, and `has_text`, whether the words
        were kept.
    """
    import polars as pl

    from luthier.ml.drift.traffic.files import SCHEMA, TEXTS, wanted

    # `at` is always read, since the rows are ordered by it.
    chosen = tuple(SCHEMA) if columns is None else tuple(dict.fromkeys([*columns, "at"]))
    # Texts are nearly all of a file's bytes, and most questions need none of them.
    read_now = chosen if with_text else tuple(name for name in chosen if name not in TEXTS)
    condition = wanted(model=model, since=since, until=until)
    frame = _read(context, project_id, condition, read_now, model=model, since=since, until=until)
    left_out = [pl.lit(None, dtype=pl.String).alias(name) for name in chosen if name not in read_now]
    return frame.with_columns(left_out).select(chosen)


def exchange(context: Context, project_id: str, exchange_id: str) -> Exchange:
    """One exchange by the id that the client got with its answer.

    Raises:
        NotFoundError: The project keeps no such exchange.
    """
    import polars as pl

    from luthier.ml.drift.traffic.files import SCHEMA
    from luthier.ml.drift.traffic.log import exchange_of

    found = _read(context, project_id, pl.col("exchange_id") == exchange_id, tuple(SCHEMA))
    if not found.height:
        raise NotFoundError(
            f"no exchange {exchange_id[:200]!r} is kept",
            expected="the `id` of an answer to this project whose traffic is still stored",
            do="`luthier traffic list` shows what is stored, `luthier traffic policy` for how long",
        )
    # The last, should a client have got the same id twice.
    return exchange_of(found.row(-1, named=True))


class TrafficSummary(FrozenModel):
    """What is kept of a time.

    Attributes:
        num_exchanges: In all.
        num_with_text: With their words.
        num_failed: With a status of 400 or more.
        num_bytes: Of all files of the project, of any time.
        lost: How many are missing or have lost their words, by reason.
    """

    num_exchanges: int
    num_with_text: int
    num_failed: int
    num_bytes: int
    lost: dict[str, int]


def summary(
    context: Context, project_id: str, *, model: str | None = None, since: float = 0.0, until: float | None = None
) -> TrafficSummary:
    """What is kept of the traffic of a time; what was lost is counted for all models together.

    Args:
        context: of the home.
        project_id: of the traffic.
        model: as requested; None for all models.
        since: seconds since 1970.
        until: seconds since 1970, not included; None for now.
    """
    columns = ("status", "has_text")
    frame = exchanges(context, project_id, model=model, since=since, until=until, columns=columns)
    return TrafficSummary(
        num_exchanges=frame.height,
        num_with_text=int(frame["has_text"].sum()),
        num_failed=int((frame["status"] >= HTTPStatus.BAD_REQUEST).sum()),
        # From the index: the files need not be on this machine.
        num_bytes=sum(one.num_bytes for one in context.traffic.list(project_id)),
        lost=lost(context, project_id, since, context.access.now() if until is None else until),
    )


def newest(
    context: Context, project_id: str, *, model: str | None = None, since: float = 0.0, limit: int = 20
) -> list[Exchange]:
    """The newest exchanges without their words, newest first.

    Args:
        context: of the home.
        project_id: of the traffic.
        model: as requested; None for all models.
        since: seconds since 1970.
        limit: exchanges at most.
    """
    from luthier.ml.drift.traffic.log import exchange_of

    frame = newest_rows(context, project_id, model=model, since=since, limit=limit)[0].tail(limit).reverse()
    return [exchange_of(row) for row in frame.iter_rows(named=True)]


def newest_rows(
    context: Context,
    project_id: str,
    *,
    model: str | None = None,
    since: float = 0.0,
    until: float | None = None,
    condition: pl.Expr | None = None,
    limit: int = 20,
) -> tuple[pl.DataFrame, bool]:
    """The newest exchanges without their words, oldest first.

    Files are opened only as far back as these may be, by the counts in the index.

    Args:
        context: of the home.
        project_id: of the traffic.
        model: as requested; None for all models.
        since: seconds since 1970.
        until: seconds since 1970, not included; None for no end.
        condition: which exchanges; None for all.
        limit: how many of the newest are there for certain, or all that there are.

    Returns:
        At least these, and whether they are all that there are.
    """
    import polars as pl

    from luthier.ml.drift.traffic.files import SCHEMA, TEXTS, wanted

    columns = tuple(name for name in SCHEMA if name not in TEXTS)
    hours = _counts_by_hour(context, project_id, model, until)
    num_counted = limit
    while True:
        begin = max(since, _begin_of(hours, num_counted))
        meant = wanted(model=model, since=begin, until=until)
        meant = meant if condition is None else meant & condition
        found = _read(context, project_id, meant, columns, model=model, since=begin, until=until)
        if begin <= since or found.height >= limit:
            left_out = [pl.lit(None, dtype=pl.String).alias(name) for name in TEXTS]
            return found.with_columns(left_out).select(list(SCHEMA)), begin <= since
        # Few of those counted meet the condition: further back in long strides, so that little is read twice.
        num_counted *= 16


def _counts_by_hour(context: Context, project_id: str, model: str | None, until: float | None) -> list[tuple[str, int]]:
    """The hours (UTC) of the files, newest first, with how many exchanges the index knows for certain."""
    counts: Counter[str] = Counter()
    for one in context.traffic.list(project_id, until=until):
        for name, by_hour in one.num_by_hour.items():
            if model in (None, name):
                counts.update(by_hour)
    last = None if until is None else hour_of(until)
    return sorted(((hour, num) for hour, num in counts.items() if last is None or hour <= last), reverse=True)


def _begin_of(hours: Sequence[tuple[str, int]], num_wanted: int) -> float:
    """The beginning of the hour from which on there are so many exchanges; 0 where there are not as many."""
    num = 0
    for hour, count in hours:
        num += count
        if num >= num_wanted:
            return datetime.strptime(hour, HOUR).replace(tzinfo=UTC).timestamp()
    return 0.0


def record(context: Context, exchange: Exchange) -> None:
    """Write an exchange now, unchanged: the project's policy is not applied, and nothing is masked.

    Request handlers call `traffic_log.keep`, which does both, in parallel to the answer.

    Raises:
        OSError: The disk does not take it.
    """
    from luthier.ml.drift.traffic.log import line_of

    spool(context).append([line_of(exchange)])


def num_dropped(context: Context, project_id: str, since: float, until: float) -> int:
    """How many exchanges of a time (seconds since 1970) are not in the log: counted in whole hours (UTC)."""
    from luthier.ml.drift.traffic.log import WORDS_ONLY

    counts = lost(context, project_id, since, until)
    return sum(count for reason, count in counts.items() if reason not in WORDS_ONLY)


def lost(context: Context, project_id: str, since: float, until: float) -> dict[str, int]:
    """The same by reason, and how many exchanges have lost no more than their words.

    What is in a file that another machine has written is as good as lost here, and counts.
    """
    first, last = hour_of(since), hour_of(until)
    counts: dict[str, int] = {}
    for one in context.watches.list(LOST, project_id):
        if first <= one.name <= last:
            for reason, count in json.loads(one.document).items():
                counts[reason] = counts.get(reason, 0) + count
    if num_elsewhere := _num_elsewhere(context, project_id, since, until):
        counts[_ELSEWHERE] = num_elsewhere
    return counts


def _num_elsewhere(context: Context, project_id: str, since: float, until: float) -> int:
    """How many exchanges are in files that the index names and that are not on this machine: whole files are counted.

    A file that has just been joined to others is deleted a moment before the index is read again.
    """
    folder = files_folder(context, project_id)

    def missing() -> dict[str, int]:
        listed = context.traffic.list(project_id, since=since, until=until)
        return {one.file: one.num_exchanges for one in listed if not (folder / one.file).exists()}

    # Asked twice: a file that was joined meanwhile is missing once, but is no longer in the second list.
    seen = missing()
    return sum(count for file, count in missing().items() if file in seen) if seen else 0


def hour_of(at: float) -> str:
    """The hour (UTC) of a time, which sorts as the time does."""
    bounded = min(max(at, 0.0), 253_402_300_799.0)  # of the years that can be written
    return datetime.fromtimestamp(bounded, UTC).strftime(HOUR)


def spool(context: Context) -> Spool:
    """Where exchanges are written first."""
    from luthier.ml.drift.traffic.log import Spool

    return Spool(context.settings.traffic_folder / "spool")


def files_folder(context: Context, project_id: str) -> Path:
    """Where a project's files of exchanges are, a folder per day."""
    return context.settings.traffic_folder / "files" / project_id


def _read(
    context: Context,
    project_id: str,
    condition: pl.Expr,
    columns: Sequence[str],
    *,
    model: str | None = None,
    since: float | None = None,
    until: float | None = None,
) -> pl.DataFrame:
    import polars as pl

    from luthier.ml.drift.traffic.files import read

    def listed() -> list[TrafficFile]:
        files = context.traffic.list(project_id, since=since, until=until)
        return files if model is None else [one for one in files if one.may_hold(model)]

    own = (pl.col("project_id") == project_id) & condition
    return read(spool(context), files_folder(context, project_id), listed, own, columns)
