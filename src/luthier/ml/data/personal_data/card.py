"""Payment card numbers: 12 to 19 digits with a valid check digit (ISO/IEC 7812-1, annex B: Luhn).

A number of which nothing says that it is a card must also begin as one does and have 14 digits or more: one in ten of
all numbers passes Luhn, EAN-13 bar codes among them. Not found: cards whose digits are grouped in unusual ways.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from luthier.ml.data.personal_data.cues import cue_before, is_card_just_before
from luthier.ml.data.personal_data.span import Span

_RUN: Final = re.compile(r"(?<![\w.])(?<!\d[ -])\d(?:[ -]?\d){11,18}(?![ -]?\d)(?![\w%])")
_LAYOUT: Final = re.compile(r"\d+|\d{4}([ -])\d{4}(?:\1\d{1,4}){1,3}|\d{4}([ -])\d{6}\2\d{4,5}")
# Issuer ranges: Visa, Mastercard, American Express, Discover, JCB, Diners, Maestro and UnionPay, with their lengths.
_ISSUERS: Final = re.compile(
    r"4(?:\d{15}|\d{18})|(?:5[1-5]\d\d|222[1-9]|22[3-9]\d|2[3-6]\d\d|27[01]\d|2720)\d{12}|3[47]\d{13}"
    r"|(?:6011|64[4-9]\d|65\d\d|62\d\d)\d{12,15}|35(?:2[89]|[3-8]\d)\d{12,15}|(?:1800|2131)\d{11}"
    r"|3(?:0[0-5]|[689]\d)\d{11}|(?:50[123]\d|5[678]\d\d|6304|6390|6759|676\d)\d{11,15}"
)
_TEST_NUMBERS: Final = frozenset(
    (
        "4111111111111111", "4242424242424242", "4012888888881881", "5555555555554444", "5105105105105100",
        "378282246310005", "371449635398431", "6011111111111117", "6011000990139424", "30569309025904",
        "3530111333300000", "3566002020360505", "4000056655665556", "2223003122003222",
    )
)  # fmt: skip
_MASK: Final = re.compile(r"\d0{6}\d+")


def find_cards(text: str) -> Iterator[Span]:
    """Each card number. Reserved: the payment firms' public test numbers, and d000000... as masks have it."""
    for match in _RUN.finditer(text):
        digits = re.sub(r"[ -]", "", match[0])
        if not _LAYOUT.fullmatch(match[0]) or len(set(digits)) == 1 or not has_luhn_digit(digits):
            continue
        is_reserved = digits in _TEST_NUMBERS or _MASK.fullmatch(digits) is not None
        cue = cue_before(text, match.start())
        is_issued = _ISSUERS.fullmatch(digits) is not None
        if is_reserved or cue == "card" or (cue in (None, "phone") and is_issued):
            # Bare digits: one in 40 of all numbers with 16 digits has an issuer and a check digit, too.
            is_grouped = is_issued and len(match[0]) > len(digits)
            is_of_bank = is_issued or digits[0] in "3456"
            is_certain = is_grouped or (is_of_bank and cue == "card" and is_card_just_before(text, match.start()))
            yield Span(match.start(), match.end(), "card", match[0], is_reserved, is_certain)


def has_luhn_digit(digits: str) -> bool:
    """Whether the last digit is the check digit of those before it."""
    return luhn_digit(digits[:-1]) == digits[-1]


def luhn_digit(digits: str) -> str:
    """The check digit for a number without one."""
    # From the right, every second digit is doubled, beginning with the last one before the check digit.
    total = sum(int(digit) for digit in digits[-2::-2])
    total += sum(2 * int(digit) - 9 * (digit > "4") for digit in digits[::-2])
    return str(-total % 10)
