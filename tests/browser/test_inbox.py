"""The team's pages where scripts run: the inbox by keys, an invitation, a form that outlives its session, axe-core."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from luthier.core.access import Caller
from luthier.core.records.deployment import CanaryMeasure, CanaryWatch, SideValue
from luthier.features.deployments import service as deployments
from luthier.features.monitoring import alerts
from luthier.platform.auth import invitations as invites
from luthier.platform.auth.public_address import set_public_address
from luthier.platform.auth.service import create_key
from luthier.platform.home.context import Context
from luthier.testing.servers import HomeServer, home_server
from tests.assessed import make_panel
from tests.browser.conftest import PHONE, WIDE, sign_in, violations
from tests.features.inbox.service.test_service import correct, failed_job, member
from tests.homes import ME
from tests.homes import fill as fill_home
from tests.vacuous import nonempty

MakePage = Callable[..., Page]
PASSWORD = "correct horse battery"


@dataclass(frozen=True)
class Made:
    """A server, an admin's key, and links."""

    server: HomeServer
    key: str
    invitation: str
    used: str
    rater: str


def fill(context: Context) -> tuple[str, str, str, str]:
    key = create_key(context, "me", scopes=("admin",))[1]
    set_public_address(context, ME, "http://127.0.0.1:8520")
    member(context, "Ben", "trainer")
    member(context, "Vera", "viewer")
    used = invites.invite(context, Caller(name="Ada"), "viewer")
    invites.accept_invitation(context, used.token, "Cleo", PASSWORD)
    made = invites.invite(context, Caller(name="Ada"), "trainer", recipient="Dora")
    _, second = fill_home(context).runs
    canary = deployments.deploy(context, ME, "support", second, canary=0.25)
    value = SideValue(value=0.031, low=0.01, high=0.06, num=1234, num_users=99)
    slow = SideValue(value=2.4, low=2.1, high=2.9, num=1200, num_users=90)
    measures = (
        CanaryMeasure(name="failures", title="Failed requests", unit="fraction", canary=value, rest=value,
                      difference=0.0, low=-0.02, high=0.02, finding="not distinguishable"),
        CanaryMeasure(name="seconds_p95", title="Time to the end of the answer, 95th percentile", unit="s", canary=slow,
                      rest=slow, difference=1.1, low=0.7, high=1.4, finding="worse"),
        CanaryMeasure(name="thumbs", title="Answers rated as bad or corrected", unit="fraction",
                      missing="needs 20 more ratings of the canary and 20 more ratings of the rest"),
    )  # fmt: skip
    seen = CanaryWatch(
        project_id="default", name="support", canary=second, revision=canary.revision.number, at=1.8e9, since=1.79e9,
        state="holding", sentence="no signal of 3 says that it is worse, at look 2", measures=measures, next_at=300,
        summary="The canary is worse in: time to the end of the answer, 95th percentile.", cautions=("A caution.",),
    )  # fmt: skip
    context.watches.put("default", "canary", "support", seen.model_dump_json())
    alerts.change_settings(context, ME, {"models": ("new-bot",), "is_on": False})
    panel = make_panel(context, num_rows=2, attention=0, raters=("Eva",))
    correct(context)
    failed_job(context)
    return key, made.path, used.path, panel.links[0].path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    home: Path = tmp_path_factory.mktemp("inbox") / "home"
    with Context.open(home) as context:
        found = fill(context)
    with home_server(home) as server:
        yield Made(server, *found)


@pytest.mark.parametrize(("scheme", "viewport"), [("light", WIDE), ("dark", PHONE)])
def test_nothing_is_wrong_with_the_pages(
    made: Made, make_page: MakePage, scheme: str, viewport: dict[str, int]
) -> None:
    page = make_page(color_scheme=scheme, viewport=viewport)
    nobody = make_page(color_scheme=scheme, viewport=viewport)
    sign_in(page, made.server.url, made.key)
    places = ["/inbox?show=open", "/settings/members", "/deployments/support", "/monitor/model?name=new-bot", "/"]
    for one, paths in ((page, places), (nobody, [made.invitation])):
        for place in paths:
            one.goto(f"{made.server.url}{place}")
            for details in one.locator("main details > summary").all():
                details.click()
            assert violations(one) == [], place
            width = one.evaluate("document.documentElement.scrollWidth")
            assert width <= viewport["width"], f"{place} is wider than its window"


def test_an_entry_is_assigned_and_done_by_keys_alone(made: Made, make_page: MakePage) -> None:
    page = make_page()
    sign_in(page, made.server.url, made.key, "/inbox")
    expect(page.locator(".ways .count")).to_have_text("4 open")
    entry = page.locator("li", has=page.get_by_role("link", name="Review answers of shop-bot", exact=True))
    entry.locator("summary").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.type("Ben")
    entry.get_by_role("button", name="Assign").focus()
    page.keyboard.press("Enter")
    expect(page.locator(".notice")).to_contain_text("Review answers of shop-bot: assigned to Ben.")
    expect(page.locator(".ways .count")).to_have_text("3 open")
    page.get_by_role("button", name=re.compile("Done ?: Export failed")).focus()
    page.keyboard.press("Enter")
    expect(page.locator(".notice")).to_contain_text("Export failed: done.")
    page.keyboard.press("g")
    page.keyboard.press("i")
    expect(page.get_by_role("heading", name="Inbox")).to_be_visible()
    expect(page.get_by_role("link", name="Done 1")).to_be_visible()


def test_an_invitation_is_accepted_and_the_link_is_used_up(made: Made, make_page: MakePage) -> None:
    page = make_page()
    page.goto(f"{made.server.url}{made.invitation}")
    expect(page.locator("#name")).to_have_value("Dora")
    page.fill("#password", PASSWORD)
    page.fill("#again", PASSWORD)
    page.keyboard.press("Enter")
    expect(page.locator(".notice")).to_contain_text("You are a member now, Dora.")
    errors: list[str] = make_page.errors  # type: ignore[attr-defined]
    for path, words in (
        (made.invitation, "accepted already"),
        (made.used, "accepted already"),
        (made.rater, "a rater"),
    ):
        page.goto(f"{made.server.url}{path}")
        expect(page.locator("main")).to_contain_text(words)
        assert violations(page) == [], path
    # Chromium reports the status of a page that was refused on purpose.
    assert all("409" in one for one in nonempty(errors))
    errors.clear()


def test_a_form_outlives_its_session(made: Made, make_page: MakePage) -> None:
    page = make_page()
    sign_in(page, made.server.url, made.key, "/settings/keys")
    page.fill("#name", "typed before")
    page.check("input[name=scopes][value=infer]")
    page.select_option("#expires", "7d")
    page.context.clear_cookies()
    page.get_by_role("button", name="Create the key").click()
    page.fill("#key", made.key)
    page.press("#key", "Enter")
    expect(page.locator(".notice")).to_contain_text("holds what you entered")
    expect(page.locator("#name")).to_have_value("typed before")
    expect(page.locator("input[name=scopes][value=infer]")).to_be_checked()
    expect(page.locator("#expires")).to_have_value("7d")
    assert violations(page) == []
    page.get_by_role("button", name="Create the key").click()
    expect(page.locator("#secret")).to_contain_text("sk-luthier-")
