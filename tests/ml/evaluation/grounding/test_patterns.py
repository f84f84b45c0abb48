"""URLs and a user's own patterns."""

from __future__ import annotations

import pytest

from luthier.core.errors import RequestError
from luthier.ml.evaluation.grounding.citation import compiled, find_patterns, find_urls


@pytest.mark.parametrize(
    ("text", "text_found", "normal"),
    [
        ("(see https://example.org/a).", "https://example.org/a", "example.org/a"),
        ("https://example.org/a_(b).", "https://example.org/a_(b)", "example.org/a_(b)"),
        ("[t](https://example.org/a), so", "https://example.org/a", "example.org/a"),
        ("[t](https://example.org/a).Next", "https://example.org/a", "example.org/a"),
        ("<HTTP://WWW.Example.org:80/Law/?q=1#top>", "HTTP://WWW.Example.org:80/Law/?q=1#top", "example.org/Law?q=1"),
        ("www.example.org...", "www.example.org", "example.org"),
        ("https://example.org:8080/a", "https://example.org:8080/a", "example.org:8080/a"),
        ('"https://example.org/a"', "https://example.org/a", "example.org/a"),
    ],
)
def test_urls_end_before_the_sentence_does(text: str, text_found: str, normal: str) -> None:
    (one,) = find_urls(text)
    assert (one.text, one.normal) == (text_found, normal)
    assert text[one.start : one.end] == text_found


@pytest.mark.parametrize("text", ["https://", "http://[::1", "https://a:99999/", "me@www.x.org", "ahttps://x.org", ""])
def test_what_is_no_url(text: str) -> None:
    assert list(find_urls(text)) == []


def test_a_pattern_finds_ids_whatever_their_case_and_blanks() -> None:
    patterns = compiled({"product": r"(?i)\bAB[- ]?\d{3}\b", "order": r"order no\. (?P<id>\d+)"})
    found = list(find_patterns("ab 123, AB-123 and order no. 77", patterns))
    assert [one.normal for one in found] == ["product ab123", "product ab-123", "order 77"]
    assert [one.kind for one in found] == ["product", "product", "order"]


@pytest.mark.parametrize(("pattern", "said"), [("(", "not a regular expression"), ("a*", "fits an empty text")])
def test_a_pattern_that_is_none_is_refused(pattern: str, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        compiled({"product": pattern})


def test_a_pattern_that_fits_between_letters_finds_nothing() -> None:
    assert list(find_patterns("abc", compiled({"edge": r"\b(?=b)|(?<=a)(?=b)"}))) == []
