"""International bank account numbers (ISO 13616): country, length and check digits (ISO 7064, mod 97-10)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from luthier.ml.data.personal_data.span import Span

# Country -> structure of the part after the check digits: n digits, a capitals, c either (SWIFT IBAN registry).
STRUCTURES: Final[dict[str, str]] = {
    "AD": "8n12c", "AE": "19n", "AL": "8n16c", "AT": "16n", "AZ": "4a20c", "BA": "16n", "BE": "12n",
    "BG": "4a6n8c", "BH": "4a14c", "BR": "23n1a1c", "BY": "4c4n16c", "CH": "5n12c", "CR": "18n", "CY": "8n16c",
    "CZ": "20n", "DE": "18n", "DK": "14n", "DO": "4c20n", "EE": "16n", "EG": "25n", "ES": "20n",
    "FI": "14n", "FO": "14n", "FR": "10n11c2n", "GB": "4a14n", "GE": "2a16n", "GI": "4a15c", "GL": "14n",
    "GR": "7n16c", "GT": "24c", "HR": "17n", "HU": "24n", "IE": "4a14n", "IL": "19n", "IQ": "4a15n",
    "IS": "22n", "IT": "1a10n12c", "JO": "4a4n18c", "KW": "4a22c", "KZ": "3n13c", "LB": "4n20c", "LC": "4a24c",
    "LI": "5n12c", "LT": "16n", "LU": "3n13c", "LV": "4a13c", "LY": "21n", "MC": "10n11c2n", "MD": "20c",
    "ME": "18n", "MK": "3n10c2n", "MR": "23n", "MT": "4a5n18c", "MU": "4a19n3a", "NL": "4a10n", "NO": "11n",
    "PK": "4a16c", "PL": "24n", "PS": "4a21c", "PT": "21n", "QA": "4a21c", "RO": "4a16c", "RS": "18n",
    "SA": "2n18c", "SC": "4a20n3a", "SE": "20n", "SI": "15n", "SK": "20n", "SM": "1a10n12c", "ST": "21n",
    "SV": "4a20n", "TL": "19n", "TN": "20n", "TR": "6n16c", "UA": "6n19c", "VA": "18n", "VG": "4a16n",
    "XK": "16n",
}  # fmt: skip
_START: Final = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?=[ -]?[A-Z0-9])")
_UNIT: Final = re.compile(r"(\d+)([nac])")
_MASK: Final = re.compile(r"[A-Z]{2}\d\d[0X]+\d{0,6}X*")


def find_ibans(text: str) -> Iterator[Span]:
    """Each account number, in one piece or in groups. Reserved: zeros with a counter, as masks have them."""
    for match in _START.finditer(text):
        structure = STRUCTURES.get(match[0][:2])
        if structure is None:
            continue
        end = _end(text, match.start(), 4 + bban_length(structure))
        if end is None:
            continue
        value = text[match.start() : end]
        plain = re.sub(r"[ -]", "", value)
        if _remainder(plain) == 1:
            yield Span(match.start(), end, "iban", value, _MASK.fullmatch(plain) is not None)


def bban_length(structure: str) -> int:
    """Characters of an account number after country and check digits."""
    return sum(int(num) for num, _ in _UNIT.findall(structure))


def mask_iban(country: str, counter: int) -> str:
    """A well-formed account number of the country that no bank has given out: zeros (X for letters), then a counter."""
    structure = STRUCTURES[country]
    bban = "".join(("X" if kind == "a" else "0") * int(num) for num, kind in _UNIT.findall(structure))
    num_end = len(bban) - (len(bban) - len(bban.rstrip("X")))
    # The counter replaces the last six digits; letters that the structure wants at the end stay.
    bban = bban[: num_end - 6] + f"{counter % 10**6:06d}" + bban[num_end:]
    return f"{country}{98 - _remainder(f'{country}00{bban}'):02d}{bban}"


def _end(text: str, start: int, length: int) -> int | None:
    """Where `length` letters and digits from `start` end, single spaces or hyphens between; None where they do not."""
    seen, position = 0, start
    while seen < length:
        character = text[position : position + 1]
        if "A" <= character <= "Z" or "0" <= character <= "9":
            seen += 1
        elif character not in (" ", "-") or not character or text[position - 1] in " -":
            return None
        position += 1
    return None if text[position : position + 1].isalnum() else position


def _remainder(iban: str) -> int:
    # ISO 7064: country and check digits go to the end, letters count from A = 10; a valid number leaves 1.
    return int("".join(str(int(character, 36)) for character in iban[4:] + iban[:4])) % 97
