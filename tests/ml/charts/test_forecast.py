"""What was predicted is shown beside what was measured, and nothing is claimed of what was not measured."""

from __future__ import annotations

from typing import Any

import pytest

from luthier.core.estimate import Estimate
from luthier.core.events import ValidationDone
from luthier.core.results.cost import Quote
from luthier.core.run import TrainResult
from luthier.ml.charts.forecast import NOT_MEASURED, TOTAL, Forecast, ForecastRow, forecast_of
from luthier.testing.records import make_quote, make_record, make_result

EVENTS = (ValidationDone(step=5, loss=1.0, num_trained_tokens=40, seconds=0.5, is_best=True),)
JUDGED = make_result().model_copy(update={"judging_seconds": 6.0, "judging_peak_memory_bytes": 2 << 30})


def judging_quote(seconds: float, **changes: Any) -> Quote:
    """A quote of steps and of so many seconds of judging."""
    quote = make_quote(**changes)
    judging = Estimate(value=seconds / 3600, low=seconds / 7200, high=seconds / 1800)
    prediction = quote.prediction.model_copy(update={"hours": quote.prediction.hours.plus(judging)})
    return quote.model_copy(
        update={"hours_by_part": quote.hours_by_part | {"judging": judging}, "prediction": prediction}
    )


def rows(found: Forecast | None) -> dict[str, ForecastRow]:
    assert found is not None
    return {row.name: row for row in found.rows}


def test_without_a_quote_there_is_no_forecast() -> None:
    assert forecast_of(make_record(result=make_result()), EVENTS, None) is None


def test_each_figure_says_where_it_fell() -> None:
    result = make_result()
    for seconds, where in ((1.0, "above the range"), (1.0 * 4, "within the range"), (400.0, "below the range")):
        quote = make_quote(num_steps=result.num_steps, step_seconds=seconds * result.seconds_per_step / 4)
        assert rows(forecast_of(make_record(result=make_result()), EVENTS, quote))["A step"].where == where


def test_money_is_measured_time_at_the_quoted_price() -> None:
    record, quote = make_record(result=make_result()), make_quote(num_steps=make_result().num_steps)
    validating = sum(event.seconds for event in EVENTS if isinstance(event, ValidationDone))
    usd = (record.result.seconds + validating) / 3600 * 0.6
    assert abs(float(rows(forecast_of(record, EVENTS, quote))["USD, rented"].measured) - usd) < 0.005 * usd


def test_energy_is_never_said_to_be_measured() -> None:
    found = rows(forecast_of(make_record(result=make_result()), EVENTS, make_quote()))
    assert (found["kWh"].measured, found["kWh"].where) == (NOT_MEASURED, "")


def test_a_run_that_ended_earlier_is_not_judged_by_its_whole_quote() -> None:
    done = make_result().num_steps
    found = rows(forecast_of(make_record(result=make_result()), EVENTS, make_quote(num_steps=done + 20)))
    assert found["All steps"].where == f"after {done:,} of {done + 20:,} steps"
    assert found["A step"].where.endswith("the range")


def test_a_run_without_a_result_has_measured_nothing() -> None:
    record = make_record()
    found = rows(forecast_of(record, (), make_quote()))
    assert {row.measured for row in found.values()} == {NOT_MEASURED}
    assert {row.where for row in found.values()} == {""}


def test_judging_is_part_of_the_forecast_and_of_its_outcome() -> None:
    found = rows(forecast_of(make_record(result=JUDGED), EVENTS, judging_quote(10.0, num_steps=10, step_seconds=0.25)))
    assert (found["Judging"].measured, found["Judging"].where) == ("6.0\u00a0s", "within the range")
    # steps 2.5 s, a validation 0.5 s, judging 6 s
    assert found[TOTAL].outcome == pytest.approx(9.0)
    assert found[TOTAL].estimate.value == pytest.approx(12.5)
    assert found["USD, rented"].outcome == pytest.approx(9.0 / 3600 * 0.6)
    assert found["Peak memory"].outcome == 2 << 30


def test_one_sentence_says_what_was_predicted_and_what_it_took() -> None:
    found = forecast_of(make_record(result=JUDGED), EVENTS, judging_quote(10.0, num_steps=10, step_seconds=0.25))
    assert found is not None
    sentence = found.sentence.replace("\u00a0", " ")
    assert sentence.startswith("training and evaluation predicted 12 s (")
    assert sentence.endswith("took 9.0 s: within the range")
    document = {row["name"]: row for row in found.as_json()}
    assert document["Judging"]["measured"] == 6.0
    assert document["Judging"]["predicted_low"] == pytest.approx(5.0)


def test_a_run_that_is_not_judged_yet_has_no_total() -> None:
    unjudged: TrainResult = make_result()
    found = rows(forecast_of(make_record(result=unjudged), EVENTS, judging_quote(10.0)))
    assert found["Judging"].measured == NOT_MEASURED
    assert found[TOTAL].measured == NOT_MEASURED
    assert found["A step"].measured != NOT_MEASURED


def test_the_total_is_predicted_of_the_parts_that_are_measured() -> None:
    """A teacher takes longer than all steps, and what it took is not known: the steps are still as predicted."""
    quote = judging_quote(10.0, num_steps=10, step_seconds=0.25)
    teacher, checkpoints = (Estimate(value=s / 3600, low=s / 7200, high=s / 1800) for s in (100.0, 5.0))
    hours = quote.prediction.hours.plus(teacher).plus(checkpoints)
    prediction = quote.prediction.model_copy(update={"hours": hours, "usd": hours.by(quote.usd_per_hour)})
    parts = quote.hours_by_part | {"teacher": teacher, "checkpoints": checkpoints}
    found = forecast_of(
        make_record(result=JUDGED),
        EVENTS,
        quote.model_copy(update={"hours_by_part": parts, "prediction": prediction}),
    )
    # steps 2.5 s and judging 10 s; they took 2.5 s and 6 s, and a validation 0.5 s
    total, usd = rows(found)[TOTAL], rows(found)["USD, rented"]
    assert (total.estimate.value, total.outcome) == (pytest.approx(12.5), pytest.approx(9.0))
    assert (total.where, usd.where) == ("within the range", "within the range")
    assert usd.estimate.value == pytest.approx(12.5 / 3600 * 0.6)
    assert found is not None
    (note,) = (note for note in found.notes if note.startswith("Not measured separately"))
    assert "teacher" in note
    assert "checkpoints" in note


def test_a_quote_of_measured_parts_alone_has_no_note_on_others() -> None:
    found = forecast_of(make_record(result=JUDGED), EVENTS, judging_quote(10.0, num_steps=10, step_seconds=0.25))
    assert found is not None
    assert found.notes
    assert not any(note.startswith("Not measured separately") for note in found.notes)
