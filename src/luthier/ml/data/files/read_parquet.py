"""Rows out of Parquet, decoded by a child process (`parquet_worker`) that a hostile file cannot grow without bound."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, Final

from luthier.core.child_process.handover import ChildOutput
from luthier.core.child_process.process import ChildEndedError, ChildProcess, signal_name
from luthier.core.dataset import Row
from luthier.core.errors import DataError, RowProblem, are_library_words_hidden
from luthier.core.system.facilities import ended_by_alarm
from luthier.ml.data.files.source import Source
from luthier.ml.data.files.untrusted_input import max_unpacked_bytes

MEMORY_BYTES: Final = 2 << 30
BATCH_SECONDS: Final = 120
_ALL_ROWS: Final = 1 << 62
_BUFFER_BYTES: Final = 1 << 20
_DECODE: Final = "luthier.ml.data.files.parquet_worker:decode"
# The allocators that Arrow brings reserve more addresses than they use, which the limit would count.
_ENVIRONMENT: Final = {"ARROW_DEFAULT_MEMORY_POOL": "system", "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}


def read_parquet(source: Source, num_skipped: int = 0) -> Iterator[Row | RowProblem]:
    """One Row for each record, in batches.

    Arrow fills fields that a nested object lacks with null, so a null inside a nested value is read as absent.

    Args:
        source: the file.
        num_skipped: records before the first one that is wanted; row groups that hold none but these are not decoded.

    Raises:
        DataError: a damaged file, a column that is there twice, and a decompression bomb: a row over 64 MiB, more than
            200 decoded bytes a byte of the file (from 10 MiB on), a page that does not fit into 2 GiB, a batch that
            takes longer than two minutes.
    """
    import pyarrow as pa  # here, since who reads text alone needs none of its memory

    with _parquet_file(source) as file, _decoder(source, file, num_skipped) as (child, data):
        try:
            with pa.ipc.open_stream(data) as stream:
                _check_names(source, stream.schema.names)
                number = num_skipped
                for batch in stream:
                    for fields in batch.to_pylist():
                        number += 1
                        # The column itself may be null; only fields inside of nested values are dropped.
                        yield Row(source.name, number, {key: _without_nulls(value) for key, value in fields.items()})
        except (pa.ArrowException, OSError, EOFError):  # it has ended in mid-stream, and says why
            pass
        # Closed before the wait: a child that still writes gets a broken pipe and ends.
        data.close()
        _check_end(source, child)


def num_rows_of_parquet(source: Source) -> int:
    """How many records a Parquet file has, by its own count at its end; none is decoded.

    Raises:
        DataError: the file is damaged.
    """
    with _parquet_file(source) as file, _decoder(source, file, _ALL_ROWS) as (child, data):
        while data.read(_BUFFER_BYTES):
            pass
        data.close()
        return int(_check_end(source, child)["num_rows"])


@contextmanager
def _decoder(source: Source, file: IO[bytes], num_skipped: int) -> Iterator[tuple[ChildProcess, IO[bytes]]]:
    """The process that decodes an open file, and its stream. Batches have a separate pipe, since they are bytes."""
    num_bytes = os.fstat(file.fileno()).st_size
    output = ChildOutput()
    try:
        child = ChildProcess(
            _DECODE,
            {
                "name": source.name,
                "num_bytes": num_bytes,
                "max_bytes": max_unpacked_bytes(num_bytes),
                "batch_seconds": BATCH_SECONDS,
                "num_skipped": num_skipped,
                "hides_words": are_library_words_hidden(),
                "output": output.document,
            },
            environment=_ENVIRONMENT,
            memory_bytes=MEMORY_BYTES,
            stdin=file,
            pass_fds=output.pass_fds,
        )
    except BaseException:
        output.close()
        raise
    with output.opened(lambda: child.returncode is None) as data, child:
        yield child, data


def _check_end(source: Source, child: ChildProcess) -> Any:
    """What the process returns. Raise DataError where it did not reach the end of the file."""
    try:
        # It ends by itself, now that its stream is closed; if not, it is ended.
        return child.result(timeout_seconds=BATCH_SECONDS)
    except MemoryError:
        how = f"takes more than {MEMORY_BYTES / 2**30:g} GiB of memory to decode"
    except ChildEndedError as error:
        if ended_by_alarm(error.returncode, error.log_lines):
            how = f"has {BATCH_SECONDS:,} s of work in one batch of rows"
        else:
            last = "".join(f": {line[:200]}" for line in error.log_lines[-1:])
            code = error.returncode
            how = f"ends its decoder ({signal_name(-code) if code < 0 else f'exit code {code}'}){last}"
    raise DataError(
        f"{source.name} {how}",
        expected="a Parquet file of usual pages, as pyarrow, pandas or DuckDB write them",
        do="check where it came from; if its rows are right, write it again with smaller row groups, or as JSONL",
    )


@contextmanager
def _parquet_file(source: Source) -> Iterator[IO[bytes]]:
    if not source.is_gzip:
        with source.path.open("rb") as file:
            yield file
        return
    with tempfile.TemporaryFile() as unpacked:  # its end is read first, so it must be in a file
        with source.open() as packed:
            shutil.copyfileobj(packed, unpacked, 1 << 20)
        unpacked.seek(0)
        yield unpacked


def _check_names(source: Source, names: list[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(
            f"{source.name} has the column {twice[0]!r} twice",
            expected="a different name for each column",
            do="rename or remove columns",
        )


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [_without_nulls(inner) for inner in value]
    return value
