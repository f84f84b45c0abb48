"""National identity numbers: found by form and check digits, with published examples and numbers that faker makes."""

from __future__ import annotations

import random

import polars as pl
import pytest
from faker import Faker
from hypothesis import given
from hypothesis import strategies as st

from luthier.ml.data.personal_data import national_ids
from luthier.ml.data.personal_data.find import find_personal_data, may_hold_personal_data
from luthier.ml.data.personal_data.masking import Pseudonyms, mask_personal_data

# Country, a sentence that names the number, and the number: examples that authorities publish in their rules.
PUBLISHED = (
    ("DE tax", "Meine Steuer-ID: {}", "86095742719"),
    ("DE tax in groups", "Steuerliche Identifikationsnummer {}", "86 095 742 719"),
    ("DE insurance", "Sozialversicherungsnummer {}", "65 170839 J 003"),
    ("IT", "Codice fiscale: {}", "RSSMRA85T10A562S"),
    ("FR", "Numéro de sécurité sociale {}", "2 55 08 14 168 025 38"),
    ("ES DNI", "Mi DNI es {}", "12345678Z"),
    ("ES NIE", "NIE {}", "X1234567L"),
    ("NL", "BSN {}", "111222333"),
    ("PL", "PESEL: {}", "44051401359"),
    ("GB", "National insurance number {}", "AB 12 34 56 C"),
    ("SE", "Personnummer {}", "811228-9874"),
    ("FI", "Henkilötunnus {}", "131052-308T"),
    ("BR", "CPF {}", "111.444.777-35"),
    ("BE", "Rijksregisternummer {}", "85.07.30-033.28"),
    ("CH", "AHV-Nummer {}", "756.9217.0769.85"),
    ("AT", "SVNR {}", "1237 010180"),
    ("CZ", "Rodné číslo {}", "736028/5163"),
    ("DK", "CPR-nummer {}", "070761-4285"),
)
CHECKED = tuple(one for one in PUBLISHED if not one[0].startswith(("GB", "DK")))
"""Those with a check digit."""


@pytest.mark.parametrize(("country", "sentence", "number"), PUBLISHED)
def test_a_published_number_is_found_whole_and_masked_once(country: str, sentence: str, number: str) -> None:
    text = sentence.format(number) + ", danke."
    (span,) = find_personal_data(text, profile="precision")
    assert (span.kind, span.value) == ("national_id", number)
    assert may_hold_personal_data(pl.Series("text", [text])).all()
    masked, counts = mask_personal_data(text, Pseudonyms())
    assert counts == {"national_id": 1}
    assert number not in masked
    assert len(masked) == len(text)
    assert find_personal_data(masked) == []


@pytest.mark.parametrize(("country", "sentence", "number"), CHECKED)
def test_a_number_with_another_check_digit_is_none(country: str, sentence: str, number: str) -> None:
    place = max(at for at, sign in enumerate(number[:-1]) if sign.isdigit())
    wrong = number[:place] + str((int(number[place]) + 1) % 10) + number[place + 1 :]
    spans = find_personal_data(sentence.format(wrong), profile="precision")
    assert [span for span in spans if span.kind == "national_id"] == []


@pytest.mark.parametrize(
    "text",
    [
        "Order 86095742719 is late.",
        "Bestellung 111222333, Artikel 1237010180.",
        "Ich habe nie 111222333 bestellt, nur 30 dni 12345678.",
        "Invoice 070761-4285 was paid.",
    ],
)
def test_plain_digits_without_a_word_for_them_are_not_certain(text: str) -> None:
    assert find_personal_data(text, profile="precision") == []


def test_the_same_number_in_two_spellings_has_one_stand_in() -> None:
    text = "Steuer-ID 86095742719 oder Steuer-ID 86 095 742 719; BSN 111222333"
    masked, counts = mask_personal_data(text, Pseudonyms())
    assert counts == {"national_id": 3}
    assert masked == "Steuer-ID 90000000001 oder Steuer-ID 90 000 000 001; BSN 900000002"


@pytest.mark.parametrize("locale", ["it_IT", "fr_FR", "es_ES", "pl_PL", "nl_NL", "pt_BR", "fi_FI", "nl_BE", "de_AT"])
def test_numbers_that_another_program_makes_are_found_where_they_are_named(locale: str) -> None:
    fake = Faker(locale)
    fake.seed_instance(5)
    numbers = [fake.nie() if locale == "es_ES" else fake.ssn() for _ in range(200)]
    missed = [n for n in numbers if not any(s.kind == "national_id" for s in find_personal_data(f"National ID: {n}"))]
    assert len(missed) <= 4, missed[:5]


def test_random_codes_are_rarely_taken_for_certain_numbers() -> None:
    chance = random.Random(3)
    forms = (
        "########?###",
        "??######?",
        "???###########",
        "######-####",
        "########?",
        "###.###.###-##",
        "##.##.##-###.##",
    )

    def code(form: str) -> str:
        letters, digits = "ABCDEFGHJKLMNPRSTUVWXYZ", "0123456789"
        return "".join(chance.choice(letters if s == "?" else digits) if s in "#?" else s for s in form)

    texts = [f"Part {code(form)} in box 4" for form in forms for _ in range(1_000)]
    wrong = [
        text for text in texts if any(s.kind == "national_id" for s in find_personal_data(text, profile="precision"))
    ]
    assert len(wrong) <= 0.01 * len(texts), wrong[:10]


_NUMBERS = st.sampled_from([number for _, _, number in PUBLISHED])


@given(st.lists(_NUMBERS | st.text("0123 ./-+AXé,\n\u00a0", max_size=12), max_size=8).map("".join))
def test_forms_are_found_where_each_of_them_would_find_them_by_itself(text: str) -> None:
    begins = [begin.start() for begin in national_ids._BEGIN.finditer(text, 2)]
    for form in national_ids._FORMS:
        found = national_ids._matches(form.pattern, text, begins, len(text))
        assert [one.span() for one in found] == [one.span() for one in form.pattern.finditer(text, 2)]


def test_digits_without_a_separator_are_one_place_to_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "1" * 10_000 + "; 2"
    tried: list[int] = []

    class Recorded:
        """A pattern that keeps where it is tried."""

        def match(self, _text: str, begin: int, _end: int) -> None:
            tried.append(begin)

    form = national_ids._Form(Recorded(), lambda _: True)  # type: ignore[arg-type]
    monkeypatch.setattr(national_ids, "_FORMS", (form,))
    assert list(national_ids.find_national_ids(text)) == []
    assert tried == [0, 10_002]
