"""Rows that name their document stay with it where a share is taken out and no field is named."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.vacuous import nonempty

from luthier.core.dataset import Row
from luthier.ml.data.provenance import DOCUMENT, PASSAGE
from luthier.ml.data.rows.formats import load_file
from luthier.ml.data.rows.outputs import write_rows
from luthier.ml.data.split.own_groups import group_note, own_group_field
from luthier.ml.data.split.split import split_by_fraction


def _rows(num_documents: int, num_passages: int, num_pairs: int = 2, **more: Any) -> Iterator[dict[str, Any]]:
    for document in range(num_documents):
        for passage in range(num_passages):
            for pair in range(num_pairs):
                name = f"{document}, {passage}, {pair}"
                where = {"file": f"{document}.pdf", "source_row": f"p.jsonl:{document * num_passages + passage}"}
                yield {"prompt": f"Ask {name}?", "completion": f"Say {name}.", "provenance": where | more}


def _field(rows: list[dict[str, Any]], held_out: float = 0.2, validation: float = 0.0) -> str | None:
    found = (Row("rows.jsonl", line, fields) for line, fields in enumerate(rows, start=1))
    return own_group_field(found, validation=validation, held_out=held_out, seed=0)


def test_documents_stay_together_where_there_are_enough_of_them() -> None:
    assert _field(list(_rows(20, 5))) == DOCUMENT
    assert _field(list(_rows(20, 5)), validation=0.1) == DOCUMENT
    assert _field([*_rows(20, 5), *({"prompt": f"q{n}", "completion": "a"} for n in range(50))]) == DOCUMENT


@pytest.mark.parametrize("num_documents", [1, 2])
def test_passages_stay_together_where_documents_are_too_few(num_documents: int) -> None:
    assert _field(list(_rows(num_documents, 50))) == PASSAGE


def test_rows_that_nothing_keeps_together_have_no_field() -> None:
    assert _field([{"prompt": f"q{n}", "completion": "a"} for n in range(50)]) is None
    assert _field(list(_rows(1, 50, num_pairs=1))) is None
    assert _field(list(_rows(50, 1, num_pairs=1))) is None
    assert _field(list(_rows(1, 1, num_pairs=50))) is None
    assert _field([{"text": "a", "provenance": "x.pdf"}] * 9) is None


def test_no_document_is_on_two_sides_although_documents_share_a_row(tmp_path: Path) -> None:
    """A notice that several documents have keeps these together, since it would be on both sides otherwise."""
    rows = list(_rows(30, 4))
    notice = {"prompt": "Who is liable?", "completion": "Nobody."}
    rows += [notice | {"provenance": {"file": f"{n}.pdf"}} for n in (3, 11, 17)]
    write_rows(rows, tmp_path / "rows.jsonl")
    assert _field(rows) == DOCUMENT
    examples = load_file(tmp_path / "rows.jsonl", group_by=DOCUMENT).examples
    parts = split_by_fraction(examples, validation=0.1, held_out=0.2, seed=0, joins_equal=True)
    sides: dict[str, set[str]] = {}
    for side, some in parts.items():
        for one in nonempty(some):
            assert one.group is not None
            sides.setdefault(one.group, set()).add(side)
    assert {len(found) for found in sides.values()} == {1}
    assert sides["3.pdf"] == sides["11.pdf"] == sides["17.pdf"]
    assert sum(map(len, parts.values())) == len(rows)
    # Without that, the sides are as the groups alone make them.
    apart = split_by_fraction(examples[:-3], validation=0.1, held_out=0.2, seed=0, joins_equal=True)
    alone = split_by_fraction(examples[:-3], validation=0.1, held_out=0.2, seed=0)
    assert apart == alone


def test_the_order_of_rows_does_not_matter(tmp_path: Path) -> None:
    rows = [
        *_rows(30, 4),
        *({"prompt": "Who?", "completion": "We.", "provenance": {"file": f"{n}.pdf"}} for n in (1, 2)),
    ]
    found = []
    for name, some in (("one.jsonl", rows), ("two.jsonl", rows[::-1])):
        write_rows(some, tmp_path / name)
        examples = load_file(tmp_path / name, group_by=DOCUMENT).examples
        parts = split_by_fraction(examples, validation=0.0, held_out=0.2, seed=3, joins_equal=True)
        found.append(sorted(one.reference or "" for one in parts["held_out"]))
    assert found[0] == found[1]


def test_the_note_names_what_stays_together() -> None:
    assert group_note(DOCUMENT) == "; rows of one document (provenance.file) stay on one side"
    assert group_note("customer") == group_note(None) == ""
