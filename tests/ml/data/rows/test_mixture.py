"""Several sources in one file: own columns, own selections, the same bytes, and errors that name the source."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.fixtures.service import chat_row, write_rows

from luthier.core.errors import DataError
from luthier.ml.data.rows.formats import load_file
from luthier.ml.data.rows.mixture import Mixture, SourceOfRows, mix


def source(path: Path, **more: Any) -> SourceOfRows:
    return SourceOfRows(path.stem, ((path, path.name),), **more)


def read(mixture: Mixture) -> list[dict[str, Any]]:
    return [json.loads(line) for line in mixture.path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def orders(tmp_path: Path) -> Path:
    rows = [{"question": f"Order {n}?", "answer": f"Sent {n}.", "topic": n % 3} for n in range(10)]
    return write_rows(tmp_path / "orders.jsonl", rows)


@pytest.fixture
def talks(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "talks.jsonl", [chat_row(n) for n in range(6)])


def test_sources_of_one_shape_keep_their_fields_under_the_names_of_the_shape(orders: Path, tmp_path: Path) -> None:
    other = write_rows(tmp_path / "faq.jsonl", [{"prompt": "Open?", "completion": "Yes.", "topic": 9}])
    columns = {"prompt": "question", "completion": "answer"}
    made = mix([source(orders, columns=columns), source(other)], tmp_path / "mixtures")
    assert made.path.name == "orders+faq.jsonl"
    assert made.shape == "prompt_completion"
    assert [(one.first_row, one.num_rows) for one in made.sources] == [(1, 10), (11, 1)]
    rows = read(made)
    assert rows[3] == {"topic": 0, "prompt": "Order 3?", "completion": "Sent 3."}
    assert rows[10] == {"prompt": "Open?", "completion": "Yes.", "topic": 9}
    loaded = load_file(made.path, mapping=made.mapping)
    assert loaded.sha256 == made.sha256
    assert [e.reference for e in loaded.examples[9:]] == ["Sent 9.", "Yes."]


def test_shapes_of_conversations_become_chat_rows_that_say_the_same(orders: Path, talks: Path, tmp_path: Path) -> None:
    made = mix([source(talks), source(orders, columns={"prompt": "question", "completion": "answer"})], tmp_path / "m")
    assert made.shape == "chat"
    whole = load_file(made.path, mapping=made.mapping)
    apart = [
        *load_file(talks).examples,
        *load_file(orders, mapping={"prompt": "question", "completion": "answer"}).examples,
    ]
    assert [e.conversation for e in whole.examples] == [e.conversation for e in apart]
    assert read(made)[6] == {"topic": 0, "messages": [
        {"role": "user", "content": "Order 0?"}, {"role": "assistant", "content": "Sent 0."},
    ]}  # fmt: skip


@pytest.mark.parametrize("is_mixed", [False, True], ids=["one shape", "two shapes"])
@pytest.mark.parametrize("group", ["question", "Topic"])
def test_rows_keep_their_group_whatever_its_column_is_called(
    orders: Path, tmp_path: Path, group: str, is_mixed: bool
) -> None:
    columns = {"prompt": "question", "completion": "answer"}
    other = [{"question": f"Order {n}?", "answer": f"Sent {n}.", "Topic": n % 3} for n in range(4)]
    if is_mixed:
        other = [chat_row(n) | {"question": f"Order {n}?", "Topic": n % 3} for n in range(4)]
    more = source(write_rows(tmp_path / "more.jsonl", other), columns=None if is_mixed else columns)
    made = mix([source(orders, columns=columns), more], tmp_path / "m", group_by=group)
    found = [example.group for example in load_file(made.path, mapping=made.mapping, group_by=group).examples]
    wanted = [f"Order {n}?" if group == "question" else str(n % 3) for n in (*range(10), *range(4))]
    assert found == wanted


def test_thoughts_tools_and_weights_survive(orders: Path, tmp_path: Path) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    rows = [
        {
            "messages": [
                {"role": "user", "content": "Look."},
                {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "c1", "content": "It rains."},
                {"role": "assistant", "content": "Rain.", "weight": 0},
                {"role": "user", "content": "And now?"},
                {"role": "assistant", "content": "Sun.", "reasoning_content": "Clouds are gone."},
            ],
            "tools": [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}],
        }
    ]
    tools = write_rows(tmp_path / "tools.jsonl", rows)
    made = mix([source(tools), source(orders, columns={"prompt": "question", "completion": "answer"})], tmp_path / "m")
    found = load_file(made.path, mapping=made.mapping).examples[0]
    assert found.conversation == load_file(tools).examples[0].conversation
    assert found.thought == "Clouds are gone."


def test_the_same_sources_give_the_same_bytes_and_are_not_written_again(talks: Path, tmp_path: Path) -> None:
    first = mix([source(talks)], tmp_path / "m")
    before = first.path.stat().st_mtime_ns
    assert mix([source(talks)], tmp_path / "m") == first
    assert first.path.stat().st_mtime_ns == before
    assert mix([source(talks)], tmp_path / "other").sha256 == first.sha256
    first.path.write_text("{}\n")
    assert mix([source(talks)], tmp_path / "m") == first, "a file that was changed is made again"


def test_a_fraction_and_a_number_of_rows_nest_and_keep_the_order(orders: Path, tmp_path: Path) -> None:
    columns = {"prompt": "question", "completion": "answer"}

    def prompts(**more: Any) -> list[str]:
        return [row["prompt"] for row in read(mix([source(orders, columns=columns, **more)], tmp_path / "m"))]

    whole, half, three = prompts(), prompts(fraction=0.5), prompts(rows=3)
    assert (len(whole), len(half), len(three)) == (10, 5, 3)
    assert set(three) < set(half) < set(whole)
    assert half == [one for one in whole if one in half]
    with pytest.raises(DataError, match="source orders has 10 rows, and rows: 11 requests more"):
        prompts(rows=11)


def test_a_number_that_is_a_class_stays_an_answer(tmp_path: Path) -> None:
    classes = write_rows(tmp_path / "classes.jsonl", [{"text": f"row {n}", "label": n % 2} for n in range(4)])
    made = mix([source(classes, columns={"prompt": "text", "completion": "label"})], tmp_path / "m")
    assert [e.reference for e in load_file(made.path, mapping=made.mapping).examples] == ["0", "1", "0", "1"]


def test_shards_of_another_shape_are_named_with_file_and_row(talks: Path, orders: Path, tmp_path: Path) -> None:
    shards = SourceOfRows("qa", ((talks, "qa/0.jsonl"), (orders, "qa/1.jsonl")))
    with pytest.raises(DataError, match=r"qa/1\.jsonl"):
        mix([shards], tmp_path / "m")
    texts = write_rows(tmp_path / "texts.jsonl", [{"text": "Long ago."}])
    with pytest.raises(DataError, match=r"qa/1\.jsonl holds text rows from row 1 on, qa/0\.jsonl holds chat rows"):
        mix([SourceOfRows("qa", ((talks, "qa/0.jsonl"), (texts, "qa/1.jsonl")))], tmp_path / "m")


def test_a_schema_that_changes_within_a_shard_is_named_with_file_and_row(tmp_path: Path) -> None:
    rows = [*(chat_row(n) for n in range(3)), {"prompt": "Now?", "completion": "Other."}, chat_row(4)]
    changed = write_rows(tmp_path / "changed.jsonl", rows)
    shards = SourceOfRows("qa", ((changed, "qa/train-00007.jsonl"),))
    with pytest.raises(DataError, match=r"qa/train-00007\.jsonl") as refused:
        mix([shards], tmp_path / "m")
    assert [(problem.file, problem.line) for problem in refused.value.problems] == [("qa/train-00007.jsonl", 4)]


def test_texts_and_conversations_are_not_mixed(talks: Path, tmp_path: Path) -> None:
    texts = write_rows(tmp_path / "texts.jsonl", [{"text": "Long ago."}])
    with pytest.raises(DataError, match="cannot be mixed: talks chat, texts text"):
        mix([source(talks), source(texts)], tmp_path / "m")
