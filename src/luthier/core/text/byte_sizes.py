"""Sizes in bytes as people write and read them."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Final

from luthier.core.errors import RequestError

_UNITS: Final = {"": 1, "b": 1} | {
    name: base**power
    for power, letter in enumerate("kmgtp", start=1)
    for name, base in ((f"{letter}ib", 1024), (f"{letter}b", 1000))
}
_SIZE: Final = re.compile(r"(\d{1,19}(?:\.\d{1,6})?)\s*([a-z]*)", re.IGNORECASE)
_MOST: Final = 1 << 60
_DECIMAL_UNITS: Final = ("B", "kB", "MB", "GB", "TB")
_BINARY_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB")


def size(num_bytes: float, beside: float | None = None, *, in_decimal: bool = False) -> str:
    """Bytes in the unit that fits: 2.64 GB; 8 GiB where a binary unit writes them exactly, as it does most limits.

    Args:
        num_bytes: What is written.
        beside: What it is compared with in the same place; in binary units where that is written in them.
        in_decimal: Never in binary units: for a column of predictions, of which some are whole in them by chance.
    """
    whole = round(num_bytes if beside is None else beside)
    base, units = (1024, _BINARY_UNITS) if _is_binary(whole) and not in_decimal else (1000, _DECIMAL_UNITS)
    value = float(num_bytes)
    for unit in units:
        # 999.5 and more would be shown as 1e+03 with three digits.
        if value < (base - 0.5 if base > 1000 else 999.5) or unit == units[-1]:
            break
        value /= base
    digits = f"{value:.3g}" if value < 999.5 else f"{value:,.0f}"
    return f"{digits} {unit}"


def _is_binary(num_bytes: int) -> bool:
    """Whether three digits of a binary unit write a size exactly; below a MiB powers of two alone, since files are
    multiples of a few hundred bytes by chance.
    """
    if num_bytes < 1 << 10 or num_bytes & (num_bytes - 1) == 0:
        return num_bytes >= 1 << 10
    unit = next((one for one in (1 << 40, 1 << 30, 1 << 20) if num_bytes >= one), 0)
    return unit > 0 and float(f"{num_bytes / unit:.3g}") * unit == num_bytes


def exact_size(num_bytes: int) -> str:
    """The size as `bytes_of` reads it again: `20 GiB` where that is exact, else `1500 MB`, else `1048577`."""
    for unit in ("PiB", "TiB", "GiB", "MiB", "PB", "TB", "GB", "MB"):
        if num_bytes and num_bytes % _UNITS[unit.lower()] == 0:
            return f"{num_bytes // _UNITS[unit.lower()]} {unit}"
    return str(num_bytes)


def bytes_of(text: str) -> int:
    """The number of bytes of a size such as `20 GiB`, `500MB` or `1048576`.

    Raises:
        RequestError: It is no such size, or one above an exbibyte.
    """
    found = _SIZE.fullmatch(text.strip())
    unit = _UNITS.get(found[2].lower()) if found else None
    # Decimal: 0.1 TB has a whole number of bytes, a float would have more digits than were written.
    num_bytes = int(Decimal(found[1]) * unit) if found and unit else -1
    if not 0 <= num_bytes <= _MOST:
        raise RequestError(
            f"the size {text[:40]!r}",
            expected="a number with a unit, such as 20 GiB, 500 MB or 1048576 (bytes)",
            do="correct it",
        )
    return num_bytes
