"""Calibrations as text: the judge's agreement with people, next to that between people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rich import box
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from luthier.core.estimate import Estimate
from luthier.core.records.calibration import LOWEST_KAPPA, Calibration
from luthier.core.text.counted import counted
from luthier.platform.cli.console import make_table, visible

_LOW, _HIGH, _CELLS = -0.2, 1.0, 48
_PANEL_WIDTH: Final = 100
_PREFERENCES: Final = {"a": "first is better", "tie": "tie", "b": "second is better"}


def show_calibration(console: Console, found: Calibration) -> None:
    """One target: the figures as bars on one scale, the ratings, and whether the judge may be used in a gate."""
    people = counted(found.num_raters, "person", "people")
    rated = f"{counted(found.num_ratings, 'rating')} by {people} of {visible(found.source)}"
    console.print(Text(f"{visible(found.judge)} against people: {found.target}", style="bold"), soft_wrap=True)
    console.print(f"{found.calibration_id}: {counted(found.num_items, 'item')}, {rated}\n", soft_wrap=True)
    is_plain = not console.encoding.lower().startswith("utf")
    rows = [
        (f"{found.measure}: judge with people", found.agreement),
        (f"{found.measure}: one person with the others", found.people),
        ("alpha of the people", found.alpha),
    ]
    if found.target != "preference":
        rows.insert(1, ("rank correlation: judge with people", found.correlation))
    width = max(len(name) for name, _ in rows)
    console.print(Text(f"{'':<{width}}  {_axis()}"), soft_wrap=True)
    for name, estimate in rows:
        console.print(Text(f"{name:<{width}}  {_bar(estimate, is_plain)}  {_words(estimate)}"), soft_wrap=True)
    _show_table(console, found)
    console.print(_verdict(console, found, is_plain))


def show_list(console: Console, found: Sequence[Calibration]) -> None:
    """One line each."""
    if not found:
        console.print("no judge was compared with people yet: luthier judge calibrate --help")
        return
    table = make_table(["judge", "in", "gate", "when", "items", "agreement"], num_text_columns=4)
    for one in found:
        gate = Text("may enter" if one.may_enter_gate else "may not", style="green" if one.may_enter_gate else "red")
        agreement = f"{one.measure} {_words(one.agreement)}"
        table.add_row(visible(one.judge), one.target, gate, one.created_at, f"{one.num_items:,}", agreement)
    console.print(table)


def _show_table(console: Console, found: Calibration) -> None:
    names = [_PREFERENCES.get(label, label) for label in found.table.labels]
    table = make_table(["people say", *(f"judge: {name}" for name in names), "no verdict"])
    for name, counts in zip(names, found.table.counts, strict=True):
        table.add_row(name, *(f"{count:,}" if count else "-" for count in counts))
    console.print(table)


def _verdict(console: Console, found: Calibration, is_plain: bool) -> Panel:
    title = "May enter a gate" if found.may_enter_gate else "May not enter a gate"
    text = Text("\n".join(visible(reason) for reason in found.reasons), style="bold")
    for line in found.cautions:
        text.append(f"\nNote: {visible(line)}", style="not bold yellow")
    return Panel(
        text,
        title=title,
        border_style="green" if found.may_enter_gate else "red",
        width=min(console.width, _PANEL_WIDTH),
        box=box.ASCII if is_plain else box.ROUNDED,
    )


def _axis() -> str:
    """Figures above the cells that they belong to."""
    line = [" "] * (_CELLS + 3)
    for value in (0.0, LOWEST_KAPPA, 1.0):
        text = f"{value:g}"
        place = _cell(value)
        line[place : place + len(text)] = text
    return "".join(line).rstrip().ljust(_CELLS)


def _bar(estimate: Estimate | None, is_plain: bool) -> str:
    """The interval as a line with the figure in it; with the bound that it must exceed."""
    rest, mark, line, point = (".", "|", "-", "o") if is_plain else ("\u00b7", "\u2502", "\u2501", "\u25cf")
    cells = [rest] * _CELLS
    cells[_cell(LOWEST_KAPPA)] = mark
    if estimate is not None:
        low, high = _cell(estimate.low), _cell(estimate.high)
        cells[low : high + 1] = [line] * (high + 1 - low)
        cells[_cell(estimate.value)] = point
    return "".join(cells)


def _cell(value: float) -> int:
    share = (min(max(value, _LOW), _HIGH) - _LOW) / (_HIGH - _LOW)
    return round(share * (_CELLS - 1))


def _words(estimate: Estimate | None) -> str:
    if estimate is None:
        return "cannot be told"
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"
