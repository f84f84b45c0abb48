"""Pages of errors that no handler has answered: they know who is signed in."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from fastapi.testclient import TestClient

Browser = Callable[..., TestClient]


@pytest.mark.parametrize("address", ["/no/such/page", "/runs/x/y/z", "/runs?filter=%00"])
def test_a_signed_in_person_is_led_home_and_not_to_the_sign_in(browser: Browser, address: str) -> None:
    answer = browser("read").get(address)
    assert answer.status_code in (404, 422)
    assert 'href="/sign-in"' not in answer.text
    assert 'href="/">Go to Home' in answer.text
    assert 'href="/datasets"' in answer.text, "with the navigation"
    stranger = browser().get(address)
    assert stranger.status_code == answer.status_code
    assert 'href="/sign-in"' in stranger.text


def test_a_form_of_another_site_is_refused_on_a_page_that_knows_the_person(browser: Browser) -> None:
    one = browser("read")
    answer = one.post("/runs/views", headers={"Sec-Fetch-Site": "same-site"})
    assert answer.status_code == 403
    assert 'href="/">Go to Home' in answer.text


def test_where_the_session_cannot_be_read_the_page_still_says_what_was_wrong(
    browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = browser("read")

    def fail(*_: object) -> None:
        raise OSError("the database is gone")

    monkeypatch.setattr("luthier.platform.ui.visitor.session_of", fail)
    answer = one.get("/no/such/page")
    assert answer.status_code == 404
    assert "no page /no/such/page" in answer.text
