"""About how many rows a stream has, by its first ones."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from tests.ml.data.stream.test_reading import opener

from luthier.core.data_stream import Bounds
from luthier.core.errors import DataError
from luthier.ml.data.stream.reading import Shard
from luthier.ml.data.stream.sample import ALL, SourceSample, UsedPart, sample_source

ROWS = [{"prompt": f"\u5317\u4eac{n}?", "completion": "\u6771\u4eac" * (1 + n % 5)} for n in range(400)]


def num_rows(path: Path, num: int = 100) -> Bounds:
    found = sample_source("faq", [Shard(0, path.name, opener(path))], [path.stat().st_size], None, num)
    assert len(found.records) == num
    assert found.num_rows is not None
    return found.num_rows


def test_letters_of_several_bytes_count_as_these(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    lines = [f"{row['prompt']},{row['completion']}\n" for row in ROWS]
    path.write_text("prompt,completion\n" + "".join(lines), encoding="utf-8")
    low, high = num_rows(path)
    assert low < 400 < high
    assert high - low < 80


@pytest.mark.parametrize("indent", [None, 8])
def test_rows_of_a_document_are_counted(tmp_path: Path, indent: int | None) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(ROWS, indent=indent), encoding="utf-8")
    assert num_rows(path) == (400, 400)


def test_rows_of_a_workbook_are_counted(tmp_path: Path) -> None:
    from openpyxl import Workbook

    book = Workbook()
    for row in [("prompt", "completion"), *((one["prompt"], one["completion"]) for one in ROWS)]:
        book.active.append(row)
    book.save(tmp_path / "rows.xlsx")
    assert num_rows(tmp_path / "rows.xlsx") == (400, 400)


def test_parquet_states_its_rows(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "rows.parquet", row_group_size=50)
    assert num_rows(tmp_path / "rows.parquet") == (400, 400)


def sample_of(path: Path, num: int, part: UsedPart, size: int | None = None) -> SourceSample:
    return sample_source("faq", [Shard(0, path.name, opener(path))], [size], None, num, part)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return path


def test_the_size_of_a_file_is_known_once_it_is_here(rows: Path) -> None:
    found = sample_of(rows, 100, ALL).num_rows
    assert found is not None
    assert found.low < 400 < found.high


def test_rows_of_a_fraction_are_sampled_and_counted(rows: Path) -> None:
    found = sample_of(rows, 400, UsedPart(fraction=0.25))
    assert found.num_rows == (len(found.records), len(found.records)), "all of the file was read"
    assert 60 < len(found.records) < 140
    first = sample_of(rows, 20, UsedPart(fraction=0.25))
    assert [one.content for one in first.records] == [one.content for one in found.records[:20]]
    assert first.num_rows is not None
    assert first.num_rows.low < len(found.records) < first.num_rows.high
    none = UsedPart(fraction=1e-9)
    with pytest.raises(DataError, match="none of the 400 rows of source faq is among the fraction 1e-09 of them"):
        sample_of(rows, 20, none)


def test_the_first_rows_are_no_more_than_there_are(rows: Path) -> None:
    assert sample_of(rows, 100, UsedPart(num_rows=30)).num_rows == (30, 30)
    assert len(sample_of(rows, 100, UsedPart(num_rows=30)).records) == 30
    estimated = sample_of(rows, 100, UsedPart(num_rows=395)).num_rows
    assert estimated is not None
    assert estimated.low <= 395 == estimated.high
    with pytest.raises(DataError, match="source faq has 400 rows, and rows: 401 requests more"):
        sample_of(rows, 1000, UsedPart(num_rows=401))


def test_first_rows_of_one_size_do_not_make_an_estimate_exact(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    long, short = ({"prompt": "p", "completion": "c" * num} for num in (100, 5))
    path.write_text("".join(json.dumps(row) + "\n" for row in [long] * 100 + [short] * 300), encoding="utf-8")
    low, high = num_rows(path)
    assert low < high
    # Fewer by the estimate, and all of them there: what is known of a part must not refuse the whole.
    assert high < 390
    assert sample_of(path, 100, UsedPart(num_rows=390)).num_rows is not None


@pytest.mark.parametrize("ending", [b"", gzip.compress(b"")], ids=["joined", "empty member at the end"])
def test_gzip_data_of_several_members_are_measured_as_a_whole(tmp_path: Path, ending: bytes) -> None:
    lines = [json.dumps(row).encode() + b"\n" for row in ROWS]
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(b"".join(gzip.compress(b"".join(lines[at : at + 50])) for at in range(0, 400, 50)) + ending)
    low, high = num_rows(path)
    assert low < 400 < high
    assert high - low < 80
