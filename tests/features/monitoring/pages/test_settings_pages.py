"""/settings/alerts: receivers and schedule, changed by admins, with the command that does the same."""

from __future__ import annotations

import html
import shlex
from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient
from tests.fixtures.pages import shown

from luthier.features.monitoring import alerts
from luthier.platform.audit_log.service import newest_entries
from luthier.platform.auth.service import create_project
from luthier.platform.home.context import Context

Browser = Callable[..., TestClient]
ADDRESS = "/settings/alerts"
SENT = {
    "is_on": "true",
    "emails": "ops@example.org\r\nml@example.org, ops@example.org",
    "every_minutes": "30",
    "window_hours": "",
    "open_after": "2",
    "close_after": "3",
    "models": "ft:one",
    "left_out": "old-bot",
}


def test_settings_are_changed_and_shown_with_the_same_command(home: Context, browser: Browser) -> None:
    one = browser("admin")
    assert one.post(ADDRESS, data=SENT).status_code == 303
    now = alerts.alert_settings(home, "default")
    assert (now.emails, now.every_minutes, now.window_hours) == (("ops@example.org", "ml@example.org"), 30, 24)
    assert (now.rule.open_after, now.models, now.left_out) == (2, ("ft:one",), ("old-bot",))
    page = one.get(ADDRESS).text
    assert "no mail server" in page
    line = html.unescape(page.partition('aria-label="Command">')[2].partition("</pre>")[0])
    words = shlex.split(line)
    assert words[:6] == ["luthier", "alerts", "settings", "--on", "--every", "30m"]
    assert words[words.index("--watch") + 1] == "ft:one"
    assert one.post(ADDRESS, data={"emails": ""}).status_code == 303
    after = alerts.alert_settings(home, "default")
    assert (after.is_on, after.emails, after.every_minutes) == (False, (), 30), "a number that is left out stays"
    assert newest_entries(home, limit=1)[0].action == "alerts.settings_changed"


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"emails": "nobody"}, "nobody"),
        ({"every_minutes": "2"}, "every_minutes"),
        ({"every_minutes": "often"}, "often"),
        ({"models": "old-bot"}, "in both lists"),
    ],
)
def test_wrong_settings_change_nothing_and_stay_in_the_form(
    home: Context, browser: Browser, changed: dict[str, Any], words: str
) -> None:
    answer = browser("admin").post(ADDRESS, data=SENT | changed)
    assert (answer.status_code, words in answer.text) == (422, True)
    assert "ml@example.org" in answer.text or "emails" in changed
    assert alerts.alert_settings(home, "default").emails == ()


def test_a_test_message_shows_what_each_receiver_did(home: Context, browser: Browser) -> None:
    one = browser("admin")
    one.post(ADDRESS, data=SENT)
    page = shown(one, one.post(f"{ADDRESS}/test")).text
    assert "The test message" in page
    assert page.count("failed:") == 2, "no mail server is configured"


def test_who_is_no_admin_reads_and_projects_are_kept_apart(home: Context, browser: Browser) -> None:
    create_project(home, "support")
    trainer = browser("train", "read")
    assert "<textarea" not in trainer.get(ADDRESS).text
    assert trainer.post(ADDRESS, data=SENT).status_code == 403
    assert trainer.post(f"{ADDRESS}/test").status_code == 403
    assert browser("admin", project="support").post(ADDRESS, data=SENT).status_code == 303
    assert alerts.alert_settings(home, "default").emails == ()
