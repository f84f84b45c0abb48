"""Advice as a person reads it: what to take, why, and the others beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from luthier.platform.cli import figures

if TYPE_CHECKING:
    from rich.console import Console

    from luthier.core.records.advice import Advice


def show_advice(console: Console, advice: Advice) -> None:
    """Print the whole of it."""
    from luthier.platform.cli.console import make_table, visible

    console.print(f"\nadvice: {visible(advice.headline)}", style="bold", soft_wrap=True)
    for reason in advice.reasons:
        console.print(f"  {visible(reason)}", soft_wrap=True)
    if advice.ask:
        console.print(f"  ask for it with: {advice.ask}", soft_wrap=True)
    table = make_table(["method", "verdict", "hours", "USD", "kWh", "peak memory", "why"], num_text_columns=7)
    for one in advice.methods:
        table.add_row(
            one.title,
            one.word,
            figures.between(one.hours, figures.number),
            figures.between(one.usd, figures.number) if one.usd else "-",
            figures.between(one.energy_kwh, figures.number) if one.energy_kwh else "-",
            figures.between(one.peak_memory_bytes, lambda value: figures.size(round(value))),
            visible(one.why + (f"; needs {one.needs}" if one.needs else "")),
        )
    console.print(table)
