"""Files of every format and shape, and what is said of the bad ones."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from luthier.core.dataset import Row
from luthier.core.errors import DataError, NotFoundError
from luthier.ml.data.files.sequences import LazySequence
from luthier.ml.data.files.source import open_source
from luthier.ml.data.files.spill import Spill
from luthier.ml.data.rows.formats import LoadedFile, load_file
from luthier.ml.data.rows.read_table import read_csv

Write = Callable[..., Path]
_ANSWER = {"role": "assistant", "content": "It is."}
_PAIRS = [{"prompt": f"question {n}", "completion": f'answer, "{n}"\nsecond line é'} for n in range(5)]


def _turns(loaded: LoadedFile, index: int = 0) -> list[tuple[str, str | None]]:
    conversation = loaded.examples[index].conversation
    assert conversation is not None
    return [(message.role, message.content) for message in conversation.messages]


def _write_as(folder: Path, extension: str) -> Path:
    path = folder / f"rows{extension}"
    kind = extension.removesuffix(".gz")
    plain = path.with_name(f"plain{kind}")
    if kind in (".jsonl", ".ndjson"):
        plain.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in _PAIRS), encoding="utf-8")
    elif kind == ".json":
        plain.write_text(json.dumps({"version": 1, "rows": _PAIRS}, indent=2), encoding="utf-8")
    elif kind == ".csv":
        with plain.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, ["prompt", "completion"])
            writer.writeheader()
            writer.writerows(_PAIRS)
    else:
        pq.write_table(pa.Table.from_pylist(_PAIRS), plain)
    data = plain.read_bytes()
    path.write_bytes(gzip.compress(data) if extension.endswith(".gz") else data)
    return path


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize("extension", [".jsonl", ".ndjson", ".json", ".csv", ".parquet"])
def test_every_format_gives_the_same_examples(tmp_path: Path, extension: str, packed: str) -> None:
    path = _write_as(tmp_path, extension + packed)
    loaded = load_file(path)
    assert loaded.shape == "prompt_completion"
    assert loaded.shape_reason == "every row has prompt and completion"
    assert loaded.num_rows == len(loaded.examples) == 5
    assert loaded.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert loaded.file == str(path)
    for index, row in enumerate(_PAIRS):
        assert _turns(loaded, index) == [("user", row["prompt"]), ("assistant", row["completion"])]
        assert loaded.examples[index].id == f"{path.name}:{index + 1}"


def test_blank_lines_count_as_lines_but_make_no_rows(jsonl: Write) -> None:
    loaded = load_file(jsonl("", _PAIRS[0], "   ", _PAIRS[1], ""))
    assert [example.id for example in loaded.examples] == ["rows.jsonl:2", "rows.jsonl:4"]


def test_one_bad_line_among_ten_thousand_is_named(jsonl: Write) -> None:
    rows: list[Any] = [{"prompt": "q", "completion": "a"} for _ in range(10_000)]
    rows[7_000] = '{"prompt": "q", "completion": "a"'
    with pytest.raises(DataError, match=r"1 of 10,000 rows of rows\.jsonl is wrong") as caught:
        load_file(jsonl(*rows))
    (problem,) = caught.value.problems
    assert (problem.line, problem.field) == (7_001, "")
    assert "column 34" in problem.reason


def test_all_bad_rows_are_collected(jsonl: Write) -> None:
    path = jsonl(
        {"prompt": "q", "completion": "a"},
        {"prompt": "q", "completion": ""},
        {"prompt": "q", "completion": None},
        {"prompt": "q", "completion": 7},
        {"prompt": "q"},
        "[1]",
        "nonsense",
        '{"prompt": "q", "prompt": "r", "completion": "a"}',
        {"prompt": "  ", "completion": "a"},
        '{"prompt": "q", "completion": NaN}',
        '{"prompt": "half \\ud83d", "completion": "a"}',
    )
    with pytest.raises(DataError, match="10 of 11 rows") as caught:
        load_file(path)
    seen = {problem.line: (problem.field, problem.value, problem.reason) for problem in caught.value.problems}
    assert seen[2] == ("completion", '""', "is an empty answer: nothing to learn")
    assert seen[3] == ("completion", "null", "is null where text is expected")
    assert seen[4] == ("completion", "7", "is a number where text is expected")
    assert seen[5] == ("completion", "", "is absent (fields of this row: prompt)")
    assert seen[6] == ("", "[1]", "is a list where an object is expected")
    assert seen[7][2].startswith("is not JSON: expecting value (column 1)")
    assert "the key 'prompt' appears twice" in seen[8][2]
    assert seen[9][0] == "prompt"
    assert "NaN is not JSON" in seen[10][2]
    assert "half of a surrogate pair (\\ud83d)" in seen[11][2]
    seen[11][1].encode()


def test_a_long_value_is_shortened(jsonl: Write) -> None:
    with pytest.raises(DataError) as caught:
        load_file(jsonl({"prompt": ["x" * 500], "completion": "a"}, {"prompt": "q", "completion": "a"}))
    assert len(caught.value.problems[0].value) <= 60


def test_a_row_of_ten_megabytes_survives(jsonl: Write) -> None:
    loaded = load_file(jsonl({"text": "word " * 2_000_000}, {"text": "short"}))
    assert len(loaded.examples[0].text or "") == 10_000_000


def test_a_cell_of_a_megabyte_survives_and_the_csv_limit_is_restored(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(f'text\n"{"word " * 200_000}"\n', encoding="utf-8")
    before = csv.field_size_limit()
    assert len(load_file(path).examples[0].text or "") == 1_000_000
    assert csv.field_size_limit() == before


def test_files_read_side_by_side_keep_the_csv_limit_up_for_each_other(tmp_path: Path) -> None:
    """Whichever is read to its end first must not lower the limit under the other; the last one restores it."""
    long = "word " * 40_000
    path = tmp_path / "rows.csv"
    path.write_text(f'text\nshort\n"{long}"\n', encoding="utf-8")
    before = csv.field_size_limit()
    first, second = (read_csv(open_source(path)) for _ in range(2))
    for rows in (first, second):
        assert isinstance(next(rows), Row)
    first.close()
    (row,) = second
    assert isinstance(row, Row)
    assert row.fields == {"text": long}
    assert csv.field_size_limit() == before


def test_mixed_shapes_name_the_first_row_that_differs(jsonl: Write) -> None:
    pair = {"prompt": "q", "completion": "a"}
    with pytest.raises(DataError, match="row 1 is prompt_completion, row 4 is text") as caught:
        load_file(jsonl(pair, pair, pair, {"text": "t"}, pair))
    assert caught.value.problems[0].line == 4


def test_detection_looks_at_all_rows(jsonl: Write) -> None:
    both = {"prompt": "q", "completion": "a", "text": "whole"}
    loaded = load_file(jsonl(both, {"text": "only text"}))
    assert loaded.shape == "text"
    assert loaded.shape_reason == "every row has text (not used: prompt, completion)"


def test_unknown_shape_lists_what_is_there_and_what_is_accepted(jsonl: Write) -> None:
    with pytest.raises(DataError, match="their fields are: question, answer, id") as caught:
        load_file(jsonl({"question": "q", "answer": "a"}, {"question": "q", "id": 3}))
    assert "prompt + completion (prompt_completion)" in caught.value.expected
    assert "--map" in caught.value.do


def test_mapping_overrides_detection(jsonl: Write) -> None:
    path = jsonl({"question": "q", "answer": "a", "text": "t", "src": 7})
    loaded = load_file(path, mapping={"prompt": "question", "completion": "answer", "group": "src"})
    assert _turns(loaded) == [("user", "q"), ("assistant", "a")]
    assert loaded.shape_reason == "the mapping names prompt and completion (not used: text)"
    assert loaded.examples[0].group == "7"
    assert load_file(path).shape == "text"
    assert load_file(path, mapping={"text": "question"}).examples[0].text == "q"


def test_mapping_of_system_goes_with_the_detected_shape(jsonl: Write) -> None:
    loaded = load_file(jsonl({"prompt": "q", "completion": "a", "sys": "Be kind."}), mapping={"system": "sys"})
    assert _turns(loaded) == [("system", "Be kind."), ("user", "q"), ("assistant", "a")]


def test_problems_name_the_field_as_the_file_does(jsonl: Write) -> None:
    with pytest.raises(DataError) as caught:
        load_file(
            jsonl({"question": "q", "answer": ""}, {"question": "q"}),
            mapping={"prompt": "question", "completion": "answer"},
        )
    assert [problem.field for problem in caught.value.problems] == ["answer", "answer"]


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"prompt": "questoin"}, "has no field 'questoin'"),
        ({"promt": "question"}, "nearest: prompt"),
        ({"prompt": "question"}, "mapping prompt=question does not give a shape"),
    ],
)
def test_a_wrong_mapping_says_what_there_is(jsonl: Write, mapping: dict[str, str], message: str) -> None:
    with pytest.raises(DataError) as caught:
        load_file(jsonl({"question": "q", "answer": "a"}), mapping=mapping)
    assert message in str(caught.value)


def test_group_by_takes_any_plain_value_and_refuses_a_missing_one(jsonl: Write) -> None:
    rows = [{"text": "a", "doc": 3}, {"text": "b", "doc": "x"}]
    assert [example.group for example in load_file(jsonl(*rows), group_by="doc").examples] == ["3", "x"]
    with pytest.raises(DataError, match="1 of 3 rows") as caught:
        load_file(jsonl(*rows, {"text": "c", "doc": None}), group_by="doc")
    assert (caught.value.problems[0].line, caught.value.problems[0].field) == (3, "doc")
    with pytest.raises(DataError, match="half of a surrogate pair"):
        load_file(jsonl(*rows, '{"text": "c", "doc": "\\ud83d"}'), group_by="doc")
    with pytest.raises(DataError, match="has no field 'document'"):
        load_file(jsonl(*rows), group_by="document")
    with pytest.raises(DataError, match="given twice"):
        load_file(jsonl(*rows), group_by="doc", mapping={"group": "text"})


def test_rows_that_cannot_be_read_come_before_a_shape_that_cannot_be_seen(jsonl: Write) -> None:
    with pytest.raises(DataError, match="1 of 2 rows") as caught:
        load_file(jsonl("{broken", {"foo": 1}))
    assert caught.value.problems[0].line == 1


def test_a_missing_file_names_its_neighbours(jsonl: Write) -> None:
    path = jsonl(_PAIRS[0], name="train.jsonl")
    with pytest.raises(NotFoundError, match=r"nearest: train\.jsonl"):
        load_file(path.with_name("trian.jsonl"))


def test_a_file_with_only_blank_lines_has_no_rows(jsonl: Write) -> None:
    with pytest.raises(DataError, match="holds no rows"):
        load_file(jsonl("", ""))


def test_fields_of_turns_that_are_not_used_are_said(jsonl: Write) -> None:
    turns = [{"role": "user", "content": "q", "at": "noon"}, {"role": "assistant", "content": "a", "at": None, "n": 1}]
    loaded = load_file(jsonl({"messages": turns, "id": 1}))
    assert loaded.shape_reason == "every row has messages (not used: id, messages[].at, messages[].n)"


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
def test_thoughts_are_no_unused_fields(jsonl: Write, name: str) -> None:
    answer = {"role": "assistant", "content": "a", name: "It is known.", "learn_reasoning": False, "seen": 1}
    loaded = load_file(jsonl({"messages": [{"role": "user", "content": "q"}, answer]}))
    assert loaded.shape_reason == "every row has messages (not used: messages[].seen)"
    conversation = loaded.examples[0].conversation
    assert conversation is not None
    message = conversation.messages[1]
    assert (message.reasoning, message.learn_reasoning) == ("It is known.", False)


def test_rows_of_preference_training_are_no_plain_pairs_unless_mapped(jsonl: Write) -> None:
    path = jsonl({"prompt": "q", "completion": "a", "label": False})
    assert load_file(path).shape == "unpaired"
    assert load_file(path, mapping={"completion": "completion"}).shape == "prompt_completion"
    mixed = jsonl({"prompt": "q", "completion": "a", "label": False}, {"prompt": "q", "completion": "a"})
    with pytest.raises(DataError, match="bad answers would be learned"):
        load_file(mixed)


def test_a_file_that_changes_while_it_is_read_is_refused(jsonl: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = jsonl({"text": "a"}, {"text": "b"})
    digests = iter(["before", "after"])
    monkeypatch.setattr("luthier.ml.data.rows.formats.sha256_file", lambda _: next(digests))
    with pytest.raises(DataError, match="was changed while it was read"):
        load_file(path)


@pytest.mark.shared_data
def test_the_wikisql_rows_are_plain_text(shared_data: Path) -> None:
    loaded = load_file(shared_data / "wikisql_mlx" / "train.jsonl")
    assert (loaded.shape, loaded.num_rows) == ("text", 1_000)
    assert "SELECT" in (loaded.examples[0].text or "")


@pytest.mark.shared_data
def test_public_preference_pairs_with_empty_answers_are_refused_line_by_line(shared_data: Path) -> None:
    with pytest.raises(DataError, match="9 of 2,312 rows") as caught:
        load_file(shared_data / "hh_rlhf" / "test.jsonl.gz")
    assert len(caught.value.problems) == 9
    assert {problem.kind for problem in caught.value.problems} == {"empty_answer", "schema"}
    assert {problem.line for problem in caught.value.problems} >= {87, 517}


_CALL = {"id": "1", "type": "function", "function": {"name": "area", "arguments": '{"width": 1e-9}'}}
_MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": 'é ﷽ 𝄞 \u2028 "quoted"'},
    {"role": "assistant", "content": None, "tool_calls": [_CALL], "weight": 0},
    {"role": "tool", "content": "", "tool_call_id": "1"},
    {"role": "assistant", "content": "Done.", "reasoning_content": "It is known."},
]


@pytest.mark.parametrize(
    "row",
    [
        {
            "messages": _MESSAGES,
            "tools": [{"type": "function", "function": {"name": "area", "parameters": {"n": 10**30}}}],
        },
        {"prompt": "a", "chosen": "b", "rejected": "c"},
        {"prompt": "a", "completion": "b", "label": True},
        {"instruction": "a", "input": "b", "output": "c"},
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
        {"text": "plain \x00 text"},
    ],
    ids=["chat", "preference", "unpaired", "alpaca", "sharegpt", "text"],
)
def test_examples_in_files_are_those_in_memory(row: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    rows = [row | {"topic": f"topic {number}"} for number in range(3)]
    file.write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
    here = load_file(file, group_by="topic")
    there = load_file(file, group_by="topic", spill=Spill(0, tmp_path))
    assert isinstance(there.examples, LazySequence)
    assert tuple(there.examples) == here.examples
    assert [one.model_dump_json() for one in there.examples] == [one.model_dump_json() for one in here.examples]


_IMAGE = {"bytes": None, "path": "1.png"}


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({"messages": [{"role": "user", "content": "<image>Who is it?"}, _ANSWER], "images": ["1.png"]}, "images"),
        ({"conversations": [{"from": "human", "value": "<image>\nWho?"}, {"from": "gpt", "value": "I."}],
          "image": "1.png"}, "image"),
        ({"prompt": "Who is it?", "completion": "I.", "image": _IMAGE}, "image"),
        ({"prompt": "Who is it?", "chosen": "I.", "rejected": "You.", "images": [_IMAGE]}, "images"),
        ({"instruction": "Write it down. <audio>", "output": "So.", "audios": ["1.wav"]}, "audios"),
    ],
)  # fmt: skip
def test_rows_that_go_with_images_are_refused_by_name(jsonl: Write, row: dict[str, Any], field: str) -> None:
    with pytest.raises(DataError, match="1 of 1 rows") as caught:
        load_file(jsonl(row))
    (problem,) = caught.value.problems
    assert problem.field == field
    assert "only text can be trained here, no images" in problem.reason


def test_the_address_of_an_image_is_a_fact_about_a_row(jsonl: Write) -> None:
    row = {"prompt": "Which lamp?", "completion": "The red one.", "image": "https://shop.example/1.png", "images": []}
    assert load_file(jsonl(row)).unused == ("image", "images")


@pytest.mark.parametrize(
    ("row", "proposed"),
    [
        ({"conversation": [{"role": "user", "content": "q"}, _ANSWER]}, "--map messages=conversation"),
        ({"items": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, "--map conversations=items"),
        ({"query": "q", "My response": "a", "response": "a"}, "--map prompt=query --map completion=response"),
        ({"Instruction": "q", "Response": "a"}, "--map prompt=Instruction --map completion=Response"),
        ({"a": 1}, "--map prompt=question --map completion=answer"),
    ],
)
def test_a_mapping_that_fits_the_columns_is_proposed(jsonl: Write, row: dict[str, Any], proposed: str) -> None:
    with pytest.raises(DataError, match="no known shape") as caught:
        load_file(jsonl(row))
    assert caught.value.do == f"rename the fields, or map them, such as {proposed}"


def test_tickets_lead_to_the_command_that_makes_rows_of_them(jsonl: Write) -> None:
    ticket = {"id": 1, "requester_id": 2, "comments": [{"author_id": 2, "body": "q", "public": True}]}
    with pytest.raises(DataError, match="no known shape") as caught:
        load_file(jsonl(ticket))
    assert "luthier data conversations" in caught.value.do


def test_rows_of_one_document_are_grouped_by_it_and_others_by_nothing(jsonl: Write) -> None:
    file = jsonl({"text": "a", "provenance": {"file": "x.pdf"}}, {"text": "b"}, {"text": "c", "meta": {"case": 7}})
    assert [one.group for one in load_file(file, group_by="provenance.file").examples] == ["x.pdf", None, None]
    with pytest.raises(DataError, match="2 of 3 rows"):
        load_file(file, group_by="meta.case")
    with pytest.raises(DataError, match=r"no field 'other\.case'"):
        load_file(file, group_by="other.case")
