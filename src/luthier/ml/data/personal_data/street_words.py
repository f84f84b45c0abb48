"""The words that make a street a street, by language."""

from __future__ import annotations

from typing import Final

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
