"""The value of a spreadsheet cell as the text that the spreadsheet shows, by the cell's number format.

Covers digits, thousands, per cent, currencies, literals, scientific notation, dates and times (ECMA-376 part 1,
18.8.31), with a point for decimals and English names of months. Formats that follow the reader's country, fractions and
conditional sections come as the plain number or an ISO 8601 date.
"""

from __future__ import annotations

import re
import sys
from datetime import date, datetime, time, timedelta
from decimal import ROUND_HALF_UP, Decimal, localcontext
from typing import Any, Final

_BY_COUNTRY: Final = ("mm-dd-yy", "m/d/yy h:mm", "[$-F800]dddd, mmmm dd, yyyy", "[$-F400]h:mm:ss AM/PM")
_SECTION: Final = re.compile(r'((?:"[^"]*"|\\.|\[[^\]]*\]|[^;])*)(?:;|$)')
_CURRENCY: Final = re.compile(r"\[\$([^\]-]*)(?:-[^\]]*)?\]")
_COLOUR: Final = re.compile(r"\[(?:black|blue|cyan|green|magenta|red|white|yellow|color ?\d+)\]", re.IGNORECASE)
_DIGITS: Final = re.compile(r"[#0?][#0?,]*(?:\.[#0?]*)?|\.[#0?]+")
_LITERAL: Final = re.compile(r'"([^"]*)"|\\(.)|_(.)|\*(.)|([ $€£¥%+\-()/:])')
_DATE_TOKEN: Final = re.compile(r'"([^"]*)"|\\(.)|(y+|m+|d+|h+|s+|AM/PM|A/P)|(.)', re.IGNORECASE)
_MONTHS: Final = (
    *("January", "February", "March", "April", "May", "June", "July"),
    *("August", "September", "October", "November", "December"),
)
_DAYS: Final = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]


def cell_text(value: Any, number_format: str) -> str:
    """A value as openpyxl gives it, as text; an empty cell as an empty text."""
    if value is None:
        return ""
    # Before numbers: bool is a subclass of int.
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    if isinstance(value, int | float):
        # openpyxl gives any digits as an int; no format shows what is beyond a double.
        if not abs(value) <= sys.float_info.max:
            return str(value)
        shown = None if number_format in ("General", "@", "") else _number(value, number_format)
        return _plain(value) if shown is None else shown
    if isinstance(value, date | time):
        shown = None if number_format in _BY_COUNTRY else _date(value, number_format)
        return _iso(value) if shown is None else shown
    if isinstance(value, timedelta):
        seconds = round(value.total_seconds())
        return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"
    return str(value)


def _plain(value: float) -> str:
    """Fifteen digits, as many as a spreadsheet keeps."""
    return str(int(value)) if float(value).is_integer() and abs(value) < 1e15 else f"{value:.15g}"


def _iso(value: Any) -> str:
    if isinstance(value, datetime):
        return value.date().isoformat() if value.time() == time() else value.isoformat(sep=" ", timespec="seconds")
    return str(value.isoformat())


def _number(value: float, number_format: str) -> str | None:
    """The number in a format, None where the format is one that is not covered."""
    sections = [found for found in _SECTION.findall(_CURRENCY.sub(r'"\1"', number_format)) if found]
    if not sections:
        return None
    section, is_negative = sections[0], value < 0
    if value < 0 and len(sections) > 1:
        section, is_negative = sections[1], False
    elif value == 0 and len(sections) > 2:
        section = sections[2]
    section = _COLOUR.sub("", section)
    if section.count("E+") + section.count("E-") == 1:
        return _scientific(value, section)
    outside = _LITERAL.sub("", section)
    # Literals are blanked at their full length, so that the match's offsets hold in `section`.
    match = _DIGITS.search(_LITERAL.sub(lambda found: "\0" * len(found[0]), section))
    if match is None and not outside:
        return _literals(section).strip()
    if match is None or outside != match[0]:
        return None  # letters, conditions, a second group of digits: not covered
    before, pattern, after = section[: match.start()], match[0], section[match.end() :]
    if "/" in before + after and "?" in section:
        return None
    num_percent = sum(found[5] == "%" for part in (before, after) for found in _LITERAL.finditer(part))
    # Decimal of the shortest repr: 2.675 is rounded as the spreadsheet shows it, not as its binary value.
    # All digits are kept: a double has up to 309 before the point, a per cent sign adds two, the pattern those behind.
    with localcontext(prec=400 + 2 * len(section)):
        digits = _digits(Decimal(repr(abs(value))) * 100**num_percent, pattern)
    sign = "-" if is_negative and digits.strip("0.,") else ""
    return sign + (_literals(before) + digits + _literals(after)).strip()


def _digits(value: Decimal, pattern: str) -> str:
    whole, _, decimals = pattern.partition(".")
    scaled = whole.rstrip(",")
    # Each comma behind the last digit divides by a thousand.
    value = value / 1000 ** (len(whole) - len(scaled))
    rounded = value.quantize(Decimal(1).scaleb(-len(decimals)), rounding=ROUND_HALF_UP)
    left, _, right = f"{rounded:f}".partition(".")
    least = len(decimals.rstrip("#"))
    while len(right) > least and right.endswith("0"):
        right = right[:-1]
    left = left.lstrip("0").rjust(scaled.replace(",", "").count("0"), "0")
    if "," in scaled:
        left = f"{int(left):,}" if left and not left.startswith("0") else left
    return left + (f".{right}" if right else "")


def _scientific(value: float, section: str) -> str:
    decimals = re.match(r"[#0?]+(?:\.([#0?]*))?", section)
    return f"{value:.{len(decimals[1] or '') if decimals else 0}E}"


def _literals(part: str) -> str:
    def text(found: re.Match[str]) -> str:
        quoted, escaped, space, fill, sign = found.groups()
        if space is not None:
            return " "
        return "" if fill is not None else next(one for one in (quoted, escaped, sign) if one is not None)

    return _LITERAL.sub(text, part)


def _date(value: date | time, number_format: str) -> str | None:
    pattern = _COLOUR.sub("", _CURRENCY.sub(r"", number_format)).split(";")[0]
    if "[" in pattern or "general" in pattern.lower():
        return None
    tokens = [match.groups() for match in _DATE_TOKEN.finditer(pattern)]
    names = [(token or "").lower() for _, _, token, _ in tokens]
    is_twelve = any(name in ("am/pm", "a/p") for name in names)
    out = []
    for place, (quoted, escaped, _, other) in enumerate(tokens):
        name = names[place]
        if not name:
            out.append(next(one for one in (quoted, escaped, other) if one is not None))
            continue
        if name.startswith("m") and len(name) <= 2 and _is_minute(names, place):
            # "n" marks minutes from here on, since "m" alone would be the month.
            name = name.replace("m", "n")
        shown = _date_part(value, name, is_twelve)
        if shown is None:
            return None
        out.append(shown)
    return "".join(out)


def _is_minute(names: list[str], place: int) -> bool:
    """`m` behind hours or before seconds means minutes."""
    before = next((name for name in reversed(names[:place]) if name), "")
    after = next((name for name in names[place + 1 :] if name), "")
    return before.startswith("h") or after.startswith("s")


def _date_part(value: Any, name: str, is_twelve: bool) -> str | None:
    """One part of a date or time, None where the value has no such part."""
    letter, width = name[0], len(name)
    if letter in "ymd":
        if not isinstance(value, date):
            return None
        number = {"y": value.year, "m": value.month, "d": value.day}[letter]
        if letter == "y":
            return f"{number % 100:02}" if width <= 2 else f"{number:04}"
        if width <= 2:
            return f"{number:0{width}}"
        named = _MONTHS[number - 1] if letter == "m" else _DAYS[value.weekday()]
        return named[:3] if width == 3 else named[:1] if width == 5 else named
    clock = value.time() if isinstance(value, datetime) else value if isinstance(value, time) else time()
    if letter == "a":
        return ("AM" if clock.hour < 12 else "PM")[: 2 if width == 5 else 1]
    number = {"h": clock.hour, "n": clock.minute, "s": clock.second}[letter]
    if letter == "h" and is_twelve:
        number = number % 12 or 12
    return f"{number:0{min(width, 2)}}"
