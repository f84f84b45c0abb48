"""docs/screenshots: every page of the navigation has its picture, and no picture is left over."""

from __future__ import annotations

from pathlib import Path

from luthier.server.pages import PAGES
from tests.browser.screenshots import empty_pages, kept_pictures, pages, record_pages
from tests.browser.shown_homes import Shown
from tests.vacuous import nonempty

PICTURES = Path(__file__).parents[2] / "docs" / "screenshots"
MAX_BYTES = 2_600_000
"""Of all pictures together: a repository should stay small."""


def test_every_page_of_the_navigation_is_drawn() -> None:
    found = [*pages(Shown({})).values(), *record_pages().values(), *empty_pages().values()]
    drawn = {address.partition("?")[0].partition("#")[0] for address in found}
    missing = {page.address for page in nonempty(PAGES.values())} - drawn
    assert missing - {"/settings"} == set(), "/settings is its first tab"


def test_pictures_are_those_of_the_pages_and_they_are_small() -> None:
    found = nonempty(sorted(PICTURES.iterdir()))
    assert {one.name for one in found} == kept_pictures()
    assert sum(one.stat().st_size for one in found) < MAX_BYTES


def test_no_two_homes_have_a_picture_of_one_name() -> None:
    names = nonempty([*pages(Shown({})), *record_pages(), *empty_pages()])
    assert sorted(names) == sorted(set(names))
