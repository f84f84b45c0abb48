"""What the shop's run comes to by our estimate, part by part, beside the figures of the guide.

    python estimate.py

Tokens, hours and dollars of training come from the shape of a 7B model (shape_7b/config.json, no weights), the
number of rows and their mean length; hours of people, trials and rates from case.yaml; prices from the shipped table.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from luthier.core.results.cost import Quote
from luthier.core.results.roi import Range
from luthier.features.planning.quotes import estimate_quote
from luthier.features.roi.service import load_case
from luthier.ml.inference.models.structure import read_structure
from luthier.ml.planning.adapter import num_lora_parameters, resolve_targets
from luthier.ml.planning.devices import load_prices
from luthier.ml.planning.hypothetical_run import HypotheticalRun

HERE = Path(__file__).parent
DEVICE = "a100-80g"
NUM_DEVICES = 4
GUIDE_HOURS = 24
GUIDE_USD = 8_000
GUIDE_RANGE_USD = (8_000, 12_000)
# Rows of make_data.py have 280 tokens on average by SmolLM2's tokenizer, 4.5 of them learned.
RUN = HypotheticalRun(
    num_rows=500_000, mean_tokens=280, rank=27, epochs=3, learned_fraction=0.016, global_batch_size=128
)


@dataclass(frozen=True)
class Line:
    """One part of the bill in USD, from low to high."""

    name: str
    low: float
    typical: float
    high: float
    how: str


def quote() -> Quote:
    """What one training takes on the guide's own devices."""
    return estimate_quote(HERE / "shape_7b", RUN, on=f"{DEVICE}:{NUM_DEVICES}")


def shape_lines() -> Iterator[str]:
    """How many parameters, how many of them are trained, how many tokens."""
    structure = read_structure(str(HERE / "shape_7b"))
    trained = num_lora_parameters(structure, resolve_targets(structure, "all-linear", rank=RUN.rank), RUN.rank)
    share = trained / structure.num_parameters
    yield f"parameters        {structure.num_parameters:,}"
    yield f"trained           {trained:,} by rank {RUN.rank} on every matrix: {share:.2%}"
    rows = f"{RUN.num_rows:,} rows x {RUN.mean_tokens:g} tokens x {RUN.epochs:g} epochs"
    yield f"tokens            {RUN.num_tokens:,.0f}: {rows}"


def bill(found: Quote) -> list[Line]:
    """Every part of what the shop pays until the model is in use."""
    case = load_case(HERE / "case.yaml")
    rate, trials, usd = case.people.rate_per_hour, case.training.num_trials, found.prediction.usd
    assert usd is not None, "the shipped table prices this device"
    more = Range(low=trials.low - 1, typical=trials.typical - 1, high=trials.high - 1)
    run = Range(low=usd.low, typical=usd.value, high=usd.high)
    return [
        Line("one training", run.low, run.typical, run.high, f"{DEVICE}:{NUM_DEVICES}, by our estimate"),
        _product("further trials", run, more, f"{more.low:g} to {more.high:g} trainings more"),
        _product("preparing data", case.people.preparation_hours, rate, "people"),
        _product("checking labels", case.people.annotation_hours, rate, "people"),
        _product("reviewing", case.people.review_hours, rate, "people"),
        _product("evaluating", case.evaluation.hours, rate, "people"),
    ]


def _product(name: str, amount: Range, price: Range, how: str) -> Line:
    low, typical, high = amount.low * price.low, amount.typical * price.typical, amount.high * price.high
    return Line(name, low, typical, high, how)


def report(found: Quote) -> Iterator[str]:
    """The whole comparison, line by line."""
    prediction = found.prediction
    hours, rate = prediction.hours, load_prices().usd_per_hour(DEVICE)
    yield from shape_lines()
    yield f"hours, ours       {hours.value:.1f} ({hours.low:.1f} to {hours.high:.1f}) on {DEVICE}:{NUM_DEVICES}"
    device_hours = NUM_DEVICES * GUIDE_HOURS
    low, typical, high = (device_hours * price for price in (rate.low, rate.value, rate.high))
    at_list = f"{typical:,.0f} USD ({low:,.0f} to {high:,.0f}) at list prices"
    yield f"hours, guide      {GUIDE_HOURS}: {device_hours} device hours, {at_list}"
    room = prediction.tokens_per_second.value * GUIDE_HOURS * 3600
    yield f"                  in which we would read {room / 1e9:.1f} thousand million tokens"
    yield ""
    lines = bill(found)
    for line in lines:
        yield f"{line.name:<17} {line.typical:>7,.0f} USD  {f'({line.low:,.0f} to {line.high:,.0f})':<17} {line.how}"
    low, typical, high = (sum(getattr(line, end) for line in lines) for end in ("low", "typical", "high"))
    yield f"{'all together':<17} {typical:>7,.0f} USD  ({low:,.0f} to {high:,.0f})"
    least, most = GUIDE_RANGE_USD
    yield f"{'the guide':<17} {GUIDE_USD:>7,.0f} USD  ({least:,.0f} to {most:,.0f})"
    machines = sum(line.typical for line in lines[:2])
    yield f"of ours, machines are {machines / typical:.0%} and people {1 - machines / typical:.0%}"


if __name__ == "__main__":
    print("\n".join(report(quote())))
