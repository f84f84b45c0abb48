"""What eyecite adds, and that nothing breaks without it."""

from __future__ import annotations

import logging

import pytest

from luthier.core.results.suite import CitationForm
from luthier.ml.evaluation.grounding import find
from luthier.ml.evaluation.grounding.find import find_citations

ALL: tuple[CitationForm, ...] = ("us_case", "us_statute", "state_statute")


def normal(text: str) -> list[str]:
    return [one.normal for one in find_citations(text, ALL)]


def test_reporters_are_known_without_parties_or_year() -> None:
    pytest.importorskip("eyecite")
    assert normal("410 U.S. 113 and 410 U. S. 113") == ["410 us 113", "410 us 113"]
    assert normal("410 U.S. 113, 93 S. Ct. 705") == ["410 us 113"]
    assert normal("2021 WL 123456") == ["2021 wl 123456"]


def test_a_short_form_counts_where_its_volume_is_not_cited() -> None:
    pytest.importorskip("eyecite")
    assert normal("Roe, 410 U.S. at 120.") == ["410 us at"]
    assert normal("Roe v. Wade, 410 U.S. 113 (1973). Later 410 U.S. at 120.") == ["410 us 113"]


def test_laws_in_forms_of_their_own() -> None:
    pytest.importorskip("eyecite")
    (one,) = find_citations("124 Stat. 119 (2010)", ALL)
    assert (one.kind, one.normal) == ("us_statute", "124.stat 119")


def test_without_eyecite_forms_alone_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(find, "find_spec", lambda name: None)
    assert not find.has_eyecite()
    assert normal("410 U.S. 113 stands alone") == []
    assert normal("Roe v. Wade, 410 U.S. 113 (1973)") == ["410 us 113"]


def test_nothing_of_the_text_goes_to_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        normal("410 U.S. 113. Then 410 U.S. at 120, and Mass. Gen. Laws ch. 93A, § 9.")
    assert caplog.records == []
