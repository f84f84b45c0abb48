"""Rows in gzip that unpack to a gigabyte are refused in little memory; what is packed well is read."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from tests.ml.data.bombs import gzip_bomb, read_with_little_memory

from luthier.core.errors import DataError
from luthier.ml.data.files.untrusted_input import max_unpacked_bytes, open_gzip
from luthier.ml.data.rows.formats import load_file


@pytest.mark.parametrize(
    ("name", "begin", "filling", "end"),
    [
        ("bomb.jsonl.gz", b'{"text": "', b"a", b'"}\n'),
        ("bomb.json.gz", b'[{"text": "', b"a", b'"}]'),
        ("bomb.csv.gz", b'text\n"', b"a" * 1023 + b"\n", b'"\n'),
        ("bomb.parquet.gz", b"PAR1", b"\0", b"PAR1"),
    ],
)
def test_a_gigabyte_is_refused_in_little_memory(
    name: str, begin: bytes, filling: bytes, end: bytes, tmp_path: Path
) -> None:
    path = gzip_bomb(tmp_path / name, begin, filling, end)
    size = path.stat().st_size
    assert size < 8 << 20
    came, expected, do, peak = read_with_little_memory(path)
    assert name in came
    assert "bomb" in came or "more than the" in came
    assert expected
    assert do
    assert peak < 1 << 30


def test_the_bound_is_that_of_what_came(tmp_path: Path) -> None:
    assert max_unpacked_bytes(100) == 10 << 20
    assert max_unpacked_bytes(1 << 20) == 200 << 20
    assert max_unpacked_bytes(1 << 30) == 20 << 30
    path = gzip_bomb(tmp_path / "x.gz", b"", b"a", b"", num_bytes=32 << 20)
    limit, num_bytes = max_unpacked_bytes(path.stat().st_size), 0
    with open_gzip(path) as file:
        while num_bytes < limit - (1 << 20):
            num_bytes += len(file.read(1 << 20))
        with pytest.raises(DataError, match="decompression bomb"):
            file.read(4 << 20)


def test_repeated_rows_of_a_usual_size_are_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"prompt": "the same", "completion": "row"}\n' * 40_000))
    assert path.stat().st_size * 200 < 40_000 * 44, "packed by more than is allowed of large files"
    assert load_file(path).num_rows == 40_000


def test_a_record_of_many_lines_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    with path.open("wb") as file:
        file.write(b'text\n"a quote that is never closed\n')
        for _ in range(70):
            file.write((b"x" * 1023 + b"\n") * 1024)
    with pytest.raises(DataError, match=r"record of rows\.csv that continues to line"):
        load_file(path)
