"""The home page: the way for a fresh home, what goes on in one that is used, and nothing of another project."""

from __future__ import annotations

from collections.abc import Callable

from fastapi.testclient import TestClient
from sqlalchemy import event
from sqlalchemy.engine import Engine

from luthier.core.access import Caller
from luthier.core.ids import new_id
from luthier.features.datasets.service import keep_rows
from luthier.features.datasets.store import Dataset, DatasetVersion
from luthier.features.deployments.service import deploy
from luthier.platform.auth.service import create_project
from luthier.platform.home.context import Context
from luthier.platform.jobs.records import Job
from luthier.testing.records import add_run, make_evaluation, make_plan, make_record, make_step

Browser = Callable[..., TestClient]
HOSTILE = '<script>alert(1)</script>"><img src=x onerror=alert(1)>\u202e'
SHOWN = "&lt;script&gt;alert(1)&lt;/script&gt;&#34;&gt;&lt;img src=x onerror=alert(1)&gt;\u27e8U+202E\u27e9"
FRAGMENT = {"HX-Request": "true"}


def queue(home: Context, *, project_id: str = "default", base_model: str = "tiny") -> Job:
    job = Job(
        job_id=new_id("job"),
        kind="train",
        document={"base_model": base_model},
        run_id=new_id("run"),
        project_id=project_id,
    )
    return home.jobs.submit(job)


def test_pages_of_a_fresh_home_read_nothing_about_no_runs(home: Context, browser: Browser) -> None:
    asked: list[str] = []
    one = browser("read", "train")
    one.get("/")

    def note(_connection: object, _cursor: object, statement: str, *_others: object) -> None:
        asked.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    try:
        for path in ("/", "/runs", "/evaluations", "/models"):
            assert one.get(path).status_code == 200
    finally:
        event.remove(Engine, "before_cursor_execute", note)
    assert asked
    # What SQLAlchemy writes for `IN ()`.
    assert [one for one in asked if "1!=1" in "".join(one.split())] == []


def test_a_fresh_home_teaches_the_way(browser: Browser) -> None:
    page = browser("admin").get("/").text
    links = ("/datasets/new", "/start", "/evaluations", "/playground", "/monitor")
    places = [page.index(f'href="{link}">', page.index("first-steps")) for link in links]
    assert places == sorted(places), "in the order of the steps"
    for scopes, words in (
        (("read",), "A member with the role trainer can do this step."),
        (("read", "train"), "the scope infer"),
    ):
        assert words in browser(*scopes).get("/").text
    assert "/start" not in browser("read").get("/").text
    assert page.count('class="button primary') == 1, "one thing to do first"


def test_who_may_not_look_is_led_to_what_is_theirs(browser: Browser) -> None:
    assert browser("infer").get("/").headers["location"] == "/playground"
    assert browser("train").get("/").headers["location"] == "/start"
    assert browser("infer").get("/home/now").status_code == 403


def test_what_runs_and_what_waits(home: Context, browser: Browser) -> None:
    one = browser("read")
    first, second = queue(home), queue(home, base_model="/somewhere/on/this/machine/qwen")
    page = one.get("/home/now", headers=FRAGMENT).text
    assert page.index(first.run_id) < page.index(second.run_id), "first come, first served"
    assert "/somewhere" not in page
    assert "Nothing is running right now." in page
    assert 'data-at-work=""' in page
    home.jobs.claim("w")
    page = one.get("/home/now", headers=FRAGMENT).text
    assert "preparing" in page
    assert f'data-at-work="{first.job_id}"' in page
    record = make_record(first.run_id, status="running").model_copy(update={"step": 4})
    home.runs.create(record, make_plan())
    home.runs.append(first.run_id, make_step(4, loss=1.25))
    page = one.get("/home/now", headers=FRAGMENT).text
    assert '<progress value="4" max="10"' in page
    assert "1.25" in page
    assert "about 1.5\N{NO-BREAK SPACE}s left" in page, "six steps of a quarter of a second"
    assert "<html" not in page


def test_verdicts_runs_datasets_and_deployments(home: Context, browser: Browser) -> None:
    run_id = add_run(home, "a")
    evaluation = make_evaluation(run_id=run_id)
    assert evaluation.verdict is not None
    verdict = evaluation.verdict.model_copy(update={"headline": HOSTILE})
    home.evaluations.save(evaluation.model_copy(update={"verdict": verdict}))
    file = keep_rows(home, Caller(), [b"{}"], "a.jsonl")
    dataset_id = new_id("dataset")
    home.datasets.add(
        Dataset(dataset_id=dataset_id, project_id="default", name=HOSTILE),
        DatasetVersion(
            dataset_id=dataset_id,
            number=1,
            file_id=file.file_id,
            filename=file.filename,
            sha256=file.sha256,
            num_bytes=file.num_bytes,
            num_rows=1500,
            origin="upload",
        ),
    )
    deploy(home, Caller(), "support", run_id)
    page = browser("read").get("/").text
    for found in (
        f'/evaluations/{evaluation.evaluation_id}">{SHOWN}</a>',
        '0.50</span> <span class="interval">[0.25, 0.75]</span> <span class="unit">fraction</span>',
        f'/runs/{run_id}"',
        f'/datasets/{dataset_id}">{SHOWN}</a>',
        "1,500 rows",
        '/deployments/support"',
        "100",
        "free of",
    ):
        assert found in page, found
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert 'href="/runs/new"' not in page, "a reader trains nothing"


def test_nothing_of_another_project_is_shown(home: Context, browser: Browser) -> None:
    mine = create_project(home, "mine")
    job = queue(home, project_id=mine.project_id)
    other = add_run(home, "b")
    home.evaluations.save(make_evaluation(run_id=other))
    home.runs.create(make_record(job.run_id, status="succeeded"), make_plan())
    own, default = browser("read", project="mine").get("/").text, browser("read").get("/").text
    assert job.run_id in own
    assert other not in own
    assert "No run has been evaluated yet." in own
    assert other in default
    assert job.run_id not in default


def test_work_without_a_run_leads_to_its_own_page(home: Context, browser: Browser) -> None:
    for number, kind in enumerate(("batch", "import")):
        document = {"batch_id": "batch_1"} if kind == "batch" else {}
        home.jobs.submit(Job(job_id=f"job-{number}", kind=kind, document=document, run_id=""))  # type: ignore[arg-type]
    home.jobs.claim("w")
    page = browser("read").get("/").text
    assert '<a href="/batches/batch_1"><strong>Batch</strong></a>' in page
    assert '<a href="/datasets/jobs/job-1">Import</a>' in page
