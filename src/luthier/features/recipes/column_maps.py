"""The column map that a file is read by when a run is judged: the given one, else the run's own (`data.columns`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Final

from luthier.core.dataset import Row, reading_notes
from luthier.core.ids import is_id
from luthier.platform.home.context import Context

if TYPE_CHECKING:
    from luthier.ml.data.rows.formats import LoadedFile

_ROWS_READ: Final = 50


@dataclass(frozen=True, slots=True)
class ColumnMap:
    """field of the shape -> column of the file, None for the file's own names; note: where it comes from, if not asked.

    The note is empty where nothing was decided.
    """

    mapping: dict[str, str] | None
    note: str = ""


def column_map(context: Context, systems: Sequence[str], file: Path, asked: Mapping[str, str] | None) -> ColumnMap:
    """The map to read a file by.

    Args:
        systems: models and runs; of the first run with a map it is taken where the file has its columns.
        file: the rows. asked: the map that a person gave, which is taken as it is.

    Raises NotFoundError for an unknown run or file, DataError for a file that cannot be read.
    """
    if asked:
        return ColumnMap(dict(asked))
    for name in systems:
        mapping = context.runs.plan(name).recipe.data.map if is_id(name, "run") else None
        if mapping:
            found = map_that_fits(mapping, file, f"the column map of {name}")
            with context.progress.task(f"columns of {file.name}", 1, "file") as task:
                task.note(found.note)
                task.advance()
            return found
    return ColumnMap(None)


def load_mapped(
    context: Context, systems: Sequence[str], file: Path, asked: Mapping[str, str] | None
) -> tuple[LoadedFile, tuple[str, ...]]:
    """A file read by the map of `column_map`, and what a person should know of how it was read.

    Raises:
        NotFoundError: No such run or file.
        DataError: A file that cannot be read, or wrong rows in it.
    """
    from luthier.ml.data.rows.formats import load_file

    found = column_map(context, systems, file, asked)
    loaded = load_file(file, mapping=found.mapping)
    own = (found.note,) if found.note else ()
    return loaded, (*own, *reading_notes([(str(file), loaded.shape_reason)]))


def map_of_runs(context: Context, run_ids: Sequence[str]) -> dict[str, str] | None:
    """The column map of the first of these runs that has one. Raises NotFoundError for an unknown run."""
    maps = (context.runs.plan(run_id).recipe.data.map for run_id in run_ids)
    return next((dict(one) for one in maps if one), None)


def map_that_fits(mapping: Mapping[str, str], file: Path, whose: str) -> ColumnMap:
    """A map where the first rows of a file have its columns; else none, and the note says so."""
    from luthier.ml.data.rows.column_names import columns_like

    columns = first_columns(file)
    fits = {name: column for name, column in mapping.items() if columns_like(column, columns)}
    shown = ", ".join(f"{name} = {column}" for name, column in mapping.items())
    # `group` only matters for splitting, so a file without it can still be read.
    if fits.keys() | {"group"} == mapping.keys() | {"group"}:
        return ColumnMap(fits, f"{file.name} is read by {whose} ({shown}); --map reads it otherwise")
    return ColumnMap(None, f"{file.name} is read by its own column names: it lacks some of {whose} ({shown})")


def first_columns(file: Path) -> list[str]:
    """The names of the fields of a file's first rows. Raises NotFoundError and DataError."""
    from luthier.ml.data.files.source import open_source
    from luthier.ml.data.rows.rows import read_rows

    rows = islice(read_rows(open_source(file)), _ROWS_READ)
    return list(dict.fromkeys(name for row in rows if isinstance(row, Row) for name in row.fields))
