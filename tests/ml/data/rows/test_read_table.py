"""CSV and Parquet: ragged rows, quotes, encodings, nulls and nested columns."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from luthier.core.errors import DataError
from luthier.ml.data.rows.formats import load_file

_MESSAGES = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "weight": 1}]


def _csv(tmp_path: Path, data: str | bytes) -> Path:
    path = tmp_path / "rows.csv"
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def test_ragged_rows_are_named_by_row_and_line(tmp_path: Path) -> None:
    path = _csv(tmp_path, 'prompt,completion\n"two\nlines",a\nonly\nq,a,extra\nq,a\n')
    with pytest.raises(DataError, match="2 of 4 rows") as caught:
        load_file(path)
    first, second = caught.value.problems
    assert first.line == 2
    assert first.reason == "has 1 value where the header has 2 (record that ends on line 4 of the file)"
    assert second.line == 3
    assert second.reason.startswith("has 3 values")


def test_a_quote_that_never_ends_is_a_problem(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not CSV: unexpected end of data"):
        load_file(_csv(tmp_path, 'prompt,completion\nq,a\nq,"a\n'))


def test_bytes_that_are_no_utf8_spoil_only_their_row(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="1 of 3 rows") as caught:
        load_file(_csv(tmp_path, b"prompt,completion\nq,a\nq,caf\xe9\nq,caf\xc3\xa9\n"))
    (problem,) = caught.value.problems
    assert problem.line == 2
    assert "byte 27 of the file (0xe9)" in problem.reason
    assert "(line 3 of the file)" in problem.reason


def test_a_header_needs_different_names(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the column 'text' twice"):
        load_file(_csv(tmp_path, "text,text\na,b\n"))


def test_the_nameless_index_column_of_pandas_is_not_in_the_way(tmp_path: Path) -> None:
    loaded = load_file(_csv(tmp_path, ",text\n0,a\n1,b\n"))
    assert loaded.shape_reason == "every row has text (not used: (no name))"


def test_blank_lines_are_no_rows_but_an_empty_cell_is_a_problem(tmp_path: Path) -> None:
    assert load_file(_csv(tmp_path, "prompt,completion\n\nq,a\n\n")).num_rows == 1
    with pytest.raises(DataError, match="1 of 3 rows"):
        load_file(_csv(tmp_path, "text\na\n\nb\n"))
    assert load_file(_csv(tmp_path, "text\na\n\n\n")).num_rows == 1


def test_another_delimiter_is_found_and_said(tmp_path: Path) -> None:
    loaded = load_file(_csv(tmp_path, "prompt;completion\nq;a\n"))
    assert loaded.shape_reason == "every row has prompt and completion; read as semicolons, UTF-8"
    with pytest.raises(DataError, match="their fields are: Frage, Antwort; read as semicolons, UTF-8"):
        load_file(_csv(tmp_path, "Frage;Antwort\nq;a\n"))


def test_messages_in_a_cell_are_json_text(tmp_path: Path) -> None:
    cell = json.dumps(_MESSAGES).replace('"', '""')
    loaded = load_file(_csv(tmp_path, f'messages\n"{cell}"\n'))
    assert loaded.shape == "chat"
    assert loaded.examples[0].reference == "a"


def test_nested_parquet_columns_and_the_nulls_that_arrow_fills_in(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"x": null}'}}
    rows = [
        {"messages": _MESSAGES, "tools": None},
        {
            "messages": [
                {"role": "user", "content": "q"},
                {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "content": "r", "tool_call_id": "c"},
                {"role": "assistant", "content": "done"},
            ],
            "tools": [{"type": "function", "function": {"name": "f"}}],
        },
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)
    first, second = (example.conversation for example in load_file(path).examples)
    assert first is not None
    assert second is not None
    assert [message.weight for message in first.messages] == [None, 1]
    assert first.messages[0].tool_calls == ()
    assert second.messages[1].tool_calls == (call,)
    assert second.tools == ({"type": "function", "function": {"name": "f"}},)


def test_a_null_cell_is_a_problem(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(
        pa.Table.from_pylist([{"prompt": "q", "completion": "a"}, {"prompt": "q", "completion": None}]), path
    )
    with pytest.raises(DataError, match="is null where text is expected"):
        load_file(path)


def test_a_truncated_parquet_file_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist([{"text": "a"}] * 100), path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DataError, match="is damaged"):
        load_file(path)


def test_columns_without_name_and_values_are_no_part_of_the_table(tmp_path: Path) -> None:
    path = _csv(tmp_path, "prompt;;completion;;\nq;;a;;\nr;;b;;\n")
    loaded = load_file(path)
    assert [(one.id, one.reference) for one in loaded.examples] == [("rows.csv:1", "a"), ("rows.csv:2", "b")]
    assert loaded.unused == ()
    path.write_text("prompt;;completion;;\nq;;a;;\nr;;b;;lost\n")
    with pytest.raises(DataError, match="1 of 2 rows") as caught:
        load_file(path)
    (problem,) = caught.value.problems
    assert (problem.line, problem.value) == (2, '"lost"')
    assert problem.reason == (
        "has a value in column 5, to which the header gives no name (record that ends on line 3 of the file)"
    )


def test_lines_of_delimiters_alone_are_no_rows(tmp_path: Path) -> None:
    """Spreadsheets write rows that are empty, or were, as `;;;`, mostly at the end."""
    path = _csv(tmp_path, "prompt;completion;note\nq1;a1;n\n;;\nq2;a2;\n;;\n ; ;\n;;;;\n")
    loaded = load_file(path)
    assert [example.id for example in loaded.examples] == ["rows.csv:1", "rows.csv:2"]
    with pytest.raises(DataError, match="1 of 2 rows"):
        load_file(_csv(tmp_path, 'text\na\n""\n'))


def test_a_header_among_the_rows_is_a_problem(tmp_path: Path) -> None:
    """As `cat one.csv two.csv` leaves it; trained on, the model would learn to answer "prompt" with "completion"."""
    with pytest.raises(DataError, match="1 of 3 rows") as caught:
        load_file(_csv(tmp_path, "prompt,completion\nq,a\nprompt, completion\nr,b\n"))
    (problem,) = caught.value.problems
    assert problem.line == 2
    assert problem.reason.startswith("repeats the names of the columns")
    assert "line 3 of the file" in problem.reason
    assert load_file(_csv(tmp_path, "text\ntext\nb\n")).num_rows == 2
