"""Parquet whose few bytes decode to gigabytes is refused in little memory; usual files come row by row."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.ml.data.bombs import read_with_little_memory

from luthier.core.dataset import Row
from luthier.core.errors import DataError
from luthier.ml.data.files import read_parquet as module
from luthier.ml.data.files.source import open_source
from luthier.ml.data.rows.rows import read_rows

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def by_dictionary(path: Path) -> Path:
    """One text of a megabyte, and numbers that name it for 4,000 rows."""
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 4_000, pa.int32()), pa.array(["a" * (1 << 20)]))
    pq.write_table(pa.table({"text": column}), path, compression="zstd")
    return path


def by_nested_dictionary(path: Path) -> Path:
    """The same within lists."""
    kind = pa.list_(pa.dictionary(pa.int32(), pa.string()))
    values = pa.DictionaryArray.from_arrays(pa.array([0] * 4_000, pa.int32()), pa.array(["a" * (1 << 20)]))
    lists = pa.ListArray.from_arrays(pa.array(range(0, 4_001, 4), pa.int32()), values, type=kind)
    pq.write_table(pa.table({"text": ["x"] * 1_000, "more": lists}), path, compression="zstd")
    return path


def by_packing(path: Path) -> Path:
    """One row of 100 MB, packed."""
    pq.write_table(pa.table({"text": ["a" * (100 << 20)]}), path, compression="zstd", use_dictionary=False)
    return path


def by_nulls(path: Path) -> Path:
    """Many rows of nothing, which take no bytes."""
    pq.write_table(pa.table({"text": pa.nulls(20_000_000, pa.string())}), path, compression="zstd")
    return path


def rows_of(path: Path) -> list[Any]:
    return list(read_rows(open_source(path)))


@pytest.mark.parametrize("make", [by_dictionary, by_nested_dictionary, by_packing, by_nulls])
def test_a_bomb_is_refused_in_little_memory(make: Any, tmp_path: Path) -> None:
    path = make(tmp_path / "bomb.parquet")
    assert path.stat().st_size < 4 << 20
    came, expected, do, peak = read_with_little_memory(path)
    assert came.startswith("bomb.parquet ")
    assert "bomb: its" in came or "a row of more than" in came or "memory to decode" in came
    assert expected
    assert do
    assert peak < 1 << 30


def test_a_page_that_does_not_fit_ends_the_decoder_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = by_packing(tmp_path / "bomb.parquet")
    monkeypatch.setattr(module, "MEMORY_BYTES", 300 << 20)
    monkeypatch.setattr(module, "max_unpacked_bytes", lambda _: 1 << 40)
    with pytest.raises(DataError, match=r"memory to decode|ends its decoder"):
        rows_of(path)


def test_rows_of_all_types_come_as_they_are(tmp_path: Path) -> None:
    rows = [
        {
            "text": "a",
            "n": 1,
            "x": 0.5,
            "b": True,
            "list": [1, 2],
            "inner": {"k": "v"},
            "raw": b"\x00\xff",
            "none": None,
        },
        {"text": "ü" * 100, "n": 2, "x": 1.5, "b": None, "list": [], "inner": {"k": None}, "raw": b"", "none": None},
    ]
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    found = rows_of(path)
    assert all(isinstance(one, Row) for one in found)
    assert [one.fields for one in found] == [rows[0], rows[1] | {"inner": {}}]
    assert [one.line for one in found] == [1, 2]


def test_dictionaries_come_as_their_values(tmp_path: Path) -> None:
    labels = pa.array(["yes", "no", None, "yes"]).dictionary_encode()
    lists = pa.array([["a", "b"], [], ["a"], None], pa.list_(pa.dictionary(pa.int32(), pa.string())))
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"label": labels, "tags": lists}), path)
    assert [one.fields for one in rows_of(path)] == [
        {"label": "yes", "tags": ["a", "b"]},
        {"label": "no", "tags": []},
        {"label": None, "tags": ["a"]},
        {"label": "yes", "tags": None},
    ]


def test_large_batches_come_in_pieces(tmp_path: Path) -> None:
    texts = [chr(97 + number % 26) * (100_000 + number) for number in range(400)]
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"text": texts}), path, compression="none", use_dictionary=False)
    assert [one.fields["text"] for one in rows_of(path)] == texts


def test_a_reader_that_has_seen_enough_leaves_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def start(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        started.append(popen(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", start)
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"text": [str(number) * 50 for number in range(50_000)]}), path)
    rows = read_rows(open_source(path))
    assert isinstance(next(rows), Row)
    rows.close()  # type: ignore[attr-defined]
    (process,) = started
    assert process.poll() is not None


def test_damaged_in_the_middle(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"text": [str(number) for number in range(10_000)]}), path, compression="zstd")
    data = bytearray(path.read_bytes())
    data[200:2000] = b"\xff" * 1800
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match=r"is damaged|ends its decoder"):
        rows_of(path)
