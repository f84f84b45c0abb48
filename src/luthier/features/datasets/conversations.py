"""Use case: exports of conversations (mail archives, tickets, chats) written as rows of the chat shape.

A folder or a ZIP file may hold several of them, as those of Google Takeout and of Slack do.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.core.errors import DataError, NotFoundError, RowProblem, library_words_hidden
from luthier.core.system.files import disk_full_explained, replacing, scratch_folder
from luthier.ml.data.conversations.exports import Converted, ExportKind, convert, export_kind
from luthier.ml.data.conversations.slack import export_files
from luthier.ml.data.documents.archives import ARCHIVE_SUFFIX, Unpacking, unpack
from luthier.ml.data.documents.ingest import SkippedFile
from luthier.ml.data.rows.outputs import check_free, check_outputs
from luthier.platform.home.context import Context


@dataclass(frozen=True, slots=True)
class FoundExport:
    """An export of conversations.

    Attributes:
        path: The file; of Slack the folder.
        kind: What it is an export of.
        name: Its path within the folder that was searched.
        files: Its files.
    """

    path: Path
    kind: ExportKind
    name: str
    files: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class Conversations:
    """What was made of exports.

    Attributes:
        output: The file of rows.
        converted: The exports that are in it.
        failed: Exports of which nothing is in it, and why.
        skipped: Entries of ZIP files that were left out.
        num_other_files: Files that are no export of conversations.
    """

    output: Path
    converted: tuple[Converted, ...]
    failed: tuple[RowProblem, ...]
    skipped: tuple[SkippedFile, ...]
    num_other_files: int

    @property
    def num_rows(self) -> int:
        """The rows of all exports."""
        return sum(one.tally.num_rows for one in self.converted)

    def as_json(self) -> dict[str, Any]:
        """The document of `luthier data conversations --json`."""
        return {
            "output": str(self.output),
            "num_rows": self.num_rows,
            "exports": [one.as_json() for one in self.converted],
            "failed": [{"name": one.file, "reason": one.reason} for one in self.failed],
            "skipped": [{"name": one.name, "reason": one.reason} for one in self.skipped],
            "num_other_files": self.num_other_files,
        }


def find_exports(folder: Path) -> list[FoundExport]:
    """The exports of conversations in a folder, at any depth, by name. Hidden files are none."""
    found: list[FoundExport] = []
    for place in sorted(one for one in (folder, *folder.rglob("*")) if one.is_dir()):
        if export_kind(place) == "slack":
            found.append(FoundExport(place, "slack", _name(place, folder), tuple(export_files(place))))
    taken = {file for one in found for file in one.files}
    for file in sorted(folder.rglob("*")):
        if file.is_file() and file not in taken and not file.name.startswith(".") and (kind := export_kind(file)):
            found.append(FoundExport(file, kind, _name(file, folder), (file,)))
    return sorted(found, key=lambda one: one.name)


def convert_exports(
    context: Context, places: Sequence[Path], output: Path, *, assistants: Sequence[str] = (), force: bool = False
) -> Conversations:
    """Write the conversations of exports into one file of rows.

    Args:
        context: The home.
        places: Files, folders and ZIP files.
        output: The JSONL file.
        assistants: Who answers: addresses, `@domain`, names or ids; none goes by each export.
        force: Replace the output where it exists.

    Raises:
        NotFoundError: A place that is not there.
        ConflictError: The output exists already.
        DataError: None of them has a conversation that can be a row.
        StorageFullError: The disk is full.
    """
    for place in places:
        if not place.exists():
            raise NotFoundError(
                f"no file or folder {place}", expected="an export of conversations", do="check the path"
            )
    check_outputs([output], [place for place in places if place.is_file()])
    check_free([output], force=force)
    converted: list[Converted] = []
    failed: list[RowProblem] = []
    unpacking, num_files, num_taken = Unpacking(), 0, 0
    context.settings.scratch_folder.mkdir(parents=True, exist_ok=True)
    with library_words_hidden(), scratch_folder(context.settings.scratch_folder, "conversations-") as scratch:
        joined = scratch / "rows.jsonl"
        joined.touch()
        for number, place in enumerate(places):
            for one in _exports_at(place, scratch / str(number), unpacking):
                num_taken += len(one.files)
                part = scratch / "part.jsonl"
                try:
                    converted.append(convert(one.path, one.kind, one.name, part, assistants))
                except DataError as error:
                    failed.append(RowProblem(one.name, 0, "", "", f"{error.came}; {error.do}"))
                    continue
                with disk_full_explained(joined), part.open("rb") as source, joined.open("ab") as target:
                    shutil.copyfileobj(source, target)
            num_files += _num_files(place, scratch / str(number))
        if not converted:
            raise DataError(
                failed[0].reason if len(failed) == 1 else f"no export with conversations among {num_files:,} files",
                expected="a mail archive (.mbox), or an export of Zendesk, Intercom (JSON) or Slack (ZIP or folder)",
                do="check the files, and name who answers",
                problems=failed,
            )
        with disk_full_explained(output):
            output.parent.mkdir(parents=True, exist_ok=True)
        with joined.open("rb") as source, replacing(output) as target:
            shutil.copyfileobj(source, target)
    return Conversations(output, tuple(converted), tuple(failed), tuple(unpacking.skipped), num_files - num_taken)


def _exports_at(place: Path, work: Path, unpacking: Unpacking) -> Iterator[FoundExport]:
    if place.suffix.lower() == ARCHIVE_SUFFIX and place.is_file():
        unpack(place, work, place.name, unpacking)
        yield from (_named_below(one, place.name) for one in find_exports(work))
    elif place.is_dir():
        yield from (_named_below(one, place.resolve().name) for one in find_exports(place))
    elif kind := export_kind(place):
        yield FoundExport(place, kind, place.name, (place,))


def _named_below(one: FoundExport, above: str) -> FoundExport:
    name = above if one.name == "." else f"{above}/{one.name}"
    return FoundExport(one.path, one.kind, name, one.files)


def _num_files(place: Path, work: Path) -> int:
    folder = work if work.is_dir() else place
    return sum(one.is_file() for one in folder.rglob("*")) if folder.is_dir() else 1


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()
