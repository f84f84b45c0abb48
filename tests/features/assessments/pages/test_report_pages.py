"""A run's report by its page: downloaded, and written again with the results that were made since."""

from __future__ import annotations

import json
import re
import shutil

from sqlalchemy import delete
from tests import assessed
from tests.fixtures.pages import Browser, shown

from luthier.core.access import Caller
from luthier.features.assessments.service import rewrite_run_report
from luthier.features.models.result_files import keep_report
from luthier.ml.evaluation.report import ReportData, write_report
from luthier.platform.auth.public_address import set_public_address
from luthier.platform.auth.service import create_project
from luthier.platform.db.tables import artifact_links
from luthier.platform.home.context import Context
from luthier.testing.records import make_plan, make_quote, make_record, make_result

RUN_ID = "run-20261125-093000-ffffff"


def add(home: Context) -> None:
    """A run with a report that names places of this machine."""
    folder = home.settings.run_folder(RUN_ID)
    result = make_result().model_copy(update={"adapter_path": str(folder / "adapter")})
    record, plan = make_record(RUN_ID, status="succeeded", result=result), make_plan()
    home.runs.create(record, plan)
    data = ReportData(
        record=record, plan=plan, events=(), evaluation=None, versions={"torch": "2"},
        example=(("say this", True),), licence="Apache-2.0", quote=None,
    )  # fmt: skip
    write_report(folder, data)


def test_a_report_is_downloaded_as_a_page_and_as_data(home: Context, browser: Browser) -> None:
    add(home)
    viewer = browser("read")
    page = viewer.get(f"/runs/{RUN_ID}").text
    for kind in ("html", "json"):
        assert f'href="/runs/{RUN_ID}/report.{kind}" download' in page
        answer = viewer.get(f"/runs/{RUN_ID}/report.{kind}")
        assert f'filename="{RUN_ID}-report.{kind}"' in answer.headers["content-disposition"]
        assert str(home.home) not in answer.text
    document = viewer.get(f"/runs/{RUN_ID}/report.json").json()
    assert (document["run"]["run_id"], document["licence"]) == (RUN_ID, "Apache-2.0")
    assert document["example"] == [{"text": "say this", "learned": True}]
    assert viewer.get(f"/runs/{RUN_ID}/report.html").text == viewer.get(f"/runs/{RUN_ID}/report").text


def test_a_report_of_another_project_or_none_is_not_found(home: Context, browser: Browser) -> None:
    add(home)
    stranger = browser("admin", project=create_project(home, "friends").project_id)
    other = RUN_ID.replace("f", "e")
    for run_id in (RUN_ID, other):
        for path in ("report.html", "report.json", "safety.html", "suite-shop.html"):
            assert stranger.get(f"/runs/{run_id}/{path}").status_code == 404
        assert stranger.post(f"/runs/{run_id}/report").status_code == 404
    (home.settings.run_folder(RUN_ID) / "report.json").unlink()
    assert browser("read").get(f"/runs/{RUN_ID}/report.json").status_code == 404


def test_a_report_of_another_machine_is_offered_and_written_again_with_its_forecast(
    home: Context, browser: Browser
) -> None:
    add(home)
    folder, quote = home.settings.run_folder(RUN_ID), make_quote()
    (folder / "quote.json").write_text(quote.model_dump_json(), encoding="utf-8")
    keep_report(home, RUN_ID)
    shutil.rmtree(folder)  # as where another machine has trained it
    trainer = browser("read", "train")
    assert f'href="/runs/{RUN_ID}/report.html" download' in trainer.get(f"/runs/{RUN_ID}").text
    assert not (folder / "report.html").exists(), "a page fetches no report"
    assert "written again" in shown(trainer, trainer.post(f"/runs/{RUN_ID}/report")).text
    shutil.rmtree(folder)
    document = trainer.get(f"/runs/{RUN_ID}/report.json").json()
    assert document["predicted"] == json.loads(json.dumps(quote.as_json())), (
        "what was written again is kept, with what it was made from"
    )
    shutil.rmtree(folder)
    with home.database.write() as connection:
        connection.execute(delete(artifact_links))
    assert "/report.html" not in trainer.get(f"/runs/{RUN_ID}").text


def test_a_report_is_written_again_with_the_suites_that_were_run_since(home: Context, browser: Browser) -> None:
    add(home)
    suite = assessed.make_suite_result(run_id=RUN_ID)
    home.assessments.save("suite", suite.result_id, suite, project_id="default", subject=RUN_ID)
    safety = assessed.make_safety_result(run_id=RUN_ID)
    home.assessments.save("safety", safety.result_id, safety, project_id="default", subject=RUN_ID)
    viewer, trainer = browser("read"), browser("read", "train")
    assert f"Suite {suite.suite}" not in viewer.get(f"/runs/{RUN_ID}/report").text
    assert viewer.post(f"/runs/{RUN_ID}/report").status_code == 403
    assert f'action="/runs/{RUN_ID}/report"' not in viewer.get(f"/runs/{RUN_ID}").text
    assert f'action="/runs/{RUN_ID}/report"' in trainer.get(f"/runs/{RUN_ID}").text
    assert "written again" in shown(trainer, trainer.post(f"/runs/{RUN_ID}/report")).text
    report = viewer.get(f"/runs/{RUN_ID}/report").text
    assert f"Suite {suite.suite}" in report
    assert json.loads(viewer.get(f"/runs/{RUN_ID}/report.json").text)["licence"] == "Apache-2.0"
    assert home.audit_log.newest(limit=1)[0].action == "run.report_written"
    # The report links to pages beside it, which a server has at other addresses.
    assert f'href="suite-{suite.suite}.html"' in report
    led = viewer.get(f"/runs/{RUN_ID}/suite-{suite.suite}.html").headers["location"]
    assert led == f"/evaluations/suites/{suite.result_id}"
    led = viewer.get(f"/runs/{RUN_ID}/safety.html").headers["location"]
    assert led == f"/evaluations/safety/{safety.result_id}"
    assert viewer.get(f"/runs/{RUN_ID}/suite-other.html").status_code == 404


def test_links_of_a_downloaded_report_lead_to_this_server(home: Context, browser: Browser) -> None:
    add(home)
    suite, safety = assessed.make_suite_result(run_id=RUN_ID), assessed.make_safety_result(run_id=RUN_ID)
    home.assessments.save("suite", suite.result_id, suite, project_id="default", subject=RUN_ID)
    home.assessments.save("safety", safety.result_id, safety, project_id="default", subject=RUN_ID)
    rewrite_run_report(home, RUN_ID)
    viewer = browser("read")
    for root in ("http://127.0.0.1", "https://tuning.example/luthier"):
        if root.startswith("https"):
            set_public_address(home, Caller(), root)
        text = viewer.get(f"/runs/{RUN_ID}/report.html").text
        led = [link for link in re.findall('href="([^"]*)"', text) if not link.startswith("#")]
        assert led == [f"{root}/runs/{RUN_ID}/suite-{suite.suite}.html", f"{root}/runs/{RUN_ID}/safety.html"]


def test_links_of_a_report_lead_to_the_suite_that_they_name_and_those_of_earlier_reports_still_lead_on(
    home: Context, browser: Browser
) -> None:
    add(home)
    ids = {}
    for number, name in enumerate(("tone-check", "tone check", "tone_check", "old-name", "old name")):
        made = assessed.make_suite_result(f"suite-20261126-12000{number}-aaaaaa", run_id=RUN_ID, suite=name)
        home.assessments.save("suite", made.result_id, made, project_id="default", subject=RUN_ID)
        ids[name] = made.result_id
    pages = rewrite_run_report(home, RUN_ID)
    assert len({page.name for page in pages}) == 1 + len(ids)
    viewer = browser("read")
    text = viewer.get(f"/runs/{RUN_ID}/report.html").text
    links = dict(re.findall(r'<a href="http://127\.0\.0\.1([^"]*)">Suite ([^<]*)</a>', text))
    led = {name: viewer.get(link).headers["location"] for link, name in links.items()}
    assert led == {name: f"/evaluations/suites/{result_id}" for name, result_id in ids.items()}
    # Both suites had this page before.
    earlier = viewer.get(f"/runs/{RUN_ID}/suite-old_name.html").headers["location"]
    assert earlier == f"/evaluations/suites/{ids['old name']}"
