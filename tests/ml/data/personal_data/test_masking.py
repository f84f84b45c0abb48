"""Masking: stand-ins that are consistent and well-formed, and nothing left to be found."""

from __future__ import annotations

import ipaddress
import json
import re

import pytest
from faker import Faker
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.ml.data.personal_data.find import find_personal_data
from luthier.ml.data.personal_data.masking import Pseudonyms, mask_personal_data, mask_secrets
from luthier.ml.data.personal_data.recognizers import (
    STRUCTURES,
    Span,
    bban_length,
    find_ibans,
    has_luhn_digit,
    mask_iban,
)
from luthier.ml.data.personal_data.secrets import find_secrets

FAKERS = {locale: Faker(locale) for locale in ("en_US", "de_DE", "fr_FR", "es_ES", "it_IT")}
SECRET = "gh" + "p_" + "a1B2c3D4e5F6g7H8i9J0" + "k1L2m3N4o5P6q7R8"


def values(seed: int) -> list[str]:
    found = []
    for fake in FAKERS.values():
        fake.seed_instance(seed)
        found += [
            fake.phone_number(),
            fake.street_address(),
            fake.company_email(),
            fake.iban(),
            fake.ipv4(),
            fake.ipv6(),
        ]
        found += [fake.credit_card_number(), FAKERS["en_US"].ssn()]
    return found


pieces = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        ["call ", "card ", "SSN ", ", ", "\n", '"', "\\n", "\\u00e9", "-", " 12", "x5", "0", "+", "St", " via "]
    ),
    st.integers(0, 500).flatmap(lambda seed: st.sampled_from(values(seed))),
)
texts = st.lists(pieces, max_size=12).map("".join)


@settings(max_examples=150, deadline=None)
@given(texts)
def test_a_second_search_finds_nothing_and_a_second_masking_changes_nothing(text: str) -> None:
    masked, counts = mask_personal_data(text, Pseudonyms())
    assert find_personal_data(masked) == []
    assert mask_personal_data(masked, Pseudonyms()) == (masked, {})
    assert bool(counts) == bool(find_personal_data(text))
    assert counts or masked == text


@settings(max_examples=100, deadline=None)
@given(st.lists(st.one_of(pieces, st.just(SECRET), st.just("pass" + 'word="k3yW0rd!x9"')), max_size=8).map(" ".join))
def test_a_string_of_json_stays_one(text: str) -> None:
    for as_ascii in (True, False):
        document = json.dumps({"text": text, "also": [text]}, ensure_ascii=as_ascii)
        masked, _ = mask_personal_data(document, Pseudonyms())
        masked, _ = mask_secrets(masked, Pseudonyms())
        assert json.loads(masked).keys() == {"text", "also"}


def test_a_number_of_json_stays_a_number() -> None:
    masked, counts = mask_personal_data('{"phone": 5272868387, "card": 4556737586899855}', Pseudonyms())
    assert counts == {"phone": 1, "card": 1}
    assert json.loads(masked) == {"phone": 12015550100, "card": int("4000000000000010"[:15] + masked[-2])}


def test_the_same_value_has_the_same_stand_in_in_all_texts() -> None:
    pseudonyms = Pseudonyms()
    first, _ = mask_personal_data("Mail Ann@Firm.de or bob@firm.de, call +49 30 901820.", pseudonyms)
    second, counts = mask_personal_data("ann@firm.de! +49 (30) 901820? And zoe@firm.de.", pseudonyms)
    assert first == "Mail person1@example.com or person2@example.com, call +1-201-555-0100."
    assert second == "person1@example.com! +1-201-555-0100? And person3@example.com."
    assert counts == {"email": 2, "phone": 1}


def test_text_around_the_values_is_untouched() -> None:
    text = "  Ünïcode\t{} –\r\n<b>{}</b>\x00 tail  "
    masked, _ = mask_personal_data(text.format("a.b@firm.de", "12 Baker Street"), Pseudonyms())
    assert masked == text.format("person1@example.com", "1 Example Street")
    assert mask_personal_data("nothing here", Pseudonyms()) == ("nothing here", {})


@pytest.mark.parametrize("number", [1, 2, 99, 100, 101, 12_345, 79_899, 1_000_001])
def test_stand_ins_are_well_formed_however_many_there_are(number: int) -> None:
    pseudonyms = Pseudonyms()
    pseudonyms.number_of = lambda kind, value: number  # type: ignore[method-assign]
    assert re.fullmatch(r"\+1-[2-9]\d\d-555-01\d\d", pseudonyms.stand_in("phone", "030 901820"))
    card = pseudonyms.stand_in("card", "4556 7375 8689 9855")
    assert re.fullmatch(r"4000 000\d( \d{4}){2}", card)
    assert has_luhn_digit(card.replace(" ", ""))
    assert ipaddress.ip_address(pseudonyms.stand_in("ip_address", "52.95.110.1")).is_global is False
    assert ipaddress.ip_address(pseudonyms.stand_in("ip_address", "2a00::1:2:3")).is_global is False
    assert re.fullmatch(r"9\d\d-00-\d{4}", pseudonyms.stand_in("ssn", "219-09-9998"))
    assert re.fullmatch(r"Person [A-Z]+", pseudonyms.stand_in("name", "Ann"))
    assert find_personal_data(f"call {pseudonyms.stand_in('phone', '5272868387')}") == []


@pytest.mark.parametrize("country", STRUCTURES)
def test_a_masked_account_is_one_of_its_country(country: str) -> None:
    iban = mask_iban(country, 7)
    assert len(iban) == 4 + bban_length(STRUCTURES[country])
    assert list(find_ibans(f"to {iban}.")) == [Span(3, 3 + len(iban), "iban", iban, is_reserved=True)]


def test_names_are_masked_where_a_finder_is_given() -> None:
    def find(text: str) -> list[Span]:
        return [Span(m.start(), m.end(), "name", m[0]) for m in re.finditer("Ann|Bob", text)]

    assert mask_personal_data("Bob met Ann, Bob left", Pseudonyms(find))[0] == "Person A met Person B, Person A left"


def test_secrets_become_numbered_marks() -> None:
    pseudonyms = Pseudonyms()
    masked, counts = mask_secrets(f'token = "{SECRET}" and postgres://me:' + "s3cr3tPw" + "@db/x", pseudonyms)
    assert masked == 'token = "<secret-1>" and postgres://me:<secret-2>@db/x'
    assert sum(counts.values()) == 2
    assert find_secrets(masked) == []
    assert mask_secrets(f"again {SECRET}", pseudonyms)[0] == "again <secret-1>"
