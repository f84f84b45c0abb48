"""Which telephone numbers are certain: their form, words around them, and what makes digits a sum or a coordinate."""

from __future__ import annotations

import re
from typing import Final

from luthier.ml.data.personal_data.recognizers import cue_before, is_phone_after

_MIN_DIGITS, _MAX_DIGITS = 9, 15
_MIN_SAID: Final = 7
_SPACES: Final = " \u00a0\u202f"
# What calculates, with a digit or a space on the other side: `2400/200=12`, `3 x 2400/200`, `<<100-20-300=...`.
_OPERATOR_AFTER: Final = re.compile(r"[ ]{0,2}(?:[=*×÷^<>≈%]|[+][ ]?\d|[+/x\-][ ])")
_OPERATOR_BEFORE: Final = re.compile(r"(?:[*×÷^≈<>/(]|[\d)]\s?=|^=|\s=|[\d)][ ]{0,2}[+x\-])[ ]{0,2}$")
_COORDINATES: Final = re.compile(r"\+?\d{1,3}\.\d{4,}(?:[+\-/ ]\d{1,3}\.\d+)*")

_INTERNATIONAL: Final = re.compile(
    rf"\+[1-9]\d{{0,5}}(?:[{_SPACES}\-./\u2011]?\(\d{{1,5}}\))?(?:[{_SPACES}\-./\u2011]\d+|(?<=\))\d+)+"
)
_NANP: Final = re.compile(
    r"(?:\+?1[ .\-]?)?(?:\([2-9]\d\d\)[ \-.]?[2-9]\d\d[ .\-]\d{4}|[2-9]\d\d([ .\-])[2-9]\d\d\1\d{4})"
)
_PARENTHESES: Final = re.compile(r"\([2-9]\d\d\)[ \-.]?[2-9]\d\d[ .\-]\d{4}|\(0\d{1,5}\)[ /]?\d{3,}(?:[ \-]\d{2,})*")
_SEPARATORS: Final = re.compile(r"[ ]?[().\-/\u2011\u00a0\u202f][ ]?|[ ]")
_JUST_BEFORE: Final = re.compile(
    r"(?i)(?:\b(?:tele(?:ph|f)on\w*|telefoon\w*|phone\w*|tel|tél\w*|teléf\w*|mobil\w*|móvil\w*|cell|cellphone|cellular\w*"
    r"|fax|whatsapp|sms|hotline|rufnummer|handy\w*|portable|celular\w*|gsm"
    r"|(?:call|dial|ring|text|reach)(?: (?:me|us|him|her|them|it))?|contact (?:me|us|him|her|them)"
    r"|(?:ruf|rufen|erreich\w*|anruf\w*)(?: (?:mich|uns|ihn|sie|den|die)(?: \w+)?)?"
    r"|appelez\S*|rappel\S*|joindre|joign\w*|ll[aá]m\w*|chiam\w*|bel|bellen|dzwoni\w*|zadzwoń)"
    r"(?:[^\w\n]{0,3}\b(?:is|are|now|today|number|numbers|no|nr|nummer|num|numero|número|numéro|ist|es|el|le|la|il|è|é|al|au"
    r"|at|on|under|unter|op|to|de|du|est|är|mich|me|us|pod|mig|office|home|work|here|directly|or|der)\b){0,5})"
    r"[^\w\n]{0,4}$"
)
# "call 84348434" may be the number of a call, "call me on 84348434" is none.
_VERB_BEFORE: Final = re.compile(r"(?i)\b(?:call|ring|text|reach|bel|cell)[^\w\n]{0,4}$")
_BEFORE_CHARACTERS: Final = 60


def is_certain(text: str, start: int, end: int) -> bool:
    """Whether `text[start:end]`, which may be a telephone number, cannot well be anything else.

    Either an international number in groups, or an area code in parentheses; or the form of a number and a word
    before it that refers to a telephone.
    """
    value = text[start:end]
    if is_calculation(text, start, end):
        return False
    num_digits = sum(map(str.isdigit, value))
    if num_digits > _MAX_DIGITS:
        return False
    if value[0] == "+" and _is_international(value, num_digits) and not _is_signed(text, start):
        return True
    if _PARENTHESES.fullmatch(value):
        return num_digits >= _MIN_DIGITS
    is_said = _JUST_BEFORE.search(text[max(0, start - _BEFORE_CHARACTERS) : start]) is not None
    if _NANP.fullmatch(value) or (value.lstrip("(")[0] == "0" and _is_grouped(value) and num_digits >= _MIN_DIGITS):
        return is_said or cue_before(text, start) == "phone" or is_phone_after(text, end)
    if not is_said or num_digits < _MIN_SAID or not _is_grouped(value):
        return False
    return not value.isdigit() or _VERB_BEFORE.search(text[max(0, start - 16) : start]) is None


def is_calculation(text: str, start: int, end: int) -> bool:
    """Whether an operator is next to it: then the digits are numbers of a sum."""
    # A leading plus belongs to the number; what is before it is no operator of a sum then.
    if text[start] == "+":
        return _OPERATOR_AFTER.match(text, end) is not None and text[end : end + 1] != "/"
    before = text[max(0, start - 6) : start]
    return _OPERATOR_AFTER.match(text, end) is not None or _is_operator(before)


def is_coordinate(text: str, start: int, run: str) -> bool:
    """Whether the run is a latitude or longitude in degrees with decimals (ISO 6709)."""
    return _COORDINATES.fullmatch(run) is not None and text[start] not in "("


def _is_operator(before: str) -> bool:
    """Whether the characters before end in an operator; a bracket alone is none."""
    found = _OPERATOR_BEFORE.search(before)
    # A number in brackets is no sum.
    return found is not None and found[0].strip() != "("


def _is_international(value: str, num_digits: int) -> bool:
    if num_digits < _MIN_DIGITS or not _INTERNATIONAL.fullmatch(value):
        return False
    kinds = {separator.strip() or " " for separator in _SEPARATORS.findall(value)} - {"(", ")"}
    if "." in kinds and (len(kinds) > 1 or value.count(".") < 2):
        return False
    if value.startswith("+1"):
        return num_digits == 11 and _NANP.fullmatch(value) is not None
    return len(kinds) <= 2


def _is_signed(text: str, start: int) -> bool:
    """Whether the plus may be a sign: another number is just before it."""
    return re.search(r"\d[\s,;]{0,2}$", text[max(0, start - 4) : start]) is not None


def _is_grouped(value: str) -> bool:
    """Whether the digits are in one piece or in groups as people write them: no group of one but the first."""
    if "/" in value and value.lstrip("(")[0] != "0":
        return False
    groups = re.findall(r"\d+", value)
    return all(len(group) >= 2 for group in groups[1:])
