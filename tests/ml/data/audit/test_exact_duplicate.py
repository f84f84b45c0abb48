"""Copies after normalisation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from luthier.ml.data.audit.base import AuditRequest
from luthier.ml.data.audit.duplicates import check_exact_duplicates, check_near_duplicates
from luthier.ml.data.audit.table import build_table

Write = Callable[..., Path]


def test_copies_but_the_first_are_reported_with_what_they_copy(jsonl: Write) -> None:
    texts = ["one", "Two  words", "three", "two words", "four", "TWO\nWORDS", "one"]
    (finding,) = check_exact_duplicates(AuditRequest(build_table(jsonl(*({"text": text} for text in texts)))))
    assert (finding.check, finding.severity, finding.count) == ("exact_duplicate", "error", 3)
    assert finding.lines == (4, 6, 7)
    assert finding.details == {"num_groups": 2, "largest_group": 3}
    assert {example.row: example.note for example in finding.examples} == {
        "rows.jsonl:4": "same as rows.jsonl:2",
        "rows.jsonl:6": "same as rows.jsonl:2",
        "rows.jsonl:7": "same as rows.jsonl:1",
    }
    assert finding.examples[1].row == "rows.jsonl:7", "one of each group first"


@pytest.mark.parametrize(("num_copies", "severity"), [(9, "warning"), (10, "error")])
def test_a_tenth_of_the_rows_is_an_error(jsonl: Write, num_copies: int, severity: str) -> None:
    rows = [{"text": f"text {number}"} for number in range(100 - num_copies)] + [{"text": "text 0"}] * num_copies
    (finding,) = check_exact_duplicates(AuditRequest(build_table(jsonl(*rows))))
    assert (finding.severity, finding.count, finding.fraction) == (severity, num_copies, num_copies / 100)


def test_another_answer_or_role_is_no_copy(jsonl: Write) -> None:
    rows = [{"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": "c"}, {"prompt": "a b", "completion": ""}]
    assert check_exact_duplicates(AuditRequest(build_table(jsonl(*rows)))) == []
    assert check_exact_duplicates(AuditRequest(build_table(jsonl({"text": "alone"})))) == []
    assert check_exact_duplicates(AuditRequest(build_table(jsonl('{"no": "json')))) == []


def test_the_same_answer_after_another_thought_is_no_copy(jsonl: Write) -> None:
    thoughts = ("It is light.", "It rings.", "IT  is light.", None)
    request = AuditRequest(build_table(jsonl(*map(thinking, thoughts))))
    (finding,) = check_exact_duplicates(request)
    assert finding.lines == (3,)
    assert check_near_duplicates(request) == []


def thinking(thought: str | None) -> dict[str, Any]:
    answer = {"role": "assistant", "content": "spruce"} | ({"reasoning_content": thought} if thought else {})
    return {"messages": [{"role": "user", "content": "Which wood?"}, answer]}


def test_a_conversation_of_which_another_answer_is_learned_is_no_copy(jsonl: Write) -> None:
    """As files for services that learn one answer of a row have it: the same turns once for each answer."""
    turns = [
        {"role": "user", "content": "Which wood?"},
        {"role": "assistant", "content": "spruce"},
        {"role": "user", "content": "And the back?"},
        {"role": "assistant", "content": "maple"},
    ]
    rows = [
        {"messages": [turn | ({"weight": 0} if place == silent else {}) for place, turn in enumerate(turns)]}
        for silent in (1, 3, 1, None)
    ]
    (finding,) = check_exact_duplicates(AuditRequest(build_table(jsonl(*rows))))
    assert finding.lines == (3,)


def with_tools(*names: str) -> dict[str, Any]:
    """The same question and answer, beside other tools."""
    turns = [{"role": "user", "content": "Which wood?"}, {"role": "assistant", "content": "spruce"}]
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    return {"messages": turns, **({"tools": tools} if tools else {})}


def test_the_same_turns_beside_other_tools_are_no_copy(jsonl: Write) -> None:
    rows = (with_tools("weigh"), with_tools("weigh", "measure"), with_tools("weigh"), with_tools())
    (finding,) = check_exact_duplicates(AuditRequest(build_table(jsonl(*rows))))
    assert finding.lines == (3,)
