"""Pages advise pages: no API call, and no command where a page does the same."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from functools import cache
from html import unescape
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from tests.surface.gather import commands, routes
from tests.vacuous import nonempty

import luthier
from luthier.platform.home.context import Context
from luthier.platform.ui import render
from luthier.platform.ui.render import Advised, Page, page_advice
from luthier.server.api import create_app
from luthier.server.pages import PAGES, page_routes

Browser = Callable[..., TestClient]
SOURCE = Path(luthier.__file__).parent
_ROUTES = {"http", "middleware"}
CALL = re.compile(r"\b(GET|POST|PUT|PATCH|DELETE) /|/v1/")


@cache
def advices() -> list[str]:
    """The texts of `do=` in the code that pages call, with what is put into them as X."""
    found: list[str] = []
    for layer in ("features", "platform", "ml"):
        for path in (SOURCE / layer).rglob("*.py"):
            if {"api", "cli", "pages", "ui"} & set(
                re.split("[/_.]", str(path.relative_to(SOURCE)))
            ) or path.parent.name in _ROUTES:
                continue  # what commands and clients of the API read
            text = path.read_text(encoding="utf-8")
            for node in ast.walk(ast.parse(text)) if re.search(r"\bdo\s*=", text) else ():
                if isinstance(node, ast.keyword) and node.arg == "do":
                    parts = list(ast.walk(node.value))
                    found += [text_of(part) for part in parts if isinstance(part, ast.JoinedStr)]
                    found += [str(part.value) for part in parts if isinstance(part, ast.Constant)]
    return found


def text_of(node: ast.JoinedStr) -> str:
    return "".join(str(part.value) if isinstance(part, ast.Constant) else "X" for part in node.values)


def test_no_advice_of_a_service_names_an_api_call_on_a_page() -> None:
    said = advices()
    calls = [one for one in said if CALL.search(one)]
    assert len(said) > 500
    assert len(calls) > 10
    for one in calls:
        shown = str(page_advice(one))
        assert not CALL.search(re.sub("<a [^>]*>", "", shown)), shown
        assert "<a href=" in shown


def test_every_link_of_an_advice_is_a_page(browser: Browser) -> None:
    one = browser("read", "train", "infer", "admin")
    links = {link for said in advices() for link in re.findall(r'href="([^"]+)"', str(page_advice(said)))}
    assert len(links) > 8
    for link in links:
        if "/runs/run-" not in link:
            assert one.get(link).status_code == 200, link


DEPLOYMENTS, BRING = '<a href="/deployments">Deployments</a>', '<a href="/datasets/new">Add data</a>'


@pytest.mark.parametrize(
    ("advice", "shown"),
    [
        ("list them: GET /api/v1/runs", 'list them: <a href="/runs">Runs</a>'),
        ("see `luthier runs list`", 'see <a href="/runs">Runs</a>'),
        ("list them: luthier deployments, or GET /api/v1/deployments", f"list them: {DEPLOYMENTS}"),
        ("go on: luthier train --resume run-2026-ab", 'go on: <a href="/runs/run-2026-ab">its page</a>'),
        ("upload the file first (POST /v1/files), and name it", f"upload the file first ({BRING}), and name it"),
        ("list them: luthier pipelines list", 'list them: <a href="/studies">Studies</a>'),
        ("see `luthier traffic list`", 'see <a href="/monitor/exchanges">Traffic</a>'),
        ("see `luthier traffic policy`", 'see <a href="/settings/traffic">Traffic</a>'),
        ("make rows: luthier data ingest FILE", "make rows: luthier data ingest FILE"),
        ("other <b> & luthier models pull NAME", "other &lt;b&gt; &amp; luthier models pull NAME"),
        ("GET /v1/</a><script>", '<a href="/">Home</a>&lt;/a&gt;&lt;script&gt;'),
        ("wait\u202e", "wait⟨U+202E⟩"),
    ],
)
def test_what_a_page_says(advice: str, shown: str) -> None:
    assert str(page_advice(advice)) == shown


def test_commands_and_calls_that_pages_take_over_exist_and_belong_to_one_page_each(tmp_path: Path) -> None:
    known = [command.removeprefix("luthier").strip() for command in commands()]
    with Context.open(tmp_path / "home") as home:
        addresses = [route.partition("/v1/")[2] for route in routes(create_app(home))]
    targets = [one for page in PAGES.values() for one in page.advised]
    names = [name for one in targets for name in one.commands]
    calls = [call for one in targets for call in one.calls]
    assert len(names) > 20
    assert len(calls) > 5
    assert len(names) == len(set(names))
    assert len(calls) == len(set(calls))
    for name in names:
        assert any(f"{one} ".startswith(f"{name} ") for one in known), name
    for call in calls:
        assert any(f"{one}/".startswith(f"{call}/") for one in addresses), call


def test_a_page_of_a_package_takes_over_calls_and_none_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = Page(
        "Costs",
        "/plug-ins/costs",
        "read",
        order=5,
        advised=(
            Advised(commands=("runs",), calls=("costs",)),
            Advised(calls=("costs/x",), title="<X>", address='/a"b'),
        ),
    )
    pages = {**PAGES, "costs": theirs}
    monkeypatch.setattr(render, "declared", lambda: pages)
    render._links.cache_clear()
    try:
        assert str(page_advice("GET /v1/costs/1")) == '<a href="/plug-ins/costs">Costs</a>'
        assert str(page_advice("GET /v1/costs/x")) == '<a href="/a&#34;b">&lt;X&gt;</a>'
        assert str(page_advice("luthier runs list")) == '<a href="/runs">Runs</a>'
    finally:
        render._links.cache_clear()


def test_a_page_that_is_not_there_leads_to_pages(browser: Browser) -> None:
    one, seen = browser("read", "train", "infer", "admin"), 0
    for route in nonempty(page_routes()):
        if "GET" not in route.methods or "{" not in route.path or route.path.startswith(("/rate", "/welcome")):
            continue
        answer = one.get(re.sub(r"{[^}]*}", "run-20260101-000000-abcdef", route.path))
        if answer.status_code != 404 or "text/html" not in answer.headers["content-type"]:
            continue
        seen += 1
        box = unescape(answer.text.partition('class="message bad"')[2].partition("</dl>")[0])
        assert box, route.path
        assert not CALL.search(re.sub("<a [^>]*>", "", box)), f"{route.path}: {box}"
        assert "`luthier" not in box, f"{route.path}: {box}"
    assert seen > 15
