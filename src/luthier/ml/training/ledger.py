"""The spend of a run, on disk so that it survives kill -9, and the measured duration of its actions.

    spent.jsonl         one line before each action: the settled spend, and the expected cost of the action that begins
    judge_calls.jsonl   one line after each paid reply of a judge behind a server

A line is appended by one write, so a kill leaves it either complete or absent; a line torn by a power cut is skipped.
Checkpoints do not contain the ledger: the training result never depends on its cost. The lines hold what this home has
spent; what others have spent on the run is in a file beside it (`spent_elsewhere`).

`Throughput` tracks seconds per token: a mean over recent steps, weighted by their tokens, with exponential decay
because the load of the machine changes.
"""

from __future__ import annotations

import errno
import json
import math
import os
from pathlib import Path
from typing import Final, Literal

from pydantic import Field, ValidationError

from luthier.core.errors import StorageFullError
from luthier.core.estimate import Estimate
from luthier.core.frozen_model import FrozenModel
from luthier.core.run import Spent
from luthier.core.system import facilities
from luthier.core.system.files import is_disk_full, replace_file, sync_file
from luthier.ml.training import spent_elsewhere
from luthier.ml.training.spent_elsewhere import FIELDS, Amount, Count, Elsewhere, Share, Shares, share_of

Action = Literal[
    "preparing", "teacher", "loading", "reference", "step", "validation", "checkpoint", "saving", "judging", "reporting"
]

_DECAY: Final = 0.97
"""Decay of a step's weight with each later step: about the last 30 count."""
_NEWEST: Final = 0.5
"""Weight of the newest action of a kind other than steps."""
_MIN_SPREAD: Final = 0.02
"""Relative; no machine is steadier than that over hours."""


class Throughput(FrozenModel):
    """Measured durations. tokens, seconds, squares (seconds^2 / tokens), weights: exponentially decayed sums over
    steps.

    Attributes:
        num_steps: steps measured; the first one includes warm-up and is dropped once there is a second.
        others: seconds of each other kind of action, averaged with weight one half for the newest; for judging, which
            may be interrupted, the maximum.
    """

    num_steps: int = 0
    weight: float = 0.0
    weight_squared: float = 0.0
    tokens: float = 0.0
    seconds: float = 0.0
    squares: float = 0.0
    others: dict[Action, float] = Field(default_factory=dict)

    def after_step(self, tokens: int, seconds: float) -> Throughput:
        """The throughput updated by one step of that many tokens."""
        # The first step compiled, allocated and filled caches, so it does not represent the others.
        kept = 0.0 if self.num_steps == 1 else _DECAY
        return self.model_copy(
            update={
                "num_steps": self.num_steps + 1,
                "weight": self.weight * kept + 1.0,
                "weight_squared": self.weight_squared * kept**2 + 1.0,
                "tokens": self.tokens * kept + tokens,
                "seconds": self.seconds * kept + seconds,
                # tokens * (seconds / tokens)^2: the second moment of seconds per token, weighted by tokens
                "squares": self.squares * kept + seconds**2 / tokens,
            }
        )

    def after(self, action: Action, seconds: float) -> Throughput:
        """The throughput updated by one action that is not a step."""
        before = self.others.get(action, seconds)
        # The time of an interrupted judging is a lower bound, so that a mean would be too small.
        mixed = max(before, seconds) if action == "judging" else _NEWEST * seconds + (1 - _NEWEST) * before
        return self.model_copy(update={"others": {**self.others, action: mixed}})

    @property
    def spread(self) -> float:
        """Standard deviation of a step's seconds per token, relative to the mean; 0 before two steps are measured."""
        if self.num_steps < 2:
            return 0.0
        mean = self.seconds / self.tokens
        # Rounding can make the variance of equal steps slightly negative.
        return math.sqrt(max(0.0, self.squares / self.tokens - mean**2)) / mean

    def seconds_for(self, tokens: float, num_steps: int) -> Estimate:
        """Seconds of that many steps with that many tokens in total; needs at least one measured step.

        The 95% interval covers the error of the mean and the scatter of future steps, taken as independent.
        """
        value = tokens * self.seconds / self.tokens
        if self.num_steps < 3 or num_steps < 1:
            return Estimate(value=value, low=value / 1.5, high=value * 1.5)
        measured = self.weight**2 / self.weight_squared  # effective number of equally weighted steps (Kish, 1965)
        half = _student(measured - 1.0) * self.spread * math.sqrt(1.0 / measured + 1.0 / num_steps)
        # Also for a machine that measured perfectly even steps: the forecast covers hours it has not seen.
        half = max(half, _MIN_SPREAD)
        return Estimate(value=value, low=value / (1.0 + half), high=value * (1.0 + half))


def _student(freedom: float) -> float:
    """Student's t at 97.5%, accurate to 4% for one or more degrees of freedom: scipy is too heavy for one quantile."""
    freedom = max(freedom, 1.0)
    return 1.96 + 2.4 / freedom + 8.0 / freedom**3


LEDGER: Final = "spent.jsonl"
_OF_JUDGES: Final = tuple(name for name in FIELDS if name.startswith("judge_"))
_MAX_BYTES: Final = 1 << 20
_TAIL_BYTES: Final = 1 << 14


class Entry(FrozenModel):
    """One line of the ledger.

    Attributes:
        seconds, tokens: settled so far.
        interrupted_seconds: of these, the time of actions that were cut short.
        judge_calls, judge_prompt_tokens, judge_new_tokens, judge_usd: as of `Spent`.
        doing: the action that began when the line was written; None after the last.
        expected_seconds, expected_tokens: what that action should take.
        pace: the throughput measured so far.
    """

    seconds: Amount = 0.0
    tokens: Count = 0
    interrupted_seconds: Amount = 0.0
    judge_calls: Count = 0
    judge_prompt_tokens: Count = 0
    judge_new_tokens: Count = 0
    judge_usd: Amount = 0.0
    doing: Action | None = None
    expected_seconds: Amount = 0.0
    expected_tokens: Count = 0
    pace: Throughput = Throughput()

    def settled(self) -> Spent:
        """The spend if this is the last line: an unfinished action counts with its expected cost."""
        lost = self.expected_seconds if self.doing else 0.0
        own = Spent(**{name: getattr(self, name) for name in FIELDS})
        more = {
            "seconds": self.seconds + lost,
            "tokens": self.tokens + (self.expected_tokens if self.doing else 0),
            "interrupted_seconds": self.interrupted_seconds + lost,
        }
        return own.model_copy(update=more)


JUDGE_CALLS: Final = "judge_calls.jsonl"


class JudgeCalls:
    """The paid replies of judges behind servers, a line each; every process of a run appends to the file.

    A line follows its reply, so a kill loses none of them but the one that has just arrived.

    Args:
        folder: of the run; None writes nothing to disk.
    """

    def __init__(self, folder: Path | None) -> None:
        self._file = None if folder is None else folder / JUDGE_CALLS
        self._descriptor: int | None = None
        self._read_bytes = 0
        self._total = Spent()

    def add(self, judge: str, prompt_tokens: int, new_tokens: int, usd: float | None) -> None:
        """Note one reply.

        Args:
            judge: its address.
            prompt_tokens, new_tokens: of the reply.
            usd: what it cost; None without prices.

        Raises:
            StorageFullError: the disk has no room.
        """
        if self._file is None:
            return
        document = {"judge": judge, "prompt_tokens": prompt_tokens, "new_tokens": new_tokens, "usd": usd}
        try:
            if self._descriptor is None:
                self._descriptor = _open_to_append(self._file)
            line = json.dumps(document).encode() + b"\n"
            # One write: the lines of several processes do not mix.
            if os.write(self._descriptor, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise _full(self._file, error) from error

    def total(self) -> Spent:
        """What all processes have noted until now; only the figures of judges are set."""
        if self._file is None or not self._file.is_file() or self._file.stat().st_size <= self._read_bytes:
            return self._total
        with self._file.open("rb") as file:
            file.seek(self._read_bytes)
            new = file.read()
        # Another process may be in the middle of a line.
        new = new[: new.rfind(b"\n") + 1]
        self._read_bytes += len(new)
        for line in new.splitlines():
            try:
                one = json.loads(line)
                more = {
                    "judge_calls": self._total.judge_calls + 1,
                    "judge_prompt_tokens": self._total.judge_prompt_tokens + int(one["prompt_tokens"]),
                    "judge_new_tokens": self._total.judge_new_tokens + int(one["new_tokens"]),
                    "judge_usd": self._total.judge_usd + float(one["usd"] or 0.0),
                }
            except (ValueError, KeyError, TypeError):  # torn by a power cut
                continue
            self._total = self._total.model_copy(update=more)
        return self._total

    def close(self) -> None:
        """Sync and close the file."""
        if self._descriptor is not None:
            facilities.sync_descriptor(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = None


def _open_to_append(file: Path) -> int:
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND | facilities.BINARY, 0o644)
    size = os.fstat(descriptor).st_size
    if size and facilities.read_at(descriptor, 1, size - 1) != b"\n":
        os.write(descriptor, b"\n")  # a line torn by a power cut must not corrupt the next one
    return descriptor


def _full(file: Path, error: OSError) -> Exception:
    """The error to raise for one of writing to a file."""
    if not is_disk_full(error):
        return error
    return StorageFullError(
        f"no room to note in {file} what the run has spent",
        expected="a few hundred bytes",
        do="free some disk space and resume the run",
    )


class Ledger:
    """The ledger of one run. Only the process that holds the run's lock may write.

    Args:
        folder: of the run; None writes nothing to disk.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._file = None if folder is None else folder / LEDGER
        self._descriptor: int | None = None
        self._others: Share | None = None
        self._calls = JudgeCalls(folder)

    @property
    def is_persistent(self) -> bool:
        """Whether there is a file."""
        return self._file is not None

    def last(self) -> Entry:
        """The newest readable line, with what other homes have spent; an empty entry if there is none."""
        own, others = self._own(), self._elsewhere()
        return own.model_copy(update={name: getattr(own, name) + getattr(others, name) for name in FIELDS})

    def judged(self, spent: Spent) -> Spent:
        """A spend with what judges behind servers were paid until now, by any process of the run."""
        calls, others = self._calls.total(), self._elsewhere()
        now = {name: max(getattr(spent, name), getattr(calls, name) + getattr(others, name)) for name in _OF_JUDGES}
        return spent.model_copy(update=now)

    def shares(self) -> dict[str, Share]:
        """What each home has spent, this one included. Only for a ledger on the disk."""
        assert self._folder is not None
        found = spent_elsewhere.read_or_begin(self._folder)
        return {found.home: share_of(self._own().settled()), **found.shares}

    def adopt(self, entry: Entry, shares: Shares) -> None:
        """Count what other homes have spent. Only for a ledger on the disk, before its run is metered.

        Args:
            entry: The newest entry of another home, with all that it knew of.
            shares: What that is made of; none where an earlier version wrote it, which knew no shares.

        Raises:
            StorageFullError: the disk has no room.
        """
        assert self._folder is not None
        found, own, before = spent_elsewhere.read_or_begin(self._folder), self._own(), self.last()
        # What this home says of itself counts. Its own state was made in the middle of an action, which it counts
        # as expected: it helps only where the ledger is lost.
        here = shares.get(found.home, Share()) if own == Entry() else share_of(own.settled())
        # What the shares leave open was spent by homes without a name.
        given = spent_elsewhere.with_rest(shares, share_of(entry.settled())) if shares else {}
        merged = spent_elsewhere.merged(found.shares, given) | {found.home: here}
        if not shares:
            merged = spent_elsewhere.with_rest(merged, share_of(entry.settled()))
        del merged[found.home]
        spent_elsewhere.write(self._folder, Elsewhere(home=found.home, shares=merged))
        self._others = None
        # The pace of the home that has come further is the better measured one.
        is_behind = entry.seconds > before.seconds
        if is_behind or (own == Entry() and here != Share()):
            self._write(Entry(**here.model_dump(), pace=entry.pace if is_behind else own.pace))

    def _elsewhere(self) -> Share:
        """The sum of what other homes have spent; it changes by `adopt` alone."""
        if self._others is None:
            found = None if self._folder is None else spent_elsewhere.read(self._folder)
            self._others = Share() if found is None else spent_elsewhere.total(found.shares.values())
        return self._others

    def _own(self) -> Entry:
        """The newest readable line: what this home has spent."""
        if self._file is None or not self._file.is_file():
            return self._with_calls(Entry())
        with self._file.open("rb") as file:
            # The tail holds many lines; one that is torn or cut by the seek does not parse and is skipped.
            file.seek(max(0, self._file.stat().st_size - _TAIL_BYTES))
            lines = file.read().splitlines()
        for line in reversed(lines):
            try:
                return self._with_calls(Entry.model_validate_json(line))
            except ValidationError:
                continue
        return self._with_calls(Entry())

    def _with_calls(self, entry: Entry) -> Entry:
        # Replies may have been paid for since the line was written, and by processes that write no lines.
        calls = self._calls.total()
        return entry.model_copy(update={name: max(getattr(entry, name), getattr(calls, name)) for name in _OF_JUDGES})

    def append(self, entry: Entry) -> None:
        """Write one line.

        Args:
            entry: with what other homes have spent, as `last` returns it.

        Raises:
            StorageFullError: the disk has no room.
        """
        others = self._elsewhere()
        own = {name: max(0, getattr(entry, name) - getattr(others, name)) for name in FIELDS}
        self._write(entry.model_copy(update=own))

    def _write(self, entry: Entry) -> None:
        if self._file is None:
            return
        try:
            if self._descriptor is None:
                self._descriptor = self._open(self._file)
            line = entry.model_dump_json().encode() + b"\n"
            # A short write to a regular file means a full disk.
            if os.write(self._descriptor, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise _full(self._file, error) from error

    def sync(self) -> None:
        """Sync all lines to the disk."""
        if self._descriptor is not None:
            facilities.sync_descriptor(self._descriptor)

    def close(self) -> None:
        """Sync and close the file."""
        if self._descriptor is not None:
            self.sync()
            os.close(self._descriptor)
            self._descriptor = None

    def _open(self, file: Path) -> int:
        if file.is_file() and file.stat().st_size > _MAX_BYTES:
            self._shorten(file)
        return _open_to_append(file)

    def _shorten(self, file: Path) -> None:
        """Keep only the newest line, the only one that is ever read."""
        # In the same folder: a rename is atomic only within one file system.
        partial = file.with_name(f".{file.name}")
        with partial.open("wb") as writer:
            writer.write(self._own().model_dump_json().encode() + b"\n")
            sync_file(writer)
        replace_file(partial, file)
