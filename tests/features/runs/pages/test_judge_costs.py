"""The page of a run that judges behind servers grade: what is expected of each, and what was asked and paid so far."""

from __future__ import annotations

import re
from collections.abc import Callable
from html import unescape

from fastapi.testclient import TestClient

from luthier.core.estimate import Estimate
from luthier.core.run import Bill, JudgeBill, RemoteJudge, RemoteLoad
from luthier.features.planning.remote_judges import cost_line, judge_costs
from luthier.platform.home.context import Context
from luthier.testing.records import RUN_ID, make_plan, make_record, make_result

Browser = Callable[..., TestClient]
PRICED, FREE = "https://judge.example/v1#big", "http://10.0.0.7:8000/v1#small"


def load(calls: float) -> RemoteLoad:
    def estimate(value: float) -> Estimate:
        return Estimate(value=value, low=value / 4, high=value * 2)

    return RemoteLoad(num_calls=estimate(calls), prompt_tokens=estimate(100 * calls), new_tokens=estimate(10 * calls))


def add_graded_run(home: Context, *judges: RemoteJudge, paid: JudgeBill | None) -> None:
    """A run that has ended, graded by these judges."""
    plan = make_plan()
    objective = plan.objective.model_copy(update={"remote_judges": judges or None})
    hours = Estimate(value=1.0, low=1.0, high=1.0)
    bill = Bill(
        hours=1.0, tokens=1000, usd=None, energy_kwh=None, interrupted_hours=0.0, final_hours=hours, final_usd=None,
        final_energy_kwh=None, judges=paid,
    )  # fmt: skip
    record = make_record(status="succeeded").model_copy(
        update={"result": make_result().model_copy(update={"bill": bill})}
    )
    home.runs.create(record, plan.model_copy(update={"objective": objective}))


def rows_of(page: str) -> list[str]:
    """The rows of the table of judges, as text."""
    table = page.partition('What judges behind servers are asked"')[2].partition("</table>")[0]
    return [unescape(re.sub(r"<[^>]+>|\s+", " ", row)) for row in table.split("<tr>")[2:]]


def test_calls_tokens_and_money_of_each_judge_are_shown_with_their_intervals(home: Context, browser: Browser) -> None:
    priced = RemoteJudge(name=PRICED, prompt_usd=100.0, new_usd=1000.0, run=load(400))
    add_graded_run(
        home,
        priced,
        RemoteJudge(name=FREE, run=load(40)),
        paid=JudgeBill(calls=123, prompt_tokens=4500, new_tokens=678, usd=0.5),
    )
    first, second, paid = rows_of(browser("read").get(f"/runs/{RUN_ID}").text)
    assert PRICED in first
    assert re.search(r"400 +\[100, 800\]", first)
    assert re.search(r"\$8\.00 +\[\$2\.00, \$16\.00\]", first)
    assert FREE in second
    assert "no price is set" in second
    assert "123" in paid
    assert "678" in paid
    assert "$0.50" in paid
    # The terminal and `--json` have the same figures.
    plan = home.runs.plan(RUN_ID)
    shown = judge_costs(plan)
    assert "400 (100 to 800) calls" in cost_line(shown[0])
    assert "no price is set" in cost_line(shown[1])
    document = [one.as_json() for one in shown]
    assert (document[0]["usd"], document[0]["usd_low"], document[0]["usd_high"]) == (8.0, 2.0, 16.0)
    assert (document[1]["num_calls"], document[1]["usd"]) == (40.0, None)


def test_before_a_reply_is_paid_only_what_is_expected_is_shown(home: Context, browser: Browser) -> None:
    add_graded_run(home, RemoteJudge(name=FREE, run=load(40)), paid=None)
    (only,) = rows_of(browser("read").get(f"/runs/{RUN_ID}").text)
    assert FREE in only


def test_a_run_without_judges_behind_servers_has_no_such_table(home: Context, browser: Browser) -> None:
    add_graded_run(home, paid=None)
    assert "behind servers" not in browser("read").get(f"/runs/{RUN_ID}").text


def test_the_german_page_names_judges_in_german(home: Context, browser: Browser) -> None:
    add_graded_run(
        home, RemoteJudge(name=FREE, run=load(40)), paid=JudgeBill(calls=1, prompt_tokens=2, new_tokens=3, usd=None)
    )
    page = browser("read").get(f"/runs/{RUN_ID}", headers={"accept-language": "de"}).text
    assert "Judges hinter Servern" in page
    assert "für den Lauf erwartet" in page
    assert "kein Preis festgelegt" in page
    assert re.search(r"1 Aufruf\s*<", page)
