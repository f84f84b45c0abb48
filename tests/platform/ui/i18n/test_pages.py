"""Pages in German: who gets them, what stays English, and that texts of people stay what they are."""

from __future__ import annotations

import re
from collections.abc import Callable
from html import unescape

import pytest
from fastapi.testclient import TestClient

from luthier.core.access import Caller
from luthier.features.datasets.service import create_dataset, keep_rows
from luthier.platform.home.context import Context
from luthier.platform.ui.i18n.environments import words

Browser = Callable[..., TestClient]
GERMAN = {"accept-language": "de-DE,de;q=0.9,en;q=0.5"}


def language_of(page: str) -> str:
    found = re.search(r'<html lang="(\w+)"', page)
    assert found is not None
    return found[1]


def test_the_browsers_language_chooses_and_a_choice_wins(browser: Browser) -> None:
    one = browser("read", "train")
    german = one.get("/", headers=GERMAN)
    assert language_of(german.text) == "de"
    assert german.headers["content-language"] == "de"
    assert "Accept-Language" in german.headers["vary"]
    assert "Datensätze" in german.text
    assert "Ein Sprachmodell, das Ihre Arbeit kennt" in german.text
    assert language_of(one.get("/", headers={"accept-language": "fr"}).text) == "en"
    chosen = one.post("/language", data={"language": "en", "back": "/datasets?q=x"}, follow_redirects=False)
    assert (chosen.status_code, chosen.headers["location"]) == (303, "/datasets?q=x")
    assert language_of(one.get("/", headers=GERMAN).text) == "en"
    one.post("/language", data={"language": "de"})
    assert language_of(one.get("/").text) == "de"


def test_the_switch_leads_nowhere_else_and_knows_its_languages(browser: Browser) -> None:
    one = browser()
    away = one.post("/language", data={"language": "de", "back": "//evil.example/"}, follow_redirects=False)
    assert away.headers["location"] == "/"
    wrong = one.post("/language", data={"language": "xx"}, follow_redirects=False)
    assert wrong.status_code == 422
    assert "set-cookie" not in wrong.headers


def test_the_switch_leads_back_to_a_page_also_from_the_answer_to_a_form(browser: Browser) -> None:
    one = browser("read", "train", "admin")

    def back(page: str) -> str:
        found = re.search(r'action="/language">\s*<input type="hidden" name="back" value="([^"]*)"', page)
        assert found is not None
        return unescape(found[1])

    assert back(one.get("/datasets?q=x&q=y").text) == "/datasets?q=x&q=y"
    assert back(browser().get("/sign-in?next=/runs").text) == "/sign-in?next=/runs"
    for address, page in (
        ("/runs/edit", "/runs"),
        ("/settings/traffic", "/settings/traffic"),
        ("/settings/members/invitations", "/settings/members"),
    ):
        refused = one.post(address, data={"keep": "off", "keep_days": "never"})
        assert refused.status_code == 422, address
        assert back(refused.text) == page
        assert one.get(page).status_code == 200


def test_signing_in_is_german_too(browser: Browser) -> None:
    page = browser().get("/sign-in", headers=GERMAN).text
    assert language_of(page) == "de"
    assert "Mit einem Schlüssel anmelden" in page


def test_an_english_page_has_the_texts_of_its_template(browser: Browser) -> None:
    page = browser("read", "train").get("/", headers={"accept-language": "en"}).text
    assert "A language model that knows your work" in page
    assert "luthier-words" not in page


def test_texts_of_people_stay_what_they_are(browser: Browser, home: Context) -> None:
    name = "Data {num_rows} %s <b> Runs"
    rows = keep_rows(home, Caller(), [b'{"prompt": "a", "completion": "b"}\n'], "rows.jsonl")
    create_dataset(home, Caller(), name, rows)
    page = browser("read").get("/datasets", headers=GERMAN).text
    assert language_of(page) == "de"
    assert "Data {num_rows} %s &lt;b&gt; Runs" in page


def test_errors_of_pages_are_german_and_what_has_no_translation_is_marked_as_english(browser: Browser) -> None:
    page = browser("read").get("/datasets/ds-none", headers=GERMAN)
    assert page.status_code == 404
    assert language_of(page.text) == "de"
    assert "erwartet" in page.text
    assert "Datensatz" in page.text
    assert '<span lang="en">' not in page.text
    assert words("de").in_text("a fault of some library") == '<span lang="en">a fault of some library</span>'


@pytest.mark.parametrize("value", [None, 3, True, ["Data"]])
def test_only_texts_are_translated(value: object) -> None:
    assert words("de")(value) is value
