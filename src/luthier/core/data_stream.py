"""Rows that are streamed: what a plan says of them, where a run is in them, and what it has counted.

A streamed source is read shard by shard while the run trains. Nothing of it is known before that but its first rows,
so a plan has figures of these with intervals; the exact ones are counted while the rows are read (`StreamCounts`).
"""

from __future__ import annotations

from typing import Final, NamedTuple

from luthier.core.frozen_model import FrozenModel

MAX_SHUFFLE_BUFFER: Final = 10_000_000
MAX_NAMED: Final = 10
"""As many rows that were left out are named; all are counted."""


class Bounds(NamedTuple):
    """A 95% confidence interval."""

    low: float
    high: float


class StreamPlan(FrozenModel):
    """The streamed training rows of a plan, by their first rows.

    Attributes:
        shuffle_buffer: rows that the buffer holds; 1 where rows are trained in the order of the files.
        num_shards: files of all sources.
        num_bytes: of these files as they are stored; None where a server states no size.
        num_sampled: rows that were read for this plan, the first of each source.
        num_dropped: of these, left out as too long.
        num_truncated: of these, cut.
        num_left_out: of these, left out since they are validation or held-out rows.
        dropped_fraction: share of all rows that will be left out as too long.
        truncated_fraction: share of all rows that will be cut.
        num_rows: rows of all files together; None where it cannot be estimated. Both ends are equal where it is known.
    """

    shuffle_buffer: int
    num_shards: int
    num_bytes: int | None
    num_sampled: int
    num_dropped: int = 0
    num_truncated: int = 0
    num_left_out: int = 0
    dropped_fraction: Bounds
    truncated_fraction: Bounds
    num_rows: Bounds | None = None

    @property
    def summary(self) -> str:
        """Files, rows and what will be left out, as text."""
        files = "1 file" if self.num_shards == 1 else f"{self.num_shards:,} files"
        order = f"shuffle buffer of {self.shuffle_buffer:,} rows" if self.shuffle_buffer > 1 else "in the given order"
        parts = [f"{files}, {order}", self.rows_text, f"the first {self.num_sampled:,} rows were read for this plan"]
        for num, share, what in (
            (self.num_dropped, self.dropped_fraction, "dropped"),
            (self.num_truncated, self.truncated_fraction, "truncated"),
        ):
            parts.append(f"{num:,} of these {what}, so {share.low:.1%} to {share.high:.1%} of all (95% interval)")
        if self.num_left_out:
            parts.append(f"{self.num_left_out:,} left out as validation or held-out rows")
        return "; ".join(parts)

    @property
    def rows_text(self) -> str:
        """How many rows there are: exactly, as an interval, or unknown."""
        if self.num_rows is None:
            return "number of rows unknown"
        low, high = self.num_rows
        return f"{low:,.0f} rows" if low == high else f"about {low:,.0f} to {high:,.0f} rows (95% interval)"


class LanePlace(FrozenModel):
    """Where the reading of a source is.

    Attributes:
        pass_number: how often it was read to its end.
        shard: place of the current shard in the order of this pass.
        row: records of the shard before this place.
        line: lines of the shard before it, blank ones included; of JSONL alone.
        offset: bytes of the unpacked shard before it; of JSONL alone.
        num_used: rows of this pass so far of each source of which a number of rows is used; empty where there is none.
    """

    pass_number: int = 0
    shard: int = 0
    row: int = 0
    line: int = 0
    offset: int = 0
    num_used: tuple[int, ...] = ()


class StreamCounts(FrozenModel):
    """What was read of a stream, exact.

    Attributes:
        num_rows: rows that left the shuffle buffer; the sum of all below.
        num_examples: of these, trained or about to be.
        num_dropped: left out as too long.
        num_left_out: left out since they are validation or held-out rows.
        num_unlisted: left out since their class is not among those that the recipe names.
        num_truncated: examples that were cut.
        num_tokens: of the examples.
        num_trained_tokens: of these, learned.
        num_waiting: examples that were read for the next steps and not trained yet.
        num_empty_shards: files without a row, which were passed over; each time that they were met.
        num_epochs: passes over all rows that are complete; 0 for sources with weights, which have no common end.
        by_source: rows by source, in the order of the plan.
        same_prompt: held-out rows of which the prompt is that of a trained row, by their number from 0.
        short_sources: sources that have fewer rows than the recipe asks for, each with both numbers.
        dropped_ids, truncated_ids, left_out_ids, unlisted_ids: the first of them.
    """

    num_rows: int = 0
    num_examples: int = 0
    num_dropped: int = 0
    num_left_out: int = 0
    num_unlisted: int = 0
    num_truncated: int = 0
    num_tokens: int = 0
    num_trained_tokens: int = 0
    num_waiting: int = 0
    num_empty_shards: int = 0
    num_epochs: int = 0
    by_source: tuple[int, ...] = ()
    same_prompt: tuple[int, ...] = ()
    short_sources: tuple[str, ...] = ()
    dropped_ids: tuple[str, ...] = ()
    truncated_ids: tuple[str, ...] = ()
    left_out_ids: tuple[str, ...] = ()
    unlisted_ids: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        """The counts as text."""
        parts = [f"{self.num_rows:,} rows were streamed ({self.num_epochs:,} whole epochs)"]
        for num, what, ids in (
            (self.num_dropped, "dropped as too long", self.dropped_ids),
            (self.num_truncated, "truncated", self.truncated_ids),
            (self.num_left_out, "left out as validation or held-out rows", self.left_out_ids),
            *(
                [(self.num_unlisted, "left out as rows of classes that are not listed", self.unlisted_ids)]
                if self.num_unlisted
                else []
            ),
        ):
            named = ""
            if ids:
                more = f" and {num - len(ids):,} more" if num > len(ids) else ""
                named = f" ({', '.join(ids)}{more})"
            parts.append(f"{num:,} {what}{named}")
        if self.num_empty_shards:
            parts.append(f"{self.num_empty_shards:,} empty files skipped")
        if self.same_prompt:
            parts.append(f"{len(self.same_prompt):,} held-out rows have the prompt of a row, with another answer")
        if self.short_sources:
            parts.append(f"fewer rows than requested: {', '.join(self.short_sources)}")
        if self.num_waiting:
            parts.append(f"{self.num_waiting:,} read for the next steps")
        return "; ".join(parts)

    @property
    def warnings(self) -> tuple[str, ...]:
        """The counts, where something was left out, cut or passed over, or a held-out prompt was trained on."""
        lost = (self.num_dropped, self.num_truncated, self.num_left_out, self.num_unlisted, self.num_empty_shards)
        return () if not any((*lost, self.same_prompt, self.short_sources)) else (self.summary,)


class StreamPosition(FrozenModel):
    """Where a run is in its stream: all that is needed to read on as if it had never stopped.

    Rows of the shuffle buffer are not kept. Which rows are in it follows from the number of draws; they are read
    again from `refill_lanes` on.

    Attributes:
        window: the group of steps that comes next.
        epoch: of its first row.
        num_draws: rows that have left the buffer in this epoch.
        num_read: rows that were read in this epoch.
        num_epoch_rows: rows of this epoch, once its end was reached.
        lanes: where each source is.
        refill_read: rows of this epoch before `refill_lanes`.
        refill_lanes: a place before the oldest row of the buffer.
        counts: of all rows so far.
    """

    window: int = 0
    epoch: int = 0
    num_draws: int = 0
    num_read: int = 0
    num_epoch_rows: int | None = None
    lanes: tuple[LanePlace, ...] = ()
    refill_read: int = 0
    refill_lanes: tuple[LanePlace, ...] = ()
    counts: StreamCounts = StreamCounts()
