"""Sentences to put values in, and rows full of numbers that are nobody's."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest
from faker import Faker

LOCALES = ("en_US", "de_DE", "fr_FR", "es_ES", "it_IT")

SENTENCES: dict[str, dict[str, tuple[str, ...]]] = {
    "en_US": {
        "phone": (
            "Call me on {} after six.",
            "My new phone number is {}.",
            "You can reach the seller at {}, he is kind.",
        ),
        "card": (
            "I paid with my card {} last week.",
            "The charge went to {}, still no refund.",
            "Visa {} was declined.",
        ),
        "street": (
            "Please send the spare part to {}.",
            "We live at {}, second floor.",
            "It was left at {} by mistake.",
        ),
        "any": ("It is {} as I wrote before.", "Write to {}, please.", "They had {} on file and lost it."),
    },
    "de_DE": {
        "phone": (
            "Ruf mich unter {} an.",
            "Meine Telefonnummer ist {}.",
            "Sie erreichen den Verkäufer unter {}, er ist nett.",
        ),
        "card": (
            "Ich habe mit meiner Karte {} bezahlt.",
            "Belastet wurde {}, kein Geld zurück.",
            "Kreditkarte {} abgelehnt.",
        ),
        "street": (
            "Bitte schickt das Teil an {}.",
            "Wir wohnen in der Nähe: {}, zweiter Stock.",
            "Es lag vor {} im Regen.",
        ),
        "any": ("Es ist {}, wie gesagt.", "Bitte an {} schreiben.", "Sie hatten {} gespeichert und verloren."),
    },
    "fr_FR": {
        "phone": (
            "Appelez-moi au {} ce soir.",
            "Mon numéro de téléphone est le {}.",
            "On peut joindre le vendeur au {}.",
        ),
        "card": (
            "J'ai payé avec ma carte {} lundi.",
            "Le débit était sur {}, rien en retour.",
            "Carte bancaire {} refusée.",
        ),
        "street": ("Envoyez la pièce au {}.", "Nous habitons {}, deuxième étage.", "Le colis était devant le {}."),
        "any": ("C'est {}, comme convenu.", "Écrivez à {}, merci.", "Ils avaient {} et l'ont perdu."),
    },
    "es_ES": {
        "phone": ("Llámame al {} mañana.", "Mi teléfono es el {}.", "Puedes contactar con el vendedor: {}, es amable."),
        "card": ("Pagué con mi tarjeta {} el lunes.", "El cargo fue a {}, sin devolución.", "Tarjeta {} rechazada."),
        "street": ("Envíen la pieza a {}.", "Vivimos en {}, segundo piso.", "Lo dejaron en {} por error."),
        "any": ("Es {}, como dije.", "Escribe a {}, por favor.", "Tenían {} y lo perdieron."),
    },
    "it_IT": {
        "phone": ("Chiamami al {} domani.", "Il mio telefono è {}.", "Il cellulare del venditore è {}, è gentile."),
        "card": (
            "Ho pagato con la carta {} lunedì.",
            "Addebito su {}, nessun rimborso.",
            "Carta di credito {} rifiutata.",
        ),
        "street": ("Mandate il pezzo in {}.", "Abitiamo in {}, secondo piano.", "Era davanti a {} sotto la pioggia."),
        "any": ("È {}, come detto.", "Scrivi a {}, grazie.", "Avevano {} e l'hanno perso."),
    },
}


def _value(fake: Faker, kind: str) -> str:
    """One value of a kind; only such as reach somebody."""
    make: dict[str, Callable[[], str]] = {
        "email": lambda: fake.random_element((fake.company_email, fake.free_email, lambda: fake.email(safe=False)))(),
        "phone": fake.phone_number,
        "card": fake.credit_card_number,
        "iban": fake.iban,
        "ssn": fake.ssn,
        "ip_address": lambda: fake.random_element((fake.ipv4_public, fake.ipv6))(),
        "street": lambda: fake.street_address().replace("\n", ", ").strip(),
    }
    value = make[kind]()
    while kind == "street" and not any(map(str.isdigit, value)):  # a street without a house number is not an address
        value = make[kind]()
    return value


@pytest.fixture(scope="session")
def values() -> Callable[[str, str, int], Iterator[tuple[str, str]]]:
    """(sentence, value) pairs of a kind in a locale, the same ones each time."""

    def make(kind: str, locale: str, num: int) -> Iterator[tuple[str, str]]:
        fake = Faker("en_US" if kind == "ssn" else locale)
        fake.seed_instance(f"{kind} {locale}")
        sentences = SENTENCES[locale]
        for index in range(num):
            value = _value(fake, kind)
            templates = sentences.get(kind, sentences["any"])
            yield templates[index % len(templates)].format(value), value

    return make


NEGATIVES = (
    "Order no. {d10} arrived on {date}.",
    "My order {d3}-{d7}-{d7} is late, order placed {date}.",
    "Invoice {d8} over {price} was paid.",
    "The book has ISBN 978-{d1}-{d4}-{d4}-{d1} and {d3} pages.",
    "EAN {d13}, article {d9}.",
    "Tracking number 1Z{d9}{d7} shows nothing since {time}.",
    "DHL parcel {d4} {d4} {d4} {d4} {d4} was lost.",
    "Works since version 1.{d1}.{d1}.{d1}, not with v2.{d1}.{d2}.{d1}.",
    "We left at {time} and came back at {time}, {d2} minutes late.",
    "It is {d2}% smaller and {d1}.{d2} times faster than the {d4} model.",
    "See C:\\data\\{d4}\\run_{d6}.log and /var/log/app-{d8}.log.",
    "The hut is at 47.{d6}, 11.{d6}, about {d4} m high.",
    "They won 3-2 in front of {d2},{d3} people, the season of 1998-2004.",
    "See page 12, table {d1}.{d1} and section {d1}.{d1}.{d1}.{d1} of the manual.",
    "Product code KX-{d4}-{d2}B, batch {d6}-{d2}, serial {d10}.",
    "Population: {d1} {d3} {d3} in 2019, {d1},{d3},{d3} in 2021.",
    "The timestamp 16{d8} is a Tuesday; {iso} too.",
    "Bestellung {d10} vom {dotdate}, Artikelnummer {d8}, {price}.",
    "Der Parkplatz 3 war frei, Platz 2 von 12 belegt, 5 km Umweg 2 Stunden.",
    "Commande {d9} du {dotdate}, 2 places de cinéma, 12 euros.",
    "Pedido {d9} del {dotdate}, talla 42, 3 plazas libres.",
    "Ordine {d9} del {dotdate}, taglia 42, via aerea 3 giorni.",
    "The 12 Great Lakes posters and 3 Blue Hills prints cost {price}.",
    "In 2019 Central Park was full; 100 people left at {time}.",
    "I follow @someone{d2} and a @ b is matrix product, 5 @ {price}.",
    "The picture icon@2x.png and the package left-pad@1.{d1}.{d1} are gone.",
    "MAC 00:1b:{d2}:{d2}:{d2}:{d2}, at 12:{d2}:{d2}, ratio 16:9, std::vector<int>.",
    "Resolution 1920x1080, 4 GB, {d3} dpi, weight {d1}.{d3} kg, sizes 32-34-36.",
    "Rated 4.{d1}/5 by {d5} people, {d3} of them in {date}.",
    "Our loss went from 0.{d8} to 0.{d7} in {d5} steps.",
    "The part number is {d3}-{d4}, model {d2}-{d3}-{d4}.",
    "Matrix: {d2} {d2} {d2} {d2} {d2} {d2} {d2}; sum {d3} {d3}.",
    "Patent US {d7} B2, case {d2}-{d4}, docket {d4}.",
    "Account balance {price}, account {d8}, customer id {d9}.",
    "1 Corinthians 13, verses 4-8, and Psalm 119 1-176.",
    "Main Street is long, and the Rue de Rivoli, the Bahnhofstraße and the Via Appia too.",
    "UUID 3f2504e0-4f89-41d3-9a0c-0305e82c3301 and hash {d8}ab{d6}cd.",
    "He ran {d1}:{d2}.{d2} over {d4} m, pulse 160-170-180.",
    "Gateway 192.168.1.{d1}, mask 255.255.255.0, loopback 127.0.0.1, docs 192.0.2.{d1}.",
    "Write to someone@example.com or call 555-0123 in the manual; the test card is 4111 1111 1111 1111.",
)


@pytest.fixture(scope="session")
def nobodys() -> list[str]:
    """Rows with all sorts of numbers and none that reaches anybody, 25 of each sort, the same each time."""
    chance = random.Random(11)

    def digits(num: int) -> str:
        return "".join(chance.choice("0123456789") for _ in range(num))

    def row(template: str) -> str:
        parts = {f"d{num}": digits(num) for num in range(1, 14)}
        year, month, day = chance.randint(1950, 2030), chance.randint(1, 12), chance.randint(1, 28)
        parts |= {"date": f"{month:02d}/{day:02d}/{year}", "dotdate": f"{day:02d}.{month:02d}.{year}"}
        parts |= {"iso": f"{year}-{month:02d}-{day:02d} 12:30:{day:02d}", "time": f"{chance.randint(0, 23)}:{day + 10}"}
        parts["price"] = chance.choice((f"${digits(2)}.99", f"{digits(3)},95 EUR", f"€1.{digits(3)}.{digits(3)},00"))
        return template.format(**parts)

    return [row(template) for template in NEGATIVES for _ in range(25)]
