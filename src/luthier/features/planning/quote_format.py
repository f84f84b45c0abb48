"""A quote as a person reads it: memory part by part, time, money, power, people, what fits and what would."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from luthier.platform.cli import figures

if TYPE_CHECKING:
    from rich.console import Console

    from luthier.core.cost import Change, Option, Quote

_BAR_WIDTH: Final = 32
_NUM_OPTIONS_SHOWN: Final = 20
_MAX_TOKENS_TRIED: Final = 1 << 24
NOT_IN_IT: Final = "starting a machine and fetching the base model are not in time or money"
_BASIS: Final = {
    "list_prices": "public list prices",
    "typical_range": "a typical range",
    "assumption": "an assumption",
    "own": "your own price",
}


def show_quote(console: Console, quote: Quote) -> None:
    """Print the whole quote."""
    from luthier.platform.cli.console import facts, visible

    device = quote.prediction.device
    title = device.title if device.num_devices == 1 else f"{device.num_devices} x {device.title}"
    console.print(f"\nquote for {visible(title)}", style="bold", soft_wrap=True)
    show_memory(console, quote)
    rows = [
        ("time", time_line(quote)),
        ("speed", _speed(quote)),
        ("money", money_line(quote)),
        ("power", _power(quote)),
    ]
    rows += [("people", line) for line in _people(quote)]
    rows.append(("room", _room(quote)))
    facts(console, rows)
    for note in (NOT_IN_IT, *quote.prediction.notes):
        console.print(f"note: {visible(note)}", soft_wrap=True)
    if not quote.prediction.fits:
        show_changes(console, quote.changes)


def show_memory(console: Console, quote: Quote) -> None:
    """The peak of memory, part by part with bars, and whether it fits."""
    prediction, memory = quote.prediction, quote.prediction.peak_memory
    each = " on each device" if prediction.device.num_devices > 1 else ""
    word = "fits" if prediction.fits else "does not fit"
    total = figures.between(memory.total_bytes, _size)
    console.print(f"memory  {total}{each} of {_size(prediction.device.memory_bytes)}: {word}", soft_wrap=True)
    # Other encodings lack the blocks, and printing them would raise.
    mark, little = ("\u2588", "\u258f") if console.encoding.lower().startswith("utf") else ("#", ".")
    # Bars are relative to the largest part, not to the device, so that small models show bars as well.
    largest = max(memory.parts().values())
    for name, num_bytes in memory.parts().items():
        if num_bytes:
            # A part that rounds to no mark at all still shows a sliver.
            bar = mark * round(num_bytes / largest * _BAR_WIDTH) or little
            console.print(f"  {name:<12}{_size(num_bytes):>9}  {bar}", soft_wrap=True)


def time_line(quote: Quote) -> str:
    """Hours and what they are made of: `42 min (30 min to 1 h): 180 steps of 12 s, validations 2 min, ...`."""
    prediction = quote.prediction
    step = figures.between(prediction.step_seconds, figures.duration)
    parts = [f"{prediction.num_steps:,} steps of {step}"]
    for name in ("reference", "teacher", "validations", "checkpoints", "judging"):
        if name in quote.hours_by_part and quote.hours_by_part[name].value:
            parts.append(f"{name} {figures.duration(quote.hours_by_part[name].value * 3600)}")
    return f"{figures.between(prediction.hours.times(3600), figures.duration)}: {', '.join(parts)}"


def money_line(quote: Quote) -> str:
    """USD, the price behind it, where that price is from, and of which day."""
    # Predictions of a comparison may lack one; `quote_of` refuses devices without.
    assert quote.prediction.usd is not None, "a quote has a price"
    market = "on demand" if quote.market == "on_demand" else "spot"
    each = " a device" if quote.prediction.device.num_devices > 1 else ""
    price = figures.between(quote.usd_per_hour, figures.usd)
    return (
        f"{figures.between(quote.prediction.usd, figures.usd)} rented, {market}, at {price} an hour{each} "
        f"({_BASIS[quote.price_basis]}, {quote.price_as_of.isoformat()})"
    )


def load_lines(quote: Quote) -> list[str]:
    """How busy this machine is while the prediction is made; nothing on a quiet one, or for another device."""
    load = quote.prediction.load
    if load is None or load.slowdown <= 1:
        return []
    return [
        f"  load       other processes use {load.busy_cores:.1f} of {load.num_cores} cores now: if that goes on, up to "
        f"{figures.duration(quote.prediction.hours.high * 3600)}"
    ]


def show_changes(console: Console, changes: Sequence[Change]) -> None:
    """What makes it fit, the least given up first."""
    from luthier.platform.cli.console import visible

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
    """The comparison as a table, this machine always in it; what does not fit, or is too far down, is told below it."""
    from luthier.platform.cli.console import make_table, visible

    table = make_table(["method", "device", "fits", "time", "USD", "energy kWh"], num_text_columns=3)
    # They come cheapest first.
    fitting = [option for option in options if option.fits]
    shown = [o for place, o in enumerate(fitting) if place < _NUM_OPTIONS_SHOWN or o.prediction.device.is_cpu]
    for option in shown:
        made = option.prediction
        table.add_row(
            option.method,
            option.device,
            f"with {option.needs}" if option.needs else "as it is",
            figures.between(made.hours.times(3600), figures.duration),
            "-" if made.usd is None else figures.between(made.usd, figures.short),
            "-" if made.energy_kwh is None else figures.between(made.energy_kwh, figures.short),
        )
    console.print(table)
    if len(fitting) > len(shown):
        console.print(f"{len(fitting) - len(shown):,} dearer ones that fit: see --json", soft_wrap=True)
    # By method: one line for each instead of one for each pair.
    lacking: dict[str, list[str]] = {}
    for option in options:
        if not option.fits:
            lacking.setdefault(option.method, []).append(option.device)
    for method, names in lacking.items():
        console.print(f"{method} does not fit on {visible(', '.join(names))}", soft_wrap=True)
    console.print(f"note: {NOT_IN_IT}", soft_wrap=True)
    # Notes repeat from option to option; `dict.fromkeys` keeps each once, in order.
    for note in dict.fromkeys(note for option in options for note in option.prediction.notes if "price" in note):
        console.print(f"note: {visible(note)}", soft_wrap=True)


def quote_lines(quote: Quote | str) -> list[str]:
    """The quote in three lines, for the plan that `luthier train` shows; or why there is none."""
    if isinstance(quote, str):
        return [f"  {quote}"]
    prediction = quote.prediction
    memory = figures.between(prediction.peak_memory.total_bytes, _size)
    basis = "probed" if prediction.calibrated else "no probe yet, `luthier plan RECIPE --probe` narrows this"
    lines = [
        f"  predicted  {time_line(quote)} ({basis})",
        *load_lines(quote),
        f"  memory     {memory} of {_size(prediction.device.memory_bytes)}",
        f"  money      {money_line(quote)}",
    ]
    if not prediction.fits:
        first = quote.changes[0] if quote.changes else None
        lines[-2] += ": does not fit" + (f"; try {first.words}: {first.ask}" if first else "")
    return lines


def _speed(quote: Quote) -> str:
    tokens = figures.between(quote.prediction.tokens_per_second, lambda rate: f"{figures.number(rate)} tokens/s")
    return f"{tokens}; {figures.count(quote.num_tokens)} tokens in all"


def _power(quote: Quote) -> str:
    energy = quote.prediction.energy_kwh
    if energy is None or quote.electricity_usd is None:
        return "not known for this device"
    own = figures.between(quote.electricity_usd, figures.usd)
    return f"{figures.between(energy, lambda kwh: f'{figures.short(kwh)} kWh')}: {own} where the machine is your own"


def _people(quote: Quote) -> list[str]:
    lines = [
        f"{work.kind.replace('_', ' ')} of {quote.num_rows:,} rows, if done by hand: "
        f"{figures.between(work.hours, lambda hours: f'{figures.short(hours)} h')}, "
        f"{figures.between(work.usd, figures.usd)}"
        for work in quote.people
    ]
    return [*lines, "at assumed rates, and not part of the money above: put in your own with --prices"]


def _room(quote: Quote) -> str:
    room = quote.room
    if not room.longest_row_tokens:
        return "none: not even one row fits"
    rows = f"{room.micro_batch_rows:,} of the longest rows ({room.length_tokens:,} tokens) in one micro-batch"
    more = " or more" if room.longest_row_tokens >= _MAX_TOKENS_TRIED else ""
    return f"{rows}; one row of up to {room.longest_row_tokens:,} tokens{more} alone"


def _size(num_bytes: float) -> str:
    return figures.size(round(num_bytes))
