"""Numbers as answers write them: `12`, `$1,234.50`, `3 kg`, `.5`, and `1e-05` as programs write small ones."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Final, NamedTuple

from luthier.core.task_head import NumberFormat

NUMBER: Final = re.compile(r"[-+\u2212]?(?:[1-9]\d{0,2}(?:,\d{3})+|\d+)(?:\.\d+)?")
_EXPONENT: Final = r"(?:[eE][-+]?\d{1,4})?"
# A point before digits is that of a number, as in `.5` and `$.50`, unless it ends a word, as in `No.5`.
_SHAPE: Final = re.compile(
    r"\s*(?P<before>[^\d\s+\u2212-]{0,8}(?<!(?<!\w)[.,])\s*)"
    rf"(?P<number>(?:{NUMBER.pattern}|[-+\u2212]?\.\d+){_EXPONENT})(?P<after>\s*\D{{0,20}}?)\s*"
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


_WITH_COMMAS: Final = re.compile(r"[-+]?[1-9]\d{0,2}(?:,\d{3})+(?:\.\d+)?")
# Points separate thousands where nothing else can be meant: with a comma behind them, or where there are several.
_WITH_POINTS: Final = re.compile(r"[-+]?[1-9]\d{0,2}(?:(?:\.\d{3})+,\d+|(?:\.\d{3}){2,})")


def typed_number(text: str) -> float:
    """A number as people type it into a field: `2.5`, `2,5`, `1,000`, `1,000.50`, `1.000,50`.

    A comma separates thousands where it has three digits behind it and no 0 alone before it: `0,125` is an eighth.
    `nan` and `inf` are numbers, too, as for `float`: whoever calls it checks the range.

    Raises:
        ValueError: The text is no number.
    """
    plain = text.strip()
    if _WITH_COMMAS.fullmatch(plain):
        plain = plain.replace(",", "")
    elif _WITH_POINTS.fullmatch(plain):
        plain = plain.replace(".", "").replace(",", ".")
    return float(plain.replace(",", "."))


def read_number(answer: str) -> WrittenNumber | None:
    """The number that an answer consists of, with at most a short unit; None for any other text.

    Digits that are more than a float holds (over 1.8e308) are no number. A comma separates thousands and no decimals:
    `3,5` and `0,125` are no numbers either.
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
