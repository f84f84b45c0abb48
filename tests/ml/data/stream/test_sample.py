"""About how many rows a stream has, by its first ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.ml.data.stream.test_reading import opener

from luthier.core.data_stream import Bounds
from luthier.ml.data.stream.reading import Shard
from luthier.ml.data.stream.sample import sample_source

ROWS = [{"prompt": f"\u5317\u4eac{n}?", "completion": "\u6771\u4eac" * (1 + n % 5)} for n in range(400)]


def num_rows(path: Path, num: int = 100) -> Bounds:
    found = sample_source([Shard(0, path.name, opener(path))], [path.stat().st_size], None, num)
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
