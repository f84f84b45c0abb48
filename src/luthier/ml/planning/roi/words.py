"""Sums, shares and times of a case as a person reads them."""

from __future__ import annotations

import math
from typing import Final

from luthier.core.results.roi_result import Kind
from luthier.ml.charts.figures import MINUS

MIDDLE: Final = {
    "tuned": "the tuned model",
    "better_prompt": "a better prompt",
    "few_shot": "few-shot examples in the prompt",
    "bigger_model": "a bigger model",
    "without_model": "a way without a language model",
}


def three_digits(value: float) -> str:
    """Three significant digits with separators, never an exponent: 12,300, 0.0123, 0."""
    if value == 0:
        return "0"
    size = math.floor(math.log10(abs(value)))
    rounded = round(value, 2 - size)
    decimals = max(0, 2 - math.floor(math.log10(abs(rounded)))) if rounded else 0
    text = f"{abs(rounded):,.{min(decimals, 9)}f}"
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return f"{MINUS}{text}" if rounded < 0 else text


def money(value: float, currency: str) -> str:
    """`12,300 USD`."""
    return f"{three_digits(value)} {currency}"


def points(value: float) -> str:
    """A difference of fractions in percentage points: `+4.2 points`."""
    return f"{'+' if value > 0 else ''}{three_digits(100 * value)} points"


def share(value: float) -> str:
    """A fraction in per cent, one decimal where small."""
    return f"{three_digits(100 * value)}%"


def probability(value: float) -> str:
    """A share of draws: `under 1%`, `63%`, `over 99%`."""
    return "under 1%" if value < 0.01 else "over 99%" if value > 0.99 else f"{100 * value:.0f}%"


def below(value: float, limit: float) -> str:
    """A share of draws that falls short of a limit, never rounded to it: `89.6%` where 90% is required."""
    if value < limit and round(value, 2) >= limit:
        return f"{math.floor(1000 * value + 1e-9) / 10:.1f}%"
    return probability(value)


def months(value: float | None) -> str:
    """`3.4 months`, `1 month`, `never`."""
    if value is None or math.isinf(value):
        return "never"
    text = f"{value:,.1f}".removesuffix(".0") if value < 99.95 else f"{value:,.0f}"
    return f"{text} {'month' if text == '1' else 'months'}"


def of_kind(value: float, kind: Kind, currency: str) -> str:
    """A figure as its kind is written."""
    match kind:
        case "money":
            return money(value, currency)
        case "share":
            return share(value)
        case "gain":
            return points(value)
        case "number":
            return three_digits(value)
