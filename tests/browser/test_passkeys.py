"""Passkeys where scripts run, with the virtual authenticator of Chromium: added once, used to sign in, then removed."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import Page, expect

from luthier.core.access import Caller
from luthier.platform.auth.members import add_member
from luthier.platform.home.context import Context
from luthier.testing.servers import home_server
from tests.browser.conftest import violations

PASSWORD = "correct horse battery"
AUTHENTICATOR = {
    "protocol": "ctap2",
    "transport": "internal",
    "hasResidentKey": True,
    "hasUserVerification": True,
    "isUserVerified": True,
    "automaticPresenceSimulation": True,
}


def test_a_passkey_is_added_signs_in_and_is_removed(tmp_path: Path, make_page: Callable[..., Page]) -> None:
    home = tmp_path / "home"
    with Context.open(home) as context:
        add_member(context, Caller(), "Ada", PASSWORD, "admin")
    with home_server(home) as server:
        url = server.url.replace("127.0.0.1", "localhost")  # an IP address has no passkeys
        page = make_page()
        devices = page.context.new_cdp_session(page)
        devices.send("WebAuthn.enable")
        device = devices.send("WebAuthn.addVirtualAuthenticator", {"options": AUTHENTICATOR})["authenticatorId"]
        _sign_in_by_password(page, url)
        _add(page, url)
        (credential,) = devices.send("WebAuthn.getCredentials", {"authenticatorId": device})["credentials"]
        assert (credential["rpId"], credential["isResidentCredential"]) == ("localhost", True)
        page.get_by_role("button", name="Sign out").first.click()
        page.wait_for_url("**/sign-in")
        assert violations(page) == []
        page.get_by_role("link", name="Continue with a passkey").click()
        page.wait_for_url(f"{url}/")
        page.goto(f"{url}/settings/account")
        expect(page.locator(".facts").first).to_contain_text("with a passkey")
        _cancelled(make_page(), url)
        page.goto(f"{url}/settings/account")
        page.once("dialog", lambda dialog: dialog.accept())
        page.get_by_role("button", name="Remove Laptop").click()
        page.wait_for_url(re.compile(r"/sign-in\?next="))
        expect(page.get_by_role("link", name="Continue with a passkey")).to_have_count(0)


def test_without_scripts_or_webauthn_nothing_offers_what_would_not_work(
    tmp_path: Path, make_page: Callable[..., Page]
) -> None:
    home = tmp_path / "home"
    with Context.open(home) as context:
        add_member(context, Caller(), "Ada", PASSWORD, "admin")
    with home_server(home) as server:
        url = server.url.replace("127.0.0.1", "localhost")
        lacking = make_page()
        lacking.add_init_script("delete window.PublicKeyCredential")
        for page in (make_page(java_script_enabled=False), lacking):
            _sign_in_by_password(page, url)
            page.goto(f"{url}/settings/account")
            expect(page.get_by_text("in a browser that supports passkeys")).to_be_visible()
            expect(page.get_by_role("button", name="Add a passkey")).to_be_hidden()


def _sign_in_by_password(page: Page, url: str) -> None:
    page.goto(f"{url}/sign-in")
    page.fill("#name", "Ada")
    page.fill("#password", PASSWORD)
    page.press("#password", "Enter")
    page.wait_for_url(f"{url}/")


def _add(page: Page, url: str) -> None:
    page.goto(f"{url}/settings/account")
    assert violations(page) == []
    assert page.input_value("#public_url") == url, "the address is asked for, once"
    page.fill("#passkey-name", "Laptop")
    page.fill("#passkey-password", PASSWORD)
    page.get_by_role("button", name="Add a passkey").click()
    page.wait_for_selector("text=You can now sign in with the passkey Laptop.")
    expect(page.locator("#passkeys th", has_text="Laptop")).to_be_visible()
    assert page.locator("#public_url").count() == 0
    assert violations(page) == []


def _cancelled(page: Page, url: str) -> None:
    """The page says that nothing was done, and asks again on request."""
    page.add_init_script(
        "navigator.credentials.get = async () => { throw new DOMException('by the test', 'NotAllowedError'); };"
    )
    page.goto(f"{url}/sign-in/passkey")
    expect(page.get_by_role("status")).to_contain_text("Nothing was done: it was cancelled, or took too long.")
    assert violations(page) == []
    page.get_by_role("button", name="Ask again").click()
    expect(page.get_by_role("status")).to_contain_text("Nothing was done")
    page.get_by_role("link", name="Sign in another way").click()
    page.wait_for_url(f"{url}/sign-in?next=/")
