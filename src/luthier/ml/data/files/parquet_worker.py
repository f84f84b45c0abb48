"""The process that decodes one Parquet file, with limits on memory and time, for `read_parquet`.

stdin is the file itself. Its rows leave as an Arrow IPC stream of batches of at most 8 MiB, except for a single row.

A few bytes of Parquet decode to gigabytes in many ways (pages that are packed, dictionaries, repeated prefixes, lists
by run lengths), and the sizes in its headers may be wrong. So the sizes are counted as they are decoded, and one page
that decodes to more than the memory limit ends this process alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from luthier.core.child_process.channel import Channel
from luthier.core.child_process.handover import open_output
from luthier.core.errors import DataError
from luthier.core.system.facilities import set_alarm
from luthier.ml.data.files.untrusted_input import bomb

if TYPE_CHECKING:
    from pyarrow import RecordBatch

BATCH_ROWS: Final = 1_024
_STDIN: Final = "/dev/fd/0"
MAX_ROW_BYTES: Final = 64 << 20
"""As a line of JSONL may have."""
_BATCH_BYTES: Final = 8 << 20
_BUFFER_BYTES: Final = 1 << 20
_ROW_BYTES: Final = 64
"""What a row counts at least: one of nulls takes a bit here, and far more where it becomes an object."""


class _LargeRowError(Exception):
    """A row goes beyond `MAX_ROW_BYTES`."""


def decode(document: dict[str, Any], _channel: Channel) -> dict[str, int] | None:
    """Decode stdin in a child process.

    Args:
        document: `name` and `num_bytes` of the file; `output`, of the `ChildOutput` that the Arrow IPC stream goes to;
            `max_bytes` in all and `batch_seconds` a batch; `num_skipped`, rows before the first one that is wanted;
            `hides_words`, whether what a library says of the file may not be shown, since it may quote it.

    Returns:
        `num_rows`: rows of the file; None where the reader did not read to the end.

    Raises:
        DataError: the file is damaged, or a decompression bomb.
        MemoryError: a page does not fit into the memory limit.
    """
    name = document["name"]
    try:
        with open_output(document["output"]) as out:
            return {"num_rows": _decode(out, document)}
    except (MemoryError, DataError):
        raise
    except _LargeRowError:
        raise DataError(
            f"{name} has a row of more than {MAX_ROW_BYTES:,} bytes",
            expected="rows of a usual size",
            do="take that row out, or cut it into several",
        ) from None
    except (BrokenPipeError, ConnectionResetError):  # the reader has seen enough
        return None
    except Exception as error:  # any error of the decoder is a fault of the file
        words = type(error).__name__ if document["hides_words"] else f"{error}"[:500]
        raise DataError(
            f"{name} is damaged: {words}", expected="a complete Parquet file", do="copy or write the file again"
        ) from error


def _decode(out: Any, limits: dict[str, Any]) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    # One thread: each of Arrow's has a stack and an arena of addresses, which the memory limit counts.
    pa.set_cpu_count(1)
    # buffer_size: else the whole of each column of a row group is read in one piece.
    file = pq.ParquetFile(_stdin(), buffer_size=_BUFFER_BYTES, pre_buffer=False)
    schema = pa.schema([pa.field(field.name, _spelled_out(field.type)) for field in file.schema_arrow])
    is_same = schema.types == file.schema_arrow.types
    with pa.ipc.new_stream(out, schema) as stream:
        num_bytes = 0
        groups, num_skipped = _groups_from(file, limits["num_skipped"])
        found_batches = file.iter_batches(batch_size=BATCH_ROWS, row_groups=groups, use_threads=False)
        for whole in _timed(found_batches, limits["batch_seconds"]):
            found = whole.slice(min(num_skipped, whole.num_rows))
            num_skipped -= whole.num_rows - found.num_rows
            batch = found if is_same else _cast(found, schema)
            # Counted after the cast: a dictionary or a run of a few bytes may represent gigabytes.
            num_bytes += max(batch.nbytes, _ROW_BYTES * batch.num_rows)
            if num_bytes > limits["max_bytes"]:
                raise bomb(limits["name"], limits["num_bytes"], limits["max_bytes"])
            for piece in _pieces(batch):
                stream.write_batch(piece)
    return int(file.metadata.num_rows)


def _groups_from(file: Any, num_skipped: int) -> tuple[list[int], int]:
    """The row groups that hold rows after the first `num_skipped`, and how many of these are in them."""
    groups = list(range(file.num_row_groups))
    while groups and (size := file.metadata.row_group(groups[0]).num_rows) <= num_skipped:
        num_skipped -= size
        groups.pop(0)
    return groups, num_skipped


def _stdin() -> Any:
    """The file, opened by Arrow itself where stdin has a name."""
    import pyarrow as pa

    if Path(_STDIN).exists():
        return pa.OSFile(_STDIN, "rb")
    return pa.PythonFile(open(0, "rb", buffering=0, closefd=False), mode="r")


def _spelled_out(kind: Any) -> Any:
    """The type with every value in its own place: in a dictionary, a view or a run one value represents many."""
    import pyarrow as pa

    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return _spelled_out(kind.value_type)
    if pa.types.is_string_view(kind):
        return pa.large_string()
    if pa.types.is_binary_view(kind):
        return pa.large_binary()
    if isinstance(kind, pa.BaseExtensionType):
        return _spelled_out(kind.storage_type)
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(field.name, _spelled_out(field.type)) for field in kind.fields])
    if pa.types.is_map(kind):
        return pa.map_(_spelled_out(kind.key_type), _spelled_out(kind.item_type))
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(_spelled_out(kind.value_type), kind.list_size)
    if pa.types.is_list(kind):
        return pa.list_(_spelled_out(kind.value_type))
    if pa.types.is_large_list(kind) or pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind):
        return pa.large_list(_spelled_out(kind.value_type))
    return kind


def _cast(batch: RecordBatch, schema: Any) -> RecordBatch:
    import pyarrow as pa

    columns = []
    for column, field in zip(batch.columns, schema, strict=True):
        if column.type == field.type:
            columns.append(column)
            continue
        try:
            columns.append(column.cast(field.type))
        except pa.ArrowNotImplementedError:  # Arrow casts no such nested type
            columns.append(pa.array(column.to_pylist(), type=field.type))
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _timed(batches: Iterator[RecordBatch], seconds: int) -> Iterator[RecordBatch]:
    """Each batch; this process ends where one takes longer, also inside C++ that never returns to Python."""
    while True:
        set_alarm(seconds)
        batch = next(batches, None)
        set_alarm(0)
        if batch is None:
            return
        yield batch


def _pieces(batch: RecordBatch) -> Iterator[RecordBatch]:
    """The batch in parts of a size that a reader can hold."""
    # As many rows as fill a piece if all are of average size.
    num = max(1, batch.num_rows * _BATCH_BYTES // max(batch.nbytes, 1))
    for start in range(0, batch.num_rows, num):
        piece = batch.slice(start, num)
        if piece.nbytes > MAX_ROW_BYTES and piece.num_rows > 1:  # rows of very different sizes
            yield from (_checked(piece.slice(row, 1)) for row in range(piece.num_rows))
        else:
            yield _checked(piece)


def _checked(piece: RecordBatch) -> RecordBatch:
    if piece.num_rows == 1 and piece.nbytes > MAX_ROW_BYTES:
        raise _LargeRowError
    return piece
