"""Rows for `personal_data.py`: sets without any personal data, and rows with one planted value of a known kind.

Sets without: the standard library of this very Python (docstrings, language reference, code; paragraphs with an `@`
left out, since authors sign with their addresses), and text written by rule. `public_places` names addresses of museums
and stations, which are facts and no personal data: no pattern can tell these from somebody's home.
"""

# ruff: noqa: E501 - a template is one line

from __future__ import annotations

import ast
import hashlib
import importlib.util
import ipaddress
import random
import sysconfig
import textwrap
import uuid
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path

from faker import Faker

Maker = Callable[[random.Random], str]

_NAMES = ("Weng", "Betty", "Julie", "Mark", "Tina", "Albert", "Ken", "Alexis", "Joy", "Randy", "Toula", "Carlos")
_THINGS = ("pages", "apples", "eggs", "cells", "tickets", "cards", "phones", "marbles", "bottles", "stickers", "calls")
_UNITS = ("ounces", "pounds", "minutes", "hours", "miles", "inches", "gallons", "square feet", "dollars", "cents")
_GERUNDS = ("Considering", "Sharing", "Requiring", "Offering", "Measuring", "Comparing", "Exploring", "Hiring")


def clean_sets(num_rows: int, seed: int = 0) -> dict[str, list[str]]:
    """Name of a set -> its rows, `num_rows` in all, each once, as evenly as their number allows; by the seed alone."""
    each = -(-num_rows // len(_SETS))
    made = {}
    left = num_rows
    for name, maker in _SETS.items():
        rng = random.Random(f"{seed} {name}")
        rows: dict[str, None] = {}
        while len(rows) < min(each, left):
            rows[maker(rng)] = None
        made[name] = list(rows)
        left -= len(made[name])
    return made


def _sum(rng: random.Random) -> str:
    """A word problem with its calculations, as GSM8K writes them."""
    name, other = rng.sample(_NAMES, 2)
    thing, unit = rng.choice(_THINGS), rng.choice(_UNITS)
    a, b = rng.randint(2, 40), rng.choice((2, 4, 5, 8, 10, 12, 20, 25, 50, 100, 200))
    product, c = a * b, rng.randint(1, 900)
    large = rng.randint(100_000, 9_999_999)
    forms = (
        f"{name} has {product} {thing}. {other} takes {b} at a time.\n{product}/{b}={a}\n#### {a}",
        f"{name} can call {other} {b} times: {product}/{b} = <<{product}/{b}={a}>>{a} {thing}.",
        f"{rng.choice(_GERUNDS)} {a} {unit} a day, {name} needs {a}*{b}=<<{a}*{b}={product}>>{product} {unit}.",
        f"The phone costs ${product}.00 and the card ${c}: {product}+{c}={product + c}, so {name} pays ${product + c}.",
        f"{rng.choice(_GERUNDS)} {c} {thing}, {c}-{a}={c - a}; each of {b} cells gets ({c}-{a})/{b}={(c - a) / b:.2f}",
        f"{large}-{c}={large - c}. {name} dials {a} numbers, then {large}/{b}={large / b:.3f}.",
        f"{name} walks {a} miles in {b} minutes, {c} {unit} in {a * 60} seconds. What is {a} x {b} + {c}? {product + c}",
        f"x = {a}{b:03d}{c:03d} / {b} and y = 0.{large}{large}; phone bill = {product} - {c} = {product - c}",
        f"There are {c} Oak trees, {a} Green Hills cards and {b} Blue Parks tickets: {c} + {a} + {b} = {c + a + b}.",
    )
    return rng.choice(forms)


def _clause(rng: random.Random) -> str:
    """A clause of a contract or statute with its references."""
    one, two, three, four = (rng.randint(1, 30) for _ in range(4))
    year, number = rng.randint(1950, 2024), rng.randint(1, 999)
    forms = (
        f"{one}.{two}.{three}.{four} The Tenant shall give {number} days' notice under clause {two}.{three}.{four}.{one}.",
        f"Pursuant to Section {one}.{two}({three}) and 12 U.S.C. {number}-{number + 9}, the Lender may call the loan.",
        f"As amended by Pub. L. {one + 90}-{number}, {number} Stat. {number + 1000}, see {two} C.F.R. {number}.{three}.",
        f"See {one}.{two}.{three}.{four}, {one}.{two}.{three}.{four + 1} and Schedule {three}.{four}.{one}.{two} below.",
        f"§ {number} Abs. {one} Satz {two} BGB in der Fassung vom {three:02d}.{one % 12 + 1:02d}.{year}, BGBl. I S. {number}.",
        f"Case No. {one}-cv-{number:05d}, {number} F.3d {number + 400} ({two}th Cir. {year}); Docket {number}-{two}-{three}.",
        f"Article {one}, paragraph {two}, of Regulation (EU) {year}/{number} applies; contact with the party is not required.",
        f"The Contractor, at 30 Business Days, pays USD {number},{number:03d}.00 (Annex {one}.{two}.{three}.{four}).",
        f"Rule {one}.{two}.{three}.{four} applies. Rules {two}.{one}.{four}.{three} to {two}.{one}.{four}.{three + 1} do not.",
    )
    return rng.choice(forms)


def _rfc(rng: random.Random) -> str:
    """A paragraph of a protocol's description."""
    a, b, c, d = (rng.randint(1, 25) for _ in range(4))
    number, octets = rng.randint(1000, 9999), " ".join(f"{rng.randint(0, 255):02x}" for _ in range(16))
    forms = (
        f"{a}.{b}.{c}.{d}.  Message Format\n\n   The client MUST send the field defined in [RFC{number}], Section {b}.{c}.",
        f"   Network Working Group                Request for Comments: {number}\n   Obsoletes: {number - 99}, {number - 7}",
        f"   field-name = 1*{a}DIGIT / %x{b:02x}-{c + 64:02x} ; see Section {a}.{b}.{c}.{d}",
        f"   0000: {octets}\n   0010: {octets}",
        f"   Hosts 192.0.2.{a}, 198.51.100.{b} and 2001:db8::{c:x} are for documentation, 10.{a}.{b}.{c} is private.",
        f"   RTT = {a}.{number} ms, window {number * 16} octets, port {number}; see also {a}.{b}.{c}.{d} for the call flow.",
        f"   OID 1.3.6.1.4.1.{number}.{a}.{b}, AS{number}, VLAN {a}, MAC 00:1b:{a:02x}:{b:02x}:{c:02x}:{d:02x}",
        f"   The server SHOULD reach state {a} after {number} ms; cf. {a}.{b}.{c}.{d}, Table {a}-{b}-{c}, Figure {d}.{c}.",
    )
    return rng.choice(forms)


def _version(rng: random.Random) -> str:
    a, b, c, d = (rng.randint(0, 30) for _ in range(4))
    large = rng.randint(20, 250)
    forms = (
        f"numpy=={a}.{b}.{c}\nnvidia-cublas-cu12=={a}.{b}.{c}.{large}\ntyping-extensions>={b}.{c}",
        f"Upgrade from {a}.{b}.{c}.{d} to {a}.{b}.{c + 1}.{d}; {large}.{b}.{c}.{d} is the last of its line.",
        f"Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/{large}.0.0.0 Safari/537.36",
        f"The driver {large}.{b}.{c}.{d} needs firmware {a}.{b}.{c}.{d} or later, build {large * 1000 + b}.",
        f"v{a}.{b}.{c}.{d} fixes the crash of release {large}.{a}.{b}.{c}-rc{d}",
        f'"version": "{large}.{a}.{b}.{c}", "schema": "{a}.{b}.{c}.{d}", "abi": {a}',
        f"git describe says {a}.{b}.{c}-{large}-g{large:x}{large * 977:x}; glibc {a}.{b}, macOS {a}.{b}.{c}",
        f"AssemblyVersion {a}.{b}.{large * 4}.{c}, file version {a}.{large}.{c}.{d}",
    )
    return rng.choice(forms)


def _date(rng: random.Random) -> str:
    year, month, day = rng.randint(1900, 2035), rng.randint(1, 12), rng.randint(1, 28)
    hour, minute = rng.randint(0, 23), rng.randint(0, 59)
    forms = (
        f"{year}-{month:02d}-{day:02d}T{hour:02d}:{minute:02d}:00+0{month % 9}:00",
        f"From {day:02d}.{month:02d}.{year} to {day:02d}.{month:02d}.{year + 1}, call at {hour}:{minute:02d}.",
        f"{year}{month:02d}{day:02d}, {year}-{year + 4}, week {year}-W{month:02d}, call us on {month}/{day}/{year}",
        f"Contact hours {hour:02d}:{minute:02d}-{hour:02d}:{59 - minute % 30} on {year} {month:02d} {day:02d}.",
        f"epoch {1_000_000_000 + year * month * day * 997} is {year}{month:02d}{day:02d}{hour:02d}{minute:02d}00",
        f"Born {day:02d}-{month:02d}-{year}; cell of the calendar {month:02d}/{day:02d}/{year % 100:02d}",
    )
    return rng.choice(forms)


def _catalogue(rng: random.Random) -> str:
    """Book, bar code, part and patent numbers."""
    ten = [rng.randint(0, 9) for _ in range(12)]
    digits = "".join(map(str, ten))
    check = -sum(n * (3 if i % 2 else 1) for i, n in enumerate([9, 7, 8, *ten[:9]])) % 10
    isbn = f"978{digits[:9]}{check}"
    forms = (
        f"ISBN {isbn[:3]}-{isbn[3]}-{isbn[4:8]}-{isbn[8:12]}-{isbn[12]}, {digits[:3]} pages",
        f"ISBN-10 {digits[0]}-{digits[1:5]}-{digits[5:9]}-{digits[9]}; ISSN {digits[:4]}-{digits[4:8]}",
        f"EAN {isbn}, UPC {digits}, article {digits[:8]}, doi:10.{digits[:4]}/{digits[4:]}",
        f"Part no. {digits[:3]}-{digits[3:5]}-{digits[5:9]}, serial {digits}{digits[:4]}",
        f"SKU {digits[:3]}-{digits[3:6]}-{digits[6:10]}, lot {digits[:6]}-{digits[6:8]}, model {digits[:4]}-{digits[4:8]}",
        f"Tracking 1Z{digits}{digits[:4]}; DHL {digits[:4]} {digits[4:8]} {digits[8:12]} {digits[:4]} {digits[4:8]}",
        f"CAS {digits[:5]}-{digits[5:7]}-{digits[7]}, EC {digits[:3]}-{digits[3:6]}-{digits[6]}, US patent {digits[:7]}",
        f"{isbn} {digits} {digits[::-1]}",
    )
    return rng.choice(forms)


def _price(rng: random.Random) -> str:
    """Prices, dimensions and other measures."""
    a, b, c = rng.randint(1, 999), rng.randint(100, 999), rng.randint(100, 999)
    thing = rng.choice(("Hills", "Lake", "Court", "Drive", "Way", "Park", "Lane", "Square"))
    forms = (
        f"USD {a},{b},{c}.00 or EUR {a}.{b}.{c},00 or CHF {a}'{b}'{c}; {a} {b} {c} units",
        f"{a} x {b} x {c} mm, {a}.{b} kg, {b}-{c} W, {a}/{b}/{c} h; 1920x1080@{a % 240} Hz",
        f"Call options at {a}.{b}, strike {b}.{c}, volume {a} {b} {c}, charge {b}{c}-{a}",
        f"Population {a},{b},{c}; area {b} {c} km2; {a % 99} per {b}{c} people can be reached",
        f"Resistors {a}k, {b}R, {c}-{b}-{a} ohm; tolerance +/-{a % 20}%, range {b}...{c}, +{b} {c} steps",
        f"{rng.choice(_GERUNDS)} {a} {rng.choice(_UNITS)} of flour, {b} g of sugar and {c} ml of milk",
        f"The {a} posters and {b} {thing} prints cost {c} dollars; {a} Great Lakes mugs are left.",
        f"pressure +{b}.{c} -{a}.{b}, delta +{a}{b} +{c}{b}{a}, total +{a}{b}{c}{a}",
    )
    return rng.choice(forms)


def _hash(rng: random.Random) -> str:
    digest = hashlib.sha256(str(rng.random()).encode()).hexdigest()
    number = rng.randint(10**15, 10**19)
    forms = (
        f"sha256:{digest}",
        f"commit {digest[:40]}\nindex {digest[:7]}..{digest[7:14]} 100644",
        f"id {uuid.UUID(digest[:32])} trace {digest[:16]} span {number}",
        f'{{"id": {number}, "hash": "{digest[:32]}", "parent": {number // 7}}}',
        f"{number} {number // 3} {number // 7} 0x{digest[:16]}",
        f"checksum {digest[:8]}-{digest[8:12]}, key fingerprint {':'.join(digest[i : i + 2] for i in range(0, 32, 2))}",
    )
    return rng.choice(forms)


def _log(rng: random.Random) -> str:
    hour, minute, number = rng.randint(0, 23), rng.randint(0, 59), rng.randint(1000, 99_999)
    stamp = f"2024-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d} {hour:02d}:{minute:02d}:{minute:02d},{number % 1000:03d}"
    forms = (
        f"{stamp} INFO worker[{number}] call {number}{number} took 0.{number} s, {number} rows",
        f"{stamp} WARN 10.{hour}.{minute}.{number % 250} GET /items/{number} 200 {number} 0.{number}",
        f"[{number}.{number:06d}] usb 1-{hour}.{minute}: new device {number:04d}:{minute:04d}, serial {number}{number}",
        f"{stamp} DEBUG epoch {hour} step {number} loss {hour}.{number} lr 1e-0{minute % 9} grad {minute}.{number}",
        f"{stamp} ERROR card slot {hour} reached {number}-{number}-{number}, retry {minute} of 100",
        f"Jan {minute % 28 + 1} {hour:02d}:{minute:02d}:00 host kernel: CPU{hour}: {number}:{number}:{number} ticks {number}{number}",
    )
    return rng.choice(forms)


def _coordinates(rng: random.Random) -> str:
    north, east = rng.uniform(-90, 90), rng.uniform(-180, 180)
    metres = rng.randint(100, 8000)
    forms = (
        f"{north:.6f}, {east:.6f} (WGS 84), {metres} m",
        f"{north:+09.5f}{east:+010.5f}+{metres}CRSWGS_84/",
        f"POINT ({east:.5f} {north:.5f}), tile 12/{metres}/{metres - 7}, UTM 32U {metres}{metres} {metres * 711}",
        f"{abs(int(north))}° {metres % 60}' {metres % 59}.{metres}\" N {abs(int(east))}° {metres % 60}' E",
        f"Reach the hut at {north:.4f} {east:.4f}; contact the ridge at +{abs(north):.6f} +{abs(east):.6f}",
    )
    return rng.choice(forms)


def _table(rng: random.Random) -> str:
    """Tables, results and queries."""
    number, a, b = rng.randint(10**6, 10**8), rng.randint(1, 99), rng.randint(1, 99)
    forms = (
        f"table: 1-{number}-{a}\ncolumns: Call sign, Cell, Contact\nQ: Which cell is {a}-{b}?",
        f"SELECT COUNT(call) FROM 1-{number}-{a} WHERE phone > {a} AND dial = '{b}-{a}-{a + b}'",
        f"| {a} | {number} | {a}.{b} | {number // 7} |\n| {b} | {number // 3} | {b}.{a} | {number // 9} |",
        f"Won {a}-{b}, {b}-{a}, {a}-{a} before {number} people; seasons 1998-2004, 2006-2010",
        f"{a} {b} {a + b} {a * b} {number % 997} {number % 991} {number % 983} {number % 977}",
        f"{number % 900 + 100}-{number % 9000 + 1000} cells, ring {a}, bel {b}, mobile units: {a} {b} {a + b} {a * b}",
    )
    return rng.choice(forms)


def _prose(rng: random.Random) -> str:
    """Everyday sentences with numbers in five languages."""
    a, b, year = rng.randint(2, 99), rng.randint(100, 999), rng.randint(1850, 2030)
    forms = (
        f"Der Parkplatz {a} war frei, Platz {a} von {b} belegt, der Umweg {a} km lang. Im Jahr {year} war es anders.",
        f"Le chapitre {a} de la page {b}, {a} places de cinéma et {b} cours de musique coûtent {b} euros en {year}.",
        f"Hay {a} plazas libres en la sala {b}, talla {a}, via aérea {a} días, desde {year}.",
        f"La taglia {a}, via aerea {a} giorni, la pagina {b} del volume {a} del {year}.",
        f"During {year} the string {a} of the guitar broke; the offspring {b} and the spring {a} were fine.",
        f"Via Rail {b} left at {a % 24}:30. Doctor {a % 9} saw {b} people. Apollo {a} flew in {year}; 12 Angry Men won.",
        f"I called {a} times and reached {b} people; the mobile team of {a} handed out {b} cards in {year}.",
        f"{rng.choice(_GERUNDS)} {a} of the {b} answers, {a} Main Courses and {b} Little Bear toys were the best.",
        f"Level {a} Close Call, 3 Saint songs, {a} Dr episodes, {b} Court cases and {a} Road trips since {year}.",
    )
    return rng.choice(forms)


def _public_place(rng: random.Random) -> str:
    """Addresses of what is open to everybody: facts that a model may know."""
    fake = _faker("en_US")
    fake.seed_instance(rng.random())
    street = f"{rng.randint(1, 3000)} {fake.last_name()} {rng.choice(('Street', 'Avenue', 'Road', 'Boulevard'))}"
    what, year = rng.choice(("museum", "station", "town hall", "theatre", "library")), rng.randint(1850, 2020)
    forms = (
        f"The {what} at {street} opened in {year}.",
        f"{street} is a skyscraper that was finished in {year}.",
        f"The film {street} came out in {year}, the song {street} two years later.",
        f"The architect built the {what} ({street}, {fake.city()}) in {year}.",
        f"The address of the {what} is {street}.",
        f"The detective of the novel lived at {street} until {year}.",
    )
    return rng.choice(forms)


def _docs(rng: random.Random) -> str:
    return rng.choice(_documentation())


def _code(rng: random.Random) -> str:
    return rng.choice(_code_pieces())


@cache
def _sources() -> tuple[Path, ...]:
    folder = Path(sysconfig.get_path("stdlib"))
    found = (path for path in folder.rglob("*.py") if not {"site-packages", "test", "tests"} & set(path.parts))
    return tuple(sorted(found))


@cache
def _documentation() -> tuple[str, ...]:
    """Paragraphs of docstrings and of the language reference, sorted, each once."""
    from pydoc_data.topics import topics

    return _without_authors(_paragraphs([*topics.values(), *_docstrings(_sources())]))


def package_docs(name: str) -> tuple[str, ...]:
    """Paragraphs of the docstrings of an installed package, tests left out."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"no package {name!r} is installed")
    found = Path(spec.submodule_search_locations[0]).rglob("*.py")
    return _without_authors(_paragraphs(_docstrings(path for path in found if "tests" not in path.parts)))


def _docstrings(paths: Iterable[Path]) -> Iterator[str]:
    for path in paths:
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError, ValueError):
            continue
        nodes = (node for node in ast.walk(tree) if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef))
        yield from filter(None, map(ast.get_docstring, nodes))


def _paragraphs(texts: Iterable[str]) -> Iterator[str]:
    return (paragraph for text in texts for paragraph in text.split("\n\n"))


@cache
def _code_pieces() -> tuple[str, ...]:
    """Pieces of 20 lines of code."""
    pieces = []
    for path in _sources():
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        pieces += [textwrap.dedent("\n".join(lines[at : at + 20])) for at in range(0, len(lines), 20)]
    return _without_authors(pieces)


def _without_authors(pieces: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted({piece.strip() for piece in pieces if "@" not in piece and len(piece.strip()) >= 40}))


_SETS: dict[str, Maker] = {
    "library_docs": _docs,
    "library_code": _code,
    "sums": _sum,
    "legal_clauses": _clause,
    "protocols": _rfc,
    "versions": _version,
    "dates": _date,
    "catalogue_numbers": _catalogue,
    "prices_and_measures": _price,
    "hashes_and_ids": _hash,
    "log_lines": _log,
    "coordinates": _coordinates,
    "tables": _table,
    "prose": _prose,
    "public_places": _public_place,
}
CLEAN_SETS = tuple(_SETS)


@cache
def _faker(locale: str) -> Faker:
    return Faker(locale)


LOCALES = ("en_US", "en_GB", "de_DE", "fr_FR", "es_ES", "it_IT", "nl_NL", "pl_PL", "pt_BR", "sv_SE")
# Not of Britain and Germany, for which faker makes numbers that nobody has.
NATIONAL_LOCALES = ("de_CH", "es_ES", "fi_FI", "fr_FR", "it_IT", "nl_NL", "pl_PL", "pt_BR", "sv_SE")
_SAID = {
    "en_US": ("Call me on {} after six.", "My phone number is {}."),
    "en_GB": ("You can ring her mobile, {}.", "Telephone: {}"),
    "de_DE": ("Ruf mich unter {} an.", "Meine Telefonnummer ist {}."),
    "fr_FR": ("Appelez-moi au {} ce soir.", "Mon numéro de téléphone est le {}."),
    "es_ES": ("Llámame al {} mañana.", "Mi teléfono es el {}."),
    "it_IT": ("Chiamami al {} domani.", "Il mio telefono è {}."),
    "nl_NL": ("Bel me op {}.", "Mijn telefoonnummer is {}."),
    "pl_PL": ("Mój telefon to {}.", "Proszę dzwonić, telefon {}."),
    "pt_BR": ("O meu telefone é {}.", "Telefone: {}"),
    "sv_SE": ("Min mobil är {}.", "Telefon: {}"),
}
_LIVES = {
    "en_US": "Please send it to {}, {city}, {state} {zip}.",
    "en_GB": "I live at {}, {city}.",
    "de_DE": "Ich wohne in der {}, {zip} {city}.",
    "fr_FR": "Nous habitons {}, {zip} {city}.",
    "es_ES": "Vivimos en {}, {zip} {city}.",
    "it_IT": "Abitiamo in {}, {zip} {city}.",
}
_SENTENCES: dict[str, tuple[str, ...]] = {
    "email": ("Write to {}, please.", "Contact: {}", "They had {} on file.", "<{}> said so."),
    "iban": ("The IBAN is {}.", "Please transfer it to {} today.", "Account: {}"),
    "card": ("I paid with my card {} last week.", "Visa {} was declined.", "Credit card number: {}"),
    "ssn": ("My SSN is {}.", "Social security number: {}", "SSN {}, born in May."),
    "national_id": ("National ID: {}", "My national identity number is {}.", "Tax ID number {}, as on the card."),
    "ip_address": ("The IP address is {}.", "Login from {} failed.", "Connection to host {} was refused."),
    "name": ("I met {} yesterday.", "{} signed the contract.", "Dear {}, thank you."),
}
_BARE = ("It is {} as I wrote before.", "They noted {} and left.", "{}")
PLANTED_KINDS = ("email", "iban", "card", "ssn", "national_id", "ip_address", "phone", "street", "name")


def planted_rows(kind: str, num_rows: int, seed: int = 0, *, is_bare: bool = False) -> Iterator[tuple[str, str]]:
    """(row, value in it) of a kind. is_bare: nothing in the row says what the value is."""
    rng = random.Random(f"{seed} {kind} {is_bare}")
    locales = {"ssn": ("en_US",), "national_id": NATIONAL_LOCALES, "street": tuple(_LIVES)}.get(kind, LOCALES)
    for index in range(num_rows):
        locale = locales[index % len(locales)]
        fake = _faker(locale)
        fake.seed_instance(rng.random())
        value = _value(fake, kind)
        sentences = _SENTENCES.get(kind) or (_SAID[locale] if kind == "phone" else (_LIVES[locale],))
        sentence = rng.choice(_BARE if is_bare else sentences)
        more = {"city": fake.city(), "zip": fake.postcode(), "state": fake.state_abbr() if locale == "en_US" else ""}
        yield sentence.format(value, **more), value


def _value(fake: Faker, kind: str) -> str:
    make: dict[str, Callable[[], str]] = {
        "email": lambda: fake.random_element((fake.company_email, fake.free_email, lambda: fake.email(safe=False)))(),
        "phone": fake.phone_number,
        "card": lambda: _grouped(fake.credit_card_number(), fake.random_element((True, False))),
        "iban": lambda: fake.random_element((fake.iban(), _in_fours(fake.iban()))),
        "ssn": fake.ssn,
        "national_id": lambda: fake.nie() if hasattr(fake, "nie") else fake.ssn(),
        "ip_address": lambda: fake.random_element((fake.ipv4_public, fake.ipv6))(),
        "street": lambda: fake.street_address().replace("\n", ", ").strip(),
        "name": fake.name,
    }
    value = make[kind]()
    while not _reaches_somebody(kind, value):
        value = make[kind]()
    return value


def _reaches_somebody(kind: str, value: str) -> bool:
    """Not: a street without a house number, an address of the special-purpose registries."""
    if kind == "ip_address":
        address = ipaddress.ip_address(value)
        return address.is_global and not address.is_multicast
    return kind != "street" or any(map(str.isdigit, value))


def _grouped(digits: str, is_grouped: bool) -> str:
    return _in_fours(digits) if is_grouped and len(digits) == 16 else digits


def _in_fours(value: str) -> str:
    return " ".join(value[at : at + 4] for at in range(0, len(value), 4))
