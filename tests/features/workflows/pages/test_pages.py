"""/pipelines/ID and their list on /studies: stages while they go on and at their end, reports, and who sees nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from fastapi.testclient import TestClient
from tests.homes import (
    AUTO_ID,
    HEADLINE,
    RETRAIN_ID,
    SHOWDOWN_ID,
    add_auto,
    add_model_comparison,
    add_retrain,
)

from luthier.core.system.files import file_lock
from luthier.core.workflows.pipeline import Stage
from luthier.platform.auth.service import create_project
from luthier.platform.home.context import Context
from luthier.platform.workflows.engine import lock_of

Browser = Callable[..., TestClient]
PIECE = {"HX-Request": "true"}
HOSTILE = "<script>alert(1)</script>\u202e"


def test_the_list_stands_below_the_studies(home: Context, browser: Browser) -> None:
    one = browser("read")
    assert "a retraining updates a deployed model" in one.get("/studies").text
    assert "started on the command line" not in browser("read", "train").get("/studies").text
    add_model_comparison(home)
    add_auto(home, {"status": "paused", "reason": "paused: SIGTERM received"})
    text = one.get("/studies").text
    table = text[text.index('id="pipelines"') :]
    assert table.index(AUTO_ID) < table.index(SHOWDOWN_ID)
    assert ("<td>AutoML</td>" in table, "<td>model comparison</td>" in table) == (True, True), "as the glossary says"
    assert "tune<span" in table
    assert "5 of 7" in table
    assert f'a stage of <a href="/pipelines/{AUTO_ID}"' in table
    assert "No studies yet" in text
    answer = one.get("/pipelines")
    assert (answer.status_code, answer.headers["location"]) == (303, "/studies#pipelines")


def test_a_stage_that_failed_tells_why_and_shows_no_place_of_this_machine(home: Context, browser: Browser) -> None:
    reason = f"{home.home}/autos/x/rows.jsonl has changed {HOSTILE}"
    add_auto(home, {"status": "failed", "reason": reason}, goal=f"Answer {HOSTILE}")
    one = browser("read")
    listed, text = one.get("/studies").text, one.get(f"/pipelines/{AUTO_ID}").text
    for page in (listed, text):
        assert "<script>alert" not in page
        assert "\u202e" not in page
        assert "&lt;script&gt;" in page
        assert str(home.home) not in page
    assert "It stopped at tune" in text
    assert "autos/x/rows.jsonl has changed" in text
    assert f"luthier automl --resume {AUTO_ID}" in text
    assert 'href="/studies" data-key="t" aria-current="page"' in text
    assert "every 3s" not in text


def test_the_goal_that_a_person_wrote_is_not_translated(home: Context, browser: Browser) -> None:
    add_auto(home, {"status": "paused", "reason": "paused: SIGTERM received"}, goal="Start a run")
    text = browser("read").get(f"/pipelines/{AUTO_ID}", headers={"Accept-Language": "de"}).text
    assert '<html lang="de"' in text
    assert "<dd>Start a run</dd>" in text
    assert "Einen Lauf starten" not in text


def test_what_goes_on_is_asked_for_again_and_sent_when_it_has_changed(home: Context, browser: Browser) -> None:
    add_model_comparison(home)
    made = add_auto(home, {"status": "running", "came": {"study_id": "study-20261126-133000-abcdef"}})
    one = browser("read")
    with file_lock(lock_of(home, AUTO_ID), what="it", timeout_seconds=1):
        text = one.get(f"/pipelines/{AUTO_ID}").text
        asked = text.partition('hx-get="')[2].partition('"')[0]
        assert asked.startswith(f"/pipelines/{AUTO_ID}?after=")
        assert 'aria-current="step"' in text
        assert "/studies/study-" not in text, "it is named before it is made"
        assert f'href="/pipelines/{SHOWDOWN_ID}"' in text
        assert one.get(asked, headers=PIECE).status_code == 204, "nothing has happened since"
        ended = Stage(name="tune", status="done", came={"skipped": "prompting is enough", "run_id": None})
        home.pipelines.save(made.changed(ended))
        piece = one.get(asked, headers=PIECE)
    assert piece.status_code == 200
    assert "prompting is enough" in piece.text
    assert "<html" not in piece.text
    dead = one.get(f"/pipelines/{AUTO_ID}").text
    assert "Its process ended without an error message" in dead
    assert "hx-get" not in dead


def test_a_report_that_is_gone_is_written_anew_or_said_to_be_gone(home: Context, browser: Browser) -> None:
    add_model_comparison(home)
    one = browser("read")
    text = one.get(f"/pipelines/{SHOWDOWN_ID}").text
    assert HEADLINE[:40] in text
    assert f'href="/pipelines/{SHOWDOWN_ID}/report"' in text
    answer = one.get(f"/pipelines/{SHOWDOWN_ID}/report")
    assert HEADLINE[:40] in answer.text
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "script-src" not in answer.headers["content-security-policy"]
    add_retrain(home, {"status": "failed", "reason": "it is gone"})
    refused = one.get(f"/pipelines/{RETRAIN_ID}/report")
    assert refused.status_code == 404
    assert "report of the run that it trained" in refused.text


def test_the_report_of_an_auto_leads_to_pages_of_this_server(home: Context, browser: Browser) -> None:
    page = home.home / "showdowns" / SHOWDOWN_ID / "report.html"
    made = add_auto(home, {"status": "refused", "reason": "no study"})
    audit = home.home / "autos" / AUTO_ID / "audit.html"
    audit.parent.mkdir(parents=True)
    audit.write_text(f"<p>rows of {home.home}/rows.jsonl</p>")
    for name, path in (("audit", audit), ("showdown", page)):
        came = made.came(name) | {"page": str(path)}
        made = made.changed(next(one for one in made.stages if one.name == name).model_copy(update={"came": came}))
    home.pipelines.save(made)
    one = browser("read")
    text = one.get(f"/pipelines/{AUTO_ID}/report").text
    assert f'href="/pipelines/{SHOWDOWN_ID}/report"' in text
    assert 'href="audit.html"' in text
    assert "file:" not in text
    assert str(home.home) not in text
    assert f'href="/pipelines/{AUTO_ID}/audit.html"' in one.get(f"/pipelines/{AUTO_ID}").text
    assert one.get(f"/pipelines/{AUTO_ID}/audit.html").text == "<p>rows of rows.jsonl</p>"
    assert one.get(f"/pipelines/{AUTO_ID}/audit_repaired.html").status_code == 404


@pytest.mark.parametrize("path", ["", "/report", "/audit.html"])
def test_others_see_nothing_of_it(home: Context, browser: Browser, path: str) -> None:
    add_model_comparison(home)
    add_auto(home, {"status": "failed"})
    other = create_project(home, "other")
    answer = browser("read", project=other.project_id).get(f"/pipelines/{AUTO_ID}{path}")
    assert answer.status_code == 404
    assert SHOWDOWN_ID not in answer.text
    assert AUTO_ID not in browser("read", project=other.project_id).get("/studies").text
    assert browser().get(f"/pipelines/{AUTO_ID}{path}").status_code == 303
    assert browser("infer").get(f"/pipelines/{AUTO_ID}{path}").status_code == 403
