"""How a run fitted its rows, and what to do about it, as text."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from luthier.core.fit import Fit

_STYLES = {"overfitted": "yellow", "unstable": "yellow", "still_learning": "yellow", "settled": "green"}


def show_fit(console: Console, fit: Fit) -> None:
    """The finding with its numbers, then what to do, each with what asks for it."""
    console.print(
        Text.assemble((f"{fit.title}. ", f"bold {_STYLES.get(fit.kind, '')}".strip()), fit.seen), soft_wrap=True
    )
    for number, remedy in enumerate(fit.remedies, start=1):
        asks = f"  [{' '.join(f'--set {setting}' for setting in remedy.settings)}]" if remedy.settings else ""
        console.print(Text.assemble(f"  {number}. {remedy.text}", (asks, "dim")), soft_wrap=True)
