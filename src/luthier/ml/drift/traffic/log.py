"""Takes exchanges from those who answer, at once and whatever happens, and writes them in a thread of its own.

What waits is bounded, in number and in characters: where the disk does not keep up, or is full, exchanges are dropped,
counted and reported. Who answers never waits for it and never hears of an error.
"""

from __future__ import annotations

import collections
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from luthier.core.errors import LuthierError
from luthier.core.records.traffic import Exchange
from luthier.ml.drift.traffic.lines import line_of
from luthier.ml.drift.traffic.masked import Mask, masked, num_characters, without_words
from luthier.ml.drift.traffic.spool import Spool

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
                self._thread = threading.Thread(target=self._write_all, name="traffic log", daemon=True)
                self._thread.start()
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
                log.exception("the log of traffic has failed, and goes on")

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
                self._warn(f"words of an exchange are not kept, they could not be masked: {error!r}")
                return [*kept, without_words(with_words[0])]
            for one in with_words:
                kept += self._masked([_Waiting(one, True, 0)])
            return kept

    def _write(self, exchanges: Sequence[Exchange]) -> None:
        try:
            self._num_open_bytes = self._spool.append([line_of(one) for one in exchanges])
        except Exception as error:  # noqa: BLE001 - whatever it is, it is counted
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
                self._warn(f"{sum(lost.values())} exchanges or their words were lost: {_reasons(lost)}")
            # One at a time: what the database refuses is counted again, and what it took is not sent twice.
            for place, count in lost.items():
                try:
                    self._tell_lost({place: count})
                except Exception as error:  # noqa: BLE001 - the database is away, or its disk is full, too
                    with self._changed:
                        self._lost[place] += count
                    self._warn(f"what was lost of the traffic is not counted in the database yet: {error}")

    def _settle_when_due(self) -> None:
        is_due = self._num_open_bytes >= _SETTLE_BYTES or time.monotonic() - self._settled_at >= _SETTLE_SECONDS
        if self._num_open_bytes and is_due:
            self._settled_at, self._num_open_bytes = time.monotonic(), 0
            try:
                self._settle()
            except (LuthierError, OSError) as error:  # the lines are safe; the next time may be better
                self._warn(f"no file was made of the traffic: {error}")

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
