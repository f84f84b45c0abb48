"""Texts of one byte a character: Western and Central European ones are told apart, others are neither."""

from __future__ import annotations

from pathlib import Path

import pytest

from luthier.ml.data.files.single_bytes import single_byte_encoding
from luthier.ml.data.files.source import open_source
from luthier.ml.data.readers import text
from luthier.ml.data.rows.rows import read_as, read_rows

_CENTRAL = {
    "Polish": "Zamówienie zostało wysłane, ale żaden pracownik nie może "
    "znaleźć paczki. Proszę o pilną odpowiedź, dziękuję.",
    "Czech": "Dobrý den, bohužel zboží ještě nepřišlo. Můžete prosím zjistit, kde je? Děkuji předem "
    "za rychlé řešení, přeji hezký den a těším se na odpověď v češtině.",
    "Slovak": "Dobrý deň, môžete mi prosím povedať, či sa dá tovar vrátiť? Kľúč bol veľmi "
    "poškodený, ľutujem. Ďakujem veľmi pekne za skorú odpoveď.",
    "Hungarian": "Kérem, küldjék el a számlát a következő címre. A készülék hűtője nem működik, és "
    "a vevő már többször jelezte. Köszönöm előre is a segítségüket.",
}
_WESTERN = {
    "German": "Die Lieferung für Herrn Müller kostet 3,50 €. Größe: 20 m², "
    "Gewicht 5 kg – „schön“, sagte sie. Straße 5½, §3 gilt.",
    "French": "L’élève a déjà été reçu où ça ? Le cœur naïf de l´été, 1º "
    "étage ; « très bien », dit-elle à Noël, çà et là.",
    "Spanish": "¿Dónde está el niño? ¡Mañana! La señora pidió un café, el 1ª vez. El año pasó volando, ¿qué más?",
    "Portuguese": "Não há opções nem informações: põe o pão e as maçãs à mão. São João, amanhã às três, tu pões.",
    "Italian": "È già più di là, perché così non può andare: la città è però più lontana. Così è la virtù.",
    "Danish": "Det er en dårlig løsning; hvordan får jeg pengene igen? Så må vi gøre noget ved det. Ærligt talt, Åge.",
    "Swedish": "Hur får jag tillbaka pengarna? Beställningen är försenad, så vi "
    "måste göra något åt det. Överallt är det så.",
    "Icelandic": "Ég þarf að fá peningana mína aftur. Það er ekki hægt að bíða "
    "lengur, þú veist það. Æ, hvað er að? Öll börnin.",
    "Finnish": "Missä tilaukseni on? En ole saanut mitään vastausta, vaikka "
    "lähetin viestin jo eilen. Hyvää päivää, äiti.",
    "Estonian": "Kus on minu tellimus? Õhtul õues oli väga külm, kõik jõudsid õnnelikult koju. Täname, õpetaja üle õe.",
    "Catalan": "La col·lecció és força il·lustrada; el preu és més alt que l’any passat, això és així, oi?",
}


@pytest.mark.parametrize("language", _CENTRAL)
def test_central_european_texts_are_read_right(language: str, tmp_path: Path) -> None:
    said = _CENTRAL[language]
    assert single_byte_encoding([said.encode("cp1250")]) == "cp1250"
    path = tmp_path / "rows.csv"
    path.write_bytes(f"prompt;completion\n{said};ok\n".encode("cp1250"))
    (row,) = read_rows(open_source(path))
    assert getattr(row, "fields", None) == {"prompt": said, "completion": "ok"}
    assert read_as(open_source(path)) == "semicolons, Windows-1250"
    path = tmp_path / "a.txt"
    path.write_bytes(said.encode("cp1250"))
    document = text.read(path)
    assert document.sections[0].text == said
    assert document.warnings == ("its lines are no UTF-8, read as Windows-1250",)


@pytest.mark.parametrize("language", _WESTERN)
def test_western_texts_stay_western(language: str) -> None:
    data = _WESTERN[language].encode("cp1252")
    assert single_byte_encoding([data]) == "cp1252"
    assert single_byte_encoding(data.split(b" ")) == "cp1252"


@pytest.mark.parametrize(
    ("said", "encoding"),
    [
        ("Где мой заказ? Верните деньги, пожалуйста, я жду уже неделю.", "cp1251"),
        ("Πού είναι η παραγγελία μου; Θέλω τα χρήματά μου πίσω.", "cp1253"),
        (_CENTRAL["Polish"], "iso8859-2"),
        (_CENTRAL["Polish"], "mac_latin2"),
    ],
)
def test_other_encodings_are_neither(said: str, encoding: str) -> None:
    assert single_byte_encoding([said.encode(encoding)]) is None


def test_a_text_with_lines_of_utf8_is_mixed() -> None:
    assert single_byte_encoding(["größer".encode(), "größer".encode("cp1252")]) is None
