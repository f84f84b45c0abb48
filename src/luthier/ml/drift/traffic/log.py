"""The traffic log: takes exchanges from request handlers without blocking and writes them in a separate thread.

What waits is bounded, in number and in characters: where the disk does not keep up, or is full, exchanges are dropped,
counted and reported. The caller never waits and never sees an error. Personal data is masked by a function that is
handed in. Exchanges are first written as lines of JSON, appended by all processes of this machine to one open segment:

    open-ID.jsonl     is being appended to
    ID.jsonl          sealed: nothing more comes, it waits to become Parquet

A lock lets one at a time append or seal, and the kernel releases it when its holder dies. What a kill has cut off is
one line, the last; the next writer begins a new one.
"""

from __future__ import annotations

import collections
import contextlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from luthier.core.errors import BusyError, LuthierError
from luthier.core.ids import is_id, new_id
from luthier.core.records.traffic import Exchange
from luthier.core.system import facilities
from luthier.core.system.files import file_lock
from luthier.core.system.process_setup import start_daemon


def row_of(exchange: Exchange) -> dict[str, Any]:
    """An exchange as a row."""
    row = exchange.model_dump(mode="python")
    if exchange.messages is not None:
        row["messages"] = json.dumps(exchange.messages, ensure_ascii=False, separators=(",", ":"))
    return row | {"has_text": exchange.has_text}


def exchange_of(row: Mapping[str, Any]) -> Exchange:
    """The exchange of a row."""
    known = {name: value for name, value in row.items() if name in Exchange.model_fields}
    if known.get("messages") is not None:
        known["messages"] = tuple(json.loads(known["messages"]))
    return Exchange(**known)


def line_of(exchange: Exchange) -> bytes:
    """An exchange as a line of JSON. Halves of surrogate pairs, which no file can hold, become question marks."""
    text = json.dumps(row_of(exchange), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.encode("utf-8", "replace") + b"\n"


Mask = Callable[[Sequence[Sequence[str]]], list[tuple[list[str], int]]]
"""Masks the texts of exchanges: one list of texts each, in which the same value has the same stand-in; returns the
texts as they may be kept, and how many places were masked."""
_NO_WORDS: Final = frozenset({"role", "type", "id", "tool_call_id"})


def masked(exchanges: Sequence[Exchange], mask: Mask) -> list[Exchange]:
    """The exchanges with all their texts masked: contents, names, arguments of calls, and the answer."""
    # The answer is always the last text, so that `next(left)` below finds it after the messages'.
    texts = [[*_texts_of(list(one.messages or ())), one.answer or ""] for one in exchanges]
    kept = []
    for one, (replaced, num_masked) in zip(exchanges, mask(texts), strict=True):
        left = iter(replaced)
        messages = None if one.messages is None else tuple(_with_texts(list(one.messages), left))
        answer = next(left) if one.answer is not None else None
        kept.append(one.model_copy(update={"messages": messages, "answer": answer, "num_masked": num_masked}))
    return kept


def num_characters(exchange: Exchange) -> int:
    """Of all its words."""
    return sum(map(len, _texts_of(list(exchange.messages or ())))) + len(exchange.answer or "")


def without_words(exchange: Exchange) -> Exchange:
    """What `metadata` keeps of it."""
    return exchange.model_copy(update={"messages": None, "answer": None})


def _texts_of(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, item in value.items():
            if name not in _NO_WORDS:
                yield from _texts_of(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts_of(item)


def _with_texts(value: Any, texts: Iterator[str]) -> Any:
    """The same with other texts, in the order of `_texts_of`."""
    if isinstance(value, str):
        return next(texts)
    if isinstance(value, dict):
        return {name: item if name in _NO_WORDS else _with_texts(item, texts) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_with_texts(item, texts) for item in value]
    return value


KIND: Final = "traffic"
_OPEN: Final = "open-"
_LOCK_SECONDS: Final = 20.0


@dataclass(frozen=True, slots=True)
class Segment:
    """Lines as they were at one moment.

    Attributes:
        segment_id: the same while it is open and once it is sealed.
    """

    segment_id: str
    data: bytes


class Spool:
    """The segments in a folder, which is made when something is written."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def append(self, lines: Sequence[bytes]) -> int:
        """Write lines, all or none of them; returns the bytes of the open segment.

        Raises:
            OSError: the disk does not take them.
            ConflictError: another process holds the lock of the folder and does not end.
        """
        with self._locked():  # under the lock no other process seals the segment or ends a line in between
            path = self._open_path() or self._folder / f"{_OPEN}{new_id(KIND)}.jsonl"
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | facilities.BINARY, 0o600)
            try:
                size = os.fstat(descriptor).st_size
                is_cut = size > 0 and facilities.read_at(descriptor, 1, size - 1) != b"\n"
                data = memoryview(b"\n" * is_cut + b"".join(lines))
                try:
                    written = 0
                    # A write may take less than it was given: a nearly full disk, a signal.
                    while written < len(data):
                        written += facilities.write_at(descriptor, data[written:], size + written)
                except OSError:
                    # All or none: the caller counts all of them as lost.
                    os.ftruncate(descriptor, size)
                    raise
                return size + len(data)
            finally:
                os.close(descriptor)

    def seal(self) -> None:
        """Add nothing more to the open segment."""
        # Looked at without the lock first, since most calls find nothing to seal; then again under it.
        if self._open_path() is not None:
            with self._locked():
                if (path := self._open_path()) is not None:
                    path.rename(path.with_name(path.name.removeprefix(_OPEN)))

    def sealed(self) -> list[Path]:
        """The segments to which nothing more comes, oldest first."""
        return [path for path in self._paths() if not path.name.startswith(_OPEN)]

    def segments(self) -> list[Segment]:
        """All lines that are here now. Call `holds` afterwards to know whether it has become Parquet meanwhile."""
        if not self._folder.is_dir():
            return []
        with contextlib.ExitStack() as stack:
            with self._locked():
                files = [(segment_id_of(path), stack.enter_context(path.open("rb"))) for path in self._paths()]
                sizes = [os.fstat(file.fileno()).st_size for _, file in files]
            # Without the lock: lines appended since are beyond these sizes, and a renamed file stays readable.
            return [Segment(name, file.read(size)) for (name, file), size in zip(files, sizes, strict=True)]

    def holds(self, segments: Sequence[Segment]) -> bool:
        """Whether all of these are still here."""
        here = {segment_id_of(path) for path in self._paths()}
        return all(segment.segment_id in here for segment in segments)

    def _paths(self) -> list[Path]:
        found = self._folder.glob("*.jsonl")
        return sorted((path for path in found if is_id(segment_id_of(path), KIND)), key=segment_id_of)

    def _open_path(self) -> Path | None:
        return next((path for path in self._paths() if path.name.startswith(_OPEN)), None)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with file_lock(self._folder / "lock", what="the spool of exchanges", timeout_seconds=_LOCK_SECONDS):
            yield


def segment_id_of(path: Path) -> str:
    """The id of a segment, open or sealed, by its path."""
    return path.name.removeprefix(_OPEN).removesuffix(".jsonl")


QUEUE_FULL: Final = "too many waited to be written"
NOT_WRITTEN: Final = "the disk took no more"
CUT_OFF: Final = "cut off by a kill"
FAILED: Final = "the log itself failed"
TOO_LONG: Final = "words too long to be kept"
NOT_MASKED: Final = "words that could not be masked"
WORDS_ONLY: Final = frozenset({TOO_LONG, NOT_MASKED})
"""Reasons for which an exchange has lost its words, and nothing else."""

MAX_WORDS: Final = 128 << 10
"""Characters of one exchange, about 32,000 tokens: beyond them its words are not kept."""
_MAX_WAITING: Final = 20_000
_MAX_CHARACTERS: Final = 64 << 20
_BATCH: Final = 256
_GATHER_SECONDS: Final = 0.05
_IDLE_SECONDS: Final = 1.0
_TELL_SECONDS: Final = 5.0
_CLOSE_SECONDS: Final = 10.0
_SETTLE_SECONDS: Final = 60.0
_SETTLE_BYTES: Final = 8 << 20
log = logging.getLogger("luthier.monitor")

Lost = Mapping[tuple[str, float, str], int]
"""How many were lost: by project, time of the request and reason."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    exchange: Exchange
    is_masked: bool
    num_characters: int


class TrafficLog:
    """One for a process. The thread begins with the first exchange.

    Args:
        tell_lost: keeps counts of what was lost; may raise, then it is called again later with the same counts.
        settle: makes files of what was written, now and then.
    """

    def __init__(
        self,
        spool: Spool,
        mask: Mask,
        *,
        tell_lost: Callable[[Lost], None],
        settle: Callable[[], object],
        most_waiting: int = _MAX_WAITING,
        most_characters: int = _MAX_CHARACTERS,
    ) -> None:
        self._spool, self._mask, self._tell_lost, self._settle = spool, mask, tell_lost, settle
        self._most_waiting, self._most_characters = most_waiting, most_characters
        self._waiting: collections.deque[_Waiting] = collections.deque()
        self._num_characters = self._num_in_hand = 0
        self._lost: collections.Counter[tuple[str, float, str]] = collections.Counter()
        self._changed, self._telling = threading.Condition(), threading.Lock()
        self._thread: threading.Thread | None = None
        self._is_closing = False
        self._told_at = self._warned_at = -_SETTLE_SECONDS
        self._settled_at, self._num_open_bytes = time.monotonic(), 0

    def offer(self, exchange: Exchange, *, is_masked: bool) -> None:
        """Have an exchange written; it is dropped and counted where too much waits.

        Args:
            exchange: the exchange.
            is_masked: whether its words are to be masked before.
        """
        size = num_characters(exchange) if exchange.has_text else 0
        if size > MAX_WORDS:
            self.lose(exchange, TOO_LONG)
            exchange, size = without_words(exchange), 0
        with self._changed:
            is_full = len(self._waiting) >= self._most_waiting or self._num_characters + size > self._most_characters
            if is_full or self._is_closing:
                self._lost[_place(exchange, QUEUE_FULL)] += 1
                return
            self._waiting.append(_Waiting(exchange, is_masked, size))
            self._num_characters += size
            if self._thread is None:
                try:
                    self._thread = start_daemon(self._write_all, "traffic log")
                except BusyError as error:
                    # A request must not fail for its log: what waits is written once a thread can be started.
                    log.warning("the log of traffic waits: %s", error.came)
            # Only the first one wakes the thread, which takes all that waits: a request pays for no more wake-ups.
            if len(self._waiting) == 1:
                self._changed.notify_all()

    def lose(self, exchange: Exchange, reason: str) -> None:
        """Count an exchange, or its words, as lost."""
        with self._changed:
            self._lost[_place(exchange, reason)] += 1

    def flush(self, timeout_seconds: float = _CLOSE_SECONDS) -> bool:
        """Wait until all that was offered is written or counted as lost; false where that takes too long."""
        with self._changed:
            is_done = self._changed.wait_for(lambda: not self._waiting and not self._num_in_hand, timeout_seconds)
        self._tell(is_now=True)
        return is_done

    def close(self) -> None:
        """Write what waits, within ten seconds, and end the thread."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(_CLOSE_SECONDS)
        else:
            self._write_all()  # what no thread could be started for
        self._tell(is_now=True)

    def _write_all(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._is_closing, _IDLE_SECONDS)
                if self._is_closing and not self._waiting:
                    return
                has_work = bool(self._waiting)
            if has_work and not self._is_closing:
                time.sleep(_GATHER_SECONDS)  # so that a write is worth it
            try:
                self._write_batch()
                self._tell(is_now=False)
                self._settle_when_due()
            except Exception:  # a thread that ends would lose all that still comes
                log.exception("the traffic log has failed, and continues")

    def _write_batch(self) -> None:
        with self._changed:
            # Counted as in hand while it is written, so that `flush` waits for it though the queue is empty.
            batch = [self._waiting.popleft() for _ in range(min(_BATCH, len(self._waiting)))]
            self._num_characters -= sum(one.num_characters for one in batch)
            self._num_in_hand = len(batch)
        try:
            if batch:
                self._write([*self._masked(batch), *(one.exchange for one in batch if not one.is_masked)])
        finally:
            with self._changed:
                self._num_in_hand = 0
                self._changed.notify_all()

    def _masked(self, batch: Sequence[_Waiting]) -> list[Exchange]:
        exchanges = [one.exchange for one in batch if one.is_masked]
        with_words = [one for one in exchanges if one.has_text]
        kept = [one for one in exchanges if not one.has_text]
        if not with_words:
            return kept
        try:
            return kept + masked(with_words, self._mask)
        except Exception as error:  # noqa: BLE001 - one of them: none of its words may be written as they are
            if len(with_words) == 1:
                self.lose(with_words[0], NOT_MASKED)
                self._warn(f"the text of an exchange is not stored, as it could not be masked: {error!r}")
                return [*kept, without_words(with_words[0])]
            for one in with_words:
                kept += self._masked([_Waiting(one, True, 0)])
            return kept

    def _write(self, exchanges: Sequence[Exchange]) -> None:
        try:
            self._num_open_bytes = self._spool.append([line_of(one) for one in exchanges])
        except Exception as error:  # noqa: BLE001 - any failure is counted
            for one in exchanges:
                self.lose(one, NOT_WRITTEN if isinstance(error, OSError) else FAILED)
            self._warn(f"{len(exchanges)} exchanges were not written: {error}")

    def _tell(self, *, is_now: bool) -> None:
        if not is_now and time.monotonic() - self._told_at < _TELL_SECONDS:
            return
        with self._telling:
            self._told_at = time.monotonic()
            with self._changed:
                lost, self._lost = self._lost, collections.Counter()
            if lost:
                self._warn(f"{sum(lost.values())} exchanges or their text were lost: {_reasons(lost)}")
            # One at a time: what the database refuses is counted again, and what it took is not sent twice.
            for place, count in lost.items():
                try:
                    self._tell_lost({place: count})
                except Exception as error:  # noqa: BLE001 - the database is away, or its disk is full, too
                    with self._changed:
                        self._lost[place] += count
                    self._warn(f"lost traffic is not counted in the database yet: {error}")

    def _settle_when_due(self) -> None:
        is_due = self._num_open_bytes >= _SETTLE_BYTES or time.monotonic() - self._settled_at >= _SETTLE_SECONDS
        if self._num_open_bytes and is_due:
            self._settled_at, self._num_open_bytes = time.monotonic(), 0
            try:
                self._settle()
            except (LuthierError, OSError) as error:  # the lines are safe; the next time may be better
                self._warn(f"the traffic could not be written to a file: {error}")

    def _warn(self, text: str) -> None:
        """Say it, but not with every exchange."""
        if time.monotonic() - self._warned_at >= _SETTLE_SECONDS:
            self._warned_at = time.monotonic()
            log.warning(text)


def _place(exchange: Exchange, reason: str) -> tuple[str, float, str]:
    return exchange.project_id, exchange.at // 3600 * 3600, reason


def _reasons(lost: Lost) -> str:
    counts: collections.Counter[str] = collections.Counter()
    for (_, _, reason), count in lost.items():
        counts[reason] += count
    return ", ".join(f"{reason} ({count})" for reason, count in counts.items())
