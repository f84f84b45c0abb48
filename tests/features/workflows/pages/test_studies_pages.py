"""/studies and /studies/ID: what was searched, while it goes on and at its end, and its recipe in the form of a run."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html import unescape

import pytest
from fastapi.testclient import TestClient
from tests.homes import STUDY_ID, add_study, trial_of

from luthier.core.system.files import file_lock
from luthier.platform.auth.service import create_project
from luthier.platform.home.context import Context

Browser = Callable[..., TestClient]
PIECE = {"HX-Request": "true"}
HOSTILE = "<script>alert(1)</script>"


def test_nothing_was_searched_yet(browser: Browser) -> None:
    text = browser("read").get("/studies").text
    assert "No studies yet" in text
    assert "Start one with" not in text
    assert "Start one with “New study”" in browser("read", "train").get("/studies").text


def test_a_study_whose_process_was_killed_is_not_shown_as_at_work(home: Context, browser: Browser) -> None:
    add_study(home, {"notes": (HOSTILE,)})
    wrong = trial_of(10, {"method.rank": 32}, -1, 0.0, state="failed", reason=f"wrong in {home.home}/runs {HOSTILE}")
    home.studies.put_trial(STUDY_ID, wrong)
    one = browser("read")
    listed, text = one.get("/studies").text, one.get(f"/studies/{STUDY_ID}").text
    for page in (listed, text):
        assert "interrupted" in page
        assert "<script>alert" not in page
        assert str(home.home) not in page
    assert f"luthier tune --resume {STUDY_ID}" in text
    assert "every 3s" not in text
    assert "Train with its recipe" not in text


def test_while_it_is_searched_it_is_asked_for_again_and_sent_when_it_has_changed(
    home: Context, browser: Browser
) -> None:
    add_study(home)
    one = browser("read")
    with file_lock(home.home / "studies" / STUDY_ID / "lock", what="it", timeout_seconds=1):
        text = one.get(f"/studies/{STUDY_ID}").text
        asked = text.partition('hx-get="')[2].partition('"')[0]
        assert asked.startswith(f"/studies/{STUDY_ID}?after=")
        assert one.get(asked, headers=PIECE).status_code == 204, "nothing has happened since"
        home.studies.put_trial(STUDY_ID, trial_of(11, {"method.rank": 16}, 0, 0.875, state="paused"))
        piece = one.get(asked, headers=PIECE)
    assert piece.status_code == 200
    assert "1.9688" in piece.text
    assert "<html" not in piece.text


def test_a_chart_that_is_unchanged_stays_in_the_page(home: Context, browser: Browser) -> None:
    add_study(home)
    one = browser("read")

    def charts() -> dict[str, str]:
        """By the key of a chart, the id of its card."""
        text = unescape(one.get(f"/studies/{STUDY_ID}").text)
        found = re.findall(r'id="(chart-\w+)" hx-preserve>\s*<figure class="chart" data-chart="(\{.*?\})">', text)
        return {json.loads(document)["key"]: name for name, document in found}

    before = charts()
    assert len(set(before.values())) == 3
    assert charts() == before
    home.studies.put_trial(STUDY_ID, trial_of(11, {"method.rank": 16}, -1, 0.0, state="running"))
    assert charts()["parallel"] == before["parallel"], "a trial without a result is in no chart"
    home.studies.put_trial(STUDY_ID, trial_of(11, {"method.rank": 16}, 0, 0.875, state="paused"))
    after = charts()
    assert {key for key in before if before[key] != after[key]} >= {"parallel"}


def test_trials_stand_from_the_best_on_with_charts_of_all_of_them(home: Context, browser: Browser) -> None:
    add_study(home)
    text = browser("read").get(f"/studies/{STUDY_ID}").text
    table = text[text.index("trials-title") :]
    order = [table.index(loss) for loss in ("1.1250", "1.2500", "1.7812", "2.6719")]
    assert order == sorted(order), "further ones first, then lower losses"
    assert "the original recipe" in table
    for kind in ("plot", "parallel", "bars"):
        assert f"&#34;kind&#34;:&#34;{kind}&#34;" in text.replace(": ", ":")
    assert text.count('<svg class="drawn"') >= 3, "charts are there without scripts"


def test_the_report_of_a_study_shows_no_place_of_this_machine(home: Context, browser: Browser) -> None:
    add_study(home, {"status": "done", "winner": 1, "hours": 1.5, "report_path": "/somewhere"})
    one = browser("read")
    assert one.get(f"/studies/{STUDY_ID}/report").status_code == 404
    folder = home.home / "studies" / STUDY_ID
    folder.mkdir(parents=True)
    (folder / "report.html").write_text(f"<p>trained on {home.home}/rows</p>")
    answer = one.get(f"/studies/{STUDY_ID}/report")
    assert str(home.home) not in answer.text
    assert "script-src" not in answer.headers["content-security-policy"]
    assert "default-src 'none'" in answer.headers["content-security-policy"]


@pytest.mark.parametrize("path", ["", "/report"])
def test_others_see_nothing_of_it(home: Context, browser: Browser, path: str) -> None:
    add_study(home)
    other = create_project(home, "other")
    assert browser("read", project=other.project_id).get(f"/studies/{STUDY_ID}{path}").status_code == 404
    assert browser().get("/studies").status_code == 303
