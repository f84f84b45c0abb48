"""The list of runs, one run, its report, what it can be asked, and its curves for who watches."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html import unescape
from typing import Any

import pytest
from fastapi.testclient import TestClient

from luthier.core.access import Caller
from luthier.core.data_sources import SourceFile, SourcePlan
from luthier.core.data_stream import Bounds, StreamCounts, StreamPlan
from luthier.core.events import CheckpointSaved, RunEnded, RunStarted, ValidationDone, WarningRaised
from luthier.core.recipe import ObjectiveRecipe
from luthier.core.run import Fit, Remedy, StopCause
from luthier.core.tracking import TrackerPlan
from luthier.features.datasets.service import create_dataset, keep_rows
from luthier.features.models.store import TunedModel
from luthier.features.trackers.service import TrackerState, save_state
from luthier.platform.auth.service import create_project
from luthier.platform.home.context import Context
from luthier.platform.jobs.records import Job
from luthier.testing.records import (
    RUN_ID,
    add_run,
    events_of,
    make_evaluation,
    make_plan,
    make_record,
    make_result,
    make_step,
    tell,
)

Browser = Callable[..., TestClient]
HOSTILE = '"><img src=x onerror=alert(1)><script>alert(1)</script>\u202e'
HTMX = {"HX-Request": "true"}


def queue(home: Context, run_id: str = RUN_ID, project_id: str = "default", number: int = 1) -> Job:
    document = {"recipe": {"base_model": "tiny", "method": {"name": "lora"}, "data": {"train": "/secret/rows.jsonl"}}}
    job_id = f"job-20261125-093000-00000{number}"
    return home.jobs.submit(Job(job_id=job_id, kind="train", document=document, run_id=run_id, project_id=project_id))


def running(home: Context, num_done: int = 30, num_steps: int = 100) -> Job:
    """A run that a worker trains."""
    queue(home)
    job = home.jobs.claim("w")
    assert job is not None
    home.runs.create(make_record().model_copy(update={"num_steps": num_steps}), make_plan())
    tell(home, RUN_ID, events_of(1, num_done, num_steps, validate_every_steps=10))
    return job


def series_of(one: TestClient, after: int = 0, run_id: str = RUN_ID) -> dict[str, Any]:
    answer = one.get(f"/runs/{run_id}/series?after={after}")
    assert answer.status_code == 200, answer.text
    document: dict[str, Any] = answer.json()
    return document


def test_an_empty_list_says_how_to_begin_to_who_may(browser: Browser) -> None:
    assert "Nothing has been trained yet" in browser("read").get("/runs").text
    assert "/runs/new" not in browser("read").get("/runs").text
    assert "/runs/new" in browser("train", "read").get("/runs").text


def test_the_list_shows_what_was_is_and_will_be(home: Context, browser: Browser) -> None:
    running(home)
    done = add_run(home, "b")
    home.evaluations.save(make_evaluation(run_id=done))
    queue(home, "run-20261125-093000-cccccc", number=2)
    one = browser("read")
    text = one.get("/runs").text
    assert "30 of 100 steps" in text
    assert "1 ahead" in text
    assert "not distinguishable" in text
    assert "exact match" in text
    assert "data-moving" in text
    assert "/secret" not in text
    piece = one.get("/runs", headers=HTMX).text
    assert "<html" not in piece
    assert "30 of 100 steps" in piece


def test_the_list_is_sifted_and_paged(home: Context, browser: Browser) -> None:
    for number in range(30):
        home.runs.create(make_record(f"run-20261125-093000-0000{number:02}", status="succeeded"), make_plan())
    one = browser("read")
    first = one.get("/runs").text
    assert first.count('scope="row"') == 25
    older = unescape(first.split('rel="next"')[0].rsplit('href="', 1)[1].split('"')[0])
    assert one.get(older).text.count('scope="row"') == 5
    assert one.get("/runs?text=000007").text.count('scope="row"') == 1
    assert "No run matches" in one.get("/runs?status=failed").text
    assert one.get("/runs?status=nonsense&before=nonsense").text.count('scope="row"') == 25


def test_what_is_hostile_stays_text(home: Context, browser: Browser) -> None:
    record = make_record(status="running").model_copy(
        update={"base_model": HOSTILE, "method": "<script>alert(1)</script>"}
    )
    home.runs.create(record, make_plan())
    for event in (make_step(1), WarningRaised(step=1, code="overfitting", message=HOSTILE),
                  WarningRaised(step=1, code="other", message=HOSTILE)):  # fmt: skip
        home.runs.append(RUN_ID, event)
    fit = Fit(kind="unstable", seen=HOSTILE, remedies=(Remedy(text=HOSTILE, settings=(HOSTILE,)),))
    result = make_result().model_copy(update={"fit": fit, "stopped_because": HOSTILE})
    home.runs.update(RUN_ID, status="failed", stopped_because=HOSTILE, result=result)
    made = make_evaluation(run_id=RUN_ID)
    assert made.verdict is not None
    verdict = made.verdict.model_copy(update={"headline": HOSTILE, "caveats": (HOSTILE,)})
    home.evaluations.save(made.model_copy(update={"verdict": verdict}))
    file = keep_rows(home, Caller(), [b'{"text": "a"}\n'], "rows.jsonl")
    create_dataset(home, Caller(), '"><script>alert(1)</script>', file)
    home.runs.create(make_record("run-20261125-093000-bbbbbb"), make_plan(train_sha256=file.sha256))
    one = browser("read")
    other = "run-20261125-093000-bbbbbb"
    for path in ("/runs", f"/runs/{RUN_ID}", f"/runs/{other}", "/runs?text=%3Cscript%3Ealert",
                 f"/runs/compare?run={other}", f"/runs/compare?run={RUN_ID}&run={other}"):  # fmt: skip
        text = one.get(path).text
        assert "<script>alert" not in text, path
        assert "<img src=x" not in text, path
        assert "\u202e" not in text, path
        assert "<script>alert" in unescape(text), path


def test_a_run_that_waits_has_its_page(home: Context, browser: Browser) -> None:
    queue(home, "run-20261125-093000-bbbbbb", number=2)
    queue(home)
    one = browser("read", "train")
    text = one.get(f"/runs/{RUN_ID}").text
    assert "1 job is ahead of it" in text
    assert "rows.jsonl" in text
    assert "/secret" not in text
    assert series_of(one)["standing"] == "queued  1"
    assert series_of(one)["points"] == {}


def test_a_run_that_waits_is_called_after_its_dataset(home: Context, browser: Browser) -> None:
    rows = keep_rows(home, Caller(), [b'{"prompt": "a", "completion": "b"}\n'], "rows.jsonl")
    create_dataset(home, Caller(), "Client mails", rows)
    recipe = {"base_model": "tiny", "data": {"train": rows.file_id}}
    home.jobs.submit(Job(job_id="job-20261125-093000-aaaaaa", kind="train", run_id=RUN_ID, document={"recipe": recipe}))
    text = browser("read").get(f"/runs/{RUN_ID}").text
    assert "<h1>Client mails · tiny · " in text
    assert "Client mails v1" in text
    assert rows.file_id not in text


def test_a_run_that_trains(home: Context, browser: Browser) -> None:
    running(home)
    home.runs.append(RUN_ID, WarningRaised(step=30, code="overfitting", message="validation loss rises"))
    text = browser("read", "infer").get(f"/runs/{RUN_ID}").text
    for words in (
        "step 30 of 100",
        "about",
        "left",
        "Overfitting: it memorises its rows",
        "Training loss",
        "Checkpoint of 4.2",
    ):
        assert words in text
    for key in ("loss", "validation-rows", "checkpoint", "plan"):
        assert text.count(f'id="term-{key}"') == 1, "explained at its first use"
    assert text.count('<svg class="drawn"') >= 5
    assert text.count("<h1") == 1
    assert "asked" in text, "where values of the plan come from"
    assert "the recipe says so" in text


def test_what_may_be_asked_depends_on_who_asks_and_how_it_stands(home: Context, browser: Browser) -> None:
    job = running(home)
    viewer, trainer = browser("read", "infer"), browser("read", "train")
    for what in ("pause", "resume", "cancel"):
        assert f"/runs/{RUN_ID}/{what}" not in viewer.get(f"/runs/{RUN_ID}").text
        assert viewer.post(f"/runs/{RUN_ID}/{what}").status_code == 403
    text = trainer.get(f"/runs/{RUN_ID}").text
    assert [f"/runs/{RUN_ID}/{what}" in text for what in ("pause", "resume", "cancel")] == [True, False, True]
    answer = trainer.post(f"/runs/{RUN_ID}/pause")
    assert (answer.status_code, answer.headers["location"]) == (303, f"/runs/{RUN_ID}")
    assert "pausing" in trainer.get(f"/runs/{RUN_ID}").text
    refused = trainer.post(f"/runs/{RUN_ID}/resume")
    assert refused.status_code == 409
    assert "pausing" in refused.text
    home.jobs.finish(job.job_id, job.attempt, "paused")
    assert trainer.post(f"/runs/{RUN_ID}/resume").status_code == 303
    assert trainer.post(f"/runs/{RUN_ID}/cancel").status_code == 303
    assert home.jobs.get(job.job_id).status == "cancelled"
    assert [entry.action for entry in home.audit_log.newest(limit=3)] == ["job.cancel", "job.resume", "job.pause"]


def test_a_failed_one_says_what_came_what_was_expected_and_what_to_do(home: Context, browser: Browser) -> None:
    job = running(home)
    told = {"came": f"{home.home}/files/x: loss nan", "expected": "finite numbers", "do": "lower the rate"}
    home.jobs.finish(job.job_id, job.attempt, "failed", error=told)
    text = browser("read").get(f"/runs/{RUN_ID}").text
    for words in ("files/x: loss nan", "finite numbers", "lower the rate"):
        assert words in text
    assert str(home.home) not in text


def test_a_judged_one_shows_its_verdict_and_its_report(home: Context, browser: Browser) -> None:
    run_id = add_run(home, "a")
    home.evaluations.save(make_evaluation(run_id=run_id))
    one = browser("read")
    assert f"/runs/{run_id}/report" not in one.get(f"/runs/{run_id}").text
    assert one.get(f"/runs/{run_id}/report").status_code == 404
    page = f"<style>p {{color: red}}</style><p>in {home.home}/runs</p>"
    (home.settings.run_folder(run_id) / "report.html").write_text(page, encoding="utf-8")
    text = one.get(f"/runs/{run_id}").text
    assert "Cannot tell." in text
    assert "/evaluations/eval-20261125-093000-aaaaaa" in text
    verdict = text[text.index('id="verdict-title"') :]
    assert verdict.index("<svg") < verdict.index('id="action"') < verdict.index("Cannot tell.")
    assert 'class="verdict-title"' in text
    assert text.index('id="verdict-title"') < text.index('data-live="step"'), "the answer comes first"
    assert f"/runs/{run_id}/report" in text
    report = one.get(f"/runs/{run_id}/report")
    assert "script-src" not in report.headers["content-security-policy"]
    assert "default-src 'none'; style-src 'unsafe-inline'" in report.headers["content-security-policy"]
    assert str(home.home) not in report.text


@pytest.mark.parametrize(
    ("cause", "expected"),
    [("early_stopping", "stopped early"), ("budget", "stopped by its budget"), ("completed", "")],
)
def test_a_run_that_has_ended_before_its_last_step_says_why(
    home: Context, browser: Browser, cause: StopCause, expected: str
) -> None:
    job = running(home, 30, 100)
    ended = {"status": "succeeded", "stopped_because": "so it was", "stop_cause": cause}
    home.runs.update(
        RUN_ID, status="succeeded", stopped_because="so it was", result=make_result().model_copy(update=ended)
    )
    home.jobs.finish(job.job_id, job.attempt, "succeeded")
    text = browser("read").get(f"/runs/{RUN_ID}").text
    (left,) = re.findall('data-live="left">([^<]*)<', text)
    assert left.startswith(expected)
    assert bool(left) == bool(expected)
    assert "step 30 of 100" in text
    assert "data-progress" not in text, "nothing is in progress"


def test_snapshots_can_be_asked_by_who_may(home: Context, browser: Browser) -> None:
    job = running(home)
    for name, step in (("ft:tiny:default::abc", None), ("ft:tiny:default::abc:ckpt-step-20", 20)):
        home.tuned_models.add(
            TunedModel(model_id=name, project_id="default", job_id=job.job_id, run_id=RUN_ID, base_model="tiny",
                       adapter_path="/a", step=step, checkpoint_id=None if step is None else "c", metrics={})
        )  # fmt: skip
    asker, viewer = browser("read", "infer"), browser("read")
    assert "/playground?model=ft%3Atiny%3Adefault%3A%3Aabc%3Ackpt-step-20" in asker.get(f"/runs/{RUN_ID}").text
    assert "/playground" not in viewer.get(f"/runs/{RUN_ID}").text.split("<main")[1]


def test_those_of_other_projects_are_not_there(home: Context, browser: Browser) -> None:
    other = create_project(home, "Other")
    running(home)
    one = browser("admin", project=other.project_id)
    for path in ("", "/series", "/report"):
        assert one.get(f"/runs/{RUN_ID}{path}").status_code == 404
    for what in ("pause", "resume", "cancel"):
        assert one.post(f"/runs/{RUN_ID}/{what}").status_code == 404
    assert one.get(f"/runs/compare?run={RUN_ID}&run={RUN_ID}").status_code == 404
    assert RUN_ID not in one.get("/runs").text
    for unknown in ("nonsense", "run-1", "run-20261125-093000-ffffff"):
        assert one.get(f"/runs/{unknown}").status_code == 404


def test_the_watcher_gets_what_is_new(home: Context, browser: Browser) -> None:
    running(home)
    one = browser("read")
    first = series_of(one)
    assert first["is_whole"]
    assert [step for step, _ in first["points"]["loss"]["training"]] == list(range(1, 31))
    assert first["marks"] == [{"x": 30, "name": "best"}]
    german = one.get(f"/runs/{RUN_ID}/series", headers={"accept-language": "de"}).json()
    assert german["marks"] == [{"x": 30, "name": "beste"}]
    assert german["points"] == first["points"], "names of series are keys"
    assert first["words"]["step"] == "step 30 of 100"
    quiet = series_of(one, first["position"])
    assert (quiet["points"], quiet["is_more"], quiet["is_whole"]) == ({}, False, False)
    home.runs.append(RUN_ID, make_step(31, loss=0.5))
    home.runs.append(RUN_ID, ValidationDone(step=31, loss=0.75, num_trained_tokens=1, is_best=False, seconds=1))
    then = series_of(one, first["position"])
    assert then["points"]["loss"] == {"training": [[31, 0.5]], "validation": [[31, 0.75]]}
    assert then["is_more"]
    home.runs.truncate_after(RUN_ID, 20)
    home.runs.append(RUN_ID, RunStarted(from_step=20, num_steps=100))
    assert series_of(one, then["position"])["from_step"] == 20


def test_answers_to_a_watcher_are_packed_and_kept_by_nobody(home: Context, browser: Browser) -> None:
    running(home, 900, 1000)
    answer = browser("read").get(f"/runs/{RUN_ID}/series", headers={"Accept-Encoding": "gzip"})
    assert answer.headers["content-encoding"] == "gzip"
    assert answer.headers["cache-control"] == "no-store"
    assert json.loads(answer.content)["position"] > 0
    plain = browser("read").get(f"/runs/{RUN_ID}/series", headers={"Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers


def test_the_watcher_hears_of_the_end_once_all_is_told(home: Context, browser: Browser) -> None:
    job = running(home, 100, 100)
    one = browser("read")
    seen = series_of(one)
    home.runs.append(RUN_ID, RunEnded(step=100, status="succeeded", reason="all steps done"))
    home.runs.update(RUN_ID, status="succeeded", result=make_result())
    home.jobs.finish(job.job_id, job.attempt, "succeeded")
    end = series_of(one, seen["position"])
    assert (end["is_over"], end["is_more"]) == (True, True)
    piece = one.get(f"/runs/{RUN_ID}?part=now", headers=HTMX).text
    assert "<html" not in piece
    assert 'id="run-now"' in piece
    assert 'id="run-below" class="columns" hx-swap-oob="true"' in piece
    assert '<div id="rail" hx-swap-oob="true">' in piece, "the steps of the project have moved on, too"
    assert "The tuned model" in piece
    charts = one.get(f"/runs/{RUN_ID}?part=charts", headers=HTMX).text
    assert 'id="run-charts"' in charts
    assert "<html" not in charts


def test_a_watcher_whose_session_has_ended_is_led_to_the_sign_in(home: Context, browser: Browser) -> None:
    running(home)
    answer = browser().get(f"/runs/{RUN_ID}/series", headers={"Accept": "application/json"})
    assert answer.status_code == 401
    assert answer.headers["hx-redirect"].startswith("/sign-in")


@pytest.mark.parametrize("after", ["-1", "x", str(2**64)])
def test_a_position_that_is_none_is_refused(home: Context, browser: Browser, after: str) -> None:
    running(home)
    assert browser("read").get(f"/runs/{RUN_ID}/series?after={after}").status_code == 422


def test_places_of_the_machine_are_not_shown(home: Context, browser: Browser) -> None:
    running(home)
    home.runs.append(RUN_ID, CheckpointSaved(step=30, path=f"{home.home}/runs/x", num_bytes=10))
    home.runs.append(RUN_ID, WarningRaised(step=30, code="a", message=f"{home.home}/runs/x is broken"))
    assert str(home.home) not in browser("read").get(f"/runs/{RUN_ID}").text


def test_a_page_says_what_trackers_have_and_names_no_folder(browser: Browser, home: Context) -> None:
    trackers = (TrackerPlan(name="mlflow", project="mails"), TrackerPlan(name="tensorboard", project="mails"))
    record = make_record(status="succeeded", result=make_result())
    home.runs.create(record, make_plan().model_copy(update={"tracking": trackers}))
    folder = home.settings.run_folder(RUN_ID)
    url = "http://host:5000/#/experiments/1"
    save_state(folder, TrackerState(name="mlflow", status="delivered", url=url, num_events=12))
    error = f"OSError: {folder}/x {HOSTILE}"
    save_state(folder, TrackerState(name="tensorboard", url=str(folder), error=error))
    text = browser("read").get(f"/runs/{RUN_ID}").text
    assert f'<a href="{url}" rel="noreferrer">MLflow</a>' in text
    assert "12 events" in text
    assert f"luthier runs track {RUN_ID}" in text
    assert str(home.home) not in text
    assert "<script>alert" not in text


def test_the_rest_is_delivered_by_a_job_of_the_project(browser: Browser, home: Context) -> None:
    tracked = make_plan().model_copy(update={"tracking": (TrackerPlan(name="mlflow", project="mails"),)})
    home.runs.create(make_record(status="succeeded", result=make_result()), tracked)
    address = f"/runs/{RUN_ID}/track"
    other = create_project(home, "Other")
    assert browser("train", project=other.project_id).post(address).status_code == 404
    assert browser("read").post(address).status_code == 403
    assert home.jobs.list(limit=9) == []
    one = browser("read", "train")
    assert "Deliver what is missing" in one.get(f"/runs/{RUN_ID}").text
    assert one.post(address).status_code == 303
    (job,) = home.jobs.list(limit=9)
    assert (job.kind, job.lane, job.document) == ("tracking", "remote", {"tracking": {"run_id": RUN_ID}})
    assert home.audit_log.newest(limit=1)[0].action == "run.tracked"
    assert "is being delivered already" in unescape(one.post(address).text)
    assert len(home.jobs.list(limit=9)) == 1
    save_state(home.settings.run_folder(RUN_ID), TrackerState(name="mlflow", status="delivered"))
    assert "Deliver what is missing" not in one.get(f"/runs/{RUN_ID}").text
    assert "are up to date" in unescape(one.post(address).text)


def test_the_sources_of_the_rows_are_shown_as_the_plan_prints_them(home: Context, browser: Browser) -> None:
    plan = make_plan()
    sources = tuple(
        SourcePlan(
            split="train",
            name=name,
            path=f"/secret/{name}.jsonl",
            files=(SourceFile(name=f"{name}.jsonl", sha256="0" * 64, num_bytes=9, num_rows=900),),
            first_row=1 + 900 * number,
            num_rows=900,
            weight=weight,
            num_epoch_rows=495,
        )
        for number, (name, weight) in enumerate((("orders", 3.0), ("faq", 0.5)))
    )
    data = plan.data.model_copy(update={"sources": sources})
    record = make_record(status="succeeded", result=make_result())
    home.runs.create(record, plan.model_copy(update={"data": data}))
    page = browser("read").get(f"/runs/{RUN_ID}").text
    for source in sources:
        assert source.summary in page
    assert "orders: 900 rows, weight 3: 495 rows in an epoch" in page
    assert "/secret" not in page


def test_streamed_rows_are_shown_with_their_interval_and_what_was_read(home: Context, browser: Browser) -> None:
    plan = make_plan()
    source = SourcePlan(
        split="train",
        name="talks",
        path="hub:org/talks?signature=secret",
        revision="0" * 40,
        files=tuple(SourceFile(name=f"{n}.jsonl", sha256="", num_bytes=9, num_rows=0) for n in range(3)),
        first_row=1,
        num_rows=0,
        is_streamed=True,
    )
    stream = StreamPlan(
        shuffle_buffer=10,
        num_shards=3,
        num_bytes=27,
        num_sampled=100,
        dropped_fraction=Bounds(0, 0.037),
        truncated_fraction=Bounds(0, 0.037),
        num_rows=Bounds(2900, 3100),
    )
    counts = StreamCounts(num_rows=800, num_examples=797, num_dropped=3, dropped_ids=("0.jsonl:7",))
    data = plan.data.model_copy(update={"sources": (source,), "stream": stream})
    result = make_result().model_copy(update={"stream": counts})
    home.runs.create(make_record(status="succeeded", result=result), plan.model_copy(update={"data": data}))
    page = browser("read").get(f"/runs/{RUN_ID}").text
    assert "3 files, shuffle buffer of 10 rows; about 2,900 to 3,100 rows (95% interval)" in page
    assert "800 rows were streamed (0 whole epochs); 3 dropped as too long (0.jsonl:7 and 2 more)" in page
    assert f"talks (hub:org/talks): 3 files, streamed, {'0' * 40}" in page
    assert "secret" not in page


def test_a_run_with_plug_ins_that_the_server_does_not_have_is_shown(home: Context, browser: Browser) -> None:
    """As one of a script that registered its own objective and metric: no other process knows them."""
    plan, name = make_plan(), "focal_of_a_script"
    changes = {
        "objective": plan.objective.model_copy(update={"name": name}),
        "evaluation": plan.evaluation.model_copy(update={"metrics": (name,)}),
        "recipe": plan.recipe.model_copy(update={"objective": ObjectiveRecipe.model_construct(name=name)}),
    }
    record = make_record(status="succeeded", result=make_result())
    home.runs.create(record, plan.model_copy(update=changes))
    tell(home, RUN_ID, [make_step(1)])
    one = browser("read")
    answer = one.get(f"/runs/{RUN_ID}")
    assert answer.status_code == 200
    assert name in answer.text
    assert one.get("/runs").status_code == 200
    assert one.get(f"/runs/{RUN_ID}?part=charts", headers=HTMX).status_code == 200
    assert series_of(one)["points"]
