"""`luthier glossary`."""

from __future__ import annotations

from luthier.core.text.glossary import TERMS


def test_one_term_in_several_words(luthier) -> None:  # type: ignore[no-untyped-def]
    assert luthier("glossary", "loss", "mask").out.startswith("loss mask: It marks the parts of a row")
    document = luthier("glossary", "loss masks", "--json").document
    assert [one["name"] for one in document["terms"]] == ["loss mask"]


def test_all_terms_by_topic(luthier) -> None:  # type: ignore[no-untyped-def]
    assert len(luthier("glossary", "--json").document["terms"]) == len(TERMS)
    text = luthier("glossary").out
    assert text.index("Data") < text.index("dataset:") < text.index("Evaluation") < text.index("verdict:")


def test_an_unknown_term_is_a_wrong_request(luthier) -> None:  # type: ignore[no-untyped-def]
    done = luthier("glossary", "los mask")
    assert done.code == 2
    assert "nearest: loss mask" in done.err
