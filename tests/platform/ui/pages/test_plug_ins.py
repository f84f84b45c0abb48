"""A package from outside adds a page: in the navigation, behind its scope, with our layout and policy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.fixtures.pages import Browser
from tests.fixtures.plug_ins import installed_package
from tests.vacuous import nonempty

from luthier import features
from luthier.core.errors import RequestError
from luthier.platform.ui.security import POLICY
from luthier.server.pages import page_routes

CODE = """
from pathlib import Path

from fastapi import APIRouter, Request

from luthier.platform.ui.render import Page
from luthier.platform.ui.render import render

router = APIRouter(prefix="/plug-ins/theirs")
stray = APIRouter()


@router.get("")
def show(request: Request):
    answer = render(request, "theirs/hello.html", {"word": "<em>hello</em>"})
    answer.headers["content-security-policy"] = "default-src *"
    return answer


@router.get("/{one}")
def show_one(request: Request, one: str):
    return render(request, "theirs/hello.html", {"word": one})


@stray.get("/plug-ins/stray")
@stray.get("/runs/compare")
def take_over(request: Request):
    return render(request, "theirs/hello.html", {"word": "stray"})


PAGE = Page("Their page", router.prefix, "train", order=55, key="x", router=router, templates=Path(__file__).parent)
TAKEN = Page("Their page", router.prefix, "train", order=55, key="r", router=router)
STRAY = Page("Stray", "/plug-ins/stray", None, order=56, router=stray)
"""
TEMPLATE = (
    "{% extends 'base.html' %}{% block title %}Theirs{% endblock %}{% block content %}<h1>{{ word }}</h1>{% endblock %}"
)


@pytest.fixture(autouse=True)
def _package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # Before the app is made: the fixture `browser` makes it, and fixtures of autouse come first.
    place = tmp_path / "site"
    place.mkdir()
    (place / "hello.html").write_text(TEMPLATE)
    with installed_package(place, monkeypatch, "[luthier.pages]\ntheirs = theirs:PAGE\n", CODE):
        yield


def test_it_is_in_the_navigation_with_layout_and_policy(browser: Browser) -> None:
    answer = browser("read", "train").get("/plug-ins/theirs")
    assert answer.status_code == 200
    assert "<h1>&lt;em&gt;hello&lt;/em&gt;</h1>" in answer.text, "escaped, as all pages are"
    assert '<a href="/plug-ins/theirs" data-key="x" aria-current="page">Their page</a>' in answer.text
    assert answer.text.index('href="/evaluations"') < answer.text.index('href="/plug-ins/theirs"')
    assert answer.headers["content-security-policy"] == POLICY


def test_its_scope_is_asked_for_in_front_of_every_route(browser: Browser) -> None:
    reader = browser("read")
    for path in ("/plug-ins/theirs", "/plug-ins/theirs/one"):
        assert reader.get(path).status_code == 403
        assert browser().get(path).headers["location"].startswith("/sign-in?next=/plug-ins/theirs")
    assert "/plug-ins/theirs" not in reader.get("/runs").text


@pytest.mark.parametrize(
    ("name", "place", "words"), [("stray", "STRAY", "/runs/compare"), ("theirs", "TAKEN", "the key r, as Runs has")]
)
def test_a_page_in_the_place_of_ours_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, place: str, words: str
) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    with (
        installed_package(folder, monkeypatch, f"[luthier.pages]\n{name} = theirs:{place}\n", CODE),
        pytest.raises(RequestError, match=words),
    ):
        list(page_routes())


def test_every_router_of_a_feature_is_found_by_the_name_of_its_module() -> None:
    """A module of pages under another name would lose its pages without a word."""
    folder = Path(features.__path__[0])
    shown = [
        path for path in folder.rglob("*.py") if "import render" in (text := path.read_text()) and "@router." in text
    ]
    served = {route.endpoint.__module__ for route in page_routes()}
    for path in nonempty(shown):
        name = ".".join(("luthier", "features", *path.relative_to(folder).with_suffix("").parts))
        assert name in served, f"{path.name}: call it pages.py or NAME_pages.py"
