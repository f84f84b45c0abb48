"""What an evaluation notes of its rows."""

from __future__ import annotations

from luthier.core.evaluation import Verdict
from luthier.features.evaluations import service
from luthier.features.evaluations.service import HeldOut


def test_rows_that_were_trained_on_are_noted_where_no_verdict_says_it() -> None:
    rows = HeldOut("t.jsonl", "0" * 64, 4, (), num_leaked=3, notes=("read by its own columns",))
    assert service._notes_on(rows, None) == (
        "3 held-out rows are also in the training rows, so the figures are too good.",
        "read by its own columns",
    )
    assert service._notes_on(rows, Verdict(word="better", metric="exact_match", headline="h")) == rows.notes
    assert service._notes_on(HeldOut("t.jsonl", "0" * 64, 4, ()), None) == ()
