"""Pages with texts of another length: 40% longer ones fit a phone, and the German ones are accessible."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page

from luthier.platform.home.context import Context
from luthier.platform.ui import render
from luthier.platform.ui.i18n import catalog as catalogs
from luthier.platform.ui.i18n import environments
from luthier.platform.ui.i18n.catalog import Catalog
from luthier.platform.ui.i18n.messages import Message
from luthier.testing.servers import HomeServer, home_server

from .conftest import PHONE, sign_in, violations

PAGES = (
    "/",
    "/datasets",
    "/datasets/new",
    "/datasets/import",
    "/start",
    "/runs",
    "/evaluations",
    "/models",
    "/monitor",
    "/inbox",
    "/settings/account",
)


class LongerTexts(Catalog):
    """Every text of a template with two fifths more of it."""

    def page(self, message: Message) -> tuple[str, ...]:
        return tuple(f"{text} {_more(text)}" for text in (message.id, message.plural) if text)


def _more(text: str) -> str:
    bare = re.sub(r"\{\w+\}|</?\d+>", "", text)
    words = (bare.split() or ["lorem"]) * 2
    length = max(3, 2 * len(bare) // 5)
    return " ".join(words)[:length].strip() or "lorem"


def _forget() -> None:
    for one in (render.environment_of, render._coverage, environments.words, environments.figures_of):
        one.cache_clear()


@pytest.fixture
def longer(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    german = catalogs.catalog("de")
    made = LongerTexts("de", german.pages, german.sentences, german.scripts)
    for module in (environments, render):
        monkeypatch.setattr(module, "catalog", lambda _language: made)
    _forget()
    yield
    _forget()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[HomeServer]:
    with Context.open(tmp_path / "home"):
        pass
    with home_server(tmp_path / "home") as running:
        yield running


def test_texts_that_are_40_percent_longer_fit_a_phone(
    longer: None, server: HomeServer, make_page: Callable[..., Page]
) -> None:
    page = make_page(viewport=PHONE, locale="de-DE")
    sign_in(page, server.url, server.key)
    for path in PAGES:
        page.goto(f"{server.url}{path}")
        assert page.evaluate("document.documentElement.lang") == "de", path
        width = page.evaluate("document.documentElement.scrollWidth")
        assert width <= PHONE["width"], f"{path} is {width} px wide"


def test_german_pages_are_accessible_and_switch_back(server: HomeServer, make_page: Callable[..., Page]) -> None:
    page = make_page(locale="de-DE")
    sign_in(page, server.url, server.key, "/")
    assert page.evaluate("document.documentElement.lang") == "de"
    assert violations(page) == []
    page.get_by_role("button", name="English").click()
    page.wait_for_selector("html[lang=en]")
