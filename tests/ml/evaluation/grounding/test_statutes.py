"""Statutes and sections in all their writings."""

from __future__ import annotations

import pytest

from luthier.ml.evaluation.grounding.citation import clean
from luthier.ml.evaluation.grounding.find import codes_named, find_statutes, same_code


def found(text: str) -> list[tuple[str, str]]:
    return [(one.kind, one.normal) for one in find_statutes(clean(text))]


def normal(text: str) -> list[str]:
    return [form for _, form in found(text)]


@pytest.mark.parametrize(
    "text",
    [
        "O.C.G.A. § 34-9-1",
        "O.C.G.A. Section 34-9-1",
        "O.C.G.A. section 34-9-1",
        "OCGA § 34-9-1(b)",
        "OCGA 34-9-1",
        "O.C.G.A. 34-9-1.",
        "Ga. Code Ann. § 34-9-1(b)(2)",
        "O.C.G.A.\n§\u00a034\u20119\u20111",
        "O. C. G. A. 34-9-1",
        "See O.C.G.A. §34-9-1, which says so",
        "the Board. O.C.G.A. § 34-9-1",
    ],
)
def test_writings_of_one_statute_meet(text: str) -> None:
    assert found(text) == [("state_statute", "ocga 34-9-1")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("42 U.S.C. § 1983", ["42 usc 1983"]),
        ("42 USC 1983", ["42 usc 1983"]),
        ("42 U. S. C. A. § 2000e-2(a)(1)", ["42 usc 2000e-2"]),
        ("42 U.S.C. §§ 1981-1983", ["42 usc 1981", "42 usc 1983"]),
        ("29 C.F.R. § 1910.12(a) and 17 CFR 240.10b-5", ["29 cfr 1910.12", "17 cfr 240.10b-5"]),
        ("20 C.F.R. Part 404", ["20 cfr 404"]),
    ],
)
def test_federal_law(text: str, expected: list[str]) -> None:
    assert found(text) == [("us_statute", form) for form in expected]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Cal. Penal Code § 187", "cal.penal.code 187"),
        ("Tex. Civ. Prac. & Rem. Code § 101.021", "tex.civ.prac.rem.code 101.021"),
        ("N.Y. C.P.L.R. § 3211", "ny.cplr 3211"),
        ("Fla. Stat. 440.09", "fla.stat 440.09"),
        ("Mass. Gen. Laws ch. 93A, § 9", "mass.gen.laws.ch.93a 9"),
        ("12 Va. Admin. Code § 5-10", "12.va.admin.code 5-10"),
        ("Under Labor Code section 3600", "labor.code 3600"),
        ("Westm. Code Ann. § 41-6-12", "westm.code 41-6-12"),
    ],
)
def test_codes_of_states(text: str, expected: str) -> None:
    assert found(text) == [("state_statute", expected)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("§ 12-3", ["§ 12-3"]),
        ("Section 4.2.1 applies", ["§ 4.2.1"]),
        ("Section W-101", ["§ w-101"]),
        ("§§ 34-9-1 to -3", ["§ 34-9-1", "§ 34-9-3"]),
        ("§§ 34-9-1 through 34-9-3", ["§ 34-9-1", "§ 34-9-3"]),
        ("§§ 5-1, 5-2(b), and 5-4", ["§ 5-1", "§ 5-2", "§ 5-4"]),
        ("§§ 5-1-1, 5-1-2 and 42 U.S.C. § 1983", ["42 usc 1983", "§ 5-1-1", "§ 5-1-2"]),
        ("§§ 12-15", ["§ 12", "§ 15"]),
        ("Id. § 34-9-2", ["§ 34-9-2"]),
        ("under the Act. Section 5-1 applies", ["§ 5-1"]),
        ("the U.S. § 5-1 rule", ["§ 5-1"]),
    ],
)
def test_sections(text: str, expected: list[str]) -> None:
    assert normal(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "on 2020-05-06, or 5/6/2020, or May 5, 2020",
        "call 404-555-0199 or +1 (404) 555-0199",
        "USD 34.90, $34-9, 12-15 days, 3.14, 100,000",
        "Section 2 of this answer; see section 12",
        "§ and §§ and Section",
        "F.R.D. 12, 5 F.R.D. 12-3",
        "Chapter 9, page 34-9-1, version 1.2.3",
        "the section's 12-3 part, sections of 12-3",
        "ISBN 978-3-16-148410-0",
    ],
)
def test_numbers_that_are_no_citations(text: str) -> None:
    assert found(text) == []


def test_subsections_are_a_pin_and_do_not_count() -> None:
    (one,) = find_statutes("O.C.G.A. § 34-9-1 (b) (2)")
    assert (one.normal, one.pin) == ("ocga 34-9-1", "(b)(2)")
    assert one.text == "O.C.G.A. § 34-9-1 (b) (2)"


def test_codes_are_named_without_a_section_too() -> None:
    assert {"ocga", "labor.code"} <= codes_named("the O.C.G.A. and the Labor Code say so")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("westm.code", "westmark.code", True),
        ("lab.code", "cal.labor.code", True),
        ("board.ocga", "ocga", True),
        ("cal.penal.code", "cal.labor.code", False),
        ("42 usc", "usc", True),
        ("42 usc", "2 usc", False),
        ("12.va.admin.code", "14.va.admin.code", False),
        ("§", "ocga", False),
    ],
)
def test_names_of_codes_that_may_be_the_same(one: str, other: str, same: bool) -> None:
    assert same_code(one, other) is same_code(other, one) is same
