"""Every page of the navigation has its picture in docs/screenshots."""

from __future__ import annotations

from luthier.server.pages import PAGES
from tests.browser.screenshots import Shown, pages
from tests.vacuous import nonempty


def test_every_page_of_the_navigation_is_drawn() -> None:
    shown = Shown("data-1", ("run-1", "run-2"), "eval-1", "batch_1")
    drawn = {address.partition("?")[0].partition("#")[0] for address in pages(shown).values()}
    missing = {page.address for page in nonempty(PAGES.values())} - drawn
    assert missing - {"/settings"} == set(), "/settings leads to its first tab"
