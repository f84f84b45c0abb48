"""What was predicted stands beside what came, and nothing is claimed of what was not measured."""

from __future__ import annotations

from typing import Any

from luthier.evaluate.report.quoted import NOT_MEASURED, Quoted, QuotedRow, quoted
from luthier.evaluate.report.write import render_report
from luthier.testing.records import make_quote


def rows(found: Quoted | None) -> dict[str, QuotedRow]:
    assert found is not None
    return {row.name: row for row in found.rows}


def test_without_a_quote_there_is_no_section(documents: Any) -> None:
    assert quoted(documents.record, documents.events, None) is None
    html, document = render_report(**documents.arguments())
    assert "Predicted and measured" not in html
    assert document["predicted"] is None


def test_each_figure_says_where_it_fell(documents: Any) -> None:
    result = documents.record.result
    for seconds, where in ((1.0, "above the range"), (1.0 * 4, "within the range"), (400.0, "below the range")):
        quote = make_quote(num_steps=result.num_steps, step_seconds=seconds * result.seconds_per_step / 4)
        assert rows(quoted(documents.record, documents.events, quote))["A step"].where == where


def test_money_is_measured_time_at_the_quoted_price(documents: Any) -> None:
    from luthier.core.events import ValidationDone

    record, quote = documents.record, make_quote(num_steps=documents.record.result.num_steps)
    validating = sum(event.seconds for event in documents.events if isinstance(event, ValidationDone))
    usd = (record.result.seconds + validating) / 3600 * 0.6
    assert abs(float(rows(quoted(record, documents.events, quote))["USD, rented"].measured) - usd) < 0.005 * usd


def test_energy_is_never_said_to_be_measured(documents: Any) -> None:
    found = rows(quoted(documents.record, documents.events, make_quote()))
    assert (found["kWh"].measured, found["kWh"].where) == (NOT_MEASURED, "")


def test_a_run_that_ended_earlier_is_not_judged_by_its_whole_quote(documents: Any) -> None:
    done = documents.record.result.num_steps
    found = rows(quoted(documents.record, documents.events, make_quote(num_steps=done + 20)))
    assert found["All steps"].where == f"after {done:,} of {done + 20:,} steps"
    assert found["A step"].where.endswith("the range")


def test_a_run_without_a_result_has_measured_nothing(documents: Any) -> None:
    record = documents.record.model_copy(update={"result": None})
    found = rows(quoted(record, (), make_quote()))
    assert {row.measured for row in found.values()} == {NOT_MEASURED}
    assert {row.where for row in found.values()} == {""}


def test_the_page_and_the_document_carry_it(documents: Any) -> None:
    html, document = render_report(**documents.arguments(), quote=make_quote(is_calibrated=True))
    assert "Predicted and measured" in html
    assert "after a probe of this machine" in html
    assert "a price of nobody" in html
    assert document["predicted"]["num_steps"] == 10
    assert document["predicted"]["usd_low"] < document["predicted"]["usd"] < document["predicted"]["usd_high"]
