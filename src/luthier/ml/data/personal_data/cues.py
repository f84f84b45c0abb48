"""Words near a number that say what it is: "call me on", "order no.". The last such word before it decides."""

from __future__ import annotations

import re
from typing import Final, Literal

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
    """What the last telling word in the 48 characters before `start` says the number there is; None: nothing said."""
    window = text[max(0, start - _BEFORE_CHARACTERS) : start]
    last: Cue | None = None
    for match in _CUES.finditer(window):
        # A part of a longer word may look like a cue.
        if match.start() == 0 and start > _BEFORE_CHARACTERS:  # the window may have cut this word in two
            continue
        last = match.lastgroup or "other"  # type: ignore[assignment]
    return last


def is_phone_after(text: str, end: int) -> bool:
    """Whether the 28 characters after `end` speak of a telephone ("... is my mobile")."""
    return _PHONE_AFTER.search(text[end : end + _AFTER_CHARACTERS].split("\n", 1)[0]) is not None


def is_card_just_before(text: str, start: int) -> bool:
    """Whether a word for cards is in the 40 characters before `start`, and no other number between them."""
    return _CARD_JUST_BEFORE.search(text[max(0, start - 40) : start]) is not None
