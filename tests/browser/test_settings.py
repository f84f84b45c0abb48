"""Settings where scripts run: every tab is accessible, what is destructive asks first, and pieces come in place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from luthier.core.access import Caller
from luthier.platform.auth.members import add_member
from luthier.platform.auth.service import create_key
from luthier.platform.home.context import Context
from luthier.platform.notifications.webhooks import create_webhook
from luthier.testing import servers
from luthier.testing.servers import home_server
from tests.browser.conftest import PHONE, sign_in, violations

_FRESH_MS = 5_200
"""After it, a form asks first whether the server is there (FRESH_MS of app.js)."""
TABS = ("account", "keys", "members", "projects", "webhooks", "audit-log", "usage", "traffic", "prices", "machine")


@pytest.mark.parametrize("options", [{}, {"viewport": PHONE, "color_scheme": "dark"}], ids=["wide", "phone"])
def test_settings(tmp_path: Path, make_page: Callable[..., Page], options: dict[str, object]) -> None:
    home = tmp_path / "home"
    with Context.open(home) as context:
        key = create_key(context, "me", scopes=("admin",))[1]
        create_key(context, "<b>ci</b>", scopes=("read", "train"), requests_per_minute=60)
        add_member(context, Caller(), "Ada", "correct horse battery", "viewer")
        webhook, _ = create_webhook(context, Caller(), "https://example.invalid/hook")
    with home_server(home) as server:
        page = make_page(**options)
        sign_in(page, server.url, key)
        for tab in (*TABS, f"webhooks/{webhook.webhook_id}"):
            page.goto(f"{server.url}/settings/{tab}")
            assert violations(page) == [], tab
            width = page.evaluate("document.documentElement.scrollWidth")
            assert width <= page.viewport_size["width"], f"{tab} is wider than the screen"  # type: ignore[index]
        _make_and_revoke_a_key(page, server.url)
        _verify_the_chain(page, server.url)


def test_a_form_that_is_sent_without_a_network_stays_with_a_message(
    tmp_path: Path, make_page: Callable[..., Page]
) -> None:
    home = tmp_path / "home"
    with Context.open(home) as context:
        key = create_key(context, "me", scopes=("admin",))[1]
    with home_server(home) as server:
        page = make_page()
        sign_in(page, server.url, key, "/settings/keys")
        page.fill("#name", "robot")
        page.check("input[name=scopes][value=infer]")
        page.context.set_offline(True)
        page.click("text=Create the key")
        alert = page.locator("[data-refusal]")
        expect(alert).to_contain_text("The server does not answer.")
        assert page.input_value("#name") == "robot"
        assert page.is_checked("input[name=scopes][value=infer]")
        assert violations(page) == []
        errors = make_page.errors  # type: ignore[attr-defined]
        assert [one for one in errors if "net::" not in one] == []
        errors.clear()
        page.evaluate("Object.defineProperty(navigator, 'onLine', { value: false })")  # a server on this very machine
        page.context.set_offline(False)
        page.click("text=Create the key")
        expect(page.locator("#secret")).to_contain_text("sk-luthier-")
        page.close()


def test_a_form_that_is_sent_to_a_server_that_is_gone_stays_with_a_message(
    tmp_path: Path, make_page: Callable[..., Page], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "BEFORE_STOP", [])  # the page stays where it is
    home = tmp_path / "home"
    with Context.open(home) as context:
        key = create_key(context, "me", scopes=("admin",))[1]
    page = make_page()
    with home_server(home) as server:
        sign_in(page, server.url, key, "/settings/keys")
        page.fill("#name", "robot")
        page.check("input[name=scopes][value=infer]")
        page.wait_for_timeout(_FRESH_MS)
        with page.expect_request("**/mark*.svg") as asked:
            page.click("text=Create the key")
        assert asked.value.method == "HEAD", "asked first, and sent then"
        expect(page.locator("#secret")).to_contain_text("sk-luthier-")
        page.goto(f"{server.url}/settings/keys")
        page.fill("#name", "second")
        page.check("input[name=scopes][value=infer]")
        page.wait_for_timeout(_FRESH_MS)
    assert page.evaluate("navigator.onLine")
    alert = page.locator("[data-refusal]")
    page.click("text=Create the key")
    expect(alert).to_contain_text("The server does not answer.")
    page.click("text=Create the key")  # at once: what is known to be gone is not sent to
    expect(alert).to_have_count(1)
    assert page.input_value("#name") == "second"
    assert page.is_checked("input[name=scopes][value=infer]")
    assert page.url.endswith("/settings/keys")
    page.route("**/mark*.svg", lambda route: route.fulfill(status=502))  # a proxy in front of a server that is gone
    page.click("text=Create the key")
    expect(alert).to_have_count(1)
    page.unroute("**/mark*.svg")
    page.route("**/mark*.svg", lambda route: route.fulfill(status=200))
    page.route("**/settings/keys", lambda route: route.fulfill(status=200, body="<title>sent</title>"))
    page.click("text=Create the key")
    expect(page).to_have_title("sent")
    errors = make_page.errors  # type: ignore[attr-defined]
    assert [one for one in errors if "net::" not in one and "502" not in one] == []
    errors.clear()
    page.close()


def _make_and_revoke_a_key(page: Page, url: str) -> None:
    page.goto(f"{url}/settings/keys")
    page.fill("#name", "robot")
    page.check("input[name=scopes][value=infer]")
    page.click("text=Create the key")
    secret = page.inner_text("#secret")
    assert secret.startswith("sk-luthier-")
    page.evaluate("Object.defineProperty(navigator, 'clipboard', {value: undefined})")  # as with plain HTTP
    page.click("[data-copy]")
    page.wait_for_selector("text=press Ctrl+C")
    assert page.evaluate("getSelection().toString()") == secret
    assert violations(page) == []
    page.goto(f"{url}/settings/keys")
    row = page.locator("tr", has_text="robot")
    page.once("dialog", lambda dialog: dialog.dismiss())
    row.locator("button").click()
    assert row.count() == 1, "who says no changes nothing"
    page.once("dialog", lambda dialog: dialog.accept())
    row.locator("button").click()
    page.wait_for_selector("text=is revoked")
    assert page.locator("button", has_text="Revoke robot").count() == 0


def _verify_the_chain(page: Page, url: str) -> None:
    page.goto(f"{url}/settings/audit-log")
    page.click("text=Verify the chain")
    page.wait_for_selector("#verdict >> text=The log is complete")
    assert page.url == f"{url}/settings/audit-log"
    head = page.inner_text("#head")
    page.fill("#expect", head[:-1] + ("0" if head[-1] != "0" else "1"))
    page.click("text=Verify the chain")
    page.wait_for_selector("#verdict >> text=tampered with")
    assert violations(page) == []
