"""Put well-formed stand-ins in place of personal data and secrets: the same value, the same stand-in.

Each stand-in comes from a range that is reserved for such use, so it reaches no one, and a second search of the text
finds nothing more:
    e-mail   person1@example.com                 RFC 2606
    phone    +1-201-555-0100 and on              NANPA keeps 555-0100 to 555-0199 of each area for fiction
    card     d000000..., counter, check digit    length and grouping of the original; Luhn is right
    IBAN     country, check digits, zeros, counter; mod 97 is right
    SSN      900-00-0001 and on                  areas from 900 are never given out (SSA)
    national id  form of the original, 9 and zeros, then a counter; X for letters, which no office gives out
    IP       192.0.2.1 ... or 2001:db8::1 ...    RFC 5737, 3849; after 762 addresses 198.18.0.0/15 (RFC 2544)
    street   1 Example Street                    house number counts
    name     Person A, ... Person Z, Person AA
    secret   <secret-1>
A value of digits only stays one of digits only, so that a number in JSON stays a number. Stand-ins repeat from the
79,900th phone, the 99,999th SSN that is bare or the 131,834th IP address on; cards of 12 digits from the 10,000th.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from luthier.ml.data.personal_data.find import FindNames, find_personal_data
from luthier.ml.data.personal_data.national_ids import mask_national_id
from luthier.ml.data.personal_data.recognizers import GAPS, KINDS, Kind, Profile, Span, luhn_digit, mask_iban
from luthier.ml.data.personal_data.secrets import Secret, find_secrets

_PHONES_PER_AREA: Final = 100
_AREAS: Final = 799


DEFAULT_KINDS: Final[tuple[Kind, ...]] = ("email", "iban", "card", "ssn", "national_id", "ip_address", "phone")
"""What a repair of training rows masks by default. Left out: streets, since a museum's address is not a home, and
names, which a language model guesses."""
OnMasked = Callable[[str, "Span | Secret", str], None]
"""Called for each value that is masked: the original text, the place of the value in it, and its stand-in."""


@dataclass(frozen=True, slots=True)
class MaskedKinds:
    """What is masked of personal data; by default all that may be a value, for text that must not leak one.

    Attributes:
        kinds: kinds that are masked; the others are left as they are.
        profile: "precision" masks only what is certain to be a value.
        every: kinds of which all that may be a value is masked in either profile.
    """

    kinds: tuple[Kind, ...] = KINDS
    profile: Profile = "recall"
    every: tuple[Kind, ...] = ()


class Pseudonyms:
    """Stand-ins in order of appearance, the same for the same value, over all texts of one repair."""

    def __init__(self, find_names: FindNames | None = None) -> None:
        """Start counting at 1 for every kind.

        Args:
            find_names: from `personal_data.names.name_finder`; None where names are left as they are.
        """
        self.find_names = find_names
        self._numbers: dict[tuple[str, str], int] = {}
        self._counts: Counter[str] = Counter()

    def number_of(self, kind: str, value: str) -> int:
        """1 for the first value of a kind, 2 for the next; the same value has the same number."""
        key = (kind, _normalised(kind, value))
        if key not in self._numbers:
            self._counts[kind] += 1
            self._numbers[key] = self._counts[kind]
        return self._numbers[key]

    def stand_in(self, kind: Kind, value: str) -> str:
        """What represents a value of personal data."""
        return _STAND_INS[kind](self.number_of(kind, value), value)

    def secret(self, value: str) -> str:
        """What represents a secret: safe inside quotes and JSON strings."""
        return f"<secret-{self.number_of('secret', value)}>"


def mask_personal_data(
    text: str,
    pseudonyms: Pseudonyms,
    masked: MaskedKinds = MaskedKinds(),
    on_masked: OnMasked | None = None,
) -> tuple[str, dict[str, int]]:
    """The text with stand-ins for its personal data, and how many of each kind; the unchanged text where there is none.

    The text around a stand-in is searched again, so that no value remains.

    Args:
        text: any text.
        pseudonyms: of the whole data set, so that equal values get equal stand-ins.
        masked: which kinds, and how certain a value must be.
        on_masked: called for each value before it is replaced.
    """
    counts: Counter[str] = Counter()
    # Ends, because stand-ins are of reserved ranges, which the finders do not report.
    while spans := _spans(text, pseudonyms.find_names, masked):
        stand_ins = [(span, pseudonyms.stand_in(span.kind, span.value)) for span in spans]
        text = _replaced(text, stand_ins, on_masked)
        counts.update(span.kind for span in spans)
    return text, dict(counts)


def _spans(text: str, find_names: FindNames | None, masked: MaskedKinds) -> list[Span]:
    found = find_personal_data(text, find_names, profile=masked.profile, every=masked.every)
    return [span for span in found if span.kind in masked.kinds]


def mask_secrets(text: str, pseudonyms: Pseudonyms, on_masked: OnMasked | None = None) -> tuple[str, dict[str, int]]:
    """The text with `<secret-n>` for all secrets, and how many of each kind."""
    counts: Counter[str] = Counter()
    while secrets := find_secrets(text):
        text = _replaced(text, [(secret, pseudonyms.secret(secret.value)) for secret in secrets], on_masked)
        counts.update(secret.kind for secret in secrets)
    return text, dict(counts)


def _replaced(text: str, stand_ins: Sequence[tuple[Span | Secret, str]], on_masked: OnMasked | None) -> str:
    parts, position = [], 0
    for span, stand_in in stand_ins:
        if on_masked is not None:
            on_masked(text, span, stand_in)
        parts += [text[position : span.start], stand_in]
        position = span.end
    return "".join([*parts, text[position:]])


def _normalised(kind: str, value: str) -> str:
    """What makes two spellings of a value the same one."""
    if kind in ("phone", "card", "ssn"):
        return re.sub(r"\D", "", value)
    if kind == "iban":
        return re.sub(f"[{GAPS}]", "", value).upper()
    if kind == "national_id":
        return "".join(filter(str.isalnum, value)).upper()
    # Case matters in a secret, and in no other kind.
    return value if kind == "secret" else " ".join(value.casefold().split())


def _email(number: int, value: str) -> str:  # noqa: ARG001 - all have one signature
    return f"person{number}@example.com"


def _phone(number: int, value: str) -> str:
    # Area codes begin at 201; 100 fictional numbers in each of 799 areas.
    area, line = divmod((number - 1) % (_AREAS * _PHONES_PER_AREA), _PHONES_PER_AREA)
    return f"1{201 + area}55501{line:02d}" if value.isdigit() else f"+1-{201 + area}-555-01{line:02d}"


def _card(number: int, value: str) -> str:
    digits = re.sub(r"\D", "", value)
    width = len(digits) - 8
    body = f"{digits[0]}000000{number % 10**width:0{width}d}"
    # Digits are put where the original has digits, so that its grouping stays.
    masked = iter(body + luhn_digit(body))
    return "".join(next(masked) if character.isdigit() else character for character in value)


def _iban(number: int, value: str) -> str:
    masked = iter(mask_iban(value[:2].upper(), number))
    return "".join(character if character in GAPS else next(masked) for character in value)


def _ssn(number: int, value: str) -> str:
    area, serial = divmod(number % 10**6, 10**4)
    digits = f"{900 + area % 100}00{serial:04d}"
    separator = value[3] if not value[3].isdigit() else ""
    return separator.join((digits[:3], digits[3:5], digits[5:]))


def _ip_address(number: int, value: str) -> str:
    if ":" in value:
        high, low = divmod(number, 2**16)
        return f"2001:db8::{high:x}:{low:x}" if high else f"2001:db8::{low:x}"
    block, host = divmod(number - 1, 254)
    if block < 3:
        return f"{('192.0.2', '198.51.100', '203.0.113')[block]}.{host + 1}"
    rest = (number - 3 * 254 - 1) % 2**17
    return f"198.{18 + (rest >> 16)}.{rest >> 8 & 255}.{rest & 255}"


def _street(number: int, value: str) -> str:  # noqa: ARG001
    return f"{number} Example Street"


def _name(number: int, value: str) -> str:  # noqa: ARG001
    letters = ""
    while number:
        number, letter = divmod(number - 1, 26)
        letters = chr(ord("A") + letter) + letters
    return f"Person {letters}"


_STAND_INS: Final[dict[Kind, Callable[[int, str], str]]] = {
    "email": _email,
    "phone": _phone,
    "card": _card,
    "iban": _iban,
    "ssn": _ssn,
    "national_id": lambda number, value: mask_national_id(value, number),
    "ip_address": _ip_address,
    "street": _street,
    "name": _name,
}
