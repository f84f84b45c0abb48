"""The section of the report that holds prediction and outcome."""

from __future__ import annotations

from typing import Any

from luthier.ml.evaluation.report.page import render_report
from luthier.testing.records import make_quote


def test_without_a_quote_there_is_no_section(documents: Any) -> None:
    html, document = render_report(documents)
    assert "Predicted and measured" not in html
    assert document["predicted"] is None


def test_the_page_and_the_document_carry_it(documents: Any) -> None:
    html, document = render_report(documents.but(quote=make_quote(is_calibrated=True)))
    assert "Predicted and measured" in html
    assert "after a probe of this machine" in html
    assert "a price of nobody" in html
    assert document["predicted"]["num_steps"] == 10
    assert document["predicted"]["usd_low"] < document["predicted"]["usd"] < document["predicted"]["usd_high"]
