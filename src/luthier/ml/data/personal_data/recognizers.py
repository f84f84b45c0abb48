"""Personal data with a fixed form: e-mail and IP addresses, IBANs, payment cards, social security numbers.

Each `find_...` yields a `Span` for every value in a text. Words near a number show what it is ("call me on",
"order no."); the last such word before it decides (`cue_before`).

email        RFC 5321 4.1.2 without quoted local parts; letters beyond ASCII as RFC 6531 allows. Not found: addresses
             that are written to avoid being found ("name [at] firm [dot] com").
ip_address   Version 4 and 6. Four small numbers with dots (all below 20) are as likely a version or a section and count
             only after a word that says address. Certain are those next to such a word, port or URL, and those whose
             form nothing else has. Special-purpose addresses are not reported (RFC 6890, 5737, 3849).
iban         ISO 13616: country, length and check digits (ISO 7064, mod 97-10).
card         12 to 19 digits with a valid check digit (ISO/IEC 7812-1, annex B: Luhn). A number of which nothing says
             that it is a card must also begin as one does and have 14 digits or more: one in ten of all numbers passes
             Luhn, EAN-13 bar codes among them. Not found: cards whose digits are grouped in unusual ways.
ssn          United States numbers (SSA: no area 000, 666 or 900-999, no group 00, no serial 0000). Those of other
             countries are in `national_ids`.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal["email", "phone", "card", "iban", "ssn", "national_id", "ip_address", "street", "name"]

Profile = Literal["precision", "recall"]
"""Which spans count: `precision`, those that their form and the words next to them make certain, for rows that are
changed for good; `recall`, everything that may be a value, where what is missed is leaked."""

KINDS: Final[tuple[Kind, ...]] = (
    "email",
    "iban",
    "card",
    "ssn",
    "national_id",
    "ip_address",
    "phone",
    "street",
    "name",
)


@dataclass(frozen=True, slots=True)
class Span:
    """The value `text[start:end]`.

    Attributes:
        start: first character in the text.
        end: behind the last character.
        kind: what it is.
        value: the characters themselves.
        is_reserved: of the right form, but reserved for documentation, tests or masks, so it reaches no one. Such a
            span is not reported; it only keeps other finders off its characters.
        is_certain: whether it counts with precision (`Profile`).
    """

    start: int
    end: int
    kind: Kind
    value: str
    is_reserved: bool = False
    is_certain: bool = True


_BEFORE_CHARACTERS: Final = 48
_AFTER_CHARACTERS: Final = 28

_PHONE: Final = (
    r"tele(?:ph|f)on\w*|telefoon\w*|(?:smart)?phone\w*|tel|tél\w*|telef\w*|teléf\w*|mobil\w*|móvil\w*"
    r"|cell|cellphone|cellular\w*"
    r"|call|calling|callback|dial\w*|ring|fax|whatsapp|sms|text (?:me|him|her|us)|reach\w*|hotline|contact\w*"
    r"|kontakt\w*|handy\w*|rufnummer|ruf\w{0,3}|anruf\w*|angerufen|erreich\w*|appel\w*|rappel\w*|joign\w*"
    r"|joindre|portable|numéro de tél\w*"
    r"|llam\w*|chiam\w*|telefonare|bel|bellen|gsm"
)
_OTHER: Final = (
    r"orders?|ordered|invoices?|receipt|ref|refs|references?|tracking\w*|parcel\w*|shipment\w*|isbn|issn|ean|upc|gtin|sku|asin"
    r"|articles?|items?|models?|serial\w*|part|product\w*|batch|lot|version\w*|tickets?|case|accounts?|customer\w*|ids?|codes?"
    r"|barcodes?|policy|patent|doi|timestamps?|score\w*|population|bestell\w*|auftrag\w*|rechnung\w*|artikel\w*|sendung\w*"
    r"|serien\w*|kunden\w*|commande\w*|facture\w*|référence\w*|colis|suivi|pedido\w*|factura\w*|referencia\w*|envío"
    r"|ordine|fattura|codice|código|spedizione|articolo|iban|konto\w*|compte|cuenta|conto|bestelling|factuur"
)
_CARD: Final = (
    r"cards?|visa|mastercard|maestro|amex|american express|discover|diners|jcb|\w*karten?\w*|cartes?|tarjetas?"
    r"|charged?|debit\w*|belast\w*|débit\w*|prélev\w*|cobr\w*|cargo|addebit\w*"
    r"|cart[ae]|creditcard\w*|\w*kaart|cc|bancaire"
)
_SSN: Final = (
    r"ssn|social[ -]?security\w*|sozialversicherung\w*|sécurité sociale|seguridad social|previdenza sociale|tax id\w*"
)

_CUES: Final = re.compile(
    rf"(?i)\b(?:(?P<phone>{_PHONE})|(?P<card>{_CARD})|(?P<ssn>{_SSN})|(?P<other>{_OTHER}))\b|[#№]"
)
_PHONE_AFTER: Final = re.compile(
    r"(?i)\b(?:tele(?:ph|f)on\w*|phone|mobile|cell|handy\w*|mobilnummer|rufnummer|téléphone|portable|teléfono|móvil|"
    r"telefono|cellulare|whatsapp|fax|anrufen|anruf\w*)\b"
)

_CARD_JUST_BEFORE: Final = re.compile(rf"(?i)\b(?:{_CARD})\b\D{{0,20}}$")

Cue = Literal["phone", "card", "ssn", "other"]


def cue_before(text: str, start: int) -> Cue | None:
    """What the last relevant word in the 48 characters before `start` says the number there is; None without one."""
    window = text[max(0, start - _BEFORE_CHARACTERS) : start]
    last: Cue | None = None
    for match in _CUES.finditer(window):
        # A part of a longer word may look like a cue.
        if match.start() == 0 and start > _BEFORE_CHARACTERS:  # the window may have cut this word in two
            continue
        last = match.lastgroup or "other"  # type: ignore[assignment]
    return last


def is_phone_after(text: str, end: int) -> bool:
    """Whether the 28 characters after `end` refer to a telephone ("... is my mobile")."""
    return _PHONE_AFTER.search(text[end : end + _AFTER_CHARACTERS].split("\n", 1)[0]) is not None


def is_card_just_before(text: str, start: int) -> bool:
    """Whether a word for cards is in the 40 characters before `start`, and no other number between them."""
    return _CARD_JUST_BEFORE.search(text[max(0, start - 40) : start]) is not None


# Behind it, a hyphen begins a German noun made with it (`ann@gmx.de-Adresse`), or the domain continues.
_ADDRESS: Final = re.compile(
    r"(?<!\w)([^\W_][\w.+%'-]{0,63}|_[\w.+%'-]{1,63})@((?:[^\W_](?:[\w-]{0,61}[^\W_])?\.){1,8}[^\W\d_]{2,24})"
    r"(?![\w@]|-(?![A-ZÄÖÜ][a-zäöüß]{2}))"
)
_RESERVED_DOMAINS: Final = re.compile(
    r"(?i)(?:^|\.)(?:example\.(?:com|org|net|edu)|test|invalid|example|localhost|local)$"
)
_NOBODY: Final = frozenset(("git", "noreply", "no-reply", "donotreply", "do-not-reply", "mailer-daemon"))
_FILE_ENDINGS: Final = frozenset(
    ("png", "jpg", "jpeg", "gif", "svg", "webp", "css", "js", "ts", "json", "html", "php", "py", "exe", "zip", "pdf")
)
# Domains of the top level (IANA root zone): of countries, and the generic ones in common use. `a@b.shape` is code.
_COUNTRY_DOMAINS: Final = (
    "ac ad ae af ag ai al am ao aq ar as at au aw ax az ba bb bd be bf bg bh bi bj bm bn bo br bs bt bw by bz ca "
    "cc cd cf cg ch ci ck cl cm cn co cr cu cv cw cx cy cz de dj dk dm do dz ec ee eg er es et eu fi fj fk fm fo "
    "fr ga gd ge gf gg gh gi gl gm gn gp gq gr gs gt gu gw gy hk hm hn hr ht hu id ie il im in io iq ir is it je "
    "jm jo jp ke kg kh ki km kn kp kr kw ky kz la lb lc li lk lr ls lt lu lv ly ma mc md me mg mh mk ml mm mn mo "
    "mp mq mr ms mt mu mv mw mx my mz na nc ne nf ng ni nl no np nr nu nz om pa pe pf pg ph pk pl pm pn pr ps pt "
    "pw py qa re ro rs ru rw sa sb sc sd se sg sh si sk sl sm sn so sr ss st su sv sx sy sz tc td tf tg th tj tk "
    "tl tm tn to tr tt tv tw tz ua ug uk us uy uz va vc ve vg vi vn vu wf ws ye yt za zm zw "
)
_GENERIC_DOMAINS: Final = (
    "com org net edu gov mil int info biz name pro aero coop museum mobi jobs travel tel cat asia post app dev "
    "page cloud online site store shop tech xyz email club blog news live life world today agency academy company "
    "solutions services group team work works space website digital media design studio photography marketing "
    "consulting software systems technology network ventures capital finance legal law health care clinic science "
    "university school education foundation international global green energy house homes restaurant hotel berlin "
    "hamburg koeln cologne bayern wien paris london amsterdam vlaanderen brussels madrid barcelona nyc tokyo top "
    "vip icu fun link click gmbh ltd llc inc "
)
_TOP_LEVEL_DOMAINS: Final = frozenset(f"{_COUNTRY_DOMAINS} {_GENERIC_DOMAINS}".split())


def find_emails(text: str) -> Iterator[Span]:
    """Each address. Reserved: example.com and its variants, .test, .invalid (RFC 2606, 6761), noreply@ and git@
    remotes.
    """
    if "@" not in text:
        return
    for match in _ADDRESS.finditer(text):
        local, domain = match[1], match[2]
        # Dots in succession are no part of an address: `write to me...ann@firm.de`.
        local = local.rpartition("..")[2].lstrip("+%'-") if ".." in local else local
        if not local or local.endswith(".") or domain.rpartition(".")[2].lower() in _FILE_ENDINGS:
            continue
        if _is_password_of_url(text, match.start()):
            continue
        start = match.end(1) - len(local)
        is_reserved = local.lower() in _NOBODY or _RESERVED_DOMAINS.search(domain) is not None
        is_certain = _is_domain(domain.rpartition(".")[2])
        yield Span(start, match.end(), "email", text[start : match.end()], is_reserved, is_certain)


def _is_domain(top_level: str) -> bool:
    if not top_level.isascii():  # the names in other scripts are many, and no attribute of code is called so
        return True
    is_one_case = top_level in (top_level.lower(), top_level.upper())
    return is_one_case and top_level.lower() in _TOP_LEVEL_DOMAINS


def _is_password_of_url(text: str, start: int) -> bool:
    """Whether this is the end of `scheme://user:password@host`, which is a secret and no address."""
    head = text[max(0, start - 120) : start]
    scheme = head.rfind("://")
    return scheme >= 0 and not any(character.isspace() or character in "/?\"'" for character in head[scheme + 3 :])


_V4: Final = re.compile(r"(?<![\w.\-])(?:\d{1,3}\.){3}\d{1,3}(?!\.?\d)(?![\w\-])")
_V6: Final = re.compile(r"(?<![\w:.])(?:[0-9A-Fa-f]{1,4})?(?::[0-9A-Fa-f]{0,4}){2,7}(?![\w:])(?!\.\d)")
_VERSION_BEFORE: Final = re.compile(
    r"(?i)(?:\b(?:v|ver|version\w*|release\w*|firmware\w*|build\w*|update\w*|patch\w*|chapter|section|sec|clause|paragraph|"
    r"kapitel|abschnitt|chapitre|sección|capítulo|sezione|capitolo|schema|driver|software|app)\b|§)[\w .:]{0,16}$"
)
_ADDRESS_BEFORE: Final = re.compile(
    r"(?i)\b(?:ip\w*|host\w*|server\w*|address\w*|adresse|dirección|indirizzo|ping|ssh|gateway|dns)\b[^.\n]{0,24}$"
)
# The version of a product, as in a User-Agent header (RFC 9110, 10.1.5); a URL has a second slash.
_PRODUCT_BEFORE: Final = re.compile(r"(?<![/\w])\w[\w\-]*/$")
_CERTAIN_BEFORE: Final = re.compile(
    r"(?i)(?:\b(?:ip|ips|ipv[46]|ip[ _-]?addr\w*|hosts?|hostname|servers?|address(?:es)?|addr|adresse|dirección|"
    r"indirizzo|ping|ssh|telnet|gateway|router|proxy|firewall|nameserver|dns|inet6?|peer|remote|client|clients|subnet|"
    r"(?:log-?ins?|logged in|requests?|connections?|connected|connect|access|traffic|visits?|attacks?|banned|blocked) "
    r"(?:from|to|by|of)|x-forwarded-for|connect(?:ed|ing)? to|resolves to)\b[^.\n;]{0,16}|://|@)$"
)
_CERTAIN_AFTER: Final = re.compile(r":\d{2,5}\b|/(?:[89]|[12]\d|3[0-2])\b|,? port \d| - - \[|\]:\d")
_LARGE: Final = 100
_SMALL: Final = 20
_PUBLIC_SERVICES: Final = frozenset(("8.8.8.8", "8.8.4.4", "1.1.1.1", "1.0.0.1", "9.9.9.9"))


def find_ip_addresses(text: str) -> Iterator[Span]:
    """Each address. Reserved: special-purpose ones and the public name servers that everybody uses."""
    for match in _V4.finditer(text):
        parts = match[0].split(".")
        # A leading zero is octal to some programs: no address is written so.
        if any(len(part) > 1 and part[0] == "0" for part in parts) or any(int(part) > 255 for part in parts):
            continue
        before = text[max(0, match.start() - 40) : match.start()]
        is_small = all(int(part) < _SMALL for part in parts)
        if _VERSION_BEFORE.search(before) or (is_small and not _ADDRESS_BEFORE.search(before)):
            continue
        if _PRODUCT_BEFORE.search(before) and match[0].endswith(".0.0"):
            continue
        yield _span(match, is_certain=_is_certain(text, match) or _has_form_of_its_own(parts))
    if "::" not in text and text.count(":") < 7:
        return
    for match in _V6.finditer(text):
        groups = [part for part in match[0].split(":") if part]
        if len(groups) >= 3 and any(c.isdigit() for c in match[0]) and _is_v6(match[0]):
            is_unicast = len(groups[0]) == 4 and groups[0][0] in "23"  # 2000::/3, all that is given out (RFC 4291)
            yield _span(match, is_certain=is_unicast or len(groups) == 8 or _is_certain(text, match))


def _is_certain(text: str, match: re.Match[str]) -> bool:
    """Whether the words and signs next to it show that it is an address."""
    before = text[max(0, match.start() - 40) : match.start()].rstrip(" [(\"'`")
    if _CERTAIN_AFTER.match(text, match.end()):
        return True
    return _CERTAIN_BEFORE.search(before) is not None


def _has_form_of_its_own(parts: list[str]) -> bool:
    """Whether two of the four are large, as no chapter's and hardly a version's are."""
    return sum(int(part) >= _LARGE for part in parts) >= 2


def _span(match: re.Match[str], *, is_certain: bool) -> Span:
    address = ipaddress.ip_address(match[0])
    is_reserved = not address.is_global or address.is_multicast or match[0] in _PUBLIC_SERVICES
    return Span(match.start(), match.end(), "ip_address", match[0], is_reserved, is_certain)


def _is_v6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


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
GAPS: Final = " \u00a0\u202f-"
"""What separates the groups of an account or card number: also spaces that no line may break at, as in PDF and HTML."""
_START: Final = re.compile(rf"(?<![A-Za-z0-9])[A-Za-z]{{2}}\d{{2}}(?=[{GAPS}]?[A-Za-z0-9])")
_UNIT: Final = re.compile(r"(\d+)([nac])")
_IBAN_MASK: Final = re.compile(r"[A-Z]{2}\d\d[0X]+\d{0,6}X*")


def find_ibans(text: str) -> Iterator[Span]:
    """Each account number, in one piece or in groups, in small letters where digits and letters are where its country
    has them. Reserved: zeros with a counter, as masks have them.
    """
    for match in _START.finditer(text):
        structure = STRUCTURES.get(match[0][:2].upper())
        if structure is None:
            continue
        end = _end(text, match.start(), 4 + bban_length(structure))
        if end is None:
            continue
        value = text[match.start() : end]
        plain = re.sub(f"[{GAPS}]", "", value).upper()
        # Small letters are also those of names and digests, so that the form has to fit as well.
        if _remainder(plain) == 1 and (value == value.upper() or _has_structure(plain[4:], structure)):
            yield Span(match.start(), end, "iban", value, _IBAN_MASK.fullmatch(plain) is not None)


def _has_structure(bban: str, structure: str) -> bool:
    at = 0
    for num, kind in _UNIT.findall(structure):
        unit, at = bban[at : at + int(num)], at + int(num)
        if (kind == "n" and not unit.isdigit()) or (kind == "a" and not unit.isalpha()):
            return False
    return True


def bban_length(structure: str) -> int:
    """Characters of an account number after country and check digits."""
    return sum(int(num) for num, _ in _UNIT.findall(structure))


def mask_iban(country: str, counter: int) -> str:
    """A well-formed account number of the country that no bank has given out: zeros (X for letters), then a counter."""
    structure = STRUCTURES[country]
    bban = "".join(("X" if kind == "a" else "0") * int(num) for num, kind in _UNIT.findall(structure))
    num_end = len(bban) - (len(bban) - len(bban.rstrip("X")))
    # The counter replaces the last six digits; letters that the structure requires at the end stay.
    bban = bban[: num_end - 6] + f"{counter % 10**6:06d}" + bban[num_end:]
    return f"{country}{98 - _remainder(f'{country}00{bban}'):02d}{bban}"


def _end(text: str, start: int, length: int) -> int | None:
    """Where `length` letters and digits from `start` end, single gaps between; None where they do not."""
    seen, position = 0, start
    while seen < length:
        character = text[position : position + 1]
        if character.isascii() and character.isalnum():
            seen += 1
        elif not character or character not in GAPS or text[position - 1] in GAPS:
            return None
        position += 1
    return None if text[position : position + 1].isalnum() else position


def _remainder(iban: str) -> int:
    # ISO 7064: country and check digits go to the end, letters count from A = 10; a valid number leaves 1.
    return int("".join(str(int(character, 36)) for character in iban[4:] + iban[:4])) % 97


_RUN: Final = re.compile(rf"(?<![\w.])(?<!\d[{GAPS}])\d(?:[{GAPS}]?\d){{11,18}}(?![{GAPS}]?\d)(?![\w%])")
_LAYOUT: Final = re.compile(rf"\d+|\d{{4}}([{GAPS}])\d{{4}}(?:\1\d{{1,4}}){{1,3}}|\d{{4}}([{GAPS}])\d{{6}}\2\d{{4,5}}")
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
_CARD_MASK: Final = re.compile(r"\d0{6}\d+")


def find_cards(text: str) -> Iterator[Span]:
    """Each card number. Reserved: the payment firms' public test numbers, and d000000... as masks have it."""
    for match in _RUN.finditer(text):
        digits = re.sub(f"[{GAPS}]", "", match[0])
        if not _LAYOUT.fullmatch(match[0]) or len(set(digits)) == 1 or not has_luhn_digit(digits):
            continue
        is_reserved = digits in _TEST_NUMBERS or _CARD_MASK.fullmatch(digits) is not None
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


_NUMBER: Final = re.compile(r"(?<![\w.\-/])(?<!\d )(\d{3})([ -]?)(\d{2})\2(\d{4})(?![ .\-/]?\d)(?!\w)")


def find_ssns(text: str) -> Iterator[Span]:
    """Each number: with hyphens by its form, with spaces or bare only after a word for it. Reserved: area 9xx."""
    for match in _NUMBER.finditer(text):
        area, group, serial = match[1], match[3], match[4]
        cue = cue_before(text, match.start())
        if cue == "ssn" or (match[2] == "-" and cue != "other"):
            if area[0] == "9":
                yield Span(match.start(), match.end(), "ssn", match[0], is_reserved=True)
            elif area not in ("000", "666") and group != "00" and serial != "0000":
                yield Span(match.start(), match.end(), "ssn", match[0])
