"""Datasets as other tools name them: a file, a dataset of the hub, or the first rows or a share of one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from luthier.core.data_sources import DATA_SUFFIXES, HUB, is_hub_source, is_remote
from luthier.core.system.files import expanded

PATH_STARTS: Final = (".", "/", "~")
NOT_ROWS: Final = "a dataset of a hub or a folder, and a recipe names a file: save the rows as JSONL"
ELSEWHERE: Final = "rows of another machine: choose rows of this project"
NOTE_OF_FIRST_ROWS: Final = (
    "where a dataset is used in part, the other tool takes its first rows or draws some; Luthier takes as many, by a "
    "hash of each row"
)
_SLICE: Final = re.compile(r"(?P<split>[\w.-]+)\[:(?P<end>\d+)(?P<percent>%?)\]", re.ASCII)
_WHOLE: Final = re.compile(r"[\w.-]+", re.ASCII)


@dataclass(frozen=True, slots=True)
class RowSource:
    """A dataset, or the part of one, as a source of a recipe.

    Attributes:
        path: A file, or a remote source.
        note: How it was found.
        rows: How many of its rows are used; None for all.
        fraction: How much of its rows is used; None for all.
        columns: Field of the shape -> column; None where the recipe has columns for all sources.
    """

    path: str
    note: str = ""
    rows: int | None = None
    fraction: float | None = None
    columns: dict[str, str] | None = None

    @property
    def is_part(self) -> bool:
        """Whether some of its rows are left out."""
        return self.rows is not None or self.fraction is not None

    def in_recipe(self) -> dict[str, Any]:
        """The source as an item of `data.train`."""
        given = {"path": self.path, "rows": self.rows, "fraction": self.fraction, "columns": self.columns}
        return {name: value for name, value in given.items() if value is not None}


def recipe_value(sources: Sequence[RowSource]) -> str | list[dict[str, Any]]:
    """The rows as a recipe names them: one path, or a list of sources.

    Args:
        sources: At least one.
    """
    alone = sources[0]
    if len(sources) == 1 and not alone.is_part and alone.columns is None:
        return alone.path
    return [one.in_recipe() for one in sources]


@dataclass(frozen=True, slots=True)
class RowFinder:
    """Where files are looked for, and the folder that paths of the recipe count from.

    Attributes:
        folder: The folder of the imported file.
        target: The folder of the recipe.
        reads_files: Whether files of this machine may be named.
    """

    folder: Path
    target: Path
    reads_files: bool

    def source(
        self, name: str, *, config: str = "", split: str = "", revision: str = "", file: str = ""
    ) -> RowSource | str:
        """A dataset as a source, or the reason why it is none.

        Args:
            name: A file, or `org/name` of the hub.
            config: Of a dataset of the hub.
            split: A split, its first rows (`train[:1000]`) or a share of it (`train[:10%]`).
            revision: A branch, tag or commit of a dataset of the hub.
            file: A file of a dataset of the hub.
        """
        if not self.reads_files:
            return ELSEWHERE
        part, share, rows = _SLICE.fullmatch(split), None, None
        if part is not None:
            split, end = part["split"], int(part["end"])
            share, rows = (end / 100, None) if part["percent"] else (None, end)
            if end == 0 or (share is not None and share > 1):
                return f"{part[0]}: a part of the rows is above 0 and at most 100%"
            share = None if share == 1 else share
        elif split and _WHOLE.fullmatch(split) is None:
            return f"{split}: a recipe takes a whole split, its first rows or a share of it ([:1000], [:10%])"
        if is_row_file(name):
            path, note = self.file(name)
            return RowSource(path, note, rows, share)
        source = f"{HUB}{name}" + (f"@{revision}" if revision else "") + (f"/{config}" if config and not file else "")
        if file:
            if not is_row_file(file) or "*" in file:
                return f"{file}: of a dataset of the hub one file of rows is named, such as data/train.jsonl"
            source += f"/{file}"
        elif split and (split != "train" or config):
            source += f"[{split}]"
        is_local = name.startswith(PATH_STARTS) or any(
            (base / expanded(name)).exists() for base in (self.folder, Path.cwd())
        )
        if is_local or not is_hub_source(source):
            return NOT_ROWS
        return RowSource(source, "a remote source", rows, share)

    def file(self, name: str) -> tuple[str, str]:
        """The path of a file as the recipe names it, and a note where it was not found.

        Args:
            name: As the imported file names it: relative to that file or to the current folder, or an address.
        """
        if is_remote(name):
            return name, "a remote source"
        for base in (self.folder, Path.cwd()):
            if (found := (base / expanded(name))).is_file():
                return path_from(self.target, found), ""
        return name, f"no such file in {self.folder} or the current folder"


def is_row_file(name: str) -> bool:
    """Whether a name ends as that of a file of rows."""
    return name.lower().removesuffix(".gz").endswith(DATA_SUFFIXES)


def path_from(target: Path, path: Path) -> str:
    """The path as a recipe in `target` names it: relative where it is inside that folder."""
    whole, base = path.resolve(), target.resolve()
    return whole.relative_to(base).as_posix() if whole.is_relative_to(base) else str(whole)
