"""Answers that stop before their end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import polars as pl
import pytest

from luthier.ml.data.audit.base import AuditRequest, Skipped
from luthier.ml.data.audit.table import with_rows
from luthier.ml.data.audit.truncated_completion import check

GOOD = [f"This is a complete answer of usual length, number {at}." for at in range(40)]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("This answer begins as all the others do and then it", "unfinished"),
        ("This answer begins as all the others do and then...", "ellipsis"),
        ("Here is the code that you asked for:\n```python\nprint(1)", "fence"),
        ('{"name": "violin", "strings": ["g", "d", "a"', "bracket"),
    ],
)
def test_a_sign_is_named(pairs: Callable[..., AuditRequest], text: str, reason: str) -> None:
    found = check(pairs(*GOOD, text))
    assert not isinstance(found, Skipped)
    assert (found[0].lines, found[0].severity) == ((41,), "warning")
    assert reason in found[0].details["reasons"]


def test_whole_answers_of_many_kinds_are_left_alone(pairs: Callable[..., AuditRequest]) -> None:
    others = [
        "Yes",
        "```\ncode\n```",
        '{"a": [1, 2]}',
        "[1, 2]",
        "He said: “That is all I know about it.”",
        "好的，这是一个完整的句子。",
    ]
    assert check(pairs(*GOOD, *others)) == []


def test_answers_that_never_end_with_punctuation_are_a_style(pairs: Callable[..., AuditRequest]) -> None:
    assert check(pairs(*(text.rstrip(".") for text in GOOD))) == []


def test_many_answers_of_exactly_the_greatest_length_were_cut(pairs: Callable[..., AuditRequest]) -> None:
    cut = [f"{at} {'words and more words. ' * 10}"[:120] for at in range(8)]
    found = check(pairs(*GOOD, *cut))
    assert not isinstance(found, Skipped)
    assert found[0].details["reasons"]["at_limit"] == 8
    assert set(range(41, 49)) <= set(found[0].lines)


def test_a_limit_on_tokens_is_seen(pairs: Callable[..., AuditRequest]) -> None:
    request = pairs(*GOOD)
    counts = [512 if at % 4 == 0 else 100 + at for at in range(40)]
    frame = request.table.frame.with_columns(pl.Series("num_tokens", counts, dtype=pl.UInt32))
    found = check(replace(request, table=with_rows(request.table, frame)))
    assert not isinstance(found, Skipped)
    assert found[0].details["reasons"] == {"at_limit": 10}


def test_plain_text_and_classes_are_not_looked_at(
    audited: Callable[..., AuditRequest], pairs: Callable[..., AuditRequest]
) -> None:
    assert isinstance(check(audited({"text": "a passage that was cut on"})), Skipped)
    assert isinstance(check(pairs(*["spam", "ham"] * 15)), Skipped)
