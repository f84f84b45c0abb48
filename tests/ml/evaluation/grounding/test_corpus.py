"""What a corpus knows of a citation."""

from __future__ import annotations

import pytest
from tests.vacuous import nonempty

from luthier.core.errors import DataError, RequestError
from luthier.core.results.suite import CitationForm
from luthier.ml.evaluation.grounding.corpus import Corpus, findings

FORMS: tuple[CitationForm, ...] = ("us_case", "us_statute", "state_statute", "section", "url")
DOCUMENTS = {
    "notice.md": "W.C.A. § 21-4-12. Notice of accident. (b) Thirty days. See https://example.org/notice.",
    "doctor.md": "The W.C.A. on doctors. § 21-4-13. The employer posts a list. 42 U.S.C. § 1983 is another matter.",
    "harrow.md": "Harrow v. Tallow Mills, Inc., 31 Pelm. 204, 12 Wes. 3d 5 (2019). It held as Roe v. Stone Works did.",
    "code.md": "Westm. Code Ann. § 7-1 is about time.",
    "manual.md": "The pump AB-123 has a filter.",
}


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return Corpus(DOCUMENTS, forms=FORMS, patterns={"part": r"AB-\d+"})


@pytest.mark.parametrize(
    ("answer", "status", "document"),
    [
        ("W.C.A. § 21-4-12(b) says so.", "known", "notice.md"),
        ("W.C.A. Section 21-4-12", "known", "notice.md"),
        ("Westmark W.C.A. § 21-4-12", "known", "notice.md"),
        ("§ 21-4-12", "known", "notice.md"),
        ("Westm. Code Ann. § 7-1", "known", "code.md"),
        ("Westmark Code Annotated § 7-1", "known", "code.md"),
        ("W.C.A. § 21-4-13", "known", "doctor.md"),
        ("W.C.A. § 21-4-99", "unknown", None),
        ("X.Y.A. § 21-4-12", "unknown", None),
        ("X.Y.A. § 21-4-13", "unknown", None),
        ("42 USC 1983", "known", "doctor.md"),
        ("2 U.S.C. § 1983", "unknown", None),
        ("42 U.S.C. § 1985", "unknown", None),
        ("31 Pelm. 204 (2019)", "known", "harrow.md"),
        ("Harrow v. Mills, 31 Pelm. 204 (2019)", "known", "harrow.md"),
        ("Ashdown v. Tallow Mills, 31 Pelm. 204 (2019)", "misnamed", "harrow.md"),
        ("Harrow v. Tallow Mills, 31 Pelm. 205 (2019)", "unknown", None),
        ("Harrow v. Tallow Mills, 12 Wes. 3d 5 (2019)", "known", "harrow.md"),
        ("Harrow v. Tallow Mills, 31 Pelm. 204, 12 Wes. 3d 6 (2019)", "unknown", None),
        ("Harrow v. Tallow Mills, 31 Pelm. 204, 7 Zed. 6 (2019)", "known", "harrow.md"),
        ("In Harrow v. Tallow Mills it held so.", "known", "harrow.md"),
        ("In Roe v. Stone it held so.", "known", "harrow.md"),
        ("In Roe v. Tallow it held so.", "unknown", None),
        ("http://www.example.org/notice/", "known", "notice.md"),
        ("https://example.org/other", "unknown", None),
        ("the pump AB-123", "known", "manual.md"),
        ("the pump AB-124", "unknown", None),
    ],
)
def test_a_citation_is_known_misnamed_or_unknown(
    corpus: Corpus, answer: str, status: str, document: str | None
) -> None:
    (one,) = findings(answer, corpus)
    assert (one.status, one.documents[0] if one.documents else None) == (status, document)
    assert one.citation.sentence
    assert (one.named_there == "Harrow v. Tallow Mills, Inc.") is (status == "misnamed")


def test_an_answer_without_text_or_citations_has_no_findings(corpus: Corpus) -> None:
    assert findings("", corpus) == findings("\n \n", corpus) == findings("I do not know.", corpus) == ()


def test_a_citation_that_is_said_again_counts_once(corpus: Corpus) -> None:
    found = findings("W.C.A. § 21-4-99. W.C.A. Section 21-4-99(a). " * 20, corpus)
    assert [one.citation.text for one in found] == ["W.C.A. § 21-4-99"]


def test_every_document_knows_its_own_citations(corpus: Corpus) -> None:
    for name, text in DOCUMENTS.items():
        for one in nonempty(findings(text, corpus)):
            assert one.status == "known"
            assert name in one.documents


@pytest.mark.parametrize("documents", [{}, {"a": "", "b": " \n"}])
def test_an_empty_corpus_is_refused(documents: dict[str, str]) -> None:
    with pytest.raises(DataError, match="without any text"):
        Corpus(documents, forms=FORMS)


def test_a_corpus_that_holds_no_citation_is_refused() -> None:
    with pytest.raises(DataError, match=r"holds no citation \(section, part\)"):
        Corpus({"a": "Nothing is cited by this."}, forms=("section",), patterns={"part": r"AB-\d+"})


def test_a_wrong_pattern_is_refused() -> None:
    with pytest.raises(RequestError, match="not a regular expression"):
        Corpus(DOCUMENTS, forms=FORMS, patterns={"part": "("})
