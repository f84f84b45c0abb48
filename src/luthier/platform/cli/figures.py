"""Figures as commands show them; those of pages and reports are in `ml/charts/figures.py`."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from luthier.core.text.byte_sizes import size as size

if TYPE_CHECKING:
    from luthier.core.estimate import Estimate

_LEAST = 0.0001


def count(number: int | float) -> str:
    """`1,234`; from a million on `135.0M`."""
    # From 999,950,000 on millions would be shown as 1,000.0M.
    for least, limit, letter in ((0.99995e9, 1e9, "B"), (1e6, 1e6, "M")):
        if abs(number) >= least:
            return f"{number / limit:,.1f}{letter}"
    return f"{number:,.0f}"


def duration(seconds: float) -> str:
    """`0.25 s`, `42 s`, `3 min 05 s`, `2 h 10 min`."""
    if seconds < 10:
        # Steps of a small model take milliseconds, which pages and reports do not show.
        return f"{seconds:.2g} s"
    # Here, and not with the module: what shows no time starts without it.
    from luthier.ml.charts import figures

    return figures.with_spaces(figures.duration(seconds))


def utc(moment: float, *, is_exact: bool = False) -> str:
    """`2026-11-25 09:30`, exact `2026-11-25 09:30:12`: seconds since 1970 as a time in UTC; say so beside it."""
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M:%S" if is_exact else "%Y-%m-%d %H:%M")


def usd(amount: float) -> str:
    """`<0.0001 USD`, `0.0034 USD`, `0.23 USD`, `18.78 USD`, `8,000 USD`: cents where they count."""
    if 0 < amount < _LEAST:
        return f"<{_LEAST} USD"
    return f"{amount:,.0f} USD" if amount >= 100 else f"{amount:.2f} USD" if amount >= 0.1 else f"{amount:.2g} USD"


def between(estimate: Estimate, form: Callable[[float], str]) -> str:
    """`42 s (30 s to 1 min 02 s)`: an estimate with its range, each figure in the given form; an exact one alone."""
    value, low, high = form(estimate.value), form(estimate.low), form(estimate.high)
    if low == value == high:
        return value
    unit = value.rpartition(" ")[2]
    # `1 min 02 s` has two units: there the unit of the ends must stay.
    if all(text.endswith(f" {unit}") and text.count(" ") == 1 for text in (value, low, high)):
        low = low.removesuffix(f" {unit}")
    return f"{value} ({low} to {high})"


def short(value: float) -> str:
    """Two significant digits below ten, whole numbers from there on: `<0.0001`, `0.034`, `2.4`, `18`, `1,234`."""
    if 0 < value < _LEAST:
        return f"<{_LEAST}"
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def number(value: float | None) -> str:
    """Four significant digits; a dash for none."""
    return "-" if value is None else f"{value:.4g}" if abs(value) < 10_000 else f"{value:,.0f}"


def plain(value: Any) -> str:
    """A value of a plan or a result in one cell: lists by commas, whole numbers with separators, a dash for none."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return number(value)
    if isinstance(value, (list, tuple)):
        return ", ".join(plain(item) for item in value)
    if isinstance(value, dict):
        return ", ".join(f"{name}={plain(item)}" for name, item in value.items())
    return str(value)
