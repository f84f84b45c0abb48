"""What was predicted before the run, beside what it took: rows for the page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from luthier.core.cost import Estimate, Quote
from luthier.core.events import Event, ValidationDone
from luthier.core.run import RunRecord, TrainResult
from luthier.reporting import figures

NOT_MEASURED: Final = "not measured"


@dataclass(frozen=True, slots=True)
class QuotedRow:
    """One figure. where: within the predicted range, above or below it, or why that cannot be said."""

    name: str
    predicted: str
    range: str
    measured: str
    where: str


@dataclass(frozen=True, slots=True)
class Quoted:
    """The section of the page: a sentence, its rows, and what to know of them."""

    lead: str
    rows: tuple[QuotedRow, ...]
    notes: tuple[str, ...]


def quoted(record: RunRecord, events: Sequence[Event], quote: Quote | None) -> Quoted | None:
    """The section; None where nothing was predicted."""
    if quote is None:
        return None
    made, result, parts = quote.prediction, record.result, quote.hours_by_part
    probed = "after a probe of this machine" if made.calibrated else "from tables: no probe had run on this machine"
    validating = sum(event.seconds for event in events if isinstance(event, ValidationDone))
    stopped = ""
    if result is not None and result.num_steps != made.num_steps:
        stopped = f"after {result.num_steps:,} of {made.num_steps:,} steps"
    an_hour = quote.usd_per_hour.value * made.device.num_devices
    usd = (result.seconds + validating) / 3600 * an_hour if result is not None else None
    rows = [
        _row("A step", made.step_seconds, _of(result, "seconds_per_step"), _time),
        _row("All steps", parts["steps"].times(3600), _of(result, "seconds"), _time, stopped),
        _row("Validations", parts["validations"].times(3600), validating if result else None, _time, stopped),
        _row("Tokens a second", made.tokens_per_second, _of(result, "tokens_per_second"), figures.speed),
        _row("Peak memory", made.peak_memory.total_bytes, _of(result, "peak_memory_bytes"), _size),
    ]
    if not parts["validations"].value:
        del rows[2]
    if made.usd is not None:
        rows.append(_row("USD, rented", made.usd, usd, figures.rough, stopped))
    if made.energy_kwh is not None:
        rows.append(_row("kWh", made.energy_kwh, None, figures.rough))
    price = f"{figures.rough(quote.usd_per_hour.value)} USD an hour of one device ({quote.price_as_of.isoformat()})"
    note = (
        f"Measured USD are measured steps and validations at {price}: {quote.price_source}. Judging is in none of it."
    )
    return Quoted(f"Made before the first step, {probed}.", tuple(rows), (note, *made.notes))


def _of(result: TrainResult | None, name: str) -> float | None:
    return None if result is None else float(getattr(result, name))


def _row(
    name: str, predicted: Estimate, measured: float | None, form: Callable[[float], str], stopped: str = ""
) -> QuotedRow:
    where = stopped
    if measured is None:
        where = ""
    elif not stopped:
        low, high = predicted.low, predicted.high
        where = "below the range" if measured < low else "above the range" if measured > high else "within the range"
    return QuotedRow(
        name=name,
        predicted=form(predicted.value),
        range=f"{form(predicted.low)} to {form(predicted.high)}",
        measured=NOT_MEASURED if measured is None else form(measured),
        where=where,
    )


def _time(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds < 1 else figures.duration(seconds)


def _size(num_bytes: float) -> str:
    return figures.size(round(num_bytes))
