"""/deployments/NAME: a canary, its end, the way back, and what one is told who comes second."""

from __future__ import annotations

from collections.abc import Callable

from fastapi.testclient import TestClient
from tests.homes import ME, fill
from tests.page_rules import primary_buttons

from luthier.core.access import Caller
from luthier.features.deployments import service as deployments
from luthier.features.runs.labels import RunLabels
from luthier.platform.auth.store import Use
from luthier.platform.home.context import Context
from luthier.platform.jobs.records import Job
from luthier.testing.records import add_run

Browser = Callable[..., TestClient]


def shares(home: Context) -> dict[str, float]:
    revision = home.deployments.get("default", "support").revision
    return {share.target: round(share.fraction, 4) for share in revision.shares}


def test_deploy_a_canary_raise_it_promote_it_and_go_back(home: Context, browser: Browser) -> None:
    first, second = fill(home).runs
    one = browser("read", "train")
    page = one.get(f"/deployments/support?target={second}").text
    assert f'<option value="{second}" selected>' in page
    assert '<a href="/deployments" data-key="y" aria-current="page">Deployments</a>' in page
    assert page.count('aria-current="page"') == 1, "one page of the navigation is the current one"
    data = {"target": second, "percent": "10", "expected_revision": "1"}
    answer = one.post("/deployments/support/deploy", data=data)
    assert answer.headers["location"] == "/deployments/support"
    assert shares(home) == {first: 0.9, second: 0.1}
    use = Use(project_id="default", key_id="k", model="support", target="", num_prompt_tokens=1, num_new_tokens=1)
    for target, number in ((first, 9), (second, 1)):
        for _ in range(number):
            home.usage.add(use.model_copy(update={"target": target}))
    page = one.get("/deployments/support").text
    assert f"Answers · tiny · 25 Nov ({second[-6:]}) answers 10% of the users of support now." in page
    assert '9 <span class="unit">requests</span>' in page
    assert '1 <span class="unit">request</span>' in page
    assert "Promote the canary" in page
    assert "Roll back to revision 1" in page
    one.post("/deployments/support/deploy", data=data | {"percent": "35.5", "expected_revision": "2"})
    assert shares(home) == {first: 0.645, second: 0.355}
    german = one.get("/deployments/support", headers={"accept-language": "de"}).text
    assert (">Anfrage</span>" in german, ">Anfragen</span>" in german) == (True, True)
    assert '<html lang="de"' in german
    assert german.count('value="35.5"') == 2, "browsers read fields of numbers with a decimal point alone"
    one.post("/deployments/support/promote", data={"expected_revision": "3"})
    assert shares(home) == {second: 1.0}
    one.post("/deployments/support/rollback", data={"expected_revision": "4"})
    assert shares(home) == {first: 0.645, second: 0.355}
    page = one.get("/deployments/support").text
    assert page.count("<td>k</td>") == 4  # who: the key that this browser came by
    one.post("/deployments/support/remove")
    assert one.get("/deployments/support").status_code == 404


def test_only_who_may_train_is_led_to_an_evaluation_of_what_was_not_judged(home: Context, browser: Browser) -> None:
    unknown = add_run(home, "a")
    deployments.deploy(home, ME, "support", unknown)
    for scopes, is_led in ((("read",), False), (("read", "train"), True)):
        page = browser(*scopes).get("/deployments/support").text
        assert "had not been evaluated." in page
        assert (f'href="/evaluations/new?model={unknown}"' in page) == is_led
    german = browser("read").get("/deployments/support", headers={"accept-language": "de"}).text
    assert "nicht evaluiert." in german


def test_runs_are_shown_by_their_names_with_the_id_in_small(home: Context, browser: Browser) -> None:
    first, second = fill(home).runs
    for run_id, name in ((first, "Client questions"), (second, "Client questions, newer")):
        home.run_labels.put(run_id, RunLabels(name=name))
    one = browser("read", "train")
    choices = one.get(f"/deployments/support?target={second}").text
    assert f'<option value="{second}" selected>Client questions, newer (' in choices
    deployments.deploy(home, ME, "support", second, canary=0.2)
    page = one.get("/deployments/support").text
    unjudged = '<span class="badge bad">not evaluated</span>'
    assert (
        f'<a href="/models/{first}">Client questions</a> {unjudged} <span class="hint mono">{first}</span></th>' in page
    )
    badge = '<span class="badge open">canary</span>'
    assert (
        f'<a href="/models/{second}">Client questions, newer</a> {badge} <span class="hint mono">{second}</span></th>'
        in page
    )
    assert 'aria-label="Share of Client questions, newer"' in page
    assert '<span class="share-line">Client questions <span class="muted">80\u202f%</span></span>' in page
    assert (
        '<span class="share-line">Client questions <span class="muted">80\u202f%</span></span>'
        in one.get("/deployments").text
    )
    assert "80\u202f% Client questions · 0 answers" in one.get("/").text
    one.post("/deployments/support/promote", data={"expected_revision": "2"})
    assert "Client questions, newer answers all users of support now." in one.get("/deployments/support").text


def test_who_comes_second_is_told_and_decides_anew(home: Context, browser: Browser) -> None:
    first, second = fill(home).runs
    ada = Caller(key_id="key-20261125-093000-aaaaaa", name="Ada")
    deployments.deploy(home, ada, "support", second, canary=0.2)
    one = browser("read", "train")
    data = {"target": second, "percent": "50", "expected_revision": "1"}
    answer = one.post("/deployments/support/deploy", data=data)
    assert answer.status_code == 409
    assert "is at revision 2, not at revision 1" in answer.text
    assert "You decided on revision 1. Now it is revision 2 (canary by Ada" in answer.text
    assert 'name="expected_revision" value="2"' in answer.text
    assert 'value="50"' in answer.text
    for form in ("promote", "rollback"):
        answer = one.post(f"/deployments/support/{form}", data={"expected_revision": "1"})
        assert answer.status_code == 409
        assert "You decided on revision 1." in answer.text
    assert shares(home) == {first: 0.8, second: 0.2}


def test_what_cannot_be_is_said_beside_the_form(home: Context, browser: Browser) -> None:
    first, second = fill(home).runs
    one = browser("read", "train")
    for data, status in (
        ({"target": first, "percent": "10"}, 409),
        ({"target": "nothing", "percent": "10"}, 404),
        ({"target": second, "percent": "0"}, 422),
        ({"target": second, "percent": "101"}, 422),
        ({"target": second, "percent": "much"}, 422),
        ({"target": "", "percent": "100"}, 404),
    ):
        answer = one.post("/deployments/support/deploy", data={"expected_revision": "1"} | data)
        assert answer.status_code == status, data
    for number, status in (("0", 422), ("1", 404)):
        data = {"target": first, "expected_revision": number}
        assert one.post("/deployments/nothing/deploy", data=data).status_code == status
    answer = one.post("/deployments/support/rollback", data={"expected_revision": "1"})
    assert answer.status_code == 409
    assert "has no revision before" in answer.text
    assert shares(home) == {first: 1.0}


def test_all_traffic_goes_over_with_100_percent(home: Context, browser: Browser) -> None:
    _, second = fill(home).runs
    data = {"target": second, "percent": "100", "expected_revision": "1"}
    assert browser("read", "train").post("/deployments/support/deploy", data=data).status_code == 303
    assert shares(home) == {second: 1.0}
    assert deployments.show_deployment(home, ME, "support").deployment.revision.kind == "deploy"


def test_both_sides_of_a_canary_are_beside_each_other_with_who_may_decide(home: Context, browser: Browser) -> None:
    from luthier.core.records.deployment import CanaryMeasure, CanaryWatch, SideValue
    from luthier.platform.auth.members import add_member

    _, second = fill(home).runs
    add_member(home, ME, "Ada <b>", "correct horse battery", "admin")
    add_member(home, ME, "Vera", "correct horse battery", "viewer")
    made = deployments.deploy(home, ME, "support", second, canary=0.25)
    reader, trainer = browser("read"), browser("read", "train")
    page = reader.get("/deployments/support").text
    assert "Not compared yet" in page
    assert 'disabled aria-describedby="why-not-promote">Promote the canary' in page
    assert "Trainers and admins of the project may promote it: Ada &lt;b&gt;." in page
    assert "Vera" not in page
    assert primary_buttons(browser("read", "infer").get("/deployments/support").text) == ["Promote the canary"]
    assert primary_buttons(browser("read", "train", "infer").get("/deployments/support").text) == ["Promote the canary"]
    page = trainer.get("/deployments/support").text
    assert 'action="/deployments/support/promote"' in page
    assert "Ada &lt;b&gt; (admin)" in page
    side = SideValue(value=0.031, low=0.01, high=0.06, num=1234, num_users=99)
    slow = SideValue(value=2.4, low=2.1, high=2.9, num=1200, num_users=90)
    measures = (
        CanaryMeasure(name="failures", title="Failed requests", unit="fraction", canary=side, rest=side, difference=0.0,
                      low=-0.02, high=0.02, finding="not distinguishable"),
        CanaryMeasure(name="seconds_p95", title="Latency", unit="s", canary=slow, rest=None, missing="needs 50 more"),
    )  # fmt: skip
    seen = CanaryWatch(
        project_id="default", name="support", canary=second, revision=made.revision.number, at=1e9, since=1e9,
        state="holding", sentence="no signal says so", measures=measures, summary="No difference so far.", next_at=300,
    )  # fmt: skip
    home.watches.put("default", "canary", "support", seen.model_dump_json())
    page = reader.get("/deployments/support").text
    for words in ("No difference so far.", "3.1%", "1,234 answers · 99 users", "not distinguishable", "needs 50 more"):
        assert words in page, words
    home.watches.put("default", "canary", "support", seen.model_copy(update={"revision": 1}).model_dump_json())
    assert "No difference so far." not in reader.get("/deployments/support").text, "that was another revision"


def test_a_comparison_is_begun_by_who_may_train(home: Context, browser: Browser, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    from luthier.features.deployments import canary_release

    _, second = fill(home).runs
    asked: list[object] = []
    monkeypatch.setattr(canary_release, "answer_to", lambda _, question, given: asked.append((question, given)) or {})
    one = browser("read", "train")
    assert one.post("/deployments/support/compare").status_code == 409, "there is no canary"
    deployments.deploy(home, ME, "support", second, canary=0.25)
    assert browser("read").post("/deployments/support/compare").status_code == 403
    assert one.post("/deployments/support/compare").status_code == 303
    from luthier.testing.servers import wait_for

    wait_for(lambda: asked == [("watch", {"models": [], "canaries": True})])


def test_of_two_admins_who_decide_one_canary_the_second_sees_what_the_first_did(
    home: Context, browser: Browser
) -> None:
    first, second = fill(home).runs
    deployments.deploy(home, ME, "support", second, canary=0.25)
    ada, ben = browser("admin"), browser("admin")
    form = {"expected_revision": "2"}
    assert ada.post("/deployments/support/promote", data=form).status_code == 303
    answer = ben.post("/deployments/support/rollback", data=form)
    assert answer.status_code == 409
    assert "You decided on revision 2. Now it is revision 3 (promote by k" in answer.text
    assert shares(home) == {second: 1.0}, "the first decision holds"
    assert first != second


def test_a_name_that_a_waiting_job_needs_is_not_removed_and_the_page_says_why(home: Context, browser: Browser) -> None:
    fill(home)
    document = {"asked": {"objective": {"name": "distillation", "teacher": "support"}}}
    home.jobs.submit(Job(job_id="job-1", kind="train", document=document, run_id="run-20261201-093000-0000aa"))
    one = browser("read", "train")
    answer = one.post("/deployments/support/remove")
    assert answer.status_code == 409
    assert "by 1 job that has not ended (run-20261201-093000-0000aa)" in answer.text
    german = one.post("/deployments/support/remove", headers={"accept-language": "de"}).text
    assert "von 1 Job, der nicht beendet ist (run-20261201-093000-0000aa)" in german
    home.jobs.ask("job-1", "cancel")
    assert one.post("/deployments/support/remove").headers["location"] == "/deployments"
    assert home.deployments.find("default", "support") is None
