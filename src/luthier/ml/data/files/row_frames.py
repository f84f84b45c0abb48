"""A table of rows as frames of some thousand rows each, in memory or, beyond a budget, in Arrow files.

Code that reads all rows iterates over the parts (`RowFrames.parts`) and keeps only narrow columns: numbers, flags and
positions. Whole columns of texts are never in memory.

The parts are read by this process, part after part, or by workers elsewhere that take several at a time (`RowWorkers`;
`ray_workers` has those of a cluster). What is done to a part is a function of the part alone, and results come back in
the order of the parts: findings do not depend on who does the work.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt
import polars as pl

from luthier.core.system.files import disk_full_explained
from luthier.ml.data.files.row_workers import IN_PROCESS, RowWorkers, map_with_items
from luthier.ml.data.files.spill import Spill

Item = TypeVar("Item")
Result = TypeVar("Result")


I64 = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

_SLICE_TEXTS: Final = 20_000


class RowFrames:
    """Rows in the order of a file. Positions count from 0.

    Args:
        schema: column -> type.
        spill: the budget for frames in memory, and where files go; None for a separate budget.
        workers: who looks at the parts (`map`).
    """

    def __init__(self, schema: Mapping[str, Any], spill: Spill | None = None, workers: RowWorkers = IN_PROCESS) -> None:
        self.schema = dict(schema)
        self.spill = spill or Spill()
        self.workers = workers
        self._parts: list[pl.DataFrame | Path] = []
        self._masks: list[Flags | None] = []
        self._ends: list[int] = []
        self._held = [0]  # a list, so that the finalizer sees its last value
        weakref.finalize(self, _release, self.spill, self._held)

    @classmethod
    def of(cls, frame: pl.DataFrame) -> RowFrames:
        """One frame, in memory at any size."""
        made = cls(frame.schema)
        made._add(frame, frame.height)
        return made

    @property
    def height(self) -> int:
        """Number of rows."""
        return self._ends[-1] if self._ends else 0

    @property
    def is_spilled(self) -> bool:
        """Whether rows are in files."""
        return any(isinstance(part, Path) for part in self._parts)

    def append(self, frame: pl.DataFrame, share_done: float = 1.0) -> None:
        """Add rows at the end.

        Args:
            frame: with the columns of the schema.
            share_done: how much of all rows there is with these, 0 to 1.

        Raises:
            StorageFullError: the disk is full, or has too little room for what is to come.
        """
        if not frame.height:
            return
        size = int(frame.estimated_size())
        if not self.is_spilled:
            if self.spill.hold(size):
                self._held[0] += size
                self._add(frame, frame.height)
                return
            # The size of all rows is extrapolated from those so far: better to fail now than after hours of reading.
            self.spill.check_room((self._held[0] + size) / max(share_done, 1e-9))
            # At the first frame beyond the budget everything goes to disk, so that the budget is free for other tables.
            self._parts = [self._written(part) if isinstance(part, pl.DataFrame) else part for part in self._parts]
            self.spill.release(self._held[0])
            self._held[0] = 0
        self._add(self._written(frame), frame.height)

    def parts(self, *columns: str) -> Iterator[tuple[int, pl.DataFrame]]:
        """Each part with the position of its first row; all columns where none is named."""
        names = list(columns or self.schema)
        for place in range(len(self._parts)):
            yield self._start(place), self._read(place, names)

    def map(
        self,
        function: Callable[..., Result],
        *columns: str,
        shared: tuple[Any, ...] = (),
        advance: Callable[[float], object] | None = None,
    ) -> Iterator[tuple[int, Result]]:
        """`function(part, *shared)` for each part, with the position of its first row; the workers compute it.

        Args:
            function: as of `RowWorkers.map`.
            columns: what the parts have of the columns.
            shared: what all parts need.
            advance: called with the number of rows of each part that is done.
        """
        parts = (part for _, part in self.parts(*columns))
        for place, found in enumerate(self.workers.map(function, parts, *shared)):
            yield self._start(place), found
            if advance is not None:
                advance(self._ends[place] - self._start(place))

    def column(self, name: str) -> pl.Series:
        """A whole column in memory: for narrow ones, such as lines and lengths."""
        found = [part[name] for _, part in self.parts(name)]
        return pl.concat(found, rechunk=True) if found else pl.Series(name, [], dtype=self.schema[name])

    def take(self, positions: Sequence[int] | npt.NDArray[np.integer[Any]], *columns: str) -> pl.DataFrame:
        """Some rows, in the order of `positions`; all columns where none is named."""
        names = list(columns or self.schema)
        wanted = np.asarray(positions, dtype=np.int64)
        if not len(wanted):
            return pl.DataFrame(schema={name: self.schema[name] for name in names})
        # Sorted by part, so that each file is read once however the positions are mixed.
        order = np.argsort(wanted, kind="stable")
        places = np.searchsorted(np.asarray(self._ends, dtype=np.int64), wanted[order], side="right")
        found = []
        for place in np.unique(places).tolist():
            inside = wanted[order][places == place] - self._start(place)
            found.append(self._read(place, names)[inside])
        # The inverse permutation: back to the order that was asked for.
        back = np.empty(len(order), dtype=np.int64)
        back[order] = np.arange(len(order))
        rows: pl.DataFrame = pl.concat(found, rechunk=True)[back]
        return rows

    def value(self, position: int, column: str) -> Any:
        """One value."""
        return self.take([position], column)[column][0]

    def where(self, kept: Flags) -> RowFrames:
        """Some of the rows, without a copy of them.

        Args:
            kept: bool [height].
        """
        made = RowFrames(self.schema, self.spill, self.workers)
        for place, part in enumerate(self._parts):
            mine, before = kept[self._start(place) : self._ends[place]], self._masks[place]
            mask = mine.copy()
            # `mine` has a flag for each row that the earlier mask keeps, the new mask one for each row of the part.
            if before is not None:
                mask = before.copy()
                mask[before] = mine
            made._add(part, int(mine.sum()), mask)
        return made

    def frame(self) -> pl.DataFrame:
        """All rows in one frame in memory."""
        found = [part for _, part in self.parts()]
        return pl.concat(found, rechunk=False) if found else pl.DataFrame(schema=self.schema)

    def texts(self, *columns: str, without: str = "") -> TextColumn:
        """A column of texts, part by part; of several columns the first value of each row that is not null.

        Args:
            columns: their names.
            without: a beginning that is left out of the texts that have it.
        """
        return TextColumn(self, columns, without)

    def _start(self, place: int) -> int:
        return self._ends[place - 1] if place else 0

    def _add(self, part: pl.DataFrame | Path, height: int, mask: Flags | None = None) -> None:
        self._parts.append(part)
        self._masks.append(mask)
        self._ends.append(self.height + height)

    def _read(self, place: int, names: list[str]) -> pl.DataFrame:
        part, mask = self._parts[place], self._masks[place]
        found = part.select(names) if isinstance(part, pl.DataFrame) else pl.read_ipc(part, columns=names).select(names)
        return found if mask is None else found.filter(pl.Series(mask))

    def _written(self, frame: pl.DataFrame) -> Path:
        path = self.spill.new_file()
        with disk_full_explained(self.spill.place):
            frame.write_ipc(path)
            self.spill.wrote(path.stat().st_size)
        return path


def _release(spill: Spill, held: list[int]) -> None:
    spill.release(held[0])


@dataclass(frozen=True, slots=True)
class TextColumn:
    """A column of texts that is read part by part, on each request.

    Attributes:
        rows: the table.
        columns: of these the first value that is not null.
        without: a beginning that is left out of the texts that have it.
    """

    rows: RowFrames
    columns: tuple[str, ...]
    without: str = ""

    def __len__(self) -> int:
        return self.rows.height

    def parts(self) -> Iterator[pl.Series]:
        """The texts in order; nulls stay."""
        for _, part in self.rows.parts(*self.columns):
            yield self._of(part)

    def take(self, positions: Sequence[int] | npt.NDArray[np.integer[Any]]) -> pl.Series:
        """Some of the texts, in the order of `positions`."""
        return self._of(self.rows.take(positions, *self.columns))

    def where(self, kept: Flags) -> TextColumn:
        """The texts of some of the rows."""
        return TextColumn(self.rows.where(kept), self.columns, self.without)

    def _of(self, part: pl.DataFrame) -> pl.Series:
        texts = part.select(pl.coalesce(*self.columns).alias("text")).to_series()
        return texts.str.strip_prefix(self.without) if self.without else texts


Texts = pl.Series | TextColumn
"""Texts to look at: a column in memory, or one that is read part by part."""


def text_parts(texts: Texts) -> Iterator[pl.Series]:
    """The texts in order, a part at a time."""
    if isinstance(texts, TextColumn):
        yield from texts.parts()
    else:
        yield texts


def map_texts(
    texts: Texts,
    function: Callable[..., Result],
    *shared: Any,
    advance: Callable[[float], object] | None = None,
) -> Iterator[tuple[int, Result]]:
    """`function(part, *shared)` for some thousand texts at a time, with the position of the first of them.

    Args:
        texts: a column; of a table its workers compute it.
        function: as of `RowWorkers.map`.
        shared: what all parts need.
        advance: called with the number of texts of each part that is done.
    """
    workers = texts.rows.workers if isinstance(texts, TextColumn) else IN_PROCESS
    before = 0
    for part, found in map_with_items(workers, function, _slices(texts), *shared):
        yield before, found
        before += len(part)
        if advance is not None:
            advance(len(part))


def _slices(texts: Texts) -> Iterator[pl.Series]:
    for part in text_parts(texts):
        for start in range(0, len(part), _SLICE_TEXTS):
            yield part.slice(start, _SLICE_TEXTS)


def take_texts(texts: Texts, positions: npt.NDArray[np.integer[Any]]) -> pl.Series:
    """Some of the texts, in the order of `positions`."""
    return texts.take(positions) if isinstance(texts, TextColumn) else texts.gather(positions)


def where_texts(texts: Texts, kept: Flags) -> Texts:
    """Some of the texts, in order.

    Args:
        texts: all of them.
        kept: bool [n].
    """
    return texts.where(kept) if isinstance(texts, TextColumn) else texts.filter(pl.Series(kept))


def spill_of(texts: Texts) -> Spill:
    """The budget that a column of a table shares with it; a separate one for a column in memory."""
    return texts.rows.spill if isinstance(texts, TextColumn) else Spill()
