"""A bill as a person reads it: memory part by part, time, money, power, people, what fits and what would."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from luthier.cli import figures

if TYPE_CHECKING:
    from rich.console import Console

    from luthier.core.cost import Bill, Change, Option

_BAR_WIDTH: Final = 32
_NUM_OPTIONS_SHOWN: Final = 20
_BASIS: Final = {
    "list_prices": "public list prices",
    "typical_range": "a typical range",
    "assumption": "an assumption",
    "own": "your own price",
}


def show_bill(console: Console, bill: Bill) -> None:
    """Print the whole bill."""
    from luthier.cli.console import facts, visible

    device = bill.prediction.device
    title = device.title if device.num_devices == 1 else f"{device.num_devices} x {device.title}"
    console.print(f"\nbill on {visible(title)}", style="bold", soft_wrap=True)
    show_memory(console, bill)
    rows = [("time", time_line(bill)), ("speed", _speed(bill)), ("money", money_line(bill)), ("power", _power(bill))]
    rows += [("people", line) for line in _people(bill)]
    rows.append(("room", _room(bill)))
    facts(console, rows)
    for note in bill.prediction.notes:
        console.print(f"note: {visible(note)}", soft_wrap=True)
    if not bill.prediction.fits:
        show_changes(console, bill.changes)


def show_memory(console: Console, bill: Bill) -> None:
    """The peak of memory, part by part with bars, and whether it fits."""
    prediction, memory = bill.prediction, bill.prediction.peak_memory
    each = " on each device" if prediction.device.num_devices > 1 else ""
    word = "fits" if prediction.fits else "does not fit"
    total = figures.between(memory.total_bytes, _size)
    console.print(f"memory  {total}{each} of {_size(prediction.device.memory_bytes)}: {word}", soft_wrap=True)
    mark, little = ("\u2588", "\u258f") if console.encoding.lower().startswith("utf") else ("#", ".")
    largest = max(memory.parts().values())
    for name, num_bytes in memory.parts().items():
        if num_bytes:
            bar = mark * round(num_bytes / largest * _BAR_WIDTH) or little
            console.print(f"  {name:<12}{_size(num_bytes):>9}  {bar}", soft_wrap=True)


def time_line(bill: Bill) -> str:
    """Hours and what they are made of: `42 min (30 min to 1 h): 180 steps of 12 s, validations 2 min, ...`."""
    prediction = bill.prediction
    step = figures.between(prediction.step_seconds, figures.duration)
    parts = [f"{prediction.num_steps:,} steps of {step}"]
    for name in ("validations", "checkpoints"):
        if bill.hours_by_part[name].value:
            parts.append(f"{name} {figures.duration(bill.hours_by_part[name].value * 3600)}")
    return f"{figures.between(prediction.hours.times(3600), figures.duration)}: {', '.join(parts)}"


def money_line(bill: Bill) -> str:
    """USD, the price behind it, where that price is from, and of which day."""
    assert bill.prediction.usd is not None, "a bill has a price"
    market = "on demand" if bill.market == "on_demand" else "spot"
    each = " a device" if bill.prediction.device.num_devices > 1 else ""
    price = figures.between(bill.usd_per_hour, figures.usd)
    return (
        f"{figures.between(bill.prediction.usd, figures.usd)} rented, {market}, at {price} an hour{each} "
        f"({_BASIS[bill.price_basis]}, {bill.price_as_of.isoformat()})"
    )


def show_changes(console: Console, changes: Sequence[Change]) -> None:
    """What makes it fit, the least given up first."""
    from luthier.cli.console import visible

    if not changes:
        console.print("nothing that is known here makes it fit", soft_wrap=True)
        return
    console.print("to make it fit, cheapest first:", soft_wrap=True)
    for place, change in enumerate(changes, start=1):
        usd = "" if change.usd is None else f", {figures.between(change.usd, figures.usd)}"
        cost = f"{figures.between(change.hours.times(3600), figures.duration)}{usd}"
        memory = figures.between(change.peak_memory_bytes, _size)
        console.print(f"  {place}. {visible(change.words)}: {cost}, {memory}", soft_wrap=True)
        if change.ask:
            console.print(f"     {change.ask}", soft_wrap=True)


def show_options(console: Console, options: Sequence[Option]) -> None:
    """The comparison as a table; what does not fit, and what is too far down, is counted below it."""
    from luthier.cli.console import make_table, visible

    table = make_table(["method", "device", "fits", "hours", "USD", "energy kWh"], num_text_columns=3)
    fitting = [option for option in options if option.fits]
    for option in fitting[:_NUM_OPTIONS_SHOWN]:
        made = option.prediction
        table.add_row(
            option.method,
            option.device,
            f"with {option.needs}" if option.needs else "as it is",
            figures.between(made.hours, figures.short),
            "-" if made.usd is None else figures.between(made.usd, figures.short),
            "-" if made.energy_kwh is None else figures.between(made.energy_kwh, figures.short),
        )
    console.print(table)
    if len(fitting) > _NUM_OPTIONS_SHOWN:
        console.print(f"{len(fitting) - _NUM_OPTIONS_SHOWN:,} dearer ones that fit: see --json", soft_wrap=True)
    lacking: dict[str, list[str]] = {}
    for option in options:
        if not option.fits:
            lacking.setdefault(option.method, []).append(option.device)
    for method, names in lacking.items():
        console.print(f"{method} does not fit on {visible(', '.join(names))}", soft_wrap=True)
    for note in dict.fromkeys(note for option in options for note in option.prediction.notes if "price" in note):
        console.print(f"note: {visible(note)}", soft_wrap=True)


def bill_lines(bill: Bill | str) -> list[str]:
    """The bill in three lines, for the plan that `luthier train` shows; or why there is none."""
    if isinstance(bill, str):
        return [f"  {bill}"]
    prediction = bill.prediction
    memory = figures.between(prediction.peak_memory.total_bytes, _size)
    basis = "probed" if prediction.calibrated else "no probe yet, `luthier plan RECIPE --probe` narrows this"
    lines = [
        f"  predicted  {time_line(bill)} ({basis})",
        f"  memory     {memory} of {_size(prediction.device.memory_bytes)}",
        f"  money      {money_line(bill)}",
    ]
    if not prediction.fits:
        first = bill.changes[0] if bill.changes else None
        lines[1] += ": does not fit" + (f"; try {first.words}: {first.ask}" if first else "")
    return lines


def _speed(bill: Bill) -> str:
    tokens = figures.between(bill.prediction.tokens_per_second, lambda rate: f"{figures.number(rate)} tokens/s")
    return f"{tokens}; {figures.count(bill.num_tokens)} tokens in all"


def _power(bill: Bill) -> str:
    energy = bill.prediction.energy_kwh
    if energy is None or bill.electricity_usd is None:
        return "not known for this device"
    own = figures.between(bill.electricity_usd, figures.usd)
    return f"{figures.between(energy, lambda kwh: f'{figures.short(kwh)} kWh')}: {own} where the machine is your own"


def _people(bill: Bill) -> list[str]:
    lines = [
        f"{work.kind.replace('_', ' ')} of {bill.num_rows:,} rows, if done by hand: "
        f"{figures.between(work.hours, lambda hours: f'{figures.short(hours)} h')}, "
        f"{figures.between(work.usd, figures.usd)}"
        for work in bill.people
    ]
    return [*lines, "at assumed rates, and not part of the money above: put in your own with --prices"]


def _room(bill: Bill) -> str:
    room = bill.room
    if not room.longest_row_tokens:
        return "none: not even one row fits"
    rows = f"{room.micro_batch_rows:,} of the longest rows ({room.length_tokens:,} tokens) in one micro-batch"
    return f"{rows}; one row of up to {room.longest_row_tokens:,} tokens alone"


def _size(num_bytes: float) -> str:
    return figures.size(round(num_bytes))
