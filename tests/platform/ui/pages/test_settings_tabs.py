"""Which tabs are there for whom, and that nobody gets behind those that are not."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from fastapi.testclient import TestClient
from tests.vacuous import nonempty

from luthier.core.access import Scope
from luthier.platform.home.context import Context
from luthier.platform.ui.render import entries

Browser = Callable[..., TestClient]
OPEN = ["/settings/account"]
READ = [
    "/settings/account", "/settings/webhooks", "/settings/gate", "/settings/alerts", "/settings/usage",
    "/settings/traffic", "/settings/prices",
]  # fmt: skip
POSTS = [
    ("/settings/keys", "admin"),
    ("/settings/keys/key-1/revoke", "admin"),
    ("/settings/members", "admin"),
    ("/settings/members/member-1/role", "admin"),
    ("/settings/members/member-1/password", "admin"),
    ("/settings/members/member-1/remove", "admin"),
    ("/settings/projects", "admin"),
    ("/settings/webhooks", "train"),
    ("/settings/webhooks/webhook-1/test", "train"),
    ("/settings/webhooks/webhook-1/remove", "train"),
]


@pytest.mark.parametrize(
    ("scopes", "addresses"),
    [
        (("infer",), OPEN),
        (("read",), READ),
        (("read", "train", "infer"), READ),
        (("admin",), [tab.address for tab in entries("settings")]),
    ],
)
def test_everybody_sees_their_tabs_and_no_others(
    browser: Browser, scopes: tuple[Scope, ...], addresses: list[str]
) -> None:
    one = browser(*scopes)
    page = one.get("/settings").text
    tabs = page[page.index('class="tabs"') :]
    assert f'href="{addresses[0]}" aria-current="page"' in tabs, "the first tab, without a redirect to it"
    assert re.findall(r'href="([^"]+)"', tabs[: tabs.index("</nav>")]) == addresses
    assert 'href="/settings"' in page, "the way to it stands in the navigation for all"
    for tab in nonempty(entries("settings")):
        answer = one.get(tab.address)
        assert answer.status_code == (200 if tab.address in addresses else 403), tab
        if tab.address in addresses:
            assert 'aria-current="page"' in answer.text[answer.text.index('class="tabs"') :]


def test_without_a_session_all_lead_to_the_sign_in(browser: Browser) -> None:
    one = browser()
    for address in ("/settings", *(tab.address for tab in entries("settings")), "/settings/audit-log/verify"):
        assert one.get(address).headers["location"].startswith("/sign-in?next=/settings")


@pytest.mark.parametrize(("address", "scope"), POSTS)
def test_forms_are_refused_to_whom_they_are_not_for(
    home: Context, browser: Browser, address: str, scope: Scope
) -> None:
    before = len(home.audit_log.newest(limit=99))
    one = browser("read", "infer") if scope == "train" else browser("read", "train", "infer")
    since = len(home.audit_log.newest(limit=99))
    assert one.post(address, data={"name": "x", "role": "admin", "scopes": "admin"}).status_code == 403
    assert len(home.audit_log.newest(limit=99)) == since > before
