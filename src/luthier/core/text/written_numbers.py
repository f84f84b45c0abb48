"""Numbers as answers write them: `12`, `$1,234.50`, `3 kg`, and `1e-05` as programs write small ones."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Final, NamedTuple

from luthier.core.task_head import NumberFormat

NUMBER: Final = re.compile(r"[-+\u2212]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?")
_EXPONENT: Final = r"(?:[eE][-+]?\d{1,4})?"
# `.5` is a half; the point of an abbreviation (`Nr.5`) is none of the number.
_WHOLE: Final = rf"(?:(?<!\.)|(?<=[^\W\d_]\.)){NUMBER.pattern}"
_FRACTION: Final = r"[-+\u2212]?(?<![^\W\d_])(?<!\.)\.\d+"
_SHAPE: Final = re.compile(
    r"\s*(?P<before>[^\d\s+\u2212-]{0,8}\s*)"
    rf"(?P<number>(?:{_WHOLE}|{_FRACTION}){_EXPONENT})(?P<after>\s*\D{{0,20}}?)\s*"
)
_MOST_DECIMALS: Final = 340
"""A float holds no smaller digits."""


class WrittenNumber(NamedTuple):
    """A number as an answer writes it: `$1,234.50` or `12 kg`."""

    before: str
    value: float
    decimals: int
    after: str
    has_commas: bool


def number_format(written: Sequence[WrittenNumber]) -> NumberFormat:
    """How most of these numbers are written, of which there is at least one."""
    before, after = Counter((one.before, one.after) for one in written).most_common(1)[0][0]
    decimals = Counter(one.decimals for one in written).most_common(1)[0][0]
    return NumberFormat(
        before=before, after=after, decimals=decimals, has_commas=any(one.has_commas for one in written)
    )


def write_number(value: float, form: NumberFormat) -> str:
    """The number as answers write it: decimals, unit, thousands separators."""
    # + 0.0 behind the rounding: a small negative number must not become "-0".
    rounded = round(value, form.decimals) + 0.0
    return f"{form.before}{rounded:{',' if form.has_commas else ''}.{form.decimals}f}{form.after}"


def read_number(answer: str) -> WrittenNumber | None:
    """The number that an answer consists of, with at most a short unit; None for any other text.

    Digits that are more than a float holds (over 1.8e308) are no number.
    """
    match = _SHAPE.fullmatch(answer)
    if match is None:
        return None
    number = match["number"].replace("\u2212", "-")
    mantissa, _, exponent = number.lower().partition("e")
    _, _, fraction = mantissa.partition(".")
    value = float(number.replace(",", ""))
    if not math.isfinite(value):
        return None
    # 2.5e-05 has as many decimals as 0.000025.
    decimals = min(max(0, len(fraction) - int(exponent or 0)), _MOST_DECIMALS)
    return WrittenNumber(match["before"], value, decimals, match["after"].rstrip(), "," in number)
