"""Numbers, times, sizes, names and facts, formatted for readers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from luthier.core.text import byte_sizes

if TYPE_CHECKING:
    from luthier.core.evaluation import Metric

MINUS: Final = "\N{MINUS SIGN}"
THIN: Final = "\N{NARROW NO-BREAK SPACE}"
NO_BREAK: Final = "\N{NO-BREAK SPACE}"
_MAX_DECIMALS: Final = 5


def decimals_for(low: float, high: float) -> int:
    """How many decimals an interval deserves: its width to two significant digits, 2 where it has no width."""
    width = abs(high - low)
    if width == 0:
        return 2
    return min(_MAX_DECIMALS, max(0, 1 - math.floor(math.log10(width))))


def number(value: float, decimals: int) -> str:
    """A number with thousands separators and a true minus sign; minus zero is zero."""
    text = f"{value:,.{decimals}f}"
    if text.startswith("-"):
        # "-0.00" is what rounding leaves of a small negative number.
        text = text[1:] if float(text.replace(",", "")) == 0 else MINUS + text[1:]
    return text


def signed(value: float, decimals: int) -> str:
    """A difference: always with its sign, zero without."""
    text = number(value, decimals)
    return text if text.startswith(MINUS) or float(text.replace(",", "")) == 0 else f"+{text}"


def interval(low: float, high: float, decimals: int) -> str:
    """A 95% interval in brackets."""
    return f"[{number(low, decimals)}, {number(high, decimals)}]"


def common_decimals(metrics: Sequence[Metric]) -> int:
    """One number of decimals for a metric over several systems: what the narrowest interval deserves."""
    return max((decimals_for(m.low, m.high) for m in metrics if m.low != m.high), default=2)


def p_value(value: float) -> str:
    """A p-value; below 0.001 only that."""
    return f"<{NO_BREAK}0.001" if value < 0.001 else f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


def count(value: int) -> str:
    """A whole number with thousands separators."""
    return f"{value:,}"


def short_count(value: float) -> str:
    """A large number in three digits: 4.88 million."""
    for limit, word in ((1e9, "billion"), (1e6, "million")):
        # 999,500,000 has three digits as a billion only: as millions it would be 1e+03.
        if value >= 0.9995 * limit:
            return f"{value / limit:.3g}{NO_BREAK}{word}"
    return f"{value:,.0f}"


def percent(fraction: float) -> str:
    """A fraction as a percentage with three significant digits."""
    return f"{100 * fraction:.3g}{THIN}%"


def speed(value: float) -> str:
    """A rate: whole numbers from 100 on, three significant digits below."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def rough(value: float) -> str:
    """Any number in three significant digits, without an exponent for the usual sizes."""
    return (
        number(value, 0)
        if abs(value) >= 100
        else f"{value:.3g}".replace("-", MINUS, 1)
        if value < 0
        else f"{value:.3g}"
    )


def energy(kwh: float, largest: float | None = None) -> str:
    """Energy in Wh, and from a tenth of a kWh on in kWh.

    Args:
        kwh: The energy.
        largest: The upper end of the interval that it belongs to, which decides the unit: an interval has one.
    """
    if (kwh if largest is None else largest) >= 0.1:
        return f"{rough(kwh)}{NO_BREAK}kWh"
    # Three digits of millionths would be no more than noise, and have an exponent.
    return f"{rough(1000 * kwh)}{NO_BREAK}Wh" if kwh == 0 or 1000 * kwh >= 0.01 else "under 0.01 Wh"


def with_spaces(text: str) -> str:
    """A figure for a terminal, a sentence or JSON: with ordinary spaces, which it may be broken at and searched by."""
    return text.replace(NO_BREAK, " ")


def duration(seconds: float) -> str:
    """Seconds as a person says them: <0.01 s, 0.04 s, 0.8 s, 42 s, 6 min 12 s, 3 h 05 min."""
    if 0 < seconds < 0.01:
        # Of a baseline that answers in milliseconds "0.0 s" would read as if it had not been measured.
        return f"<0.01{NO_BREAK}s"
    if seconds < 10:
        # One decimal would make 0.0 s of the few hundredths that a baseline takes.
        return f"{seconds:.2g}{NO_BREAK}s" if 0.01 <= seconds < 0.995 else f"{seconds:.1f}{NO_BREAK}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}{NO_BREAK}s"
    if whole < 3600:
        return f"{whole // 60}{NO_BREAK}min {whole % 60:02d}{NO_BREAK}s"
    minutes = round(seconds / 60)
    return f"{minutes // 60:,}{NO_BREAK}h {minutes % 60:02d}{NO_BREAK}min"


def size(num_bytes: float, beside: float | None = None, *, in_decimal: bool = False) -> str:
    """Bytes in the unit that fits, as `core.text.byte_sizes.size` writes them: 2.64 GB, 8 GiB.

    Args:
        num_bytes: What is written.
        beside: What it is compared with in the same place; in binary units where that is written in them.
        in_decimal: Never in binary units: for a column of predictions, of which some are whole in them by chance.
    """
    return byte_sizes.size(num_bytes, beside, in_decimal=in_decimal).replace(" ", NO_BREAK)


def when(iso: str) -> str:
    """An ISO 8601 time as `25 November 2026, 09:30 UTC`."""
    time = datetime.fromisoformat(iso)
    zone = "UTC" if time.utcoffset() is None else time.strftime("%Z")
    return f"{time.day} {time:%B %Y, %H:%M} {zone}"


def short_digest(digest: str) -> str:
    """The first twelve digits: enough to compare by eye."""
    return digest[:12]


def plain(value: Any) -> str:
    """A value of the plan on one line."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return count(value)
    if isinstance(value, float):
        return number(value, 0) if value.is_integer() and abs(value) < 1e15 else f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(plain(item) for item in value) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{name} {plain(part)}" for name, part in value.items() if part is not None) or "none"
    return str(value)


@dataclass(frozen=True, slots=True)
class Fact:
    """A name, its value as text, and a smaller note."""

    name: str
    value: str
    note: str = ""
