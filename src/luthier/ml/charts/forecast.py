"""What was predicted before a run, next to what was measured: one view for the report, the pages and the terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from luthier.core.estimate import Estimate
from luthier.core.events import Event, ValidationDone
from luthier.core.results.cost import Quote, spread_out
from luthier.core.run import RunRecord, TrainResult
from luthier.ml.charts import figures

NOT_MEASURED: Final = "not measured"
TOTAL: Final = "Training and judging"
_MEASURED: Final = ("steps", "grading", "validations", "judging")
"""The parts of a prediction whose time is measured; the total is compared over these. Grading is measured with the
steps."""


@dataclass(frozen=True, slots=True)
class ForecastRow:
    """One figure, predicted and measured.

    Attributes:
        name: what is predicted.
        predicted: the expected value.
        range: in which it was expected to be.
        measured: what it was, or `NOT_MEASURED`.
        where: within the predicted range, above or below it, or why that cannot be said.
        estimate: the prediction as numbers, in the unit that both are measured in.
        outcome: the measurement as a number; None where it was not measured.
    """

    name: str
    predicted: str
    range: str
    measured: str
    where: str
    estimate: Estimate
    outcome: float | None


@dataclass(frozen=True, slots=True)
class Forecast:
    """All figures of a quote with their outcome: a sentence, its rows, and notes about them."""

    lead: str
    rows: tuple[ForecastRow, ...]
    notes: tuple[str, ...]

    @property
    def sentence(self) -> str:
        """Time in one sentence: `predicted 8 min (5 to 14 min), took 9 min 20 s: within the range`."""
        row = next(row for row in self.rows if row.name == TOTAL)
        measured = f"took {row.measured}" if row.outcome is not None else NOT_MEASURED
        where = f": {row.where}" if row.where else ""
        return f"training and evaluation predicted {row.predicted} ({row.range}), {measured}{where}"

    def as_json(self) -> list[dict[str, Any]]:
        """One entry a figure: its name, `predicted` with `_low` and `_high`, `measured`, and where that is."""
        return [
            {"name": row.name, **spread_out("predicted", row.estimate), "measured": row.outcome, "where": row.where}
            for row in self.rows
        ]


def forecast_of(record: RunRecord, events: Sequence[Event], quote: Quote | None) -> Forecast | None:
    """What was predicted of a run and its result; None where nothing was predicted.

    Quotes of before judging was predicted have no row for it, and their total is that of training. The total and its
    price are of the parts that are measured: a teacher, a reference and checkpoints are predicted beside it, in a note.
    """
    if quote is None:
        return None
    made, result, parts = quote.prediction, record.result, quote.hours_by_part
    probed = "after a probe of this machine" if made.calibrated else "from tables: no probe had run on this machine"
    validating = sum(event.seconds for event in events if isinstance(event, ValidationDone))
    judging = result.judging_seconds if result is not None and "judging" in parts else 0.0
    stopped = ""
    if result is not None and result.num_steps != made.num_steps:
        stopped = f"after {result.num_steps:,} of {made.num_steps:,} steps"
    # The price is for one device and an hour; measured seconds are those of the whole run.
    an_hour = quote.usd_per_hour.value * made.device.num_devices
    # `result.seconds` is of the steps alone; the total is predicted of the parts that are measured.
    seconds = None if result is None or judging is None else result.seconds + validating + judging
    hours = _sum([parts[name] for name in _MEASURED if name in parts])
    steps = _sum([parts[name] for name in ("steps", "grading") if name in parts])
    rows = [
        _row("A step", made.step_seconds, _of(result, "seconds_per_step"), _time),
        _row("All steps", steps.times(3600), _of(result, "seconds"), _time, stopped),
        _row("Validations", parts["validations"].times(3600), validating if result else None, _time, stopped),
    ]
    if not parts["validations"].value:
        del rows[2]
    if "judging" in parts:
        rows.append(_row("Judging", parts["judging"].times(3600), judging if result else None, _time))
    rows += [
        _row(TOTAL, hours.times(3600), seconds, _time, stopped),
        _row("Tokens a second", made.tokens_per_second, _of(result, "tokens_per_second"), figures.speed),
        _row("Peak memory", made.peak_memory.total_bytes, _peak(result), _size),
    ]
    if made.usd is not None:
        usd = None if seconds is None else seconds / 3600 * an_hour
        predicted = hours.by(quote.usd_per_hour).times(made.device.num_devices)
        rows.append(_row("USD, rented", predicted, usd, figures.rough, stopped))
    if made.energy_kwh is not None:
        rows.append(_row("kWh", made.energy_kwh, None, figures.rough))
    price = f"{figures.rough(quote.usd_per_hour.value)} USD an hour of one device ({quote.price_as_of.isoformat()})"
    notes = [f"Measured USD are measured steps, validations and evaluation at {price}: {quote.price_source}."]
    others = {name: part.times(3600) for name, part in parts.items() if name not in _MEASURED and part.value}
    if "grading" in parts:
        notes.append(
            f"Grading by models is measured with the steps; {_time(parts['grading'].value * 3600)} was predicted."
        )
    if others:
        shown = ", ".join(f"{name} {_time(seconds.value)}" for name, seconds in others.items())
        notes.append(f"Not measured separately, and so in no row of time or USD: {shown}, as predicted.")
    return Forecast(f"Made before the first step, {probed}.", tuple(rows), (*notes, *made.notes))


def _sum(parts: Sequence[Estimate]) -> Estimate:
    found = Estimate(value=0.0, low=0.0, high=0.0)
    for part in parts:
        found = found.plus(part)
    return found


def _of(result: TrainResult | None, name: str) -> float | None:
    return None if result is None else float(getattr(result, name))


def _peak(result: TrainResult | None) -> float | None:
    """The larger of training's and judging's peak: the prediction is of both."""
    return None if result is None else float(max(result.peak_memory_bytes, result.judging_peak_memory_bytes or 0))


def _row(
    name: str, predicted: Estimate, measured: float | None, form: Callable[[float], str], stopped: str = ""
) -> ForecastRow:
    where = stopped
    if measured is None:
        where = ""
    elif not stopped:
        low, high = predicted.low, predicted.high
        where = "below the range" if measured < low else "above the range" if measured > high else "within the range"
    return ForecastRow(
        name=name,
        predicted=form(predicted.value),
        range=f"{form(predicted.low)} to {form(predicted.high)}",
        measured=NOT_MEASURED if measured is None else form(measured),
        where=where,
        estimate=predicted,
        outcome=measured,
    )


def _time(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds < 1 else figures.duration(seconds)


def _size(num_bytes: float) -> str:
    return figures.size(round(num_bytes))
