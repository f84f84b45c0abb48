"""Street addresses with a house number, as written in English, German, Dutch, French, Spanish and Italian.

A street without a house number is a place on a map and is not reported. Certain is a street with a flat or with a post
code or a state behind it, or behind a word that says that somebody lives there or something is sent there. What stays
ambiguous: shops and titles that look like an address ("300 Blue Ridge Mountain"), a year after a square
("Alexanderplatz 2021" is left alone).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from luthier.ml.data.personal_data.recognizers import Span

# English. The first are always streets; the others (USPS Publication 28, C1) are also plain nouns, so they
# need a house number of three digits or a flat behind them.
STRONG_SUFFIXES: Final = (
    "Street|Streets|St|Avenue|Ave|Road|Roads|Rd|Lane|Ln|Drive|Drives|Dr|Boulevard|Blvd|Court|Courts|Ct|Terrace|Crescent|"
    "Parkway|Highway|Hwy|Alley|Mews|Turnpikes?|Trafficway|Throughway|Expressway|Freeway|Stravenue|Skyway|Close"
)
WEAK_SUFFIXES: Final = (
    "Place|Pl|Way|Ways|Square|Squares|Branch|Bridge|Brooks?|Burgs?|Bypass|Camp|Canyon|Cape|Causeway|Centers?|Circles?|Cliffs?|"
    "Club|Common|Corners?|Course|Coves?|Creek|Crest|Crossing|Crossroad|Curve|Dale|Dam|Divide|Estates?|Extensions?|Falls?|"
    "Ferry|Fields?|Flats?|Fords?|Forest|Forges?|Forks?|Fort|Gardens?|Gateway|Glens?|Greens?|Grove|Groves|Harbors?|Havens?|"
    "Heights|Hills?|Hollow|Inlet|Islands?|Isle|Junctions?|Keys?|Knolls?|Lakes?|Land|Landing|Lights?|Loaf|Locks?|Lodge|Loop|"
    "Mall|Manors?|Meadows?|Mills?|Missions?|Motorway|Mount|Mountains?|Neck|Orchard|Oval|Overpass|Parks?|Parkways|Pass|Passage|"
    "Path|Pike|Pines?|Plains?|Plaza|Points?|Ports?|Prairie|Radial|Ramp|Ranch|Rapids?|Rest|Ridges?|River|Route|Row|Rue|Run|"
    "Shoals?|Shores?|Springs?|Spurs?|Station|Stream|Summit|Trace|Track|Trail|Tunnel|Underpass|Unions?|Valleys?|Via|Viaduct|"
    "Views?|Villages?|Ville|Vista|Walks?|Wall|Wells?"
)
UNITS: Final = r"(?:Apt|Apartment|Suite|Ste|Unit|Flat|Studio)\.? ?#?\w{1,5}|# ?\d{1,5}"

# German and Dutch: the ending of one word, or a separate word after a name.
GERMAN_ENDINGS: Final = (
    "straße|strasse|str\\.?|gasse|platz|ring|weg|allee|damm|ufer|chaussee|steig|stieg|pfad|graben|promenade|brücke|"
    "straat|laan|plein|gracht|kade|singel|dijk|steeg|dreef|baan|boulevard|hof|pad"
)
GERMAN_WORDS: Final = "Straße|Strasse|Str\\.?|Gasse|Platz|Ring|Weg|Allee|Damm|Ufer|Chaussee|Steig|Graben|Promenade"
# Plain nouns that end like a street.
GERMAN_NOUNS: Final = frozenset(
    (
        "umweg", "ausweg", "heimweg", "rückweg", "hinweg", "radweg", "gehweg", "schulweg", "arbeitsweg",
        "bremsweg", "feldweg", "parkplatz", "sitzplatz", "stehplatz", "stellplatz", "spielplatz", "sportplatz",
        "arbeitsplatz", "startplatz", "marktplatz", "bahnsteig", "campingplatz", "tabellenplatz", "bauplatz",
        "steckplatz", "speicherplatz", "liegeplatz", "hering", "ohrring", "ehering", "schlüsselring",
        "dichtungsring", "autobahn", "straßenbahn", "startseite", "friedhof", "bahnhof", "hauptbahnhof",
        "bauernhof", "innenhof", "gasthof", "landstraße", "bundesstraße", "hauptweg", "notepad", "touchpad",
        "ipad", "keypad", "gamepad", "launchpad", "trackpad", "mousepad", "thinkpad", "string", "spring",
        "monitoring", "boxring", "laufweg", "bewerbung", "scoring", "engineering", "wiring", "during",
        "offspring",
    )
)  # fmt: skip

FRENCH_WORDS: Final = (
    "rue|avenue|av\\.|boulevard|bd\\.?|blvd\\.?|chemin|place|allées?|impasse|quai|route|square|cours|passage|ruelle|voie|"
    "faubourg|sentier"
)
SPANISH_WORDS: Final = (
    "Calle|C\\.|C/|Avenida|Avda\\.?|Av\\.|Plaza|Paseo|P\\.º|Camino|Carretera|Ctra\\.|Ronda|Rambla|Travesía|Glorieta|Vial|"
    "Vía|Urbanización|Callejón|Cañada|Alameda|Acceso|Pasaje|Cuesta|Pasadizo"
)
ITALIAN_WORDS: Final = (
    "Via|Viale|V\\.le|Piazza|P\\.za|Piazzale|Corso|C\\.so|Vicolo|Largo|Strada|Borgo|Contrada|Rotonda|Incrocio|Stretto|Canale|"
    "Lungomare|Località"
)


_NAME: Final = r"[^\W\d_a-zß-öø-ÿ][\w'’\-]{0,40}"
_PARTICLE: Final = (
    r"(?:(?:de las|de los|de la|de l['’]|della|delle|dello|degli|dell['’]|dei|del"
    r"|des|du|de|di|da|la|le|les|los|las|el|y|e"
    r"|d['’]|l['’]) ?)"
)
_NAMES: Final = rf"{_PARTICLE}{{0,2}}{_NAME}(?:[ ]{_PARTICLE}{{0,2}}{_NAME}){{0,3}}"
_TAIL: Final = r"(?:,? (?:Apt|Apartamento|Appartamento|Piso|Puerta|Piano|Interno|Esc)\.? ?\d{1,4})?"
_NUMBER: Final = r"(\d{1,5}(?: ?[a-zA-Z](?![\w.]))?(?:[/\-]\d{1,4})?)"

_ENGLISH: Final = re.compile(
    rf"(?<![\w.,:/$€£#%+\-])(?<!\d )(\d{{1,6}}[A-Za-z]?) (?:[NSEW]{{1,2}}\.? |North |South |East |West )?"
    rf"(?:(?:\d{{1,3}}(?:st|nd|rd|th)|{_NAME}) ){{1,3}}?(?:({STRONG_SUFFIXES})|(?:{WEAK_SUFFIXES}))\b\.?"
    rf"((?:,? |\n)(?:{UNITS}))?"
)
_GERMAN: Final = re.compile(
    rf"(?<![\w.\-])(?:([A-ZÄÖÜ](?:[\w\-]|\.(?=-)){{1,60}}?(?i:{GERMAN_ENDINGS}))"
    rf"|(?:(?:Am|An der|An den|Auf dem|Auf der|Im|In der|Zum|Zur|"
    rf"Unter den|Alte|Neue|Lange|Kurze|Hohe|Obere|"
    rf"Untere|Große|Kleine|[A-ZÄÖÜ]\w{{2,30}}e[rns]?) ){_NAME}) {_NUMBER}"
    rf"(?![\w]|[.,:]\d|[ ]?[%€$°])"
)
_GERMAN_LAST_WORD: Final = re.compile(rf"(?:{GERMAN_WORDS})$")
_GERMAN_PREPOSITION: Final = re.compile(r"(?:Am|An de[rn]|Auf de[mr]|Unter den) ")
_FRENCH: Final = re.compile(
    rf"(?<![\w.,:/$€£#%+\-])(?<!\d )(\d{{1,4}})(?: ?(?:bis|ter|quater|[A-D])\b)?,? "
    rf"(?i:{FRENCH_WORDS}) {_NAMES}(?![\w'’\-])"
)
_SPANISH: Final = re.compile(
    rf"(?<![\w.])(?:{SPANISH_WORDS}) ?{_NAMES},? (?:n\.?º ?|núm\.? ?)?{_NUMBER}(?!\w|[.,:]\d|[ ]?[%€$°]){_TAIL}"
)
_ITALIAN: Final = re.compile(
    rf"(?<![\w.])(?:{ITALIAN_WORDS}|(?<=in )via|(?<=in )viale|(?<=in )piazza|(?<=in )corso) {_NAMES},? "
    rf"(?:n\.? ?)?{_NUMBER}(?!\w|[.,:]\d|[ ]?[%€$°]){_TAIL}"
)
_MASK: Final = re.compile(r"\d+ Example Street")
_YEAR: Final = re.compile(r"(?:19|20)\d\d")
_UNIT_OR_TIME: Final = re.compile(
    r"(?i) ?(?:Uhr|Euro|EUR|Prozent|Minuten|Stunden|Tage|Jahre|km|kg|cm|mm|m|h|min|"
    r"euros?|años|anni|giorni|ore|ans|heures|jours|días|horas)\b"
)
_ABBREVIATED: Final = re.compile(r" (?:St|Ave|Rd|Ln|Dr|Blvd|Ct|Pl|Hwy)\.$")
# German words end in -ring, and so do English ones: "Considering 16 ounces".
_GERUND: Final = re.compile(r"(?i)(?:[aeiou]r|[a-z]rr|st|sp|b|w)ing$")
_GERMAN_NEARBY: Final = re.compile(
    r"(?i)\b(?:der|das|und|ich|wir|ist|nicht|im|zum|zur|bei|am|vom|mit|eine?[rnms]?|straße|str|wohn\w*|adresse|anschrift)\b"
    r"|[äöüß]|\b(?:D-)?\d{5} [A-ZÄÖÜ]"
)
_LIVES_BEFORE: Final = re.compile(
    r"(?i)\b(?:address|live[sd]?|living|resid(?:es?|ed|ing)|deliver\w*|ship(?:ped)?|send|sent|mail(?:ed)?|home|moved"
    r"|wohn\w*|adresse|anschrift|schick\w*|send\w*|liefer\w*|habit\w*|domicili\w*|envoy\w*|viv[eio]\w*|dirección|env[ií]\w*"
    r"|abit\w*|indirizzo|mandate|spedi\w*|woon\w*|adres)\b[^.\n\d]{0,24}$"
)
_PLACE_AFTER: Final = re.compile(
    r"[,\n]?[ \n]?(?:[^,\n]{0,30}, )?(?:[A-Z]{2} )?"
    r"(?:\d{4,5}(?:-\d{3,4})?\b|[A-Z]{1,2}\d[A-Z\d]? ?\d[A-Z]{2}\b|\d{4} ?[A-Z]{2}\b)"
)
_COUNTING_BEFORE: Final = re.compile(
    r"(?i)\b(?:page|chapter|no|number|top|about|over|of|in|since|the|these|all|episode|season)\.? $"
)


def find_streets(text: str) -> Iterator[Span]:
    """Each street with its house number and flat. Reserved: `n Example Street`, as masks have it."""
    for match in _ENGLISH.finditer(text):
        is_mask = _MASK.fullmatch(match[0]) is not None
        # Masks are yielded as reserved, so that no other finder takes their characters.
        if is_mask or _is_english(text, match):
            yield _span(text, match, is_reserved=is_mask)
    for match in _GERMAN.finditer(text):
        if _is_german(text, match):
            yield _span(text, match)
    for match in _FRENCH.finditer(text):
        yield _span(text, match)
    for pattern in (_SPANISH, _ITALIAN):
        for match in pattern.finditer(text):
            if not _YEAR.fullmatch(match[1]) and not _UNIT_OR_TIME.match(text, match.end()):
                yield _span(text, match)


def _span(text: str, match: re.Match[str], *, is_reserved: bool = False) -> Span:
    before = text[max(0, match.start() - 40) : match.start()]
    has_flat = match.re is _ENGLISH and match[3] is not None
    is_certain = has_flat or bool(_LIVES_BEFORE.search(before) or _PLACE_AFTER.match(text, match.end()))
    value = match[0]
    if value.endswith(".") and not _ABBREVIATED.search(value):  # the full stop of the sentence
        value = value[:-1]
    return Span(match.start(), match.start() + len(value), "street", value, is_reserved, is_certain)


def _is_english(text: str, match: re.Match[str]) -> bool:
    number, strong, unit = match[1], match[2], match[3]
    if unit:
        return True
    if _COUNTING_BEFORE.search(text[max(0, match.start() - 12) : match.start()]):
        return False
    if strong is not None or (len(number) >= 3 and not _YEAR.fullmatch(number)):
        return True
    return _LIVES_BEFORE.search(text[max(0, match.start() - 40) : match.start()]) is not None


def _is_german(text: str, match: re.Match[str]) -> bool:
    number = match[match.lastindex or 1]
    if _UNIT_OR_TIME.match(text, match.end()):
        return False
    if match[1] is None:
        named = match[0][: -len(number) - 1]
        is_street = _GERMAN_LAST_WORD.search(named) is not None or _GERMAN_PREPOSITION.match(named) is not None
        return is_street and not _YEAR.fullmatch(number)
    word = match[1].casefold()
    if _GERUND.search(word) and not _GERMAN_NEARBY.search(
        text[max(0, match.start() - 60) : match.start()] + " " + text[match.end() : match.end() + 60]
    ):
        return False
    return word not in GERMAN_NOUNS and not (
        _YEAR.fullmatch(number) and not word.endswith(("straße", "strasse", "str."))
    )
