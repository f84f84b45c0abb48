"""The pages and the API of a home in a temporary folder, asked without a network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from luthier.core.access import Scope
from luthier.home_server import create_home_app
from luthier.service.access import create_key
from luthier.service.context import Context
from luthier.web import page_work

Browser = Callable[..., TestClient]


PURE = ("/runs/new/plan", "/runs/new/start")
"""A plan changes nothing, and the start of a draft answers with a page only where it has started nothing yet."""


def leads_on(answer: Any) -> None:
    """No page is the answer to a form that did something: a reload would do it again."""
    sent = answer.request
    is_page = answer.headers.get("content-type", "").startswith("text/html")
    if sent.method == "POST" and "hx-request" not in sent.headers and sent.url.path not in PURE:
        assert not (answer.status_code == 200 and is_page), f"{sent.url.path} answers with a page and not a redirect"


def shown(one: TestClient, answer: Any) -> Any:
    """The page that a form leads to."""
    assert answer.status_code == 303
    return one.get(answer.headers["location"])


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Context]:
    with Context.open(tmp_path / "home") as opened:
        yield opened


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forms wait for their work, so that a slow machine changes no answer; `test_page_work` has them not wait."""
    monkeypatch.setattr(page_work, "WAIT_SECONDS", 60.0)


@pytest.fixture
def browser(home: Context) -> Iterator[Browser]:
    """Makes a browser that is signed in by a key of these scopes; no scopes: by nothing."""
    app, made = create_home_app(home), []

    def make(*scopes: Scope, project: str = "default") -> TestClient:
        one = TestClient(app, base_url="http://127.0.0.1", client=("192.0.2.7", 50000), follow_redirects=False)
        one.headers["Sec-Fetch-Site"] = "same-origin"
        one.event_hooks["response"].append(leads_on)
        if scopes:
            key = create_key(home, "k", scopes=scopes, project=project)[1]
            assert one.post("/sign-in", data={"key": key}).status_code == 303
        made.append(one)
        return one

    yield make
    for one in made:
        one.close()
