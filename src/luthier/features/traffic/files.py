"""Use cases: lines of exchanges become Parquet files by day, small files become larger ones, old ones go.

One process at a time does this, under a lock. Each step may be cut off by a kill: what it has begun is done again, and
no exchange is lost or comes twice. Order of a step: new file, index (one transaction), old file.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from luthier.core.access import Caller
from luthier.core.errors import StorageFullError, WorkError
from luthier.core.frozen_model import FrozenModel
from luthier.core.ids import new_id
from luthier.core.ports import track
from luthier.core.records.logging_mode import MOST_DAYS_KEPT
from luthier.core.records.traffic import TrafficFile
from luthier.core.system.files import file_lock
from luthier.features.traffic import service as traffic
from luthier.features.traffic.policy import traffic_policy, user_digest, user_key
from luthier.platform.audit_log.service import record
from luthier.platform.auth.store import day_of
from luthier.platform.home.context import Context

if TYPE_CHECKING:
    import polars as pl


_AHEAD_SECONDS: Final = 300.0
"""What is dated later than this from now was written while a clock was wrong."""
_DAY_SECONDS: Final = 86_400
_JOINED: Final = 8
_MAX_JOINED_BYTES: Final = 64 << 20
_LOCK_SECONDS: Final = 30.0
log = logging.getLogger("luthier.service")


class Forgotten(FrozenModel):
    """What was deleted of a user. unreadable: files that could not be read: damaged, or on another machine.

    num_stored_completions: chat completions that a client had stored, which are counted apart.
    num_stored_responses: the same of responses.
    num_conversations: conversations in which the user was answered.
    """

    num_exchanges: int
    num_stored_completions: int = 0
    num_stored_responses: int = 0
    num_conversations: int = 0
    unreadable: tuple[str, ...] = ()


def settle(context: Context) -> int:
    """Make files of all that was written so far; returns how many exchanges that were. Nothing is lost where it fails.

    Raises:
        StorageFullError: A file cannot be written.
        ConflictError: Another process holds the files.
    """
    with _locked(context):
        return _settle(context)


def sweep(context: Context) -> int:
    """Make files, join small ones, delete what the policies do not keep any longer; returns the exchanges deleted.

    Raises:
        StorageFullError: A file cannot be written.
        ConflictError: Another process holds the files.
    """
    with _locked(context):
        _settle(context)
        now, num_deleted = context.access.now(), 0
        # By folder, too: a kill between index and files may leave a project that no index knows.
        of_files = {path.name for path in traffic.files_folder(context, "").glob("*") if path.is_dir()}
        for project_id in sorted({*context.traffic.projects(), *of_files}):
            num_deleted += _sweep_project(context, project_id, now)
        for one in context.watches.list(traffic.LOST):
            first_day = _retention_start(context, one.project_id, now)
            if one.name[:10] < first_day:
                context.watches.remove(one.project_id, one.kind, one.name)
        return num_deleted


def forget_user(context: Context, caller: Caller, user: str) -> Forgotten:
    """Delete all exchanges of a user of the project, with their feedback and their items in the review queue.

    Later requests of this user are stored by the policy; what was learned from their words is in the models: see
    `luthier lineage`.

    Args:
        context: The home.
        caller: Whose project it is.
        user: As requests name them.

    Raises:
        StorageFullError: A file cannot be written.
        ConflictError: Another process holds the files.
        WorkError: Some exchanges are in no file yet, so that they cannot be searched.
    """
    digest = user_digest(user_key(context, caller.project_id), user)
    with _locked(context):
        _settle(context)
        _check_settled(context)
        return _forget(context, caller, digest)


def _check_settled(context: Context) -> None:
    # A segment that could not be converted may hold the user: claiming to have forgotten them would be wrong.
    if traffic.spool(context).sealed():
        raise WorkError(
            "some of what was written is not a file yet, so it cannot be looked into",
            expected="files of all exchanges",
            do="see the log of the server for why, and try again",
        )


@contextlib.contextmanager
def _locked(context: Context) -> Iterator[None]:
    lock = context.settings.traffic_folder / "lock"
    with file_lock(lock, what="the files of the traffic", timeout_seconds=_LOCK_SECONDS):
        yield


def _settle(context: Context) -> int:
    spool = traffic.spool(context)
    # From here on writers use a new segment, so the sealed ones can be read without their lock.
    spool.seal()
    touched: set[tuple[str, str]] = set()
    num_exchanges = 0
    for path in spool.sealed():
        files = _convert(context, path)
        num_exchanges += sum(one.num_exchanges for one in files)
        touched |= {(one.project_id, one.day) for one in files}
    for project_id, day in sorted(touched):
        _join_some(context, project_id, day)
    return num_exchanges


def _convert(context: Context, path: Path) -> list[TrafficFile]:
    """Make files of a segment: named by it, so that they replace those of a try that was cut off."""
    import polars as pl

    from luthier.ml.drift.traffic.files import by_day, frame_of_lines
    from luthier.ml.drift.traffic.log import CUT_OFF, segment_id_of

    frame, num_broken = frame_of_lines(path.read_bytes())
    known = {one.project_id for one in context.access.projects()}
    of_known = _dated(frame, context.access.now()).filter(pl.col("project_id").is_in(list(known)))
    if num_gone := frame.height - of_known.height:
        log.warning("%d exchanges of deleted projects are not stored", num_gone)
    files = [_write(context, project_id, day, segment_id_of(path), part) for project_id, day, part in by_day(of_known)]
    # The order matters: files, then the index, then the segment goes. A kill in between repeats the conversion, which
    # overwrites files of the same names.
    context.traffic.replace([], files)
    path.unlink()
    if num_broken:
        from luthier.features.traffic.log import count_lost

        log.warning("%d lines of the traffic were cut off by a kill, and are lost", num_broken)
        of = files[0].project_id if files else Caller().project_id
        count_lost(context, {(of, files[0].last_at if files else context.access.now(), CUT_OFF): num_broken})
    return files


def _dated(frame: pl.DataFrame, now: float) -> pl.DataFrame:
    """What a clock that was ahead has dated later than now is dated now: else it would be kept for years."""
    import polars as pl

    # Negative times would be before the first day that can be written.
    at = pl.col("at")
    return frame.with_columns(at.clip(0.0).alias("at")).with_columns(
        pl.when(at > now + _AHEAD_SECONDS).then(now).otherwise(at).alias("at")
    )


def _write(context: Context, project_id: str, day: str, name: str, frame: pl.DataFrame) -> TrafficFile:
    import polars as pl

    from luthier.ml.drift.traffic.files import write_file

    try:
        return write_file(traffic.files_folder(context, project_id), project_id, day, name, frame)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise StorageFullError(
            f"a file of exchanges cannot be written: {error}",
            expected=f"room in {context.settings.traffic_folder}",
            do="make room, or keep less: luthier traffic policy --keep metadata --keep-days 7",
        ) from error


def _read(context: Context, one: TrafficFile) -> pl.DataFrame | None:
    """All of a file; None, and a line in the log, where it is damaged or on another machine."""
    import polars as pl

    from luthier.ml.drift.traffic.files import SCHEMA

    path = traffic.files_folder(context, one.project_id) / one.file
    try:
        return pl.read_parquet(path, glob=False).select(*SCHEMA)
    except (OSError, pl.exceptions.PolarsError) as error:
        log.warning("the exchanges of %s cannot be read: %s", path, error)
        return None


def _join_some(context: Context, project_id: str, day: str) -> None:
    """Join files of about one size once there are eight: so few are read, and none is written again too often."""
    by_size: dict[int, list[TrafficFile]] = {}
    for one in context.traffic.list(project_id, day=day):
        # Size classes by powers of eight, as in a log-structured merge tree: each join takes an exchange up one class,
        # so it is rewritten a logarithmic number of times.
        by_size.setdefault(one.num_exchanges.bit_length() // 3, []).append(one)
    for files in by_size.values():
        if len(files) >= _JOINED:
            _join(context, files)


def _join(context: Context, files: Sequence[TrafficFile]) -> None:
    import polars as pl

    room, chosen = _MAX_JOINED_BYTES, []
    for one in files:
        if one.num_bytes <= room:
            room -= one.num_bytes
            chosen.append(one)
    if len(chosen) < 2:
        return
    read = [(one, frame) for one in chosen if (frame := _read(context, one)) is not None]
    if len(read) < 2:
        return
    joined = _write(context, files[0].project_id, files[0].day, new_id("traffic"), pl.concat(f for _, f in read))
    _replace(context, [one for one, _ in read], [joined])


def _replace(context: Context, removed: Sequence[TrafficFile], added: Sequence[TrafficFile]) -> None:
    # Index first: a file without an entry is swept away later, an entry without a file would count as lost.
    context.traffic.replace(removed, added)
    _unlink(context, removed)


def _unlink(context: Context, files: Sequence[TrafficFile]) -> None:
    for one in files:
        (traffic.files_folder(context, one.project_id) / one.file).unlink(missing_ok=True)


def _retention_start(context: Context, project_id: str, now: float) -> str:
    # Earlier versions took any number of days, also such that begin before the year 1.
    num_days = min(traffic_policy(context, project_id).keep_days, MOST_DAYS_KEPT)
    return day_of(max(now - num_days * _DAY_SECONDS, 0.0))


def _sweep_project(context: Context, project_id: str, now: float) -> int:
    first_day = _retention_start(context, project_id, now)
    old = [one for one in context.traffic.list(project_id) if one.day < first_day]
    _replace(context, old, [])
    folder = traffic.files_folder(context, project_id)
    for path in folder.glob("*/*"):
        # also what a kill has left that no index names; and what was being written then
        # Days are ISO dates, which compare as text. The lock guarantees that no process is writing a dotted file now.
        if path.parent.name < first_day or path.name.startswith("."):
            path.unlink(missing_ok=True)
    for day in folder.glob("*"):
        with contextlib.suppress(OSError):  # there is something in it
            # Fails, as intended, for a folder that is not empty.
            day.rmdir()
    for one in context.traffic.list(project_id, since=now + _AHEAD_SECONDS):
        _redate(context, one, now)
    for day_before in sorted({one.day for one in context.traffic.list(project_id) if one.day < day_of(now)}):
        small = context.traffic.list(project_id, day=day_before)
        if len(small) > 1:
            _join(context, sorted(small, key=lambda one: one.num_bytes))
    return sum(one.num_exchanges for one in old)


def _redate(context: Context, one: TrafficFile, now: float) -> None:
    """A file that a clock that was ahead has dated: its exchanges go to today."""
    from luthier.ml.drift.traffic.files import by_day

    if (frame := _read(context, one)) is not None:
        name = new_id("traffic")
        parts = [_write(context, one.project_id, day, name, part) for _, day, part in by_day(_dated(frame, now))]
        _replace(context, [one], parts)
        log.warning("%d exchanges were dated in the future, and are dated again", one.num_exchanges)


def _forget(context: Context, caller: Caller, digest: str) -> Forgotten:
    import polars as pl

    project_id, is_theirs = caller.project_id, pl.col("user_digest") == digest
    removed, added, unreadable, ids = [], [], [], list[str]()
    # The digest of no user is empty and would match all exchanges without a user.
    listed = context.traffic.list(project_id) if digest else []
    for one in track(context.progress, "Searching the requests of the user", listed, "files"):
        frame = _read(context, one)
        if frame is None:
            unreadable.append(one.file)
        elif (theirs := frame.filter(is_theirs)).height:
            ids += theirs["exchange_id"].to_list()
            removed.append(one)
            if (rest := frame.filter(~is_theirs)).height:
                added.append(_write(context, project_id, one.day, new_id("traffic"), rest))
    found = Forgotten(num_exchanges=len(ids), unreadable=tuple(unreadable))
    document = {"user_digest": digest, **found.model_dump(mode="json")}
    # One transaction for index, feedback, review and log: a kill leaves the user in all of them or in none.
    with context.database.transaction():
        context.traffic.forget(project_id, ids, removed, added)
        if digest:
            stored = {
                "num_stored_completions": context.stored_completions.forget(project_id, digest),
                "num_stored_responses": context.stored_responses.forget(project_id, digest),
                "num_conversations": context.conversations.forget(project_id, digest),
            }
            found = found.model_copy(update=stored)
            document |= stored
        record(context, caller, "traffic.user_forgotten", project_id, document)
    _unlink(context, removed)
    if digest:
        _delete_left_over(context, project_id, is_theirs, {one.file for one in [*listed, *added]})
    return found


def forget_texts(
    context: Context, caller: Caller, holds: Callable[[str | None, str | None], bool], *, digest: str | None = None
) -> tuple[int, tuple[str, ...]]:
    """Remove the texts of exchanges that hold something; their times, sizes and users stay.

    Args:
        context: The home.
        caller: Whose project it is.
        holds: Whether messages (JSON) or answer hold it.
        digest: Of what is forgotten, for the audit log; None only counts the exchanges.

    Returns:
        How many exchanges it is, and the files that could not be read.

    Raises:
        StorageFullError: A file cannot be written.
        ConflictError: Another process holds the files.
        WorkError: Some exchanges are in no file yet, so that they cannot be searched.
    """
    import polars as pl

    from luthier.ml.drift.traffic.files import TEXTS

    project_id, num = caller.project_id, 0
    removed, added, unreadable = list[TrafficFile](), list[TrafficFile](), list[str]()
    with _locked(context):
        _settle(context)
        _check_settled(context)
        for one in context.traffic.list(project_id):
            frame = _read(context, one)
            if frame is None:
                unreadable.append(one.file)
                continue
            texts = zip(frame["messages"], frame["answer"], strict=True)
            theirs = [holds(*pair) for pair in texts]
            num += sum(theirs)
            if digest is not None and any(theirs):
                is_theirs = pl.col("is_theirs")
                marked = frame.with_columns(pl.Series("is_theirs", theirs, dtype=pl.Boolean))
                without = marked.with_columns(
                    *(pl.when(~is_theirs).then(pl.col(name)).alias(name) for name in TEXTS),
                    (pl.col("has_text") & ~is_theirs).alias("has_text"),
                ).drop("is_theirs")
                removed.append(one)
                added.append(_write(context, project_id, one.day, new_id("traffic"), without))
        if removed:
            with context.database.transaction():
                context.traffic.replace(removed, added)
                facts = {"row_sha256": digest, "num_exchanges": num}
                record(context, caller, "traffic.texts_forgotten", project_id, facts)
            _unlink(context, removed)
        if digest is not None:
            _unlink_left_over(context, project_id, holds)
    return num, tuple(unreadable)


def _unlink_left_over(context: Context, project_id: str, holds: Callable[[str | None, str | None], bool]) -> None:
    """As `_delete_left_over`, by their texts: with the exchanges beside them, which other files have."""
    import polars as pl

    from luthier.ml.drift.traffic.files import TEXTS

    named = {one.file for one in context.traffic.list(project_id)}
    for path in traffic.files_folder(context, project_id).glob("*/*"):
        if f"{path.parent.name}/{path.name}" not in named:
            with contextlib.suppress(OSError, pl.exceptions.PolarsError):  # what is not a whole file is swept away
                if any(holds(*pair) for pair in pl.read_parquet(path, columns=list(TEXTS), glob=False).iter_rows()):
                    path.unlink()


def _delete_left_over(context: Context, project_id: str, is_theirs: pl.Expr, named: Collection[str]) -> None:
    """Files that a kill has left behind, which no index names and nothing reads, but which hold data of this user."""
    import polars as pl

    for path in traffic.files_folder(context, project_id).glob("*/*"):
        if f"{path.parent.name}/{path.name}" not in named:
            with contextlib.suppress(OSError, pl.exceptions.PolarsError):  # what is not a whole file is swept away
                if pl.scan_parquet(path, glob=False).filter(is_theirs).select(pl.len()).collect().item():
                    path.unlink()
