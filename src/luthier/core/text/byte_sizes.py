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


def size(num_bytes: int) -> str:
    """`3.5 GiB`, `98 MiB`, `12 KiB`, `5 B`."""
    for limit, unit in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if num_bytes >= limit:
            amount = num_bytes / limit
            return f"{amount:.1f} {unit}" if amount < 10 else f"{amount:,.0f} {unit}"
    return f"{num_bytes} B"


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
