"""Rows that no model can see whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from luthier.ml.data.audit.base import AuditRequest, Skipped
from luthier.ml.data.audit.length import check_over_context
from luthier.ml.data.audit.table import build_table


def test_rows_over_the_context_are_errors_the_longest_first(jsonl: Callable[..., Path]) -> None:
    path = jsonl({"text": "a b c d"}, {"text": "a"}, {"text": "a b c d e"})
    table = build_table(path, count_tokens=lambda texts: [len(text.split()) for text in texts])
    request = AuditRequest(table, model="m", context_tokens=3)
    found = check_over_context(request)
    assert not isinstance(found, Skipped)
    assert (found[0].severity, found[0].lines) == ("error", (1, 3))
    assert found[0].examples[0].note == "5 tokens"
    assert check_over_context(replace(request, context_tokens=5)) == []


def test_without_a_model_the_check_says_that_it_did_not_run(audited: Callable[..., AuditRequest]) -> None:
    request = audited({"text": "a"})
    assert isinstance(check_over_context(request), Skipped)
    assert isinstance(check_over_context(replace(request, model="m", context_tokens=4)), Skipped)


def test_thoughts_count_as_tokens_of_their_row(jsonl: Callable[..., Path]) -> None:
    answer = {"role": "assistant", "content": "b"}
    rows = [{"messages": [{"role": "user", "content": "a"}, answer | {"reasoning_content": "c d e"}]},
            {"messages": [{"role": "user", "content": "a"}, answer]}]  # fmt: skip
    table = build_table(jsonl(*rows), count_tokens=lambda texts: [len(text.split()) for text in texts])
    found = check_over_context(AuditRequest(table, model="m", context_tokens=4))
    assert not isinstance(found, Skipped)
    assert [(one.lines, one.examples[0].note) for one in found] == [((1,), "5 tokens")]


def test_tools_count_as_tokens_of_their_row(jsonl: Callable[..., Path]) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    tools = [{"type": "function", "function": {"name": "count", "description": "c d e f g"}}]
    counted: list[str] = []

    def count(texts: Sequence[str]) -> list[int]:
        counted.extend(texts)
        return [len(text.split()) for text in texts]

    table = build_table(jsonl({"messages": turns}, *[{"messages": turns, "tools": tools}] * 3), count_tokens=count)
    found = check_over_context(AuditRequest(table, model="m", context_tokens=4))
    assert not isinstance(found, Skipped)
    assert [one.lines for one in found] == [(2, 3, 4)]
    assert len([text for text in counted if "c d e f g" in text]) == 1
