"""Pages of suites, safety checks, gates, and evaluations that the server is asked for."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from fastapi.testclient import TestClient
from tests.assessed import make_safety_result, make_suite_result
from tests.fixtures.pages import shown

from luthier.core.access import Caller
from luthier.features.deployments import service as deployments
from luthier.features.evaluation_orders.service import ASKED, EvaluationOrder
from luthier.platform.home.context import Context
from luthier.platform.jobs.records import Job
from luthier.testing.records import add_run

Browser = Callable[..., TestClient]
REASON = "The old one insults customers; refusals are mended next week."
SUITE, SAFETY = "suite-20261126-120000-aaaaaa", "safety-20261126-130000-aaaaaa"


@pytest.fixture
def run(home: Context) -> str:
    run = add_run(home, "a")
    for kind, made in (("suite", make_suite_result(run_id=run)), ("safety", make_safety_result(run_id=run))):
        home.assessments.save(kind, made.result_id, made, project_id="default", subject=run, run_id=run)  # type: ignore[arg-type]
    return run


def gate(home: Context, at_least: float = 0.95) -> None:
    text = f"rules:\n  - {{metric: sql.execution_accuracy, at_least: {at_least}}}\n"
    (home.home / "gate.yaml").write_text(text, encoding="utf-8")


def test_results_are_listed_and_shown_with_the_gates_word(home: Context, browser: Browser, run: str) -> None:
    gate(home)
    one = browser("read")
    listed = one.get("/evaluations").text
    assert f"/evaluations/suites/{SUITE}" in listed
    assert f"/evaluations/safety/{SAFETY}" in listed
    assert "/evaluations/new" not in listed, "who may not train is not led there"
    page = one.get(f"/evaluations/suites/{SUITE}").text
    assert "86 of 100 cases" in page
    assert "1 of 1 rules not met" in page
    assert "the low end of its interval is not at least 0.95" in page
    assert "The judge likes long answers" in page
    assert "/adapter" not in page
    safety = one.get(f"/evaluations/safety/{SAFETY}").text
    assert "Refusal of harmful requests fell" in safety
    assert "terrible" not in safety
    model = one.get(f"/models/{run}").text
    assert f"/evaluations/suites/{SUITE}" in model
    assert "1 of 1 rules not met" in model
    gate(home, 0.5)
    assert "passed" in one.get(f"/models/{run}").text


def test_what_models_wrote_does_nothing_and_stands_behind_a_fold(home: Context, browser: Browser, run: str) -> None:
    one = browser("read")
    page = one.get(f"/evaluations/suites/{SUITE}/sql").text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<script>alert(1)" not in page
    assert "\u202e" not in page
    probe = one.get(f"/evaluations/safety/{SAFETY}/toxicity").text
    assert "may be offensive" in probe
    assert probe.index("<details") < probe.index("terrible")
    assert '<details class="warned" open>' in one.get(f"/evaluations/safety/{SAFETY}/toxicity?kind=empty").text
    filtered = one.get(f"/evaluations/suites/{SUITE}/sql?kind=empty", headers={"HX-Request": "true"}).text
    assert "1 of 6 rows" in filtered
    assert "<html" not in filtered
    assert one.get(f"/evaluations/suites/{SUITE}/sql?metric=nothing").status_code == 422


def test_who_may_not_look_does_not(home: Context, browser: Browser, run: str) -> None:
    home.access.add_project("proj-b", "b")
    other, infer = browser("admin", project="b"), browser("infer")
    for place in (f"suites/{SUITE}", f"safety/{SAFETY}", f"suites/{SUITE}/sql", f"safety/{SAFETY}/toxicity"):
        assert other.get(f"/evaluations/{place}").status_code == 404
        assert infer.get(f"/evaluations/{place}").status_code == 403
        assert browser().get(f"/evaluations/{place}").status_code == 303
    assert SUITE not in other.get("/evaluations").text
    one = browser("read")
    for place in ("suites/nothing", "safety/nothing", f"suites/{SAFETY}", f"suites/{SUITE}/nothing"):
        assert one.get(f"/evaluations/{place}").status_code == 404


def test_a_wrong_gate_is_told_where_it_would_be_shown(home: Context, browser: Browser, run: str) -> None:
    (home.home / "gate.yaml").write_text("rules: 3\n", encoding="utf-8")
    one = browser("read")
    for place in (f"/evaluations/suites/{SUITE}", f"/models/{run}"):
        answer = one.get(place)
        assert (answer.status_code, "It cannot be read" in answer.text) == (200, True)


def test_a_refused_model_is_deployed_only_with_a_reason_which_the_page_shows(
    home: Context, browser: Browser, run: str
) -> None:
    gate(home)
    one = browser("read", "train")
    data = {"name": "support", "target": run, "source": run}
    refused = one.post("/deployments", data=data)
    assert refused.status_code == 409
    assert "is not at least 0.95" in refused.text
    assert 'name="override"' in refused.text
    assert one.post("/deployments", data=data | {"override": "because"}).status_code == 422
    assert one.post("/deployments", data=data | {"override": REASON}).status_code == 303
    page = one.get("/deployments/support").text
    assert REASON in page
    assert "k has overridden it" in page
    assert "is not at least 0.95" in page
    assert "gate_overridden" in browser("admin").get("/settings/audit-log").text
    other = add_run(home, "b")
    data = {"target": other, "percent": "10", "expected_revision": "1"}
    refused = one.post("/deployments/support/deploy", data=data)
    assert (refused.status_code, "was not evaluated" in refused.text) == (409, True)
    hostile = f"<script>alert(1)</script> {REASON}"
    assert one.post("/deployments/support/deploy", data=data | {"override": hostile}).status_code == 303
    assert one.post("/deployments/support/promote", data={"expected_revision": "2"}).status_code == 409
    short = one.post("/deployments/support/promote", data={"expected_revision": "2", "override": "because"})
    assert (short.status_code, "at least" in short.text or "characters" in short.text) == (422, True)
    again = one.post("/deployments/support/promote", data={"expected_revision": "2", "override": hostile})
    assert again.status_code == 303
    page = one.get("/deployments/support").text
    assert "<script>alert(1)" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert one.post("/deployments/support/rollback", data={"expected_revision": "3"}).status_code == 303


def test_no_gate_no_field(home: Context, browser: Browser, run: str) -> None:
    deployments.deploy(home, Caller(), "support", run)
    one = browser("read", "train")
    for place in ("/deployments/support", f"/models/{run}"):
        assert 'name="override"' not in one.get(place).text


def test_an_evaluation_is_asked_for_watched_and_given_up(home: Context, browser: Browser, run: str) -> None:
    one, reader = browser("read", "train"), browser("read")
    assert reader.get("/evaluations/new").status_code == 403
    assert reader.post("/evaluations/new", data={"kind": "safety", "candidate": run}).status_code == 403
    form = one.get(f"/evaluations/new?model={run}&kind=safety").text
    assert f'<option value="{run}" selected>' in form
    asked = one.post("/evaluations/new", data={"kind": "safety", "candidate": run})
    place = asked.headers["location"]
    assert place.startswith("/evaluations/orders/job-")
    two = browser("read", "train")
    again = two.post("/evaluations/new", data={"kind": "safety", "candidate": run})
    assert again.headers["location"] == place, "who orders the same gets what waits already"
    assert "The same evaluation was requested before" in shown(two, again).text
    other = two.post("/evaluations/new", data={"kind": "safety", "candidate": run, "probes": "full"})
    assert other.headers["location"] != place
    two.post(f"{other.headers['location']}/cancel")
    page = reader.get(place).text
    assert "Waiting for a worker" in page
    assert "Cancel" not in page
    assert place in reader.get("/evaluations").text
    mark = page.split("?after=")[1].split('"')[0]
    assert reader.get(f"{place}?after={mark}", headers={"HX-Request": "true"}).status_code == 204
    assert reader.post(f"{place}/cancel").status_code == 403
    assert one.post(f"{place}/cancel").status_code == 303
    assert "It was cancelled" in one.get(place).text
    later = two.post("/evaluations/new", data={"kind": "safety", "candidate": run})
    assert later.headers["location"] != place, "a cancelled one gives no result"
    assert one.post(f"{place}/cancel").status_code == 409
    home.access.add_project("proj-b", "b")
    assert browser("admin", project="b").get(place).status_code == 404
    assert reader.get("/evaluations/orders/job-20261125-093000-000000").status_code == 404


def test_of_an_eval_of_the_api_the_page_says_that_graded_answers_stay(home: Context, browser: Browser) -> None:
    order = EvaluationOrder(kind="eval", result_id=SUITE, candidate="tiny", label="support")
    document = {ASKED: order.model_dump(mode="json")}
    job = home.jobs.submit(Job(job_id="job-1", kind="evaluation", document=document, run_id="", lane="infer"))
    page = browser("read", "train").get(f"/evaluations/orders/{job.job_id}").text
    assert "Cancel this evaluation? What was graded stays." in page
    home.jobs.ask(job.job_id, "cancel")
    assert "It was cancelled; what was graded stays." in browser("read").get(f"/evaluations/orders/{job.job_id}").text


def test_a_form_with_too_many_models_is_shown_again_with_what_it_held(
    home: Context, browser: Browser, run: str
) -> None:
    others = [add_run(home, digit) for digit in "12345678"]
    data = {"kind": "safety", "candidate": run, "against": others, "suite_text": "typed for an hour"}
    answer = browser("read", "train").post("/evaluations/new", data=data)
    assert answer.status_code == 422
    assert "8 models to compare it with" in answer.text
    assert "typed for an hour" in answer.text
    against = answer.text.partition('name="against"')[2].partition("</select>")[0]
    assert sorted(re.findall(r'value="([^"]+)" selected', against)) == others


def test_a_form_that_cannot_be_done_is_shown_again_with_what_it_held(home: Context, browser: Browser, run: str) -> None:
    one = browser("read", "train")
    for data, status in (
        ({"kind": "rows", "candidate": run}, 422),
        ({"kind": "rows", "candidate": "/etc/passwd"}, 422),
        ({"kind": "suite", "candidate": run, "suite_text": "tasks: <script>alert(1)</script>"}, 422),
        ({"kind": "safety", "candidate": run, "against": ["no-such-model"]}, 404),
        ({"kind": "rows", "candidate": run, "most_rows": "many"}, 422),
    ):
        answer = one.post("/evaluations/new", data=data)
        assert (answer.status_code, 'role="alert"' in answer.text) == (status, True), data
        assert "<script>alert(1)" not in answer.text
    assert one.post("/evaluations/new", data={"kind": "other"}).status_code == 422
    assert home.jobs.list() == []
