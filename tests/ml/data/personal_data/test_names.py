"""Names: only with presidio, whose results become spans."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

import pytest

from luthier.ml.data.personal_data import find
from luthier.ml.data.personal_data.recognizers import Span


@dataclass
class Result:
    start: int
    end: int


def test_presidio_results_become_spans_and_masks_are_left_alone() -> None:
    spans = find.names_from("Ann met Person B", [Result(8, 16), Result(0, 3)])
    assert spans == [Span(0, 3, "name", "Ann"), Span(8, 16, "name", "Person B", is_reserved=True)]


@pytest.mark.skipif(find_spec("presidio_analyzer") is not None, reason="presidio is installed here")
def test_without_presidio_there_is_a_reason_and_no_finder() -> None:
    assert find.why_not() == "presidio is not installed"
    assert find.name_finder() is None
