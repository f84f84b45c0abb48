"""Personal data: recall and precision by kind on generated values, and what must not be taken for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.ml.data.personal_data.find import find_personal_data, may_hold_personal_data

LOCALES = ("en_US", "de_DE", "fr_FR", "es_ES", "it_IT")
NUM_VALUES = 150
LEAST = 0.95
Values = Callable[[str, str, int], Iterator[tuple[str, str]]]


@pytest.mark.parametrize("kind", ["email", "phone", "card", "iban", "ssn", "ip_address", "street"])
def test_recall_and_precision_of_a_kind_in_five_languages(kind: str, values: Values, nobodys: list[str]) -> None:
    """Found: a span of the right kind over the whole value. False: any other span, and any row of numbers flagged."""
    num_found, num_false, missed = 0, 0, []
    for locale in LOCALES:
        for sentence, value in values(kind, locale, NUM_VALUES):
            spans = find_personal_data(sentence)
            start = sentence.index(value)
            found = [s for s in spans if s.kind == kind and s.start <= start and s.end >= start + len(value)]
            num_found += bool(found)
            num_false += len(spans) - len(found)
            missed += [] if found else [(locale, sentence, spans)]
    wrong = [(row, spans) for row in nobodys if (spans := [s for s in find_personal_data(row) if s.kind == kind])]
    recall = num_found / (len(LOCALES) * NUM_VALUES)
    precision = num_found / (num_found + num_false + len(wrong))
    assert recall >= LEAST, missed[:10]
    assert precision >= LEAST, wrong[:10]


@pytest.mark.parametrize("locale", LOCALES)
@pytest.mark.parametrize("kind", ["email", "phone", "card", "iban", "ssn", "ip_address", "street"])
def test_recall_holds_in_each_language_alone(kind: str, locale: str, values: Values) -> None:
    rows = list(values(kind, locale, NUM_VALUES))
    found = sum(any(span.kind == kind for span in find_personal_data(sentence)) for sentence, _ in rows)
    assert found / len(rows) >= LEAST


def test_a_row_of_numbers_is_rarely_taken_for_a_person(nobodys: list[str]) -> None:
    wrong = [(row, spans) for row in nobodys if (spans := find_personal_data(row))]
    assert len(wrong) / len(nobodys) <= 0.01, wrong[:10]


def test_the_quick_test_of_a_column_misses_nothing(values: Values, nobodys: list[str]) -> None:
    kinds = ("email", "phone", "card", "iban", "ssn", "ip_address", "street")
    texts = [sentence for kind in kinds for locale in LOCALES for sentence, _ in values(kind, locale, 60)] + nobodys
    quick = may_hold_personal_data(pl.Series("text", texts))
    assert [t for t, q in zip(texts, quick, strict=True) if not q and find_personal_data(t)] == []
    assert not may_hold_personal_data(pl.Series("text", ["A good pan, 5 of 5, would buy it again in 2024."])).any()


@pytest.mark.parametrize(
    "text",
    [
        "someone@example.com, x@mail.example.org, a@b.test, git@github.com:user/repo, noreply@firm.de",
        "127.0.0.1 0.0.0.0 10.0.0.1 192.168.1.1 192.0.2.7 198.51.100.3 203.0.113.9 2001:db8::1 ::1 fe80::1:2:3",
        "(202) 555-0143 and +1-303-555-0199",
        "4111 1111 1111 1111, 4242424242424242, 378282246310005",
        "Which callback was it? SELECT cell FROM 1-11129123-1 WHERE cell = 2",
        "900-12-3456 and 000-12-3456 and 666-12-3456 and 123-00-4567 and 123-45-0000",
    ],
)
def test_values_that_reach_nobody_are_not_personal_data(text: str) -> None:
    assert find_personal_data(text) == []


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("IBAN: DE89 3704 0044 0532 0130 00.", "iban", "DE89 3704 0044 0532 0130 00"),
        ("+49 (0) 30 901820, tagsüber", "phone", "+49 (0) 30 901820"),
        ("tel:0161 496 2066", "phone", "0161 496 2066"),
        ("5500 0055 5555 5559 exp 12/27", "card", "5500 0055 5555 5559"),
        ("SSN 219 09 9998", "ssn", "219 09 9998"),
        ("host 52.95.110.1 is down", "ip_address", "52.95.110.1"),
        ("[2a00:1450:4001:81b::200e]", "ip_address", "2a00:1450:4001:81b::200e"),
        ("Lange Straße 12a, Berlin", "street", "Lange Straße 12a"),
        ("Prinsengracht 263 in Amsterdam", "street", "Prinsengracht 263"),
        ("221B Baker Street", "street", "221B Baker Street"),
        ("12 bis, rue de la Paix à Paris", "street", "12 bis, rue de la Paix"),
        ("abito in via Garibaldi 12/A", "street", "via Garibaldi 12"),
        ("Calle Gran Vía, 28", "street", "Calle Gran Vía, 28"),
        (r'{"text": "\nme@firm.de"}', "email", "me@firm.de"),
        (r"caf\u00e9 jean@firm.fr", "email", "jean@firm.fr"),
        ("INSERT INTO users VALUES (7, 'ann@firm.de');", "email", "ann@firm.de"),
        ("schreiben Sie mir...ann@firm.de", "email", "ann@firm.de"),
        ("Meine ann@firm.de-Adresse ist neu.", "email", "ann@firm.de"),
        ("Mail:-ann.o'brien@firm.ie", "email", "ann.o'brien@firm.ie"),
        ("Tel.0171 1234567, abends", "phone", "0171 1234567"),
        ("Fax.+49 30 901820", "phone", "+49 30 901820"),
        ("Call me at 867-5309 tonight.", "phone", "867-5309"),
        ("Ring meg på mobil 9812 3456.", "phone", "9812 3456"),
        ("Rufnummer 4711 555", "phone", "4711 555"),
        ("Ich wohne Am Friedrich-Engels-Bogen 4 in der Stadt.", "street", "Am Friedrich-Engels-Bogen 4"),
    ],
)
def test_values_as_people_write_them(text: str, kind: str, value: str) -> None:
    (span,) = find_personal_data(text)
    assert (span.kind, text[span.start : span.end]) == (kind, span.value)
    assert span.value.startswith(value)
    assert may_hold_personal_data(pl.Series("text", [text])).all(), "the quick test of a column misses it"


@given(st.text(alphabet="0123456789 +-().@/:,abcDEx\n\\Stre", max_size=200))
def test_spans_are_ordered_apart_and_cut_from_the_text(text: str) -> None:
    spans = find_personal_data(text)
    assert all(text[span.start : span.end] == span.value for span in spans)
    assert all(a.end <= b.start for a, b in pairwise(spans))


@pytest.mark.parametrize("piece", ["7", "@", " ", "a@", "DE89 ", "1 Ab ", "+1", "::", "A-"])
def test_a_row_of_300_000_characters_costs_time_in_proportion(piece: str) -> None:
    """Would not end within the patience of any person if a pattern backtracked."""
    text = (piece * 300_000)[:300_000]
    assert len(find_personal_data(text)) <= len(text)


def test_a_row_of_three_million_digits_is_read_to_its_end() -> None:
    assert find_personal_data("7" * 3_000_000 + " me@firm.de")[-1].value == "me@firm.de"
