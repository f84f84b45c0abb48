"""What an evaluation notes of its rows."""

from __future__ import annotations

from luthier.core.evaluation import Verdict
from luthier.features.evaluations.evaluated_rows import notes_on


def test_rows_that_were_trained_on_are_noted_where_no_verdict_says_it() -> None:
    notes = ("read by its own columns",)
    assert notes_on(notes, 3, None, None) == (
        "3 held-out rows are also in the training rows, so the figures are too good.",
        "read by its own columns",
    )
    assert notes_on(notes, 3, Verdict(word="better", metric="exact_match", headline="h"), None) == notes
    assert notes_on((), 0, None, None) == ()
