"""Telephone numbers: international (+ or 00), North American, and national ones that begin with 0.

The structure alone decides where it is distinctive: a plus with a country code that exists (ITU-T E.164), 3-3-4 digits
with separators (NANP), a leading 0 with 9 to 12 digits. Everything else, such as ten bare digits or Spain's nine, could
be anything and is taken only where a word nearby refers to a telephone ("call", "Handy", "téléphone"). Certain is what
is international and grouped, `(ddd) ddd-dddd`, and national forms next to such a word (`is_certain`); a sum is none.
What stays ambiguous: part numbers written 3-3-4, bare codes with a leading 0, numbers of seven digits silently.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from luthier.ml.data.personal_data.recognizers import Span, cue_before, is_phone_after

_SPACE: Final = " \u00a0\u202f"
# Runs of digits with what is between the groups of a number. Nothing in it matches in two ways: time is linear.
_RUN: Final = re.compile(
    rf"(?:(?<![\w+.,/\-$€£%])|(?<=\b(?i:tel|fax|mob|fon)\.))\+?[{_SPACE}]?\(?\d+(?:(?:[{_SPACE}.\-/\u2011]|[{_SPACE}]?\(|\)[{_SPACE}]?[\-/]?|[{_SPACE}]/[{_SPACE}])\d+)*"
)
_EXTENSION: Final = re.compile(r"(?i)[ ,]{0,2}(?:x|ext\.?|extension|durchwahl|poste|int\.)[ ]?\d{1,6}(?!\w)")
_NANP: Final = re.compile(r"(?:1[ .-]?)?(?:\(([2-9]\d\d)\)([ .-]?)|([2-9]\d\d)([ .-]))([2-9]\d\d)([ .-]?)(\d{4})(?!\d)")
_PAIRS: Final = re.compile(r"0\d(?:([ .\-])\d\d)(?:\1\d\d){3}")
_DATE: Final = re.compile(
    r"\d{1,2}([./ \-])\d{1,2}\1\d{2,4}(?:[ ]\d{1,2})?|[12]\d{3}([./ \-])\d{1,2}\2\d{1,2}(?:[ ]\d{1,2})?"
    r"|(?:19|20)\d\d[ \-/]+(?:19|20)\d\d|(?:19|20)\d{6}"
)
_THOUSANDS: Final = re.compile(r"\d{1,3}(?:\.\d{3})+|\d{1,3}(?: \d{3}){1}|\d\d? \d{3} \d{3}")
# A digit, many, one or two digits: the number of a table or a part. Four small numbers: that of a chapter.
_FRAMED: Final = re.compile(r"\d-\d+-\d{1,2}|\d\D\d+\D\d|\d{1,2}(?:\.\d{1,2}){3}")
_COUNTRY_CODES: Final = re.compile(
    r"1|7|2[07]|3[0-469]|4[013-9]|5[1-8]|6[0-6]|8[1246]|9[0-58]|2[1-69]\d|3[578]\d|42[013]|50\d|59\d|67\d|68\d|69[0-2]"
    r"|800|85[0-6]|88[0-368]|96\d|97\d|99[2-68]"
)
_FICTION: Final = re.compile(r"(?:(?:00|\+)?1?\d{3})?55501\d\d")
_MIN_DIGITS: Final = 7
_MAX_DIGITS: Final = 15


def find_phones(text: str) -> Iterator[Span]:
    """Each telephone number with its extension. Reserved: 555-0100 to 555-0199 of any area, for fiction (NANPA)."""
    for match in _RUN.finditer(text):
        # Signs at the end belong to the sentence.
        run = match[0].rstrip(".-/ ")
        if len(run) < _MIN_DIGITS:
            continue
        start = match.start() + (len(run) - len(run.lstrip(_SPACE)))
        run = run.lstrip(_SPACE)
        length = _length_of_number(text, start, run)
        if not length or is_coordinate(text, start, run):
            continue
        end = start + length
        if run[0] == "(" and ")" not in run[:length]:
            start += 1
        if extension := _EXTENSION.match(text, end):
            end = extension.end()
        elif end < len(text) and (text[end].isalnum() or text[end] in "_%€$£°" or _goes_on(text, end)):
            continue
        digits = re.sub(r"\D", "", text[start : start + length])
        is_reserved = _FICTION.fullmatch(digits) is not None
        yield Span(start, end, "phone", text[start:end], is_reserved, is_certain(text, start, start + length))


def _goes_on(text: str, end: int) -> bool:
    return text[end] in ".,:-/" and text[end + 1 : end + 2].isdigit()


def _length_of_number(text: str, start: int, run: str) -> int:
    """How many characters at the beginning of the run are a telephone number; 0 where none are."""
    # No telephone number is longer; a run of digits may be as long as the text.
    head = run[:48]
    if run[0] == "+":
        return _international(head)
    num_digits = sum(map(str.isdigit, head))
    if num_digits < _MIN_DIGITS:
        return 0
    cue = cue_before(text, start)
    if cue == "other":
        return 0
    if (nanp := _NANP.match(head)) and (length := _north_american(head, nanp)):
        return length
    if len(run) > len(head):
        return 0
    plain = head.lstrip("(")
    if plain.startswith("0") and _is_national(head, num_digits):
        return len(run)
    is_said = cue == "phone" or (cue is None and is_phone_after(text, start + len(run)))
    is_other = any(form.fullmatch(run) for form in (_DATE, _THOUSANDS, _FRAMED))
    if is_said and num_digits <= _MAX_DIGITS and not is_other and not is_calculation(text, start, start + len(run)):
        # 978 and 979 with 13 digits: an ISBN.
        return 0 if re.match(r"97[89]", run) and num_digits == 13 else len(run)
    return 0


def _international(head: str) -> int:
    """The length of `+CC ...` with 8 to 15 digits; a group after a space is left out once 11 digits are there."""
    groups = list(re.finditer(r"\d+", head))
    code = "".join(group[0] for group in groups)[:3]
    if not any(_COUNTRY_CODES.fullmatch(code[:n]) for n in (1, 2, 3)):
        return 0
    num_digits, end = 0, 0
    for group in groups:
        # `+44 (0) 20 ...`: the zero in parentheses is dialled inside the country only, and is no digit of the number.
        is_trunk_zero = (
            group[0] == "0" and head[group.start() - 1] == "(" and head[group.end() : group.end() + 1] == ")"
        )
        if num_digits >= 11 and head[group.start() - 1] in _SPACE:
            break
        if is_trunk_zero:
            continue
        num_digits, end = num_digits + len(group[0]), group.end()
    return end if 8 <= num_digits <= _MAX_DIGITS else 0


def _north_american(head: str, match: re.Match[str]) -> int:
    """The length of a 3-3-4 number; what follows after the same separator makes it something else."""
    rest = head[match.end() :]
    first, second = match[2] if match[1] else match[4], match[6]
    if match[1] is None and first != second:
        return 0
    if rest and (rest[0] not in _SPACE or second in _SPACE):
        return 0
    return match.end()


def _is_national(head: str, num_digits: int) -> bool:
    """Whether a run with a leading 0 has the groups of a national number."""
    if _DATE.fullmatch(head) or re.fullmatch(r"\d{3}-\d\d-\d{4}", head) or not 8 <= num_digits <= 13:
        return False
    groups = re.findall(r"\d+", head)
    if head[0] == "(" or f"{groups[0]})" in head:
        return len(groups[0]) >= 2
    if num_digits < 9:
        return False
    if len(groups) == 1:
        return num_digits <= 11
    if head.startswith(("001-", "001 ")):
        return _NANP.fullmatch(head[4:]) is not None
    if "." in head:
        return _PAIRS.fullmatch(head) is not None
    return 2 <= len(groups[0]) <= 6 and all(len(group) >= 2 for group in groups) and num_digits <= 12


_MIN_CERTAIN: Final = 9
_MIN_SAID: Final = 7
_SPACES: Final = " \u00a0\u202f"
# What calculates, with a digit or a space on the other side: `2400/200=12`, `3 x 2400/200`, `<<100-20-300=...`.
_OPERATOR_AFTER: Final = re.compile(r"[ ]{0,2}(?:[=*×÷^<>≈%]|[+][ ]?\d|[+/x\-][ ])")
_OPERATOR_BEFORE: Final = re.compile(r"(?:[*×÷^≈<>/(]|[\d)]\s?=|^=|\s=|[\d)][ ]{0,2}[+x\-])[ ]{0,2}$")
_COORDINATES: Final = re.compile(r"\+?\d{1,3}\.\d{4,}(?:[+\-/ ]\d{1,3}\.\d+)*")

_INTERNATIONAL: Final = re.compile(
    rf"\+[1-9]\d{{0,5}}(?:[{_SPACES}\-./\u2011]?\(\d{{1,5}}\))?"
    rf"(?:(?:[{_SPACES}\-./\u2011]|[{_SPACES}]/[{_SPACES}])\d+|(?<=\))\d+)+"
)
_TRUNK_OR_SWITCHBOARD: Final = re.compile(r"\(0\)|-\d$")
_GROUPED_NANP: Final = re.compile(
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
        return num_digits >= _MIN_CERTAIN
    is_said = _JUST_BEFORE.search(text[max(0, start - _BEFORE_CHARACTERS) : start]) is not None
    if _GROUPED_NANP.fullmatch(value) or (
        value.lstrip("(")[0] == "0" and _is_grouped(value) and num_digits >= _MIN_CERTAIN
    ):
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
    if num_digits < _MIN_CERTAIN or not _INTERNATIONAL.fullmatch(value):
        return False
    kinds = {separator.strip() or " " for separator in _SEPARATORS.findall(value)} - {"(", ")"}
    if "." in kinds and (len(kinds) > 1 or value.count(".") < 2):
        return False
    if value.startswith("+1"):
        return num_digits == 11 and _GROUPED_NANP.fullmatch(value) is not None
    return len(kinds) <= 2


def _is_signed(text: str, start: int) -> bool:
    """Whether the plus may be a sign: another number is just before it."""
    return re.search(r"\d[\s,;]{0,2}$", text[max(0, start - 4) : start]) is not None


def _is_grouped(value: str) -> bool:
    """Whether the digits are in one piece or in groups as people write them: no group of one but the first.

    What German firms write does not count: the zero that is dialled inside the country, and the one digit of a
    switchboard (`+49 (0)89 / 12345-0`).
    """
    if value.lstrip("(")[0] in "0+":
        value = _TRUNK_OR_SWITCHBOARD.sub("", value)
    elif "/" in value:
        return False
    groups = re.findall(r"\d+", value)
    return all(len(group) >= 2 for group in groups[1:])
