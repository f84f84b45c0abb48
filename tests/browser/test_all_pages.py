"""Every page that the routes have, of a home with one of everything: axe-core, both schemes, both sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page

from luthier.core.access import SCOPES
from luthier.platform.auth.service import create_key
from luthier.platform.home.context import Context
from luthier.server.home import create_home_app
from luthier.testing.servers import home_server
from tests.browser.conftest import PHONE, WIDE, sign_in, violations_in_light_and_dark
from tests.full_home import FullHome, fill_home
from tests.page_routes import QUERIES, WITHOUT_ADDRESS, routes_of

_IS_PAGE = '<main class="main"'


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[tuple[str, str, list[str]]]:
    """A server: its address, a key of all scopes, and the addresses that routes have there."""
    folder = tmp_path_factory.mktemp("all-pages")
    base = folder / "bases" / "tiny"
    base.parent.mkdir()
    base.symlink_to(tiny_model)
    with Context.open(folder / "home") as context:
        made: FullHome = fill_home(context, folder, base)
        key = create_key(context, "me", scopes=SCOPES)[1]
        routes = [path for method, path in routes_of(create_home_app(context)) if method == "GET"]
        asked = [path for path in (*routes, *QUERIES) if path not in WITHOUT_ADDRESS and not path.startswith("/api/")]
        with home_server(folder / "home") as server:
            yield server.url, key, list(dict.fromkeys(made.address(path) for path in asked))


@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["wide", "phone"])
def test_axe_finds_nothing_on_any_page_and_nothing_overflows(
    served: tuple[str, str, list[str]], make_page: Callable[..., Page], size: dict[str, int]
) -> None:
    url, key, addresses = served
    page = make_page(viewport=size)
    sign_in(page, url, key)
    pages = [address for address in addresses if _is_page(page, f"{url}{address}")]
    assert len(pages) > 70, "routes have other names now"
    found = {}
    for address in pages:
        page.goto(f"{url}{address}")
        page.evaluate("for (const one of document.querySelectorAll('main details')) one.open = true")
        wrong = violations_in_light_and_dark(page)
        if page.evaluate("document.documentElement.scrollWidth > innerWidth"):
            wrong.append("it is wider than the window")
        if wrong:
            found[address] = wrong
    assert found == {}


def _is_page(page: Page, address: str) -> bool:
    """Whether an address answers with a page of the shell, and with no piece, file or report."""
    answer = page.context.request.get(address, max_redirects=0)
    return answer.ok and _IS_PAGE in answer.text()
