"""Webhooks by the page."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import update
from tests.fixtures.pages import shown

from luthier.core.access import Caller
from luthier.platform.auth.service import create_project
from luthier.platform.db.tables import webhooks
from luthier.platform.home.context import Context
from luthier.platform.notifications.webhooks import create_webhook, list_deliveries, list_webhooks

Browser = Callable[..., TestClient]
ADDRESS = "/settings/webhooks"
URL = "https://example.com/hook?a=<b>"
FORM = {"url": "https://example.com/hook", "event_types": ["fine_tuning.job.failed"]}


def test_a_webhook_is_made_tried_and_removed(home: Context, browser: Browser) -> None:
    one = browser("read", "train")
    answer = shown(one, one.post(ADDRESS, data=FORM))
    found = re.search(r'<code id="secret" class="secret">(whsec_[^<]+)</code>', answer.text)
    assert found is not None
    (made,) = list_webhooks(home, "default")
    assert made.event_types == ("fine_tuning.job.failed",)
    place = f"{ADDRESS}/{made.webhook_id}"
    page = one.get(place).text
    assert "a training has failed" in page
    assert "a training has succeeded" not in page
    assert found[1] not in page + one.get(ADDRESS).text
    assert "Nothing was sent yet" in page
    assert "hx-trigger" not in page, "there is nothing to wait for"
    assert one.post(f"{place}/test").headers["location"] == place
    assert len(list_deliveries(home, "default", made.webhook_id, limit=5)) == 1
    piece = one.get(place, headers={"HX-Request": "true"}).text
    assert "luthier.webhook.test" in piece
    assert 'hx-trigger="every 3s"' in piece
    assert "<html" not in piece
    (due,) = home.webhooks.claim(limit=1, lease_seconds=5)
    home.webhooks.settle(due.delivery, "delivered", "HTTP 200 <b>")
    piece = one.get(place, headers={"HX-Request": "true"}).text
    assert "HTTP 200 &lt;b&gt;" in piece
    assert "hx-trigger" not in piece
    assert one.post(f"{place}/remove").headers["location"] == ADDRESS
    assert list_webhooks(home, "default") == []
    assert one.get(place).status_code == 404


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"url": "ftp://example.com"}, "http://... or https://..."),
        ({"url": "http://user:pass@example.com"}, "messages are signed"),
        ({"url": "http://127.0.0.1/hook"}, "LUTHIER_WEBHOOKS_MAY_REACH_PRIVATE"),
        ({"event_types": []}, "no event is chosen"),
    ],
)
def test_a_wrong_form_is_explained(home: Context, browser: Browser, wrong: dict[str, Any], words: str) -> None:
    answer = browser("train", "read").post(ADDRESS, data=FORM | wrong)
    assert (answer.status_code, words in answer.text) == (422, True)
    assert list_webhooks(home, "default") == []


def test_a_reader_looks_and_changes_nothing(home: Context, browser: Browser) -> None:
    made, _ = create_webhook(home, Caller(), URL)
    one = browser("read")
    page = one.get(ADDRESS).text
    assert "hook?a=&lt;b&gt;" in page
    assert "A new webhook" not in page
    place = f"{ADDRESS}/{made.webhook_id}"
    assert "Send a test" not in one.get(place).text
    assert one.post(f"{place}/remove").status_code == 403


def test_one_of_another_project_is_not_there(home: Context, browser: Browser) -> None:
    other = Caller(project_id=create_project(home, "mine").project_id)
    made, _ = create_webhook(home, other, URL)
    one = browser("admin")
    assert "example.com/hook?a" not in one.get(ADDRESS).text
    place = f"{ADDRESS}/{made.webhook_id}"
    assert [one.get(place).status_code, one.post(f"{place}/test").status_code] == [404, 404]
    assert one.post(f"{place}/remove").status_code == 404
    assert one.get(f"{ADDRESS}/whatever").status_code == 404
    assert one.get(f"{ADDRESS}/what%00ever").status_code == 422


def test_a_damaged_secret_is_shown_in_the_list_and_on_the_page(home: Context, browser: Browser) -> None:
    made, _ = create_webhook(home, Caller(), URL)
    one = browser("read")
    places = (ADDRESS, f"{ADDRESS}/{made.webhook_id}")
    for place in places:
        assert "cannot be sent" not in one.get(place).text
    with home.database.write() as connection:
        connection.execute(update(webhooks).values(secret="whsec_abc"))
    for place in places:
        text = one.get(place).text
        assert "cannot be sent" in text
        assert "the stored secret of the webhook cannot be decoded" in text
    assert "lässt sich nicht dekodieren" in one.get(ADDRESS, headers={"accept-language": "de"}).text
