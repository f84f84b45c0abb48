"""Where a row comes from, and how it is called."""

from __future__ import annotations

from typing import Any

import pytest

from luthier.ml.data.provenance import label_of, row_id_of, source_of


@pytest.mark.parametrize(
    ("fields", "group", "source"),
    [
        ({"source": "a.pdf"}, None, "a.pdf"),
        ({"url": "https://example.org", "document": "b.pdf"}, None, "b.pdf"),
        ({"provenance": {"file": "c.pdf"}, "source": "a.pdf"}, None, "c.pdf"),
        ({"provenance": {"page": 3}, "source": "a.pdf"}, None, "a.pdf"),
        ({"provenance": "d.pdf"}, None, None),
        ({"provenance": {"file": "c.pdf"}, "module": "m"}, "module", "m"),
        ({"source": "a.pdf"}, "module", None),
        ({"source": "", "file": "e.pdf"}, None, "e.pdf"),
        ({"source": None}, None, None),
        ({"source": ["a", "b"]}, None, None),
        ({"module": 7}, "module", "7"),
        ({}, None, None),
    ],
)
def test_the_source_of_a_row(fields: dict[str, Any], group: str | None, source: str | None) -> None:
    assert source_of(fields, group) == source


@pytest.mark.parametrize(
    ("fields", "label"),
    [({"label": 0}, "0"), ({"category": "x"}, "x"), ({"label": None, "intent": "buy"}, "buy"), ({"text": "a"}, None)],
)
def test_the_label_of_a_row(fields: dict[str, Any], label: str | None) -> None:
    assert label_of(fields) == label


def test_the_id_of_a_row() -> None:
    assert row_id_of({"id": 5}) == "5"
    assert row_id_of({"uid": "a", "row_id": "b"}) == "a"
    assert row_id_of({"id": {"a": 1}}) is None
