"""Decisions, by form and by parties; what eyecite adds is in test_us_law."""

from __future__ import annotations

import pytest

from luthier.ml.evaluation.grounding.cases import find_cases, is_name_alone
from luthier.ml.evaluation.grounding.citation import Citation, clean


def cases(text: str) -> list[Citation]:
    return list(find_cases(clean(text)))


@pytest.mark.parametrize(
    ("text", "normal", "names"),
    [
        ("Harrow v. Tallow Mills, 31 Pelm. 204 (2019)", "31 pelm 204", ("Harrow", "Tallow Mills")),
        ("See Harrow v. Tallow Mills, Inc., 31 Pelm. 204.", "31 pelm 204", ("Harrow", "Tallow Mills, Inc.")),
        ("Harrow v. Tallow\nMills, 31 Pelm.\nApp. 204, 207 (2019)", "31 pelmapp 204", ("Harrow", "Tallow Mills")),
        ("Doe v. Acme Co., 123 Ga. App. 456 [1973]", "123 gaapp 456", ("Doe", "Acme Co.")),
        ("State v. Harrow, 31 Pelm. 3d 9 (2020)", "31 pelm3d 9", ("State", "Harrow")),
        ("In re Harrow, 31 Pelm. 3 (2019)", "31 pelm 3", ("", "Harrow")),
        ("it held. 31 Pelm. 204 (Pelm. App. 2019) says", "31 pelm 204", None),
    ],
)
def test_a_decision_in_any_reporter(text: str, normal: str, names: tuple[str, str] | None) -> None:
    (one,) = cases(text)
    assert (one.normal, one.names) == (normal, names)


def test_a_year_and_a_page_within_belong_to_it() -> None:
    (one,) = cases("As in Harrow v. Mills, 31 Pelm. 204, 207 (Pelm. App. 2019), it held.")
    assert (one.text, one.pin) == ("Harrow v. Mills, 31 Pelm. 204, 207 (Pelm. App. 2019)", "207")


def test_parallel_citations_are_one_decision() -> None:
    (one,) = cases("Smith v. Jones, 410 Zed. 113, 115, 93 Zed. App. 705, 35 Zed. 2d 147 (1973).")
    assert (one.normal, one.parallel) == ("410 zed 113", ("93 zedapp 705", "35 zed2d 147"))
    assert one.names == ("Smith", "Jones")


def test_two_decisions_after_each_other_are_two() -> None:
    found = cases("Smith v. Jones, 4 Zed. 1 (1973); Roe v. Doe, 5 Zed. 2 (1974).")
    assert [(one.normal, one.names) for one in found] == [
        ("4 zed 1", ("Smith", "Jones")),
        ("5 zed 2", ("Roe", "Doe")),
    ]


def test_references_back_count_for_nothing() -> None:
    text = (
        "Harrow v. Mills, 31 Pelm. 204 (2019). Id. at 206. Harrow, supra, at 5. In Harrow v. Mills the court went on."
    )
    assert [one.normal for one in cases(text)] == ["31 pelm 204"]


def test_a_decision_named_alone_counts_once() -> None:
    found = cases("In Smith v. Jones Paper Co. it held so. Smith v. Jones Paper was followed, and Roe vs. Doe.")
    assert [one.text for one in found] == ["Smith v. Jones Paper Co.", "Roe v. Doe"]
    assert all(is_name_alone(one) for one in found)


@pytest.mark.parametrize(
    "text",
    [
        "5 Main St. 45, on 5 Jan. 2020 (2020), at 10 p.m. 30 (2020)",
        "USD 12.50, 3 Apples 4, 1,204 Votes. 5",
        "cats v. dogs, Team a vs. team b, v. 2.0",
        "State v. State",
        "He paid $31 Pelm. 204 (2019)",
        "",
    ],
)
def test_what_is_no_decision(text: str) -> None:
    assert cases(text) == []
