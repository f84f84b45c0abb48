"""Values that are certain, as a repair masks them, and what only looks like one."""

from __future__ import annotations

import pytest

from luthier.ml.data.personal_data.find import find_personal_data
from luthier.ml.data.personal_data.masking import MaskedKinds, Pseudonyms, mask_personal_data
from luthier.ml.data.personal_data.recognizers import KINDS

PRECISION = MaskedKinds(KINDS, "precision")


@pytest.mark.parametrize(
    "text",
    [
        "He can call her 2400/200=12 times: <<2400/200=12>>12 calls.",
        "The phone costs 1200-300=900, so 900 x 2400/200 is her bill.",
        "call 84348434 took 0.8 s",
        "call 8434843 took 0.8 s",
        "There were 867-5309 of them.",
        "delta +201360 +389360201, total +201360389201",
        "+40.20361-075.00417/ and 48.858844, +2.294481",
        "Considering 16 ounces of flour, Sharing 12 apples and During 30 minutes",
        "14.29.4.21 The Tenant pays; see 18.3.1.20 and Schedule 1.19.18.3.",
        "Upgrade from 11.0.14.15 to 63.0.14.15, Chrome/120.0.0.0 Safari/537.36",
        "U@S.shape and weight@hidden.T are products, x@w.transpose too",
        "span 4546799198765030270 parent 563766137306771180",
        "x[1:2::3] and a::b::c, std::vector<int>",
        "SELECT call FROM 1-28666376-77 WHERE phone = 1-28666376-77",
        "Call the part 123-45-6789.",
        "Call the part 1234567-8, or dial 12345-678-9.",
        "The commit de89370400440532013000aa, the tag fr1420041010050500013m02607, nr de88 3704 0044 0532 0130 00.",
    ],
)
def test_what_only_looks_like_a_value_is_left(text: str) -> None:
    assert mask_personal_data(text, Pseudonyms(), PRECISION) == (text, {})


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("Call me on 415-867-5309.", "phone", "415-867-5309"),
        ("Ann, (415) 867-5309", "phone", "(415) 867-5309"),
        ("+49 (0) 30 901820, tagsüber", "phone", "+49 (0) 30 901820"),
        ('{"phone": "+491701234567"}', "phone", "+491701234567"),
        ("Min mobil är 0198-78 98 25.", "phone", "0198-78 98 25"),
        ("Call me at 867-5309 tonight.", "phone", "867-5309"),
        ("My mobile is 9812 3456.", "phone", "9812 3456"),
        ("Tel.: +49 (0)89 / 12345-678", "phone", "+49 (0)89 / 12345-678"),
        ("Telefon: +49 (0) 89 / 12 34 56-78", "phone", "+49 (0) 89 / 12 34 56-78"),
        ("Telefon 089/123456-0, Fax auf Anfrage", "phone", "089/123456-0"),
        ("Tel. 0711 12345-0", "phone", "0711 12345-0"),
        ("meine iban ist de89 3704 0044 0532 0130 00 danke", "iban", "de89 3704 0044 0532 0130 00"),
        (
            "IBAN: DE89\u00a03704\u00a00044\u00a00532\u00a00130\u00a000",
            "iban",
            "DE89\u00a03704\u00a00044\u00a00532\u00a00130\u00a000",
        ),
        (
            "FR14\u202f2004\u202f1010\u202f0505\u202f0001\u202f3M02\u202f606",
            "iban",
            "FR14\u202f2004\u202f1010\u202f0505\u202f0001\u202f3M02\u202f606",
        ),
        ("Karte 4539\u00a05787\u00a06362\u00a01486", "card", "4539\u00a05787\u00a06362\u00a01486"),
        ("My card is 4539578763621486.", "card", "4539578763621486"),
        ("5500 0055 5555 5559", "card", "5500 0055 5555 5559"),
        ("Failed password for root from host 52.95.110.1 port 22", "ip_address", "52.95.110.1"),
        ("52.95.110.1:8080 is open", "ip_address", "52.95.110.1"),
        ("2a00:1450:4001:81b::200e", "ip_address", "2a00:1450:4001:81b::200e"),
        ("Please send it to 12 Baker Street, Springfield, IL 62704.", "street", "12 Baker Street"),
        ("Ich wohne in der Hansaring 12, 50670 Köln.", "street", "Hansaring 12"),
    ],
)
def test_values_with_a_word_or_a_form_of_their_own_are_certain(text: str, kind: str, value: str) -> None:
    (span,) = find_personal_data(text, profile="precision")
    assert (span.kind, span.value) == (kind, value)


@pytest.mark.parametrize("text", ["It was 415-867-5309.", "at 12 Baker Street", "see 95.25.40.201", "4539578763621486"])
def test_what_is_not_certain_counts_for_recall_and_where_it_is_asked_for(text: str) -> None:
    (span,) = find_personal_data(text)
    assert not span.is_certain
    assert find_personal_data(text, profile="precision") == []
    assert find_personal_data(text, profile="precision", every=(span.kind,)) == [span]


def test_a_sum_is_no_telephone_number_for_traffic_either() -> None:
    assert find_personal_data("He can call 2400/200=12 and 100-20-30 = 50") == []


@pytest.mark.parametrize(
    ("text", "value"), [("At 12 Baker Street.", "12 Baker Street"), ("At 12 Baker St. in London", "12 Baker St.")]
)
def test_the_full_stop_of_a_sentence_is_no_part_of_a_street(text: str, value: str) -> None:
    assert [span.value for span in find_personal_data(text)] == [value]
