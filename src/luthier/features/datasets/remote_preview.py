"""What is at an address before it is imported: files, revision, licence and the first rows.

Of a file of text its beginning is read, of Parquet its beginning and its end, where the directory of its pages is; of
other formats a small file as a whole. The pieces become their own file, which is read as any other.
"""

from __future__ import annotations

import os
import tempfile
import time
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from luthier.core.dataset import Row
from luthier.core.errors import DataError, DataSourceError, LuthierError
from luthier.features.datasets.remote_imports import look_up_allowed
from luthier.features.datasets.rows import page_of
from luthier.platform.files.service import safe_filename, suffix_of
from luthier.platform.home.context import Context

if TYPE_CHECKING:
    from luthier.core.system.download import RemoteFile, RemoteSource

SHOWN_ROWS: Final = 10
MAX_SECONDS: Final = 60.0
_TEXT: Final = (".jsonl", ".ndjson", ".csv", ".tsv", ".tab")
"""Formats whose beginning is its own file."""
_TEXT_BYTES: Final = 1 << 20
_WHOLE_BYTES: Final = 32 << 20
"""Of other formats: a file up to this size, or so much of a Parquet file."""
_TAIL_BYTES: Final = 64 << 10
_MAX_FOOTER_BYTES: Final = 8 << 20
_MARK: Final = b"PAR1"
_MAX_FILES: Final = 20
_DETECTED_ROWS: Final = 100
_MAX_COLUMNS: Final = 200
"""As many as an order can keep (`RemoteOrder.kept_columns`)."""


def preview_answer(context: Context, document: dict[str, Any]) -> dict[str, Any]:
    """The answer to the question `remote`, in its own process.

    Args:
        context: the home.
        document: `address`.
    """
    return look(context, document["address"])


def look(context: Context, address: str) -> dict[str, Any]:
    """What is at an address.

    Returns:
        `revision`, `licence`, `num_bytes` (None where a server does not state it), `num_files` and the first `files`;
        `page` as `rows.page_of` gives it, the first `columns` of `num_columns`, `shape` and `reason`; `problem`, where
        no row can be shown.

    Raises:
        RequestError: The address may not be imported from.
        NotFoundError: No such dataset, split or file.
        DataSourceError: It cannot be reached.
    """
    found = look_up_allowed(context.settings, address)
    files = [{"name": one.name, "num_bytes": one.num_bytes} for one in found.files[:_MAX_FILES]]
    about: dict[str, Any] = {
        "address": address.partition("?")[0],
        "revision": found.revision,
        "licence": found.licence,
        "num_bytes": found.num_bytes,
        "num_files": len(found.files),
        "files": files,
        "page": None,
        "columns": [],
        "num_columns": 0,
        "shape": None,
        "reason": "",
        "problem": None,
    }
    context.settings.scratch_folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="preview-", dir=context.settings.scratch_folder) as folder:
        try:
            return about | _rows_of(found, Path(folder))
        except DataError as error:  # the address is right: its rows can be imported, or not, and the page says why
            return about | {"problem": error.as_json()}


def _rows_of(found: RemoteSource, folder: Path) -> dict[str, Any]:
    file = found.files[0]
    try:
        place = _fetched(file, folder / safe_filename(file.name))
    except LuthierError:
        raise
    except Exception as error:
        explained = found.explain(error, found.named(file))
        if explained is None:
            raise
        raise explained from error
    return _first_rows(place)


def _first_rows(place: Path) -> dict[str, Any]:
    """The first rows, their columns and their shape, and why it is that one."""
    from luthier.ml.data.files.source import open_source
    from luthier.ml.data.rows.rows import read_as, read_rows
    from luthier.ml.data.rows.shapes import ShapeDetector

    source = open_source(place)
    detector = ShapeDetector(source.name, {}, read_as(source))
    rows = list(islice(read_rows(source), _DETECTED_ROWS))
    for row in rows:
        if isinstance(row, Row):
            detector.add(row)
    found: dict[str, Any] = {
        "page": page_of(rows, SHOWN_ROWS),
        "columns": list(islice(detector.columns, _MAX_COLUMNS)),
        "num_columns": len(detector.columns),
        "shape": None,
        "reason": "",
    }
    try:
        shape, reason = detector.decide(group=None)
    except DataError as error:
        return found | {"reason": error.came}
    return found | {"shape": shape, "reason": reason}


def _fetched(file: RemoteFile, place: Path) -> Path:
    """The beginning of a file as a file that can be read, under its name without `.gz`."""
    name, deadline = file.name.lower(), time.monotonic() + MAX_SECONDS
    plain = name.removesuffix(".gz")
    if plain.endswith(_TEXT):
        return _beginning(file, place, deadline, is_gzip=plain != name)
    if file.num_bytes is not None and file.num_bytes <= _WHOLE_BYTES:
        place.write_bytes(b"".join(_blocks(file, 0, file.num_bytes, deadline)))
        return place
    if name.endswith(".parquet") and file.num_bytes is not None:
        _ends(file, file.num_bytes, place, deadline)
        return place
    size = "a size that its server does not state" if file.num_bytes is None else f"{file.num_bytes:,} bytes"
    raise DataError(
        f"{file.name}, {size}: the first rows of {suffix_of(file.name) or 'such a file'} are only known once all of it "
        "was read",
        expected=f"at most {_WHOLE_BYTES >> 20} MiB for a preview of this format",
        do="import it without a preview",
    )


def _beginning(file: RemoteFile, place: Path, deadline: float, *, is_gzip: bool) -> Path:
    """The first lines of a file of text."""
    unpacker = zlib.decompressobj(31) if is_gzip else None
    content = bytearray()
    try:
        for block in _blocks(file, 0, _TEXT_BYTES, deadline):
            content += block if unpacker is None else unpacker.decompress(block, _TEXT_BYTES)
            if len(content) >= _TEXT_BYTES:
                break
    except zlib.error as error:
        raise DataError(
            f"{file.name} is damaged", expected="a file that is packed with gzip", do="check the address"
        ) from error
    is_whole = len(content) < _TEXT_BYTES and (file.num_bytes is None or file.num_bytes <= _TEXT_BYTES)
    # The last line may be cut in the middle.
    end = len(content) if is_whole else content.rfind(b"\n") + 1
    if content and not end:
        raise DataError(
            f"{file.name} has no end of a line within its first {_TEXT_BYTES:,} bytes",
            expected="rows that end with a line break",
            do="import it without a preview",
        )
    made = place.with_name(place.name[:-3]) if is_gzip else place
    made.write_bytes(content[:end])
    return made


def _ends(file: RemoteFile, num_bytes: int, place: Path, deadline: float) -> None:
    """A Parquet file of which only the beginning and the end are there; what is between reads as zeros."""
    tail = b"".join(_blocks(file, num_bytes - _TAIL_BYTES, _TAIL_BYTES, deadline))
    footer = int.from_bytes(tail[-8:-4], "little") + 8
    if tail[-4:] != _MARK or footer > min(num_bytes, _MAX_FOOTER_BYTES):
        raise DataError(
            f"{file.name} does not end as a Parquet file does",
            expected="a complete Parquet file",
            do="check the address",
        )
    if footer > len(tail):
        tail = b"".join(_blocks(file, num_bytes - footer, footer, deadline))
    with place.open("wb") as out:
        for block in _blocks(file, 0, _WHOLE_BYTES, deadline):
            out.write(block)
        out.seek(num_bytes - len(tail), os.SEEK_SET)
        out.write(tail)
    _check_first_group(file, place)


def _check_first_group(file: RemoteFile, place: Path) -> None:
    """Refuse a Parquet file whose first rows are not all in its beginning: what is not there reads as zeros."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        metadata = pq.read_metadata(place)
        group = metadata.row_group(0) if metadata.num_row_groups else None
        columns = [] if group is None else [group.column(number) for number in range(group.num_columns)]
        end = max((_begin(one) + one.total_compressed_size for one in columns), default=0)
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{file.name} is damaged", expected="a complete Parquet file", do="check the address"
        ) from error
    if end > _WHOLE_BYTES:
        raise DataError(
            f"{file.name}: its first group of rows ends at byte {end:,}",
            expected=f"a first group of rows within {_WHOLE_BYTES:,} bytes, for a preview",
            do="import it without a preview",
        )


def _begin(column: Any) -> int:
    offsets = [column.data_page_offset, *([column.dictionary_page_offset] if column.has_dictionary_page else [])]
    return int(min(offsets))


def _blocks(file: RemoteFile, start: int, most: int, deadline: float) -> Iterator[bytes]:
    """At most so many bytes of a file from a byte on."""
    with file.open_at(start) as (begins, chunks):
        if begins != start:
            raise DataError(
                f"the server of {file.name} sends no part of a file",
                expected="a server that answers requests for ranges of bytes",
                do="import it without a preview",
            )
        for chunk in chunks:
            yield chunk[:most]
            most -= len(chunk)
            if most <= 0:
                return
            if time.monotonic() > deadline:
                raise DataSourceError(
                    f"the first rows of {file.name} did not arrive within {MAX_SECONDS:.0f} s",
                    expected="a faster answer",
                    do="try again, or import it without a preview",
                )
