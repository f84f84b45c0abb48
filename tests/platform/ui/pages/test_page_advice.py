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
from tests.vacuous import nonempty

import luthier
from luthier.platform.ui.render import page_advice
from luthier.server.pages import page_routes

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
        ("make rows: luthier data ingest FILE", "make rows: luthier data ingest FILE"),
        ("other <b> & luthier models pull NAME", "other &lt;b&gt; &amp; luthier models pull NAME"),
        ("GET /v1/</a><script>", '<a href="/">Home</a>&lt;/a&gt;&lt;script&gt;'),
        ("wait\u202e", "wait⟨U+202E⟩"),
    ],
)
def test_what_a_page_says(advice: str, shown: str) -> None:
    assert str(page_advice(advice)) == shown


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
