"""The steps of a run over a stream: which rows each step trains on, made while the run continues.

Steps are made in windows: by length 16 steps at a time, whose rows are sorted by length and whose batches are shuffled,
as `tokenise.batches` does it within an epoch; in the other orders one step at a time. All steps have the same number of
examples; an epoch ends in the middle of one. Row n of a step has number `step * examples of a step + n`.

Only the process that made the schedule reads rows. Processes that are forked from it (`micro_batch_workers`) read the
window from a file that it writes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from luthier.core.data_stream import StreamCounts, StreamPosition
from luthier.core.errors import DataError, WorkError
from luthier.core.recipe import OrderName
from luthier.core.system.files import disk_full_explained, replace_bytes
from luthier.ml.data.files.sequences import LazySequence
from luthier.ml.data.stream.order import batch_order
from luthier.ml.data.stream.reading import RecordStream
from luthier.ml.data.stream.rows import RowTokeniser
from luthier.ml.data.tokenise.batches import StepSchedule
from luthier.ml.data.tokenise.token_store import Unit, Units, units_as_json, units_from_json

WINDOW_BATCHES: Final = 16
_MAX_LEFT_OUT: Final = 1_000_000
"""So many rows in succession without one to train on end a run: they would never end by themselves."""

Divide = Callable[[Units], StepSchedule]
"""Makes the one step that holds some units, cut into micro-batches."""


class StreamSchedule:
    """The steps of a run, and the units that they are made of.

    Args:
        records: in the order of the run.
        tokeniser: makes units of them.
        num_steps: of the run.
        num_steps_per_epoch: as the plan estimates them.
        has_epochs: whether the number of rows is known, at least about; else that estimate is of the first rows alone.
        global_batch_size: examples of a step.
        order: by_length groups examples of like length.
        seed: of the order of batches.
        divide: cuts the examples of a step into micro-batches.
        folder: where forked processes find the current window; None where there are none.
    """

    def __init__(
        self,
        records: RecordStream,
        tokeniser: RowTokeniser,
        *,
        num_steps: int,
        num_steps_per_epoch: int,
        global_batch_size: int,
        order: OrderName,
        seed: int,
        divide: Divide,
        folder: Path | None = None,
        has_epochs: bool = True,
    ) -> None:
        self._records, self._tokeniser, self._has_epochs = records, tokeniser, has_epochs
        self._num_steps, self.num_steps_per_epoch = num_steps, num_steps_per_epoch
        self._size, self._seed, self._divide, self._folder = global_batch_size, seed, divide, folder
        self._num_batches = WINDOW_BATCHES if order == "by_length" else 1
        self._is_by_length = order == "by_length"
        self._owner = os.getpid()
        self._start = self._records.position().model_copy(update={"counts": tokeniser.counts})
        # Where the current window begins, and where the next one does.
        self._here = self._next = self._start
        self._pending: StreamPosition | None = None
        self._units: list[Unit] = []
        self._steps: dict[int, StepSchedule] = {}

    @property
    def units(self) -> StreamedUnits:
        """The units of all steps, by their numbers."""
        return StreamedUnits(self, self._num_steps * self._size)

    def unit(self, number: int) -> Unit:
        """One unit."""
        step, inside = divmod(number, self._size)
        return self._of_step(step)[inside]

    def step(self, step: int) -> tuple[tuple[int, ...], ...]:
        """The micro-batches of a step, as `StepSchedule.step`."""
        return self.share(step, 0, 1)

    def share(self, step: int, rank: int, size: int) -> tuple[tuple[int, ...], ...]:
        """What rank `rank` of `size` trains of a step, as `StepSchedule.share`."""
        first = step * self._size
        batches = self._divided(step).share(0, rank, size)
        return tuple(tuple(first + place for place in batch) for batch in batches)

    def shared_tokens(self, micro_batch: Sequence[int]) -> tuple[int, ...]:
        """The shared prefixes of a micro-batch, as `StepSchedule.shared_tokens`."""
        step = micro_batch[0] // self._size
        return self._divided(step).shared_tokens([number - step * self._size for number in micro_batch])

    def epoch_of(self, step: int) -> float | None:
        """Epochs that are done once `step` steps are done, by the plan's estimate of their length; None without one."""
        return step / self.num_steps_per_epoch if self._has_epochs else None

    def _divided(self, step: int) -> StepSchedule:
        found = self._steps.get(step)
        if found is None:
            units = self._of_step(step)
            rows = tuple(row for unit in units for row in unit)
            found = self._divide(Units(rows, row_counts=[len(unit) for unit in units]))
            self._steps = {step: found}  # asked for a few times in succession
        return found

    def _of_step(self, step: int) -> list[Unit]:
        window, inside = divmod(step, self._num_batches)
        self._go_to(window)
        return self._units[inside * self._size : (inside + 1) * self._size]

    def _go_to(self, window: int) -> None:
        if self._units and window == self._here.window:
            return
        if os.getpid() != self._owner:
            self._units = self._from_file(window)
            self._here = self._here.model_copy(update={"window": window})
            return
        if window < self._next.window:
            self._restore(self._start)
        while not self._units or self._here.window != window:
            self._make(self._next.window)
        if self._folder is not None:
            with disk_full_explained(self._folder):
                self._folder.mkdir(parents=True, exist_ok=True)
                replace_bytes(self._folder / _NAME, b"%d\n" % window + units_as_json(self._units))

    def _make(self, window: int) -> None:
        """The units of a window, by the batches of its steps."""
        if self._pending is not None:
            self._records.restore(self._pending)
            self._tokeniser.begin(self._pending.counts)
            self._pending = None
        num_batches = min(self._num_batches, self._num_steps - window * self._num_batches)
        units = [self._next_unit() for _ in range(num_batches * self._size)]
        if self._is_by_length:
            lengths = np.asarray([max(row.num_tokens for row in unit) for unit in units])
            ordered = [units[place] for place in np.argsort(lengths, kind="stable").tolist()]
            units = [
                ordered[batch * self._size + place]
                for batch in batch_order(self._seed, window, num_batches)
                for place in range(self._size)
            ]
        self._here, self._units, self._steps = self._next, units, {}
        self._next = self._records.position().model_copy(update={"window": window + 1, "counts": self._counts()})

    def _next_unit(self) -> Unit:
        for _ in range(_MAX_LEFT_OUT):
            found = self._tokeniser.unit(self._records.next())
            if found is not None:
                return found[1]
        raise DataError(
            f"{_MAX_LEFT_OUT:,} rows of the stream in succession were dropped or left out",
            expected="rows to train on",
            do="raise training.max_length_tokens, or check whether the rows are those of validation or held-out",
        )

    def _counts(self) -> StreamCounts:
        records = self._records
        more = {
            "num_empty_shards": records.num_empty_shards,
            "num_epochs": records.num_epochs,
            "short_sources": records.short_sources,
        }
        return self._tokeniser.counts.model_copy(update=more)

    def position(self, step: int) -> StreamPosition | None:
        """Where the window begins that holds a step; None for another window than the current and the next one."""
        if step >= self._num_steps:
            return self._next
        window = step // self._num_batches
        return next((one for one in (self._here, self._next) if one.window == window), None)

    def resume_at(self, position: StreamPosition | None) -> None:
        """Go on from a position of another process; None begins at the start, whatever step comes next."""
        if position is not None:
            self._restore(position)

    def _restore(self, position: StreamPosition) -> None:
        # Read when the next window is made: until then no file is open, which forked processes would inherit.
        self._pending = position
        self._here = self._next = position
        self._units, self._steps = [], {}

    def counts(self, num_steps: int) -> StreamCounts:
        """What was read for the steps so far, with the examples that wait for the next ones.

        Args:
            num_steps: that were trained.
        """
        if num_steps < self._num_steps and num_steps % self._num_batches and not self._units:
            self._go_to(num_steps // self._num_batches)  # resumed and stopped at once: the window was not read yet
        return self._next.counts.model_copy(
            update={"num_waiting": self._next.counts.num_examples - num_steps * self._size}
        )

    def _from_file(self, window: int) -> list[Unit]:
        assert self._folder is not None
        found, _, units = (self._folder / _NAME).read_bytes().partition(b"\n")
        if int(found) != window:
            raise WorkError(
                f"the training process has read window {int(found):,} of its stream",
                expected=f"window {window:,}",
                do="report it: a worker was asked for a step that is not the current one",
            )
        return units_from_json(units)

    def close(self) -> None:
        """Let go of the files that are open, and remove the one for forked processes."""
        self._records.close()
        if self._folder is not None:
            (self._folder / _NAME).unlink(missing_ok=True)


_NAME: Final = "stream-window.json"


class StreamedUnits(LazySequence[Unit]):
    """The units of all steps of a run, each made when it is asked for.

    Args:
        schedule: makes them.
        num: how many the run trains.
    """

    def __init__(self, schedule: StreamSchedule, num: int) -> None:
        self._schedule, self._num = schedule, num

    def __len__(self) -> int:
        return self._num

    def _at(self, start: int, stop: int) -> list[Unit]:
        return [self._schedule.unit(number) for number in range(start, stop)]
