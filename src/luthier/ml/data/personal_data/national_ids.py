"""National identity, tax and social insurance numbers of Europe and Brazil, each by its form and its check digits.

certain alone    Their form and check leave hardly anything else: Italy (codice fiscale), Germany's insurance number,
                 France (NIR in groups), Brazil (CPF), Belgium and Switzerland as they are printed, the United Kingdom
                 (NINO in pairs), Finland where its check is a letter.
possible alone   One number in 20 to 1,000 of the same form passes the check: Spain (DNI, NIE), Sweden, Poland (PESEL),
                 the Czech Republic and Slovakia, and the forms above as they are written without separators.
named alone      Plain digits with one check digit or none count next to a word for them: Germany (Steuer-ID), the
                 Netherlands (BSN), Austria, Portugal (NIF), Norway, Denmark (CPR).

A word for such a number up to 30 characters before it makes each of them certain. The rules are those that the issuing
authorities publish; the insurance number of the United States is a kind of its own (`recognizers.find_ssns`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from luthier.ml.data.personal_data.recognizers import Span, has_luhn_digit

_LONG_WORDS: Final = (
    r"steuer-?\s?id\w*|steueridentifikation\w*|steuerliche\w* identifikation\w*|identifikationsnummer|idnr"
    r"|\w*sozialversicherungs\w*|rentenversicherungs\w*|versicherungsnummer|sv-?(?:nummer|nr)|ahv-?(?:nummer|nr)"
    r"|codice fiscale|sécurité sociale|securite sociale|sécu|carte vitale|numéro national|registre national"
    r"|rijksregister\w*|burgerservicenummer|sofinummer|pesel|national insurance|ni (?:number|no)|nino"
    r"|personnummer|personnr|samordningsnummer|fødselsnummer|fødselsnr|cpr-?(?:nummer|nr)|personnummeret"
    r"|henkilötunnu\w*|hetu|contribuinte|rodné číslo|rodne cislo|documento nacional"
    r"|national id(?:entity|entification)?(?: (?:number|card|no))?|tax id(?:entification)?(?: (?:number|no))?"
)
_SHORT_WORDS: Final = r"DNI|NIE|NIF|BSN|CPF|NIR|CPR|AHV|AVS|INSZ|NISS|SVNR|C\.?F|PESEL|PNR|RČ"
"""In capitals alone: in small letters some are words of another language, such as `nie` (never) or `dni` (days)."""
_WORD_BEFORE: Final = re.compile(rf"(?:\b(?i:{_LONG_WORDS})|\b(?:{_SHORT_WORDS}))\b\.?[^\d\n]{{0,30}}$")
_WORD_CHARACTERS: Final = 72
_S: Final = "[ \u00a0\u202f]"
_GAP: Final = f"{_S}?"
_SEPARATORS: Final = re.compile("[ \u00a0\u202f.\\-/+]")
_RESERVED: Final = re.compile(r"90+\d{1,5}")


def _month(number: int, *added: int) -> bool:
    """Whether a number is a month, plain or with one of the numbers that are added for a century or a sex."""
    return any(1 <= number - one <= 12 for one in (0, *added))


def _is_date(day: str, month: str, *added: int) -> bool:
    return 1 <= int(day) <= 31 and _month(int(month), *added)


def _weighted(digits: str, weights: tuple[int, ...]) -> int:
    return sum(int(digit) * weight for digit, weight in zip(digits, weights, strict=False))


def _german_tax(value: str) -> bool:
    """ISO 7064 MOD 11,10; of the first ten digits exactly one occurs twice or three times."""
    counts = [value[:10].count(digit) for digit in set(value[:10])]
    if value[0] == "0" or sum(num > 1 for num in counts) != 1 or max(counts) > 3:
        return False
    product = 10
    for digit in value[:10]:
        product = ((int(digit) + product) % 10 or 10) * 2 % 11
    return (11 - product) % 10 == int(value[10])


def _german_insurance(value: str) -> bool:
    """Area, date of birth, letter, serial number, check digit (VKVV, section 4); the letter counts as its place."""
    digits = f"{value[:8]}{ord(value[8]) - 64:02d}{value[9:]}"
    products = [int(a) * b for a, b in zip(digits, (2, 1, 2, 5, 7, 1, 2, 1, 2, 1, 2, 1), strict=False)]
    return _is_date(value[2:4], value[4:6]) and sum(one // 10 + one % 10 for one in products) % 10 == int(value[11])


_ODD: Final = (1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24, 23)
_OMOCODIA: Final = "LMNPQRSTUV"
"""Letters that stand for 0 to 9 where two people would have one number."""


def _italian(value: str) -> bool:
    """The last letter is the check of those before it, with other values in odd places than in even ones."""
    total = 0
    for place, character in enumerate(value[:15]):
        number = int(character) if character.isdigit() else ord(character) - 65
        total += _ODD[number] if place % 2 == 0 else number
    day = "".join(one if one.isdigit() else str(_OMOCODIA.index(one)) for one in value[9:11])
    return 1 <= int(day) % 40 <= 31 and chr(65 + total % 26) == value[15]


def _french(value: str) -> bool:
    """The key of two digits makes the number divisible by 97; Corsica's 2A and 2B count as 19 and 18."""
    month = int(value[3:5])
    body = value[:13].replace("2A", "19").replace("2B", "18")
    return (_month(month, 30) or month == 20 or month >= 50) and 97 - int(body) % 97 == int(value[13:])


def _spanish(value: str) -> bool:
    number = value[:-1].translate(str.maketrans("XYZ", "012"))
    return "TRWAGMYFPDXBNJZSQVHLCKE"[int(number) % 23] == value[-1]


def _dutch(value: str) -> bool:
    return value[:4] != "0000" and (_weighted(value[:8], (9, 8, 7, 6, 5, 4, 3, 2)) - int(value[8])) % 11 == 0


def _polish(value: str) -> bool:
    check = -_weighted(value[:10], (1, 3, 7, 9, 1, 3, 7, 9, 1, 3)) % 10
    return _is_date(value[4:6], value[2:4], 20, 40, 60, 80) and check == int(value[10])


def _british(value: str) -> bool:
    return value[:2] not in ("BG", "GB", "NK", "KN", "TN", "NT", "ZZ")


def _swedish(value: str) -> bool:
    number = value[-10:]
    day = int(number[4:6])
    return _month(int(number[2:4])) and 1 <= (day - 60 if day > 60 else day) <= 31 and has_luhn_digit(number)


def _norwegian(value: str) -> bool:
    first = -_weighted(value[:9], (3, 7, 6, 1, 8, 9, 4, 5, 2)) % 11
    second = -_weighted(value[:10], (5, 4, 3, 2, 7, 6, 5, 4, 3, 2)) % 11
    return _is_date(value[:2], value[2:4]) and value[9:] == f"{first}{second}"


def _danish(value: str) -> bool:
    return _is_date(value[:2], value[2:4])


def _finnish(value: str) -> bool:
    check = "0123456789ABCDEFHJKLMNPRSTUVWXY"[int(value[:6] + value[-4:-1]) % 31]
    return _is_date(value[:2], value[2:4]) and check == value[-1]


def _brazilian(value: str) -> bool:
    first = _weighted(value[:9], tuple(range(10, 1, -1))) * 10 % 11 % 10
    second = _weighted(value[:10], tuple(range(11, 1, -1))) * 10 % 11 % 10
    return len(set(value)) > 1 and value[9:] == f"{first}{second}"


def _belgian(value: str) -> bool:
    body = int(value[:9])
    # A two goes before the number of those who are born from 2000 on.
    checks = (97 - body % 97, 97 - (2 * 10**9 + body) % 97)
    return int(value[2:4]) % 20 <= 12 and int(value[4:6]) <= 31 and int(value[9:]) in checks


def _swiss(value: str) -> bool:
    return -_weighted(value[:12], (1, 3) * 6) % 10 == int(value[12])


def _austrian(value: str) -> bool:
    body = value[:3] + value[4:]
    is_date = _is_date(value[4:6], value[6:8]) or value[6:8] in ("13", "14", "15")
    return value[0] != "0" and is_date and _weighted(body, (3, 7, 9, 5, 8, 4, 2, 1, 6)) % 11 == int(value[3])


def _portuguese(value: str) -> bool:
    check = -_weighted(value[:8], (9, 8, 7, 6, 5, 4, 3, 2)) % 11
    return (0 if check == 10 else check) == int(value[8])


def _czech(value: str) -> bool:
    return _is_date(value[4:6], value[2:4], 20, 50, 70) and int(value) % 11 == 0


@dataclass(frozen=True, slots=True)
class _Form:
    """How a number is written.

    Attributes:
        pattern: of it, between what is no part of a word or a longer number.
        is_valid: its rule, of the characters without separators, in capitals.
        alone: what it is without a word for it: "certain", "possible", or "" for nothing.
    """

    pattern: re.Pattern[str]
    is_valid: Callable[[str], bool]
    alone: str = ""


_BEFORE: Final = r"(?<![\w.\-/+])(?<!\d )"
_BEGIN: Final = re.compile(rf"{_BEFORE}(?=\w)")
"""Where a number of any form may begin: in digits without a separator only at the first one."""


def _form(pattern: str, is_valid: Callable[[str], bool], alone: str = "") -> _Form:
    return _Form(re.compile(rf"{_BEFORE}(?:{pattern})(?!\w)(?![ .\-/+]?\d)"), is_valid, alone)


_D: Final = "[0-9LMNPQRSTUVlmnpqrstuv]"
_FORMS: Final[tuple[_Form, ...]] = (
    _form(
        rf"[A-Za-z]{{3}}{_GAP}[A-Za-z]{{3}}{_GAP}{_D}{{2}}[ABCDEHLMPRSTabcdehlmprst]{_D}{{2}}{_GAP}[A-Za-z]{_D}{{3}}[A-Za-z]",
        _italian,
        "certain",
    ),
    _form(rf"\d\d{_GAP}\d{{6}}{_GAP}[A-Z]{_GAP}\d\d{_GAP}\d", _german_insurance, "certain"),
    _form(rf"[1-478]{_S}\d\d{_S}\d\d{_S}(?:\d\d|2[AB]){_S}\d{{3}}{_S}\d{{3}}{_S}{{1,3}}\d\d", _french, "certain"),
    _form(r"[1-478]\d{4}(?:\d\d|2[AB])\d{6} ?\d\d", _french, "possible"),
    _form(r"\d{3}\.\d{3}\.\d{3}-\d\d", _brazilian, "certain"),
    _form(r"\d{9}-?\d\d", _brazilian),
    _form(r"\d\d\.\d\d\.\d\d-\d{3}\.\d\d", _belgian, "certain"),
    _form(r"\d{11}|\d{6}-\d{3}-\d\d", _belgian),
    _form(r"756\.\d{4}\.\d{4}\.\d\d", _swiss, "certain"),
    _form(r"756\d{10}", _swiss),
    _form(r"\d{6}[-+A-FU-Y]\d{3}[A-FHJ-NPR-Y]", _finnish, "certain"),
    _form(r"\d{6}[-+A-FU-Y]\d{4}", _finnish, "possible"),
    _form(r"[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] \d\d \d\d \d\d [A-D]", _british, "certain"),
    _form(r"[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?\d{6} ?[A-D]", _british, "possible"),
    _form(r"\d{8}[ -]?[A-Z]|\d\d?\.\d{3}\.\d{3}[ -]?[A-Z]|[XYZ][ -]?\d{7}[ -]?[A-Z]", _spanish, "possible"),
    _form(r"(?:19|20)?\d{6}[-+]\d{4}", _swedish, "possible"),
    _form(r"(?:19|20)?\d{10}", _swedish),
    _form(r"\d{11}", _polish, "possible"),
    _form(r"\d{6}/\d{4}", _czech, "possible"),
    _form(rf"\d\d{_GAP}\d{{3}}{_GAP}\d{{3}}{_GAP}\d{{3}}", _german_tax),
    _form(r"\d{4}[. ]?\d\d[. ]?\d{3}|\d{3}[. ]?\d{3}[. ]?\d{3}", _dutch),
    _form(rf"\d{{3}}{_GAP}\d{{3}}{_GAP}\d{{3}}", _portuguese),
    _form(rf"\d{{4}}{_GAP}\d{{6}}", _austrian),
    _form(rf"\d{{6}}{_GAP}\d{{5}}", _norwegian),
    _form(r"\d{6}[- ]?\d{4}", _danish),
)


# Six digits or more, with what may be between them; most texts have few places like that, which all forms are tried in.
# Possessive: nothing follows that a shorter match would help, and to keep all ways back costs most of the time.
_DIGITS: Final = re.compile("\\d(?:[ \u00a0\u202f.\\-/+A-Za-z]{0,4}+\\d){5,}+")
_LETTERS_BEFORE: Final = 12
_LETTERS_BEHIND: Final = 6


def find_national_ids(text: str) -> Iterator[Span]:
    """Each number. Reserved: `mask_national_id`."""
    for place in _DIGITS.finditer(text):
        yield from _in_place(text, max(0, place.start() - _LETTERS_BEFORE), place.end() + _LETTERS_BEHIND)


def _in_place(text: str, start: int, end: int) -> Iterator[Span]:
    # Looked for once and not by each form: in a text of a million digits each would try a million places.
    begins = [begin.start() for begin in _BEGIN.finditer(text, start, end)]
    for form in _FORMS:
        for match in _matches(form.pattern, text, begins, end):
            plain = _SEPARATORS.sub("", match[0]).upper()
            if is_mask(plain):
                yield Span(match.start(), match.end(), "national_id", match[0], is_reserved=True)
                continue
            if not form.is_valid(plain):
                continue
            before = text[max(0, match.start() - _WORD_CHARACTERS) : match.start()]
            is_named = _WORD_BEFORE.search(before) is not None
            if is_named or form.alone:
                is_certain = is_named or form.alone == "certain"
                yield Span(match.start(), match.end(), "national_id", match[0], is_certain=is_certain)


def _matches(pattern: re.Pattern[str], text: str, begins: Sequence[int], end: int) -> Iterator[re.Match[str]]:
    """What `finditer` finds of a form, which can begin at these places alone."""
    free_from = 0
    for begin in begins:
        if begin >= free_from and (match := pattern.match(text, begin, end)):
            yield match
            free_from = match.end()


def is_mask(plain: str) -> bool:
    """Whether a number without separators is one that `mask_national_id` has made: 9, zeros, a counter; X as letter."""
    digits = "".join(filter(str.isdigit, plain))
    has_own_letters = any(letter.isalpha() and letter != "X" for letter in plain)
    return not has_own_letters and len(digits) >= 6 and _RESERVED.fullmatch(digits) is not None


def mask_national_id(value: str, counter: int) -> str:
    """A number of the same form that nobody has: 9, zeros and a counter in place of digits, X in place of letters."""
    num_digits = sum(map(str.isdigit, value))
    digits = iter(f"9{counter % 10 ** min(5, num_digits - 2):0{num_digits - 1}d}")
    return "".join(
        next(digits) if character.isdigit() else "X" if character.isalpha() else character for character in value
    )
