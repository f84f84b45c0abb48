"""Rows out of Parquet, decoded by a child process (`parquet_worker`) that a hostile file cannot grow without bound."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, Final, NoReturn

from luthier.core.dataset import Row
from luthier.core.errors import DataError, RowProblem
from luthier.core.library_errors import are_library_words_hidden
from luthier.ml.data.files.bounded_gzip import bomb, max_unpacked_bytes
from luthier.ml.data.files.parquet_worker import MAX_ROW_BYTES, WRONG_FILE
from luthier.ml.data.files.source import Source

MEMORY_BYTES: Final = 2 << 30
BATCH_SECONDS: Final = 120
_WORKER: Final = "luthier.ml.data.files.parquet_worker"
# The allocators that Arrow brings reserve more addresses than they use, which the limit would count.
_ENVIRONMENT: Final = {"ARROW_DEFAULT_MEMORY_POOL": "system", "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}


def read_parquet(source: Source) -> Iterator[Row | RowProblem]:
    """One Row for each record, in batches.

    Arrow fills fields that a nested object lacks with null, so a null inside a nested value is read as absent.

    Raises DataError for a damaged file, a column that is there twice, and a decompression bomb: a row over 64 MiB, more
    than 200 decoded bytes a byte of the file (from 10 MiB on), a page that does not fit into 2 GiB, a batch that takes
    longer than two minutes.
    """
    import pyarrow as pa  # here, since who reads text alone needs none of its memory

    with _parquet_file(source) as file, _decoding(source, file) as process:
        try:
            with pa.ipc.open_stream(process.stdout) as stream:
                _check_names(source, stream.schema.names)
                number = 0
                for batch in stream:
                    for fields in batch.to_pylist():
                        number += 1
                        yield Row(source.name, number, {key: _without_nulls(value) for key, value in fields.items()})
        except (pa.ArrowException, OSError, EOFError):  # it has ended in mid-stream, and says why
            _wait_for_end(process)


@contextmanager
def _decoding(source: Source, file: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """The process that decodes an open file. Raises DataError where it did not come to the end."""
    num_bytes = os.fstat(file.fileno()).st_size
    limits = {
        "memory_bytes": MEMORY_BYTES,
        "batch_seconds": BATCH_SECONDS,
        "max_bytes": max_unpacked_bytes(num_bytes),
    }
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            [sys.executable, "-m", _WORKER, json.dumps(limits)],
            stdin=file,
            stdout=subprocess.PIPE,
            stderr=said,
            env={**os.environ, **_ENVIRONMENT},
        )
        try:
            yield process
            assert process.stdout is not None
            process.stdout.close()
            if code := process.wait():
                said.seek(0)
                _refuse(source, num_bytes, code, said.read())
        finally:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


def _wait_for_end(process: subprocess.Popen[bytes]) -> None:
    """It ends by itself, now that its stream is broken; if not, it is ended."""
    try:
        process.wait(timeout=BATCH_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()


def _refuse(source: Source, num_bytes: int, code: int, said: bytes) -> NoReturn:
    lines = said.decode("utf-8", "replace").strip().splitlines()
    found: dict[str, Any] = json.loads(lines[-1]) if code == WRONG_FILE and lines else {}
    reason = found.get("reason")
    if reason == "damaged":
        # its words may quote the file: for callers over the network the kind alone
        words = found["kind"] if are_library_words_hidden() else found["words"]
        raise DataError(
            f"{source.name} is damaged: {words}",
            expected="a whole Parquet file",
            do="copy or write the file again",
        )
    if reason == "bomb":
        raise bomb(source.name, num_bytes, max_unpacked_bytes(num_bytes))
    if reason == "row":
        raise DataError(
            f"{source.name} has a row of more than {MAX_ROW_BYTES:,} bytes",
            expected="rows of a usual size",
            do="take that row out, or cut it into several",
        )
    if reason == "memory":
        how = f"takes more than {MEMORY_BYTES / 2**30:g} GiB of memory to decode"
    elif code == -signal.SIGALRM:
        how = f"has {BATCH_SECONDS:,} s of work in one batch of rows"
    else:
        last = f": {lines[-1][:200]}" if lines else ""
        how = f"ends its decoder ({signal.Signals(-code).name if code < 0 else f'exit code {code}'}){last}"
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
    with tempfile.TemporaryFile() as unpacked:  # its end is read first, so it must lie somewhere
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
