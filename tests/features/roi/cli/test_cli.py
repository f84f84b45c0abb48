"""`luthier worth`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

CASE = """
name: A test
currency: USD
calls:
  per_month: {low: 8_000, typical: 10_000, high: 15_000}
  input_tokens: 1_000
  output_tokens: 100
  value_of_one_more_correct: 0.5
today:
  hosted: {input_price_per_million_tokens: 2, output_price_per_million_tokens: 10}
tuned: {gain: 0.1, saved_prompt_tokens: 500}
people: {rate_per_hour: 50, preparation_hours: 10, annotation_hours: 20, review_hours: 10}
training: {cost: 300}
alternatives: {better_prompt: {gain: 0.01, work_hours: 4}}
"""


@pytest.fixture
def case(tmp_path: Path) -> Path:
    path = tmp_path / "case.yaml"
    path.write_text(CASE, encoding="utf-8")
    return path


def test_a_person_reads_the_answer_why_what_would_change_it_and_the_plainer_ways(luthier: Any, case: Path) -> None:
    done = luthier("worth", case)
    assert done.code == 0
    parts = (
        "A test",
        "Yes: it is worth",
        "Worth in 12 months",
        "Break-even accuracy gain",
        "why",
        "where it would stop being worth more than a better prompt",
        "Better prompt",
        "Doing nothing",
        "not priced: few-shot",
        "what it depends on",
        "calls a month",
        "assumptions and sources",
        "assumed, not measured",
    )
    places = [done.out.index(part) for part in parts]
    assert places == sorted(places)


def test_a_no_is_an_answer_with_exit_code_0(luthier: Any, case: Path) -> None:
    case.write_text(CASE.replace("gain: 0.1,", "gain: 0,"), encoding="utf-8")
    done = luthier("worth", case)
    assert done.code == 0
    assert "No: " in done.out
    assert "to be worth more than a better prompt, one thing at a time" in done.out


def test_json_has_answer_value_payback_break_even_tornado_and_alternatives(luthier: Any, case: Path) -> None:
    document = luthier("worth", case, "--json").document
    assert document["answer"] == "yes"
    assert {"typical", "mean", "low", "high"} == set(document["tuned"]["value"])
    assert document["tuned"]["payback_months"]["typical"] == pytest.approx(2_300 / 510)
    assert document["break_even_gain"]["typical"] == pytest.approx((2_300 / 12 - 10) / 5_000)
    assert [bar["name"] for bar in document["tornado"]] == ["calls.per_month"]
    assert [way["name"] for way in document["alternatives"]] == ["better_prompt"]
    assert document["report"] is None
    assert document["case"]["seed"] == 0


def test_a_page_is_written(luthier: Any, case: Path, tmp_path: Path) -> None:
    done = luthier("worth", case, "--html", tmp_path / "worth.html")
    assert f"report   {tmp_path / 'worth.html'}" in done.out
    assert (tmp_path / "worth.html").is_file()


def test_a_wrong_request_is_two_and_one_document(luthier: Any, case: Path, tmp_path: Path) -> None:
    assert luthier("worth", tmp_path / "nothing.yaml").code == 2
    case.write_text(CASE.replace("currency: USD\n", ""), encoding="utf-8")
    done = luthier("worth", case, "--json")
    assert done.code == 2
    assert "currency: is missing" in done.document["error"]["came"]


THREE = ("--answers-per-week", "300", "--minutes-each", "6", "--cost-of-an-error", "20")


def test_three_options_are_a_case(luthier: Any, tmp_path: Path) -> None:
    done = luthier("worth", *THREE, "--accuracy-today", "48/50", "--html", tmp_path / "worth.html")
    assert done.code == 0
    assert done.out.startswith("300 answers a week, 6 minutes each\nYes: it is worth")
    assert "Assumed, as it was not given" in done.out
    page = (tmp_path / "worth.html").read_text(encoding="utf-8")
    assert "luthier worth --answers-per-week 300 --minutes-each 6 --cost-of-an-error 20 --accuracy-today 48/50" in page
    document = luthier("worth", *THREE, "--json").document
    assert document["case"]["calls"]["value_of_one_more_correct"]["typical"] == 20


def test_what_is_missing_is_named_where_nobody_can_be_asked(luthier: Any, case: Path) -> None:
    done = luthier("worth", *THREE[:4])
    assert done.code == 2
    assert "no --cost-of-an-error" in done.err
    assert "a case file, or all of" in luthier("worth").err
    both = luthier("worth", case, *THREE)
    assert both.code == 2
    assert "leave one of them out" in both.err
    assert "47/50" in luthier("worth", *THREE, "--accuracy-today", "most").err
    assert "47/50" in luthier("worth", *THREE, "--accuracy-today", "51/50").err


def test_in_a_terminal_the_missing_figures_are_asked(luthier: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def answer(question: str, **_: Any) -> float:
        asked.append(question)
        return 20.0

    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("typer.prompt", answer)
    done = luthier("worth", *THREE[:4])
    assert done.code == 0
    assert asked == ["What does a wrong answer cost, beyond the work on it?"]


def test_another_currency_needs_the_price_of_a_dollar_which_defaults_are_converted_at(
    luthier: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = luthier("worth", *THREE, "--currency", "jpy")
    assert refused.code == 2
    assert "without the price of a US dollar" in refused.err
    document = luthier("worth", *THREE, "--currency", "jpy", "--currency-per-usd", "150", "--json").document
    # 20 to 60 USD an hour.
    assert document["case"]["people"]["rate_per_hour"]["high"] == pytest.approx(9_000)
    assert document["case"]["currency"] == "JPY"
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    asked: list[str] = []

    def answer(question: str, **_: Any) -> float:
        asked.append(question)
        return 150.0

    monkeypatch.setattr("typer.prompt", answer)
    assert luthier("worth", *THREE, "--currency", "jpy").code == 0
    assert asked == ["What does a US dollar cost in JPY?"]
