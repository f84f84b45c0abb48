"""A data file as a frame: nothing is refused, and what is wrong with a row is kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from luthier.core.errors import DataError, NotFoundError
from luthier.ml.data.audit.table import SCHEMA, build_table, strings_in, with_rows

Write = Callable[..., Path]


def test_a_conversation_is_split_at_its_last_learned_answer(jsonl: Write) -> None:
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Bye"},
        {"role": "assistant", "content": "So long"},
        {"role": "user", "content": "?"},
    ]
    table = build_table(jsonl({"messages": turns}))
    (row,) = table.frame.rows(named=True)
    assert table.shape == "chat"
    assert row["prompt"] == "Be brief.\nHi\nHello\nBye"
    assert row["completion"] == "So long"
    assert row["text"] == "Be brief.\nHi\nHello\nBye\nSo long\n?"


def test_a_thought_is_in_the_text_and_not_in_what_rows_are_compared_by(jsonl: Write) -> None:
    turns = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello", "reasoning": "A greeting."},
        {"role": "user", "content": "Bye"},
        {"role": "assistant", "content": "So long", "reasoning": "They leave."},
    ]
    plain = [{name: value for name, value in turn.items() if name != "reasoning"} for turn in turns]
    rows = build_table(jsonl({"messages": turns}, {"messages": plain})).frame.rows(named=True)
    assert rows[0]["text"] == "Hi\nA greeting.\nHello\nBye\nThey leave.\nSo long"
    assert rows[0]["said"] == rows[1]["text"] == "Hi\nHello\nBye\nSo long"
    assert (rows[0]["prompt"], rows[0]["completion"]) == ("Hi\nHello\nBye", "So long")
    assert rows[0]["content_key"] == rows[1]["content_key"]
    assert (rows[1]["said"], rows[1]["learned_key"]) == (None, None)
    assert rows[0]["learned_key"] is not None


def test_plain_text_has_neither_prompt_nor_completion(jsonl: Write) -> None:
    table = build_table(jsonl({"text": "one", "category": "a", "id": 7, "source": "b.pdf"}))
    (row,) = table.frame.rows(named=True)
    assert (row["text"], row["prompt"], row["completion"], row["prompt_key"]) == ("one", None, None, None)
    assert (row["label"], row["row_id"], row["source"], row["num_tokens"]) == ("a", "7", "b.pdf", None)
    assert dict(table.frame.schema) == dict(SCHEMA)


def test_keys_are_equal_where_texts_are_equal_after_normalisation(jsonl: Write) -> None:
    rows = [("A  b", "C"), ("a b", "c"), ("a b", "d")]
    frame = build_table(jsonl(*({"prompt": one, "completion": two} for one, two in rows))).frame
    assert frame["content_key"].n_unique() == 2
    assert frame["prompt_key"].n_unique() == 1


def test_broken_rows_are_kept_as_problems_and_unmapped_ones_stay_in_the_frame(jsonl: Write) -> None:
    table = build_table(jsonl({"prompt": "a", "completion": "b"}, "{broken", {"prompt": "a", "completion": 3}))
    assert (table.num_rows, table.shape) == (3, "prompt_completion")
    assert table.frame["line"].to_list() == [1, 3]
    assert sorted(problem.line for problem in table.problems) == [2, 3]
    assert table.frame["text"].to_list() == ["a\nb", "a"]
    assert table.frame["completion"].to_list() == ["b", None]


def test_rows_of_no_shape_are_taken_with_all_their_strings(jsonl: Write) -> None:
    table = build_table(jsonl({"foo": "a", "bar": {"baz": ["b", 3, {"c": "d"}]}}))
    assert table.shape is None
    assert table.shape_problem is not None
    assert table.frame["text"].to_list() == ["a\nb\nd"]
    assert build_table(jsonl("no json", "at all")).frame.height == 0


def test_half_of_a_surrogate_pair_is_a_problem_and_no_crash(jsonl: Write) -> None:
    table = build_table(jsonl('{"text": "a\\ud800b", "category": "\\udfff", "id": "\\ud800é"}', {"text": "b"}))
    assert table.frame.row(0, named=True) | {"content_key": ""} == {
        **dict.fromkeys(SCHEMA), "line": 1, "text": "a\ufffdb\n\ufffd\n\ufffdé", "content_key": "", "label": "\ufffd",
        "row_id": "\ufffdé",
    }  # fmt: skip
    assert "surrogate pair" in table.problems[0].reason
    assert build_table(jsonl('{"foo": "\\ud83d"}')).frame["text"].to_list() == ["\ufffd"]


def test_tokens_are_those_of_the_texts_in_their_order(jsonl: Write) -> None:
    path = jsonl(*({"text": "a " * num} for num in range(1, 4_100)))
    table = build_table(path, count_tokens=lambda texts: [len(text.split()) for text in texts])
    assert table.frame["num_tokens"].to_list() == list(range(1, 4_100))


def test_many_rows_come_in_their_order(jsonl: Write) -> None:
    table = build_table(jsonl(*({"text": str(num)} for num in range(45_000))))
    assert table.frame["line"].to_list() == list(range(1, 45_001))
    assert table.frame["text"].to_list() == [str(num) for num in range(45_000)]


def test_a_mapping_and_a_group_are_used_and_wrong_ones_refused(jsonl: Write) -> None:
    path = jsonl({"question": "a", "answer": "b", "module": "m"})
    table = build_table(path, mapping={"prompt": "question", "completion": "answer"}, group_by="module")
    assert table.frame.select("prompt", "completion", "source").row(0) == ("a", "b", "m")
    with pytest.raises(DataError, match="modul"):
        build_table(path, group_by="modul")
    with pytest.raises(DataError, match="promt"):
        build_table(path, mapping={"promt": "question"})


def test_what_is_no_data_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        build_table(tmp_path / "absent.jsonl")
    (tmp_path / "blank.jsonl").write_text("\n\n")
    with pytest.raises(DataError, match="holds no rows"):
        build_table(tmp_path / "blank.jsonl")


def test_a_row_of_ten_million_characters_is_read_whole(jsonl: Write) -> None:
    table = build_table(jsonl({"text": "é" * 10_000_000}, {"text": "b"}))
    assert table.frame["text"].str.len_chars().to_list() == [10_000_000, 1]


def test_a_part_of_a_table_counts_its_own_rows(jsonl: Write) -> None:
    table = build_table(jsonl({"text": "a"}, {"text": "b"}))
    assert with_rows(table, table.frame.head(1)).num_rows == 1
    assert table.id_of(2) == "rows.jsonl:2"


def test_strings_come_in_order_without_keys() -> None:
    assert list(strings_in({"a": "x", "b": [1, None, {"c": "y"}], "d": True})) == ["x", "y"]
