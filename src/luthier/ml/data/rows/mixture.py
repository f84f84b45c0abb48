"""Several sources as one file of rows, so that all that reads a file of training rows reads them, too.

Each source is read with its own columns and checked row by row under its own name. Its fields are written under the
names of the shape; sources of different shapes of conversations are written as chat rows. The same sources give the
same bytes, and a mixture that is there already is not written again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from luthier.core.data_sources import SourceFile
from luthier.core.dataset import Row, Shape
from luthier.core.errors import DataError, RowProblem, library_reason
from luthier.core.ids import sha256_document, sha256_file
from luthier.core.system.files import replace_bytes
from luthier.ml.data.files.bounded_folder import mark_used
from luthier.ml.data.files.sequences import chained
from luthier.ml.data.files.source import open_source
from luthier.ml.data.files.spill import Spill
from luthier.ml.data.rows.chat_rows import chat_row
from luthier.ml.data.rows.columns import as_text
from luthier.ml.data.rows.formats import LoadedFile, load_file
from luthier.ml.data.rows.outputs import write_rows
from luthier.ml.data.rows.prompt_rows import PromptRule
from luthier.ml.data.rows.rows import hash_order, read_rows
from luthier.ml.data.rows.shapes import OPTIONAL, REQUIRED, renamed

_FORMAT: Final = 1
"""Of what is written from the same sources; a change makes other digests."""
_CONVERSATIONS: Final[frozenset[Shape]] = frozenset({"chat", "sharegpt", "prompt_completion", "alpaca"})
_ENTRY: Final = "mixture.json"
_NOT_IN_A_NAME: Final = re.compile(r"[^A-Za-z0-9_.+-]+")
_MAX_NAME: Final = 80


@dataclass(frozen=True, slots=True)
class SourceOfRows:
    """A source to mix.

    Attributes:
        name: what the file of the mixture is named after.
        files: each with the name that messages call it.
        columns: field of the shape -> column of the source.
        fraction: how much of its rows is used; None for all.
        rows: how many of its rows are used; None for all.
    """

    name: str
    files: tuple[tuple[Path, str], ...]
    columns: Mapping[str, str] | None = None
    fraction: float | None = None
    rows: int | None = None


@dataclass(frozen=True, slots=True)
class MixedSource:
    """Where the rows of a source are.

    Attributes:
        first_row: the number of its first row, from 1 on.
        num_rows: how many there are.
        files: what was read.
    """

    first_row: int
    num_rows: int
    files: tuple[SourceFile, ...]


@dataclass(frozen=True, slots=True)
class Mixture:
    """A file that holds the rows of all sources, one source after another.

    Attributes:
        path: the file.
        sha256: its digest.
        shape: of its rows.
        sources: in the order in which they were given.
    """

    path: Path
    sha256: str
    shape: Shape
    sources: tuple[MixedSource, ...]

    @property
    def mapping(self) -> dict[str, str] | None:
        """The columns to read it with: those of its shape, whatever other columns the sources have."""
        return None if self.shape == "preference" else {name: name for name in REQUIRED[self.shape]}


def mix(
    sources: Sequence[SourceOfRows],
    folder: Path,
    *,
    group_by: str | None = None,
    spill: Spill | None = None,
    prompts: PromptRule | None = None,
) -> Mixture:
    """The mixture of these sources in a folder of mixtures.

    Args:
        sources: at least one.
        folder: where mixtures are kept, one folder each.
        group_by: the field that keeps rows together in a split; of every source.
        spill: the budget of memory, and where rows beyond it go; None keeps all of them in memory.
        prompts: how rows that end with a prompt are taken while they are checked; the mixture holds them as they came,
            or with an answer where the shapes of sources differ. None refuses them.

    Raises:
        NotFoundError: there is no such file.
        DataError: rows are wrong, a source has fewer rows than asked for, or shapes that no file can hold together.
        StorageFullError: the disk is full.
    """
    asked = [
        {
            "name": source.name,
            "files": [_digest(path, shown) for path, shown in source.files],
            "columns": dict(source.columns or {}),
            "fraction": source.fraction,
            "rows": source.rows,
        }
        for source in sources
    ]
    # Also whether they need a reference: a mixture of different shapes has got its answers by that rule.
    took = {} if prompts is None else {"prompts": asdict(prompts)}
    key = sha256_document({"format": _FORMAT, "group_by": group_by, "sources": asked, **took})
    name = _NOT_IN_A_NAME.sub("-", "+".join(source.name for source in sources))[:_MAX_NAME]
    path = folder / key[:32] / f"{name}.jsonl"
    if (cached := _cached(path)) is not None:
        return cached
    loaded = [_load(source, group_by, spill, prompts) for source in sources]
    shape = common_shape([source.name for source in sources], [files[0].shape for files in loaded])
    kept_rows = [_selected(source, files) for source, files in zip(sources, loaded, strict=True)]
    mixed, first = [], 1
    for files, mask in zip(loaded, kept_rows, strict=True):
        found = tuple(
            SourceFile(name=Path(one.file).name, sha256=one.sha256, num_bytes=Path(one.file).stat().st_size,
                       num_rows=one.num_rows) for one in files
        )  # fmt: skip
        mixed.append(MixedSource(first, int(mask.sum()), found))
        first += mixed[-1].num_rows
    _write(path, sources, loaded, kept_rows, shape, group_by)
    made = Mixture(path, sha256_file(path), shape, tuple(mixed))
    document = asdict(made) | {
        "path": path.name,
        "sources": [asdict(one) | {"files": [file.model_dump() for file in one.files]} for one in made.sources],
    }
    # Last: a folder without it is one of a process that was stopped here.
    replace_bytes(path.with_name(_ENTRY), json.dumps(document, indent=2).encode())
    return made


def _digest(path: Path, shown: str) -> str:
    open_source(path, shown_name=shown)  # names what is wrong with a missing or empty file, or one of another format
    return sha256_file(path)


def _cached(path: Path) -> Mixture | None:
    """The mixture that is there; None where it is missing, or its file was changed."""
    try:
        document: dict[str, Any] = json.loads(path.with_name(_ENTRY).read_text(encoding="utf-8"))
        if sha256_file(path) != document["sha256"]:
            return None
    except (OSError, ValueError, KeyError):
        return None
    mark_used(path.with_name(_ENTRY))  # not the rows: they stay as they were written
    sources = tuple(
        MixedSource(one["first_row"], one["num_rows"], tuple(SourceFile(**file) for file in one["files"]))
        for one in document["sources"]
    )
    return Mixture(path, document["sha256"], document["shape"], sources)


def _load(
    source: SourceOfRows, group_by: str | None, spill: Spill | None, prompts: PromptRule | None
) -> list[LoadedFile]:
    """The files of a source, all of one shape."""
    columns = dict(source.columns) if source.columns else None
    found: list[LoadedFile] = []
    for path, shown in source.files:
        loaded = load_file(path, mapping=columns, group_by=group_by, spill=spill, shown_name=shown, prompts=prompts)
        if found and loaded.shape != found[0].shape:
            raise DataError(
                f"{shown} holds {loaded.shape} rows from row 1 on, {source.files[0][1]} holds {found[0].shape} rows",
                expected="rows of one shape in all files of a source",
                do="correct that file, or name the files as separate sources",
                problems=[RowProblem(shown, 1, "", "", f"is of shape {loaded.shape}")],
            )
        found.append(loaded)
    return found


def common_shape(names: Sequence[str], shapes: Sequence[Shape]) -> Shape:
    """The shape of several sources together: their own, or chat for different shapes of conversations.

    Args:
        names: of the sources, for messages.
        shapes: of each of them.

    Raises:
        DataError: shapes that cannot be mixed.
    """
    if len(set(shapes)) == 1:
        return shapes[0]
    if set(shapes) <= _CONVERSATIONS:
        return "chat"
    held = ", ".join(f"{name} {shape}" for name, shape in zip(names, shapes, strict=True))
    raise DataError(
        f"sources of shapes that cannot be mixed: {held}",
        expected=f"one shape in all sources, or any of {', '.join(sorted(_CONVERSATIONS))}",
        do="leave a source out, or map its columns to the shape of the others",
    )


def _selected(source: SourceOfRows, files: Sequence[LoadedFile]) -> npt.NDArray[np.bool_]:
    """bool [rows of all files], which of them are used."""
    num_rows = sum(one.num_rows for one in files)
    if source.fraction is None and source.rows is None:
        return np.ones(num_rows, dtype=bool)
    wanted = source.rows if source.rows is not None else max(1, round((source.fraction or 0) * num_rows))
    if wanted > num_rows:
        raise DataError(
            f"source {source.name} has {num_rows:,} rows, and rows: {wanted:,} requests more",
            expected=f"at most {num_rows:,}",
            do="lower rows; to train on rows of this source more often, give each source a weight",
        )
    mask = np.zeros(num_rows, dtype=bool)
    mask[hash_order(chained(*(one.examples for one in files)))[:wanted]] = True
    return mask


def _write(
    path: Path,
    sources: Sequence[SourceOfRows],
    loaded: Sequence[Sequence[LoadedFile]],
    kept_rows: Sequence[npt.NDArray[np.bool_]],
    shape: Shape,
    group_by: str | None,
) -> None:
    at = ""

    def rows() -> Iterator[Mapping[str, Any]]:
        nonlocal at
        for source, files, mask in zip(sources, loaded, kept_rows, strict=True):
            start = 0
            for (file, shown), one in zip(source.files, files, strict=True):
                own, start = mask[start : start + one.num_rows].tolist(), start + one.num_rows
                read = read_rows(open_source(file, shown_name=shown))
                for row, example, is_used in zip(read, one.examples, own, strict=True):
                    assert isinstance(row, Row)
                    if not is_used:
                        continue
                    at = row.id
                    if one.shape == shape:
                        fields = _fields(row, one)
                    else:
                        assert example.conversation is not None
                        fields = _others(row, one) | chat_row(example.conversation)
                    if group_by is not None and group_by not in fields:
                        # It was a field of the shape, or the source writes its name in other capitals.
                        fields[group_by] = example.group
                    yield fields

    try:
        write_rows(rows(), path)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"row {at} cannot be written as JSON: {library_reason(error)}",
            expected="texts, numbers, true, false, lists and objects",
            do="take the value out of the row, or name the columns to use",
        ) from error


def _fields(row: Row, loaded: LoadedFile) -> dict[str, Any]:
    """The fields of a row under the names of its shape."""
    fields = renamed(row.fields, loaded.mapping) if loaded.mapping else dict(row.fields)
    if loaded.shape == "prompt_completion" and "completion" in loaded.mapping and "completion" in fields:
        fields["completion"] = as_text(fields["completion"])  # a class may be a number
    return fields


def _others(row: Row, loaded: LoadedFile) -> dict[str, Any]:
    """The fields of a row that are not part of its conversation, such as what graders read."""
    fields = _fields(row, loaded)
    used = {*REQUIRED[loaded.shape], *OPTIONAL[loaded.shape], *REQUIRED["chat"], *OPTIONAL["chat"]}
    return {name: value for name, value in fields.items() if name not in used}
