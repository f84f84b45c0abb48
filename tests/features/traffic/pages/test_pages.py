"""What is kept of traffic by the page: shown to readers, changed by admins."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from fastapi.testclient import TestClient

from luthier.core.records.traffic import Exchange, TrafficPolicy
from luthier.features.traffic import service as traffic
from luthier.features.traffic.log import count_lost
from luthier.features.traffic.policy import traffic_policy, user_digest, user_key
from luthier.platform.home.context import Context

Browser = Callable[..., TestClient]
ADDRESS = "/settings/traffic"


def test_readers_see_what_is_kept_and_cannot_change_it(home: Context, browser: Browser) -> None:
    count_lost(home, {("default", home.access.now(), "the disk took no more"): 7})
    one = browser("read")
    page = one.get(ADDRESS).text
    assert "<code>metadata</code>: times, sizes" in page
    assert "7: the disk took no more" in page
    assert 'action="/settings/traffic' not in page
    german = one.get(ADDRESS, headers={"Accept-Language": "de"}).text
    assert f"<dt>gelöscht nach</dt><dd>{TrafficPolicy().keep_days} Tagen</dd>" in german
    assert one.post(ADDRESS, data={"keep": "full"}).status_code == 403
    assert one.post(f"{ADDRESS}/forget", data={"user": "anna"}).status_code == 403
    assert traffic_policy(home, "default") == TrafficPolicy()


def test_admins_change_it(home: Context, browser: Browser) -> None:
    one = browser("admin")
    form = {"keep": "sampled", "percent": "2,5", "keep_days": "14"}
    assert one.post(ADDRESS, data=form).headers["location"] == ADDRESS
    page = one.get(ADDRESS).text
    assert "Servers apply it within seconds" in page
    assert 'value="2.5"' in page
    expected = TrafficPolicy(keep="sampled", fraction=0.025, mask_personal_data=False, keep_days=14)
    assert traffic_policy(home, "default") == expected
    assert home.audit_log.newest(limit=1)[0].action == "traffic.policy_set"


@pytest.mark.parametrize(
    "wrong", [{"keep": "all"}, {"percent": "0"}, {"percent": "nan"}, {"keep_days": "0"}, {"keep_days": "x"}]
)
def test_what_cannot_be_is_refused_and_changes_nothing(home: Context, browser: Browser, wrong: dict[str, str]) -> None:
    answer = browser("admin").post(ADDRESS, data={"keep": "full", "mask": "yes"} | wrong)
    assert answer.status_code == 422
    assert traffic_policy(home, "default") == TrafficPolicy()


def test_a_form_that_is_refused_keeps_what_was_given(home: Context, browser: Browser) -> None:
    form = {"keep": "sampled", "percent": "2,5", "keep_days": "90 days"}
    text = browser("admin").post(ADDRESS, data=form).text
    assert 'value="sampled" checked' in text
    assert 'value="2,5"' in text
    assert 'value="90 days"' in text
    assert 'name="mask" value="yes" checked' not in text
    assert traffic_policy(home, "default") == TrafficPolicy()


def test_admins_have_a_user_forgotten(home: Context, browser: Browser) -> None:
    digest = user_digest(user_key(home, "default"), "anna <b>")
    values = {"exchange_id": "c-1", "project_id": "default", "at": time.time(), "model": "m", "user_digest": digest}
    traffic.record(home, Exchange(**values))
    one = browser("admin")
    assert "<dd>1</dd>" in one.get(ADDRESS).text
    assert one.post(f"{ADDRESS}/forget", data={"user": "anna <b>"}).headers["location"] == ADDRESS
    assert "Deleted: 1 exchange." in one.get(ADDRESS).text
    assert traffic.exchanges(home, "default").height == 0
