"""The page of all terms, and words with a "?" on other pages."""

from __future__ import annotations

import re

from markupsafe import escape
from tests.fixtures.pages import Browser
from tests.vacuous import nonempty

from luthier.core.text.glossary import TERMS


def test_every_term_has_its_place(browser: Browser) -> None:
    page = browser("infer").get("/glossary").text
    for term in nonempty(TERMS):
        assert f'id="{term.key}"' in page
        assert str(escape(term.meaning)) in page
    assert browser().get("/glossary").status_code == 303, "pages are for those who are signed in"


def test_a_word_is_explained_at_its_first_use_and_links_to_its_place(browser: Browser) -> None:
    one = browser("read", "train")
    page = one.get("/").text
    asks = re.findall(r'popovertarget="([^"]+)"', page)
    assert len(asks) == len(set(asks)) > 3
    for ask in nonempty(asks):
        assert page.count(f'id="{ask}"') == 1
    places = set(re.findall(r'href="/glossary#([^"]+)"', page))
    assert places <= {term.key for term in TERMS}
