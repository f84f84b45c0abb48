"""Numbers as answers write them: `12`, `$1,234.50`, `3 kg`, `.5`, `1.234,50 €`, and `1e-05` as programs do.

Rows of one dataset write numbers in one way, and only together they show which: `12.500` is twelve and a half beside
`3.2`, and twelve thousand five hundred beside `1.234,50`. `number_marks` finds it, as the import of a spreadsheet does.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final, NamedTuple

from luthier.core.task_head import NumberFormat

_SPACES: Final = " \u00a0\u2009\u202f"
_APOSTROPHES: Final = "'\u2019"
_EXPONENT: Final = r"(?:[eE][-+]?\d{1,4})?"
_MOST_DECIMALS: Final = 340
"""A float holds no smaller digits."""
_LEAST_SHOWN: Final = 0.05
"""Of the numbers whose reading a decimal mark would change: fewer than that may be slips."""


class NumberMarks(NamedTuple):
    """The signs within numbers.

    Attributes:
        decimal: before the decimals, a point or a comma.
        thousands: between groups of three digits. The one of point and comma that is not `decimal` is always read so.
    """

    decimal: str = "."
    thousands: str = ","


POINT: Final = NumberMarks()
"""A decimal point, as programs write numbers: what is taken where rows do not show another one."""


class WrittenNumber(NamedTuple):
    """A number as an answer writes it: `$1,234.50` or `12 kg`."""

    before: str
    value: float
    decimals: int
    after: str
    has_commas: bool


def number_format(written: Sequence[WrittenNumber], marks: NumberMarks = POINT) -> NumberFormat:
    """How most of these numbers are written, of which there is at least one.

    Args:
        written: as `read_number` reads them.
        marks: by which they were read.
    """
    before, after = Counter((one.before, one.after) for one in written).most_common(1)[0][0]
    decimals = Counter(one.decimals for one in written).most_common(1)[0][0]
    return NumberFormat(
        before=before,
        after=after,
        decimals=decimals,
        has_commas=any(one.has_commas for one in written),
        decimal_mark=marks.decimal,
        thousands_mark=marks.thousands,
    )


def marks_of(form: NumberFormat | None) -> NumberMarks:
    """The marks of a format; a decimal point without one."""
    return POINT if form is None else NumberMarks(form.decimal_mark, form.thousands_mark)


def write_number(value: float, form: NumberFormat) -> str:
    """The number as answers write it: decimals, unit, thousands separators."""
    # + 0.0 behind the rounding: a small negative number must not become "-0".
    rounded = round(value, form.decimals) + 0.0
    text = f"{rounded:{',' if form.has_commas else ''}.{form.decimals}f}"
    marked = text.translate({ord("."): form.decimal_mark, ord(","): form.thousands_mark})
    return f"{form.before}{marked}{form.after}"


_WITH_COMMAS: Final = re.compile(r"[-+]?[1-9]\d{0,2}(?:,\d{3})+(?:\.\d+)?")
_WITH_POINTS: Final = re.compile(r"[-+]?[1-9]\d{0,2}(?:\.\d{3})+(?:,\d+)?")
# A mark that is the other one of its language separates thousands where nothing else can be meant: with decimals behind
# it, or where there are several.
_SURELY_COMMAS: Final = re.compile(r"[-+]?[1-9]\d{0,2}(?:(?:,\d{3})+\.\d+|(?:,\d{3}){2,})")
_SURELY_POINTS: Final = re.compile(r"[-+]?[1-9]\d{0,2}(?:(?:\.\d{3})+,\d+|(?:\.\d{3}){2,})")
_LONGEST_TYPED: Final = 40


def _grouped(decimal_mark: str) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Numbers whose thousands are separated by commas and by points, in a language with that decimal mark."""
    return (_WITH_COMMAS, _SURELY_POINTS) if decimal_mark == "." else (_SURELY_COMMAS, _WITH_POINTS)


def typed_number(text: str, decimal_mark: str = ".") -> float:
    """A number as people type it into a field: `2.5`, `2,5`, `1,000`, `1,000.50`, `1.000,50`.

    The mark that separates thousands in the language does so where it has three digits behind it and no 0 alone before
    it: `1,000` is a thousand in English, `1.000` in German, and `0,125` an eighth in both. `nan` and `inf` are numbers,
    too, as for `float`: whoever calls it checks the range.

    Args:
        text: What was typed.
        decimal_mark: A point or a comma, as the language of the page has it.

    Raises:
        ValueError: The text is no number.
    """
    plain = text.strip()
    by_commas, by_points = _grouped(decimal_mark)
    if by_commas.fullmatch(plain):
        plain = plain.replace(",", "")
    elif by_points.fullmatch(plain):
        plain = plain.replace(".", "").replace(",", ".")
    return float(plain.replace(",", "."))


def typed_whole(text: str, decimal_mark: str = ".") -> int:
    """A whole number from 0 on as people type it into a field: `1000`, `1,000`, or `1.000` in German.

    Args:
        text: What was typed.
        decimal_mark: A point or a comma, as the language of the page has it.

    Raises:
        ValueError: The text is no whole number, or longer than any that a field asks for.
    """
    plain = text.strip()
    by_commas, by_points = _grouped(decimal_mark)
    grouped = by_commas if by_commas.fullmatch(plain) else by_points
    if grouped.fullmatch(plain) and not ("," in plain and "." in plain):
        plain = plain.replace(",", "").replace(".", "")
    # isdigit is true of superscripts and other scripts, which int refuses or reads unexpectedly.
    if not (plain.isascii() and plain.isdigit() and len(plain) <= _LONGEST_TYPED):
        raise ValueError(f"could not convert {text[:_LONGEST_TYPED]!r} to a whole number")
    return int(plain)


def read_number(answer: str, marks: NumberMarks = POINT) -> WrittenNumber | None:
    """The number that an answer consists of, with at most a short unit; None for any other text.

    Digits that are more than a float holds (over 1.8e308) are no number. By a decimal point a comma separates thousands
    and no decimals: `3,5` and `0,125` are no numbers then, as `3.5` is none by a decimal comma.

    Args:
        answer: the text.
        marks: of the numbers of its rows.
    """
    match = _patterns(marks).answer.fullmatch(answer)
    if match is None:
        return None
    mantissa, _, exponent = match["number"].replace("\u2212", "-").lower().partition("e")
    whole, _, fraction = mantissa.partition(marks.decimal)
    digits = _without_groups(whole, marks)
    value = float(f"{digits}.{fraction}e{exponent or 0}")
    if not math.isfinite(value):
        return None
    # 2.5e-05 has as many decimals as 0.000025.
    decimals = min(max(0, len(fraction) - int(exponent or 0)), _MOST_DECIMALS)
    return WrittenNumber(match["before"], value, decimals, match["after"].rstrip(), digits != whole)


def numbers_in(text: str, marks: NumberMarks = POINT) -> list[float]:
    """The numbers in a text, in their order; those of hundreds of digits are infinite.

    Args:
        text: such as a prompt.
        marks: of its numbers.
    """
    found = (one.replace("\u2212", "-").partition(marks.decimal) for one in _patterns(marks).number.findall(text))
    return [float(f"{_without_groups(whole, marks)}.{fraction}") for whole, _, fraction in found]


class _Patterns(NamedTuple):
    """A number anywhere in a text, and one that is a whole answer."""

    number: re.Pattern[str]
    answer: re.Pattern[str]


@lru_cache(maxsize=32)
def _patterns(marks: NumberMarks) -> _Patterns:
    decimal, groups = re.escape(marks.decimal), f"[{re.escape(_group_marks(marks))}]"
    number = rf"[-+\u2212]?(?:[1-9]\d{{0,2}}(?:{groups}\d{{3}})+(?!\d)|\d+)(?:{decimal}\d+)?"
    # A mark before digits is that of a number, as in `.5` and `$.50`, unless it ends a word, as in `No.5`.
    answer = (
        r"\s*(?P<before>[^\d\s+\u2212-]{0,8}(?<!(?<!\w)[.,])\s*)"
        rf"(?P<number>(?:{number}|[-+\u2212]?{decimal}\d+){_EXPONENT})(?P<after>\s*\D{{0,20}}?)\s*"
    )
    return _Patterns(re.compile(number), re.compile(answer))


def _group_marks(marks: NumberMarks) -> str:
    """All signs that are read as separators of thousands by these marks."""
    # Spaces and apostrophes come in several forms, often in one file.
    return _other(marks.decimal) + next((signs for signs in (_SPACES, _APOSTROPHES) if marks.thousands in signs), "")


def _without_groups(whole: str, marks: NumberMarks) -> str:
    return whole.translate(dict.fromkeys(map(ord, _group_marks(marks))))


_ANY_ANSWER: Final = re.compile(
    rf"[^\d\s+\u2212-]{{0,8}}\s*[-+\u2212]?(?P<digits>\d+(?:[.,{_SPACES}{_APOSTROPHES}]\d+)*)"
    r"(?P<exponent>[eE][-+]?\d{1,4})?\s*\D{0,20}"
)
_LONGEST: Final = 100
# Without spaces: those of a text are seldom within a number.
_IN_TEXT: Final = re.compile(rf"(?<![\w.,])\d+(?:[.,{_APOSTROPHES}]\d+)*(?!\w)")


def number_marks(answers: Iterable[str], otherwise: NumberMarks = POINT) -> NumberMarks:
    """The marks of the numbers of a dataset, by those that can be read in one way only.

    `12,50`, `0,125`, `1.234,50` and `1.000.000` show a decimal comma; `12.5`, `1,234.50` and `1e-05` a decimal point;
    `12.500` alone shows neither. Where no number has decimals, `950` beside `1.200` and `12.500` shows that the point
    separates thousands: three decimals would be there in every row, or no 0 at their end.

    Args:
        answers: such as those of the training rows; texts that are no numbers show nothing.
        otherwise: what is taken where they show nothing, or as often one as the other.
    """
    return _marks(_seen(answers), otherwise)


def marks_in_texts(texts: Iterable[str]) -> NumberMarks:
    """As `number_marks`, by all numbers within texts, such as prompts."""
    return _marks(_seen(one for text in texts for one in _IN_TEXT.findall(text)), POINT)


def marks_note(answers: Iterable[str], marks: NumberMarks) -> str:
    """How numbers are read, as a clause; empty where the rows can only be read with a decimal point.

    Args:
        answers: of the rows.
        marks: by which they are read.
    """
    seen = _seen(answers)
    if marks.decimal == ",":
        sample, why = seen.open_point or seen.sample, "as the rows write them"
    elif seen.decimal["."] < _LEAST_SHOWN * seen.unclear["."]:
        sample, why = seen.open_point, "as no row shows that its point separates thousands"
    else:
        return ""
    number = read_number(sample, marks)
    mark = "comma" if marks.decimal == "," else "point"
    return "" if number is None else f"numbers are read with a decimal {mark}: {sample!r} is {number.value:.15g}, {why}"


@dataclass(slots=True)
class _Seen:
    """What the numbers of a dataset show.

    Attributes:
        decimal: how often a mark can only be that of decimals.
        thousands: how often a mark can only separate thousands.
        unclear: how often a mark can be both.
        ends_in_zero: of these, how often the last digit is 0.
        num_short, num_long: whole numbers without any mark, of three digits, and of more.
        sample: the first number with a mark.
        open_point: the first number whose point can be both.
    """

    decimal: Counter[str] = field(default_factory=Counter)
    thousands: Counter[str] = field(default_factory=Counter)
    unclear: Counter[str] = field(default_factory=Counter)
    ends_in_zero: Counter[str] = field(default_factory=Counter)
    num_short: int = 0
    num_long: int = 0
    sample: str = ""
    open_point: str = ""

    def add(self, text: str) -> None:
        """Count an answer, where it is a number."""
        match = _ANY_ANSWER.fullmatch(text) if len(text) <= _LONGEST else None
        if match is None:
            return
        digits = match["digits"]
        if match["exponent"]:
            self.decimal["."] += 1  # as programs write it
            return
        if digits.isdigit():
            self.num_short += len(digits) == 3
            self.num_long += len(digits) > 3
            return
        shown = _shown(digits)
        for mark in shown.decimal:
            self.decimal[mark] += 1
        for mark in shown.thousands:
            self.thousands[mark] += 1
        for mark in shown.unclear:
            self.unclear[mark] += 1
            self.ends_in_zero[mark] += digits.endswith("0")
        if any(shown):
            self.sample = self.sample or text
        if shown.unclear == ".":
            self.open_point = self.open_point or text


class _Shown(NamedTuple):
    """What the mark of one number can only be, or can be both; empty for nothing."""

    decimal: str = ""
    thousands: str = ""
    unclear: str = ""


def _seen(answers: Iterable[str]) -> _Seen:
    found = _Seen()
    for answer in answers:
        found.add(answer.strip())
    return found


def _shown(digits: str) -> _Shown:
    marks = [sign for sign in digits if not sign.isdigit()]
    first, *rest = re.split(r"\D", digits)
    can_group, last = len(first) <= 3 and first[0] != "0", marks[-1]
    is_point = last in ".,"
    if len(set(marks)) == 1 and can_group and all(len(one) == 3 for one in rest):
        if is_point and len(marks) == 1:
            return _Shown(unclear=last)
        return _Shown(decimal=_other(last) if is_point else "", thousands=last)
    if is_point and len(marks) == 1:
        return _Shown(decimal=last)
    # A sign before the last one separates thousands, where it does so everywhere.
    is_grouped = can_group and all(len(one) == 3 for one in rest[:-1])
    if is_point and is_grouped and len(set(marks)) == 2 and marks.count(last) == 1:
        return _Shown(decimal=last, thousands=marks[0])
    return _Shown()


def _other(mark: str) -> str:
    return "," if mark == "." else "."


def _marks(seen: _Seen, otherwise: NumberMarks) -> NumberMarks:
    taken = [mark for mark in ".," if _is_decimal(mark, seen)]
    decimal = taken[0] if len(taken) == 1 else otherwise.decimal
    usual = otherwise.thousands if otherwise.decimal == decimal else _other(decimal)
    others = Counter({mark: num for mark, num in seen.thousands.items() if mark != decimal})
    return NumberMarks(decimal, others.most_common(1)[0][0] if others else usual)


def _is_decimal(mark: str, seen: _Seen) -> bool:
    """Whether a mark is that of decimals, by numbers that show it or by whole numbers that show the other one."""
    other = _other(mark)
    # A few numbers with decimals may be slips; groups of three, several times in a number, are none.
    are_many = seen.thousands[other] > 0 or seen.decimal[mark] >= _LEAST_SHOWN * seen.unclear.total()
    is_shown = seen.decimal[mark] > seen.decimal[other] and are_many
    is_whole = bool(not seen.decimal[other] and not seen.num_long and seen.num_short and seen.ends_in_zero[other])
    return is_shown or is_whole
