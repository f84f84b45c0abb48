"""The page of the three questions: what it says, what it refuses, and that it never shows another project's figures."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from fastapi.testclient import TestClient

from luthier.features.planning.currency import project_currency
from luthier.features.runs.labels import RunLabels
from luthier.platform.home.context import Context
from luthier.testing.records import add_run, make_evaluation

Browser = Callable[..., TestClient]
ASKED = "/worth?answers_per_week=400&minutes_each=6&cost_of_an_error=20"


def test_without_answers_it_is_a_form_and_nothing_else(home: Context, browser: Browser) -> None:
    page = browser("read").get("/worth")
    assert page.status_code == 200
    assert 'name="answers_per_week"' in page.text
    assert "Options side by side" not in page.text
    assert home.evaluations.overviews("default", limit=1) == []


def test_models_to_choose_have_the_names_of_their_runs_and_rows(home: Context, browser: Browser) -> None:
    run_id = add_run(home, "a")
    home.run_labels.put(run_id, RunLabels(name="Client questions"))
    made = make_evaluation(run_id=run_id).model_copy(update={"held_out_file": "/srv/rows/letters.jsonl"})
    home.evaluations.save(made)
    page = browser("read").get("/worth").text
    assert f'<option value="{made.evaluation_id}">Client questions on letters.jsonl, ' in page


def test_three_answers_give_a_verdict_with_figures_ways_and_charts(home: Context, browser: Browser) -> None:
    page = browser("read").get(ASKED).text
    assert "400 answers a week" not in page.split("<form")[0]
    assert "worth it" in page
    assert "Options side by side" in page
    assert page.count('<svg class="drawn"') >= 3
    assert "Assumed, as it was not given" in page
    assert 'value="400"' in page, "what was given stays in the form"


def test_the_answer_is_that_of_the_command(home: Context, browser: Browser) -> None:
    from luthier.features.roi.service import compute_roi
    from luthier.ml.planning.roi.questions import Questions

    expected = compute_roi(home, Questions(answers_per_week=1000, minutes_each=2.5, cost_of_an_error=0)).result
    page = browser("read").get("/worth?answers_per_week=1,000&minutes_each=2,5&cost_of_an_error=0").text
    assert expected.headline in page.replace("&#39;", "'")
    part = compute_roi(
        home, Questions(answers_per_week=1000, minutes_each=0.125, cost_of_an_error=0, accuracy_today=0.955)
    ).result
    query = "answers_per_week=1.000,0&minutes_each=0,125&cost_of_an_error=0&accuracy_today=95,5%25"
    assert part.headline in browser("read").get(f"/worth?{query}").text.replace("&#39;", "'")


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("answers_per_week=400", "no minutes for each"),
        ("answers_per_week=many&minutes_each=6&cost_of_an_error=20", "a number from 0 on"),
        ("answers_per_week=0&minutes_each=6&cost_of_an_error=20", "at least one answer a week"),
        ("answers_per_week=400&minutes_each=6&cost_of_an_error=20&accuracy_today=often", "47/50"),
        ("answers_per_week=400&minutes_each=6&cost_of_an_error=20&accuracy_today=51/50", "47/50"),
        ("answers_per_week=nan&minutes_each=6&cost_of_an_error=20", "figures from 0 on"),
        ("answers_per_week=400&minutes_each=6&cost_of_an_error=20&currency=%E2%82%AC", "three capital letters"),
        ("answers_per_week=400&minutes_each=6&cost_of_an_error=20&currency=EUR", "without the price of a US dollar"),
        (
            "answers_per_week=400&minutes_each=6&cost_of_an_error=20&currency=EUR&currency_per_usd=x",
            "price of a US dollar",
        ),
    ],
)
def test_wrong_figures_are_refused_with_what_to_do(browser: Browser, query: str, words: str) -> None:
    page = browser("read").get(f"/worth?{query}")
    assert page.status_code == 422
    assert words in page.text
    assert "Options side by side" not in page.text


def test_percent_and_counts_are_read(browser: Browser) -> None:
    for accuracy in ("95%25", "0.95", "47/50"):
        page = browser("read").get(
            f"{ASKED}&accuracy_today={accuracy}&currency=eur&currency_per_usd=0.92&rate_per_hour=40"
        )
        assert page.status_code == 200, accuracy
        assert "EUR" in page.text


def test_an_evaluation_that_the_project_has_not_is_not_found(browser: Browser) -> None:
    page = browser("read").get(f"{ASKED}&evaluation=eval-20260101-000000-abcdef")
    assert page.status_code == 404
    assert "Options side by side" not in page.text


def test_it_needs_somebody_who_may_read(browser: Browser) -> None:
    assert browser("infer").get("/worth").status_code == 403


@pytest.mark.parametrize("path", ["/worth", "/evaluations/{evaluation}"])
def test_a_thousand_that_may_be_a_one_is_asked_again(home: Context, browser: Browser, path: str) -> None:
    """`1.000` is a thousand to a German reader, and 1 to a program."""
    evaluation = make_evaluation()
    home.evaluations.save(evaluation)
    address = path.replace("{evaluation}", evaluation.evaluation_id)
    query = "answers_per_week=1.000&minutes_each=2&cost_of_an_error=0"
    page = browser("read").get(f"{address}?{query}")
    assert "can be read in two ways" in page.text
    assert 'value="1.000"' in page.text, "it is there to be corrected"
    assert "can be read in two ways" not in browser("read").get(f"{address}?{query.replace('1.000', '1000')}").text


def test_an_evaluation_without_a_measured_share_is_answered_with_the_assumed_one(
    home: Context, browser: Browser
) -> None:
    """As beside its verdict: what is asked of a model that writes texts is no error."""
    evaluation = make_evaluation()
    home.evaluations.save(evaluation)
    with_it = browser("read").get(f"{ASKED}&evaluation={evaluation.evaluation_id}")
    without = browser("read").get(ASKED)
    assert (with_it.status_code, without.status_code) == (200, 200)
    assert "does not measure which cases the model can answer alone (its answers are not labels)" in with_it.text
    assert "does not measure which cases" not in without.text
    assert with_it.text.split('<h2 id="answer">')[1].split("</h2>")[0] in without.text, "the same answer"


@pytest.mark.parametrize("path", ["/worth", "/evaluations/{evaluation}"])
def test_a_comma_before_three_digits_is_asked_again_where_the_page_has_it_before_decimals(
    home: Context, browser: Browser, path: str
) -> None:
    """`1,125` is more than a thousand on a page in English, and a little over 1 on one in German."""
    evaluation = make_evaluation()
    home.evaluations.save(evaluation)
    address = path.replace("{evaluation}", evaluation.evaluation_id)
    url = f"{address}?answers_per_week=1,125&minutes_each=2&cost_of_an_error=0"
    german = browser("read").get(url, headers={"Accept-Language": "de"})
    assert "Ein Komma mit drei Ziffern dahinter" in german.text
    assert 'value="1,125"' in german.text, "it is there to be corrected"
    assert "two ways" not in browser("read").get(url).text
    for clear in ("1125", "1,12"):
        page = browser("read").get(url.replace("1,125", clear), headers={"Accept-Language": "de"})
        assert "lässt sich auf zwei Arten lesen" not in page.text


@pytest.mark.parametrize("path", ["/worth", "/evaluations/{evaluation}"])
def test_figures_are_read_in_the_language_of_the_page_and_said_as_they_were_read(
    home: Context, browser: Browser, path: str
) -> None:
    evaluation = make_evaluation()
    home.evaluations.save(evaluation)
    address = path.replace("{evaluation}", evaluation.evaluation_id)
    german = browser("read").get(
        f"{address}?answers_per_week=1.000&minutes_each=2,5&cost_of_an_error=1.000,5", headers={"Accept-Language": "de"}
    )
    assert german.status_code == 200
    said = (
        "Berechnet aus: Antworten in der Woche 1.000, Minuten je Antwort 2,5, "
        "Kosten einer falschen Antwort 1.000,5 USD."
    )
    assert said in german.text
    english = browser("read").get(f"{address}?answers_per_week=1,000&minutes_each=2.5&cost_of_an_error=1,000.5")
    assert (
        "Calculated from: answers a week 1,000, minutes each 2.5, cost of a wrong answer 1,000.5 USD." in english.text
    )


def test_the_currency_is_set_once_and_asked_for_no_more(home: Context, browser: Browser) -> None:
    evaluation = make_evaluation()
    home.evaluations.save(evaluation)
    admin, query = browser("admin"), "answers_per_week=400&minutes_each=6&cost_of_an_error=5"
    assert browser("read").post("/settings/prices/currency", data={"currency": "EUR"}).status_code == 403
    assert admin.post("/settings/prices/currency", data={"currency": "eur", "per_usd": "1.085"}).status_code == 303
    page = admin.get("/settings/prices").text
    assert "A US dollar costs 1.085 EUR, as set on" in page
    for language, written in (("en", "1.0850"), ("de", "1,0850")):
        headers = {"Accept-Language": language}
        for address in ("/worth", f"/evaluations/{evaluation.evaluation_id}"):
            form = admin.get(address, headers=headers).text
            assert 'value="EUR"' in form
            assert f'value="{written}"' in form
            answered = admin.get(f"{address}?{query}", headers=headers).text
            assert (
                "cost of a wrong answer 5 EUR" if language == "en" else "Kosten einer falschen Antwort 5 EUR"
            ) in answered
            sent = admin.get(f"{address}?{query}&currency=EUR&currency_per_usd={written}", headers=headers)
            assert "5 EUR." in sent.text, "as the form sends it again"
    notes = admin.get(f"/worth?{query}").text
    assert "Assumed amounts of money were converted from US dollars, at 1.085 EUR for a dollar." in notes
    assert "5 GBP" in admin.get(f"/worth?{query}&currency=GBP&currency_per_usd=0.8").text, (
        "another one may be asked for"
    )
    assert admin.post("/settings/prices/currency", data={"currency": "USD", "per_usd": ""}).status_code == 303
    assert 'value="EUR"' not in admin.get("/worth").text


@pytest.mark.parametrize(
    ("currency", "per_usd"), [("EUR", ""), ("EUR", "much"), ("EUR", "0"), ("EUR", "nan"), ("E", "1")]
)
def test_a_currency_without_its_price_is_refused_and_stays_in_the_form(
    home: Context, browser: Browser, currency: str, per_usd: str
) -> None:
    refused = browser("admin").post("/settings/prices/currency", data={"currency": currency, "per_usd": per_usd})
    assert refused.status_code == 422
    assert f'name="currency" value="{currency}"' in refused.text
    assert f'name="per_usd" value="{per_usd}"' in refused.text
    assert project_currency(home, "default") is None
