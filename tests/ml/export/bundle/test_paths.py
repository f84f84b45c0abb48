"""Paths become names, sentences stay sentences."""

from __future__ import annotations

import pytest

from luthier.ml.export.bundle.write import last_part, without_folders


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/home/a/rows.jsonl", "rows.jsonl"),
        ("../secret/rows.jsonl", "rows.jsonl"),
        ("~/rows.jsonl", "rows.jsonl"),
        ("C:\\data\\rows.jsonl", "rows.jsonl"),
        ("/home/a/models/tiny/", "tiny"),
        ("rows.jsonl", "rows.jsonl"),
        ("hub:org/tiny@main", "hub:org/tiny@main"),
        ("org/tiny", "org/tiny"),
        ("read from /home/a/prices.yaml, of today", "read from prices.yaml, of today"),
        ("see '/home/a/b' (/tmp/c/d.json)", "see 'b' (d.json)"),
        ("200 tokens/s and/or 3 / 4 of it", "200 tokens/s and/or 3 / 4 of it"),
        ("https://host/a/b", "https://host/a/b"),
        ("a\nb", "a\nb"),
    ],
)
def test_without_folders(text: str, expected: str) -> None:
    assert without_folders(text) == expected
    assert without_folders({"a": [text, 1, None]}) == {"a": [expected, 1, None]}


def test_last_part() -> None:
    assert [last_part(path) for path in ("/a/b.c", "b.c", "a\\b.c", "/", "")] == ["b.c", "b.c", "b.c", "/", ""]
