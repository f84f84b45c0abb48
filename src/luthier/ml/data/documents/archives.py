"""ZIP files of documents: checked by their directory before anything is unpacked, then unpacked within limits.

A ZIP comes from anywhere: it may unpack to petabytes, name files outside of its folder, or hold another ZIP in each
entry. What makes the whole archive unsafe is refused with nothing unpacked; an entry that cannot be taken is left out
with its reason, and the rest is unpacked. Bytes are counted as they come, and the sizes that a directory declares are
the most that is read of each entry.
"""

from __future__ import annotations

import io
import lzma
import re
import stat
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Final

from luthier.core.errors import DataError, library_reason
from luthier.core.system.files import disk_full_explained
from luthier.ml.data.documents.ingest import SkippedFile

ARCHIVE_SUFFIX: Final = ".zip"
_BLOCK_BYTES: Final = 1 << 20
_DRIVE: Final = re.compile(r"^[A-Za-z]:")
_MAX_DIRECTORY_BYTES: Final = 16 << 20
"""A directory is read in one piece, and an entry of 47 bytes in it takes ten times that in memory."""
_MAX_NAME_BYTES: Final = 200
_MAX_PATH_CHARACTERS: Final = 600
_NOT_PRINTABLE: Final = re.compile(r"[\x00-\x1f\x7f]")
_SAYS_UTF8: Final = 0x800
"""The flag of an entry whose name is UTF-8; names of others are in the code page of DOS (APPNOTE 4.4.4)."""


@dataclass(frozen=True, slots=True)
class ArchiveLimits:
    """What one upload of archives may unpack to.

    Attributes:
        max_members: Files of all archives together.
        max_bytes: Bytes of all of them together.
        max_ratio: Unpacked to packed bytes of one entry.
        ratio_from_bytes: Entries up to this size may have any ratio.
        max_depth: Archives within archives; 1 unpacks none of those.
    """

    max_members: int = 20_000
    max_bytes: int = 8 << 30
    max_ratio: int = 200
    ratio_from_bytes: int = 10 << 20
    max_depth: int = 2


@dataclass(slots=True)
class Unpacking:
    """What the archives of one upload have come to.

    Attributes:
        limits: What they may come to.
        num_members: Files that were unpacked.
        num_entries: Entries that were read, those that were left out included.
        num_bytes: Bytes of the files.
        skipped: Entries that were left out.
    """

    limits: ArchiveLimits = ArchiveLimits()
    num_members: int = 0
    num_entries: int = 0
    num_bytes: int = 0
    skipped: list[SkippedFile] = field(default_factory=list)


def check_archive_size(path: Path, name: str, limits: ArchiveLimits | None = None) -> None:
    """Refuse an archive that is too large by what its directory declares; nothing is unpacked.

    Raises:
        DataError: no ZIP or a broken one, too many entries, too many bytes, or a decompression bomb.
    """
    with _opened(path, name) as archive:
        _check_directory(archive.infolist(), name, Unpacking(limits or ArchiveLimits()))


def unpack(path: Path, folder: Path, name: str, so_far: Unpacking, *, depth: int = 1) -> None:
    """Unpack an archive into its own folder, archives within it included.

    Args:
        path: The archive.
        folder: Where its files go; made where it is missing.
        name: What messages call the archive: the name that it came under.
        so_far: What other archives of the same upload have come to; this one is added to it.
        depth: How many archives this one lies in, itself included.

    Raises:
        DataError: the archive is broken or unsafe, or all together go beyond a limit. What was unpacked of it stays.
        StorageFullError: the disk is full.
    """
    inner: list[tuple[Path, str]] = []
    with _opened(path, name) as archive, disk_full_explained(folder, expected="room for the unpacked files"):
        entries = archive.infolist()
        _check_directory(entries, name, so_far)
        # Each may become a line of what was left out.
        so_far.num_entries += len(entries)
        folder.mkdir(parents=True, exist_ok=True)
        for entry in entries:
            if entry.is_dir():
                continue
            shown = f"{name}/{_shown(_name_of(entry))}"
            target = _target(entry, folder, shown, so_far)
            if target is None:
                continue
            is_written = _write(archive, entry, target, name, so_far)
            if is_written and target.suffix.lower() == ARCHIVE_SUFFIX:
                inner.append((target, shown))
    for found, shown in inner:
        _unpack_inner(found, shown, so_far, depth)


def _unpack_inner(found: Path, shown: str, so_far: Unpacking, depth: int) -> None:
    if depth >= so_far.limits.max_depth:
        reason = f"a ZIP within {depth} others: unpack it first, then add its files"
        so_far.skipped.append(SkippedFile(shown, "nested archive", reason))
        found.unlink()
        return
    # The archive makes room for a folder of its name.
    packed = found.rename(found.with_name(f".{found.name}"))
    try:
        unpack(packed, found, shown, so_far, depth=depth + 1)
    except DataError as error:
        so_far.skipped.append(SkippedFile(shown, "archive", f"{error.came}; {error.do}"))
    finally:
        packed.unlink()


class _BoundedFile(io.BufferedReader):
    """A file of which no large piece is read at once: zipfile takes the whole directory, however large it is."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _MAX_DIRECTORY_BYTES:
            raise zipfile.BadZipFile(f"its directory has {size:,} bytes, and at most {_MAX_DIRECTORY_BYTES:,} are read")
        return super().read(size)


@contextmanager
def _opened(path: Path, name: str) -> Iterator[zipfile.ZipFile]:
    try:
        file = _BoundedFile(io.FileIO(path))
    except OSError as error:
        raise _broken(name, error) from error
    with file:
        try:
            archive = zipfile.ZipFile(file)
        except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError) as error:
            raise _broken(name, error) from error
        with archive:
            yield archive


def _broken(name: str, error: BaseException) -> DataError:
    return DataError(
        f"{name} is not a ZIP file, or is damaged: {library_reason(error)}",
        expected="a complete ZIP file",
        do="create or download it again",
    )


def _check_directory(entries: Sequence[zipfile.ZipInfo], name: str, so_far: Unpacking) -> None:
    limits = so_far.limits
    if so_far.num_entries + len(entries) > limits.max_members:
        raise DataError(
            f"{name} holds {len(entries):,} files",
            expected=f"at most {limits.max_members:,} in one upload",
            do="split it into several ZIP files, and add them one after another",
        )
    total = sum(entry.file_size for entry in entries)
    if so_far.num_bytes + total > limits.max_bytes:
        raise DataError(
            f"{name} unpacks to {total:,} bytes",
            expected=f"at most {limits.max_bytes:,} bytes in one upload",
            do="split it into several ZIP files; if you do not know it, do not open it",
        )
    for entry in entries:
        if entry.file_size > limits.ratio_from_bytes and entry.file_size > limits.max_ratio * entry.compress_size:
            raise DataError(
                f"{name} looks like a decompression bomb: {_shown(_name_of(entry))!r} is {entry.file_size:,} bytes "
                f"packed in {entry.compress_size:,}",
                expected=f"files that are packed at most {limits.max_ratio} to 1",
                do="do not open it unless you created it; in that case pack only the files that are needed",
            )


def _target(entry: zipfile.ZipInfo, folder: Path, shown: str, so_far: Unpacking) -> Path | None:
    """Where an entry is written; None where it is left out."""

    def leave_out(kind: str, reason: str) -> None:
        so_far.skipped.append(SkippedFile(shown, kind, reason))

    name = _name_of(entry)
    parts = re.split(r"[/\\]", name)
    if ".." in parts or not parts[0] or _DRIVE.match(parts[0]) or "\0" in name:
        leave_out("unsafe name", "its name leads out of the folder of the archive")
        return None
    kept = [_NOT_PRINTABLE.sub("_", part) for part in parts if part not in ("", ".")]
    if any(part.startswith((".", "~$")) or part == "__MACOSX" for part in kept):
        leave_out("hidden", "a hidden file")
        return None
    # The upper 16 bits are the mode of Unix: a link could point anywhere.
    if (mode := entry.external_attr >> 16) and not stat.S_ISREG(mode) and stat.S_IFMT(mode):
        leave_out("link", "a link or a device, and no file")
        return None
    if entry.flag_bits & 1:
        leave_out("password", "protected by a password: unpack it and add the file itself")
        return None
    if len(shown) > _MAX_PATH_CHARACTERS or any(len(part.encode()) > _MAX_NAME_BYTES for part in kept):
        leave_out("long name", f"a path of {len(shown):,} characters: shorten it")
        return None
    return _free(folder.joinpath(*kept))


def _free(target: Path) -> Path:
    """The path, with a number where an entry of that name was written before or a folder has it."""
    number, free = 1, target
    while free.exists():
        number += 1
        free = target.with_name(f"{target.stem} ({number}){target.suffix}")
    return free


def _write(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, target: Path, name: str, so_far: Unpacking) -> bool:
    """Write the bytes of an entry; false where it was left out."""
    limits = so_far.limits
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with archive.open(entry) as source, target.open("xb") as file:
            while block := source.read(_BLOCK_BYTES):
                so_far.num_bytes += len(block)
                if so_far.num_bytes > limits.max_bytes:
                    raise DataError(
                        f"{name} unpacks to more than {limits.max_bytes:,} bytes",
                        expected="at most that in one upload",
                        do="split it into several ZIP files; if you do not know it, do not open it",
                    )
                file.write(block)
    except (FileExistsError, NotADirectoryError):
        # A file and a folder of one name, such as `a` and `a/b`.
        reason = "another entry of the archive has the name of its folder"
        so_far.skipped.append(SkippedFile(f"{name}/{_shown(_name_of(entry))}", "same name", reason))
        return False
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError, OSError) as error:
        # The system gives its errors a number; bz2 raises one without for damaged data.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        target.unlink(missing_ok=True)
        reason = f"damaged in the archive: {library_reason(error)}"
        so_far.skipped.append(SkippedFile(f"{name}/{_shown(_name_of(entry))}", "damaged", reason))
        return False
    so_far.num_members += 1
    return True


def _shown(name: str) -> str:
    """The name of an entry as text for people: printable, of bounded length."""
    text = _NOT_PRINTABLE.sub("_", str(PurePosixPath(name.replace("\\", "/"))))
    return text if len(text) <= _MAX_PATH_CHARACTERS else f"{text[:_MAX_PATH_CHARACTERS]}…"


def _name_of(entry: zipfile.ZipInfo) -> str:
    """The name of an entry as written in the archive. macOS writes UTF-8 and sets no flag, so that umlauts would break.

    zipfile cuts `filename` at a NUL, which would hide what follows.
    """
    name = entry.orig_filename
    if entry.flag_bits & _SAYS_UTF8 or name.isascii():
        return name
    try:
        return unicodedata.normalize("NFC", name.encode("cp437").decode("utf-8"))
    except UnicodeError:
        return name
