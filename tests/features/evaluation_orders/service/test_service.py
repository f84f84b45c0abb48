"""Evaluations by a job: a worker with real processes, one result whatever is killed, and no path from afar."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.fixtures.at_work import at_work, child_of
from tests.fixtures.service import chat_row, write_rows

from luthier.core.access import Caller
from luthier.core.errors import ConflictError, NotFoundError, RequestError
from luthier.core.ids import sha256_file
from luthier.core.plan import DataPlan
from luthier.core.results.suite import SafetyResult, SuiteResult
from luthier.features.assessments.service import read_safety, read_suite
from luthier.features.evaluation_orders import service as evaluation_orders
from luthier.features.evaluation_orders.job import carry_out
from luthier.features.evaluation_orders.service import OrderView
from luthier.features.models.service import pull_model
from luthier.features.recipes.service import load_recipe
from luthier.features.runs.views import read_evaluation
from luthier.features.training import jobs
from luthier.ml.inference.decode import Decoder
from luthier.ml.inference.models import sources
from luthier.ml.inference.stored_answers import AnswerFile
from luthier.platform.audit_log.service import newest_entries
from luthier.platform.files import service as files
from luthier.platform.home.context import Context
from luthier.platform.processes.process import Outcome
from luthier.testing.records import add_run, make_plan, make_profile, make_record, make_result

ME, STRANGER = Caller(), Caller(project_id="proj-other")
SUITE = """name: workshop
forgetting: false
tasks:
  - {{name: counting, kind: generate, data: {file}, metrics: [exact_match, token_f1], max_new_tokens: 4}}
"""


def carried_out(context: Context, order: OrderView) -> Outcome:
    """The same attempt in this process: what a worker's child does, without the time that it takes to start."""
    quiet = context.progress
    try:
        return carry_out(context, order.job)
    finally:
        context.progress = quiet


def shown(context: Context, order: OrderView) -> OrderView:
    return evaluation_orders.show_order(context, ME, order.job.job_id)


@pytest.fixture
def run(context: Context, make_recipe: Callable[..., Path], tiny_model: Path) -> str:
    """A run whose outcome is a whole tiny model that can be asked, over a base that is here; nothing was trained."""
    pull_model(context, str(tiny_model))
    base = sources.local_models(context.home)[0]
    recipe = load_recipe(make_recipe())
    train = Path(recipe.data.train)
    profile = make_profile(sha256_file(train)).model_copy(update={"file": str(train)})
    plan = make_plan()
    model = plan.base_model.model_copy(update={"name": base.name, "path": base.path, "sha256": base.sha256})
    run_id = "run-20261125-093000-dddddd"
    folder = context.settings.run_folder(run_id) / "model"
    shutil.copytree(tiny_model, folder)
    result = make_result().model_copy(update={"adapter_path": str(folder), "adapter_sha256": None})
    made = plan.model_copy(update={"recipe": recipe, "base_model": model, "data": DataPlan(train=profile)})
    context.runs.create(make_record(run_id, status="succeeded", result=result), made)
    return run_id


@pytest.fixture
def rows(context: Context, tmp_path: Path) -> str:
    """Held-out rows as a file of the project."""
    path = write_rows(tmp_path / "held.jsonl", [chat_row(n) for n in range(300, 306)])
    return files.add_file(context, "default", path, filename="held out [1].jsonl", purpose="fine-tune").file_id


def test_rows_are_judged_and_the_verdict_stands_on_its_page(context: Context, run: str, rows: str) -> None:
    order = evaluation_orders.start(context, ME, "rows", run, file_id=rows, most_rows=4)
    assert (order.job.status, order.order.label) == ("queued", "held out [1].jsonl")
    assert [one.job.job_id for one in evaluation_orders.list_orders(context, ME)] == [order.job.job_id]
    outcome = carried_out(context, order)
    assert (outcome.status, outcome.error) == ("succeeded", None)
    found = read_evaluation(context, "default", order.order.result_id)
    assert found.num_rows == 4
    assert found.held_out_file == "held out [1].jsonl"
    assert [system.name for system in found.systems][-1] == run
    assert found.verdict is not None
    assert shown(context, order).result_page == f"/evaluations/{found.evaluation_id}"
    told = [event.message for event in context.job_events.page(order.job.job_id)[0]]
    assert any(run in message for message in told), "it tells how far it is"
    assert carried_out(context, order).status == "succeeded", "an attempt that died before its last word"
    assert context.evaluations.get(order.order.result_id).created_at == found.created_at, "is not evaluated again"
    assert len(context.evaluations.list(run_id=run)) == 1
    assert "evaluation.started" in [one.action for one in newest_entries(context, limit=5)]


def test_a_suite_names_its_files_by_id(context: Context, run: str, rows: str) -> None:
    suite = evaluation_orders.keep_suite(context, ME, SUITE.format(file=rows))
    order = evaluation_orders.start(context, ME, "suite", run, file_id=suite.file_id)
    outcome = carried_out(context, order)
    assert (outcome.status, outcome.error) == ("succeeded", None)
    found = read_suite(context, "default", order.order.result_id)
    assert isinstance(found, SuiteResult)
    assert [task.name for task in found.tasks] == ["counting"]
    assert found.run_id == run
    assert str(context.home) not in found.model_dump_json()


def test_safety_is_a_job_too(context: Context, run: str) -> None:
    order = evaluation_orders.start(context, ME, "safety", run)
    outcome = carried_out(context, order)
    assert (outcome.status, outcome.error) == ("succeeded", None)
    assert isinstance(read_safety(context, "default", order.order.result_id), SafetyResult)
    assert shown(context, order).result_page == f"/evaluations/safety/{order.order.result_id}"


def test_an_attempt_goes_on_behind_the_answers_of_the_one_before(
    context: Context, run: str, rows: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = evaluation_orders.start(context, ME, "rows", run, file_id=rows)
    carried_out(context, whole)
    expected = read_evaluation(context, "default", whole.order.result_id)
    order = evaluation_orders.start(context, ME, "rows", run, file_id=rows)
    keep, num_kept = AnswerFile.keep, list[int]()

    def die_behind(self: AnswerFile, call: str, new: Mapping[int, Any]) -> None:
        keep(self, call, new)
        num_kept.append(len(new))
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(AnswerFile, "keep", die_behind)
        with pytest.raises(KeyboardInterrupt):
            carried_out(context, order)
    assert num_kept == [6], "the base has answered"
    written: list[int] = []
    write = Decoder.run

    def counted(self: Decoder, requests: Any, *more: Any) -> Any:
        written.append(len(requests))
        return write(self, requests, *more)

    monkeypatch.setattr(Decoder, "run", counted)
    second = replace(order, job=order.job.model_copy(update={"attempt": 2}))
    assert carried_out(context, second).status == "succeeded"
    assert written == [6], "the candidate alone"
    found = read_evaluation(context, "default", order.order.result_id)
    assert found.verdict is not None
    assert expected.verdict is not None
    assert found.verdict.word == expected.verdict.word
    # The sentences of the verdict name measured times.
    changing = {"evaluation_id", "created_at", "seconds", "verdict"}
    assert without(found.model_dump(), changing) == without(expected.model_dump(), changing)
    told = [event.message for event in context.job_events.page(order.job.job_id)[0]]
    assert "Continuing after 6 answers of an earlier attempt" in told
    assert not list((context.settings.jobs_folder / order.job.job_id).glob("answers*")), "the result has them"


@pytest.mark.parametrize("is_running", [True, False])
def test_nothing_is_left_of_the_answers_of_a_cancelled_job(
    context: Context, run: str, rows: str, monkeypatch: pytest.MonkeyPatch, is_running: bool
) -> None:
    order = evaluation_orders.start(context, ME, "rows", run, file_id=rows)
    job_id, keep, num_there = order.job.job_id, AnswerFile.keep, list[int]()
    kept = evaluation_orders.answers_file(context, job_id)
    if is_running:
        held = context.jobs.claim("w")
        assert held is not None
        assert held.job_id == job_id

    def stop_behind(self: AnswerFile, call: str, new: Mapping[int, Any]) -> None:
        keep(self, call, new)
        num_there.append(AnswerFile(kept).num_answers)
        if is_running:
            evaluation_orders.cancel(context, ME, job_id)
        raise SystemExit(143)  # as SIGTERM does

    monkeypatch.setattr(AnswerFile, "keep", stop_behind)
    with pytest.raises(SystemExit):
        carried_out(context, order)
    assert num_there == [6]
    # A server that shuts down has the job run again, behind its answers.
    assert kept.exists() == (not is_running)
    if not is_running:
        evaluation_orders.cancel(context, ME, job_id)
    assert not kept.exists()


def without(document: Any, names: set[str]) -> Any:
    """A document without fields of these names and without times."""
    if isinstance(document, dict):
        return {
            key: without(value, names) for key, value in document.items() if key not in names and "second" not in key
        }
    return [without(one, names) for one in document] if isinstance(document, list | tuple) else document


@pytest.mark.drill
def test_a_killed_attempt_begins_anew_and_leaves_one_result(context: Context, run: str, rows: str) -> None:
    order = evaluation_orders.start(context, ME, "rows", run, file_id=rows)
    job_id = order.job.job_id
    at_work(context, job_id, order.order.against[0], lambda: os.kill(child_of(context, job_id), signal.SIGKILL))
    view = shown(context, order)
    assert (view.job.status, view.job.attempt) == ("succeeded", 2)
    assert [one.evaluation_id for one in context.evaluations.list(run_id=run)] == [order.order.result_id]


def test_rows_that_were_trained_on_end_the_job_with_the_reason(context: Context, run: str, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "seen.jsonl", [chat_row(n) for n in range(3)])
    file_id = files.add_file(context, "default", path, filename="seen.jsonl", purpose="fine-tune").file_id
    order = evaluation_orders.start(context, ME, "rows", run, file_id=file_id)
    outcome = carried_out(context, order)
    assert outcome.status == "failed"
    assert outcome.error is not None
    assert "are in the training rows" in outcome.error["came"]
    assert str(context.home) not in json.dumps(outcome.error)
    held = context.jobs.claim("w")
    assert held is not None
    context.jobs.finish(held.job_id, held.attempt, "failed", outcome.error)
    assert [one.job.status for one in evaluation_orders.list_orders(context, ME)] == ["failed"]
    evaluation_orders.retry(context, ME, order.job.job_id)
    assert shown(context, order).job.status == "queued"
    evaluation_orders.cancel(context, ME, order.job.job_id)
    assert shown(context, order).job.status == "cancelled"
    with pytest.raises(ConflictError):
        evaluation_orders.cancel(context, ME, order.job.job_id)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: x\ntasks: []\n", "holds no tasks"),
        ("just text", "holds no tasks"),
        ("a: &x 1\nb: *x\n", "repeats a part"),
        ("name: x\ntasks:\n  - {name: a, kind: generate, data: /etc/passwd}\n", "'/etc/passwd'"),
        ("name: x\ntasks:\n  - {name: a, kind: generate, data: ../../luthier.db}\n", "'../../luthier.db'"),
        ("name: x\ntasks:\n  - {name: a, kind: lm_eval, task: evil.yaml}\n", "lm_eval"),
        ("name: x\ntasks:\n  - {name: a, kind: code, data: file-20261125-093000-1f2e3d}\n", "runs code"),
        ("name: x\ntasks:\n  - {name: a, kind: rubric, data: file-20261125-093000-1f2e3d}\n", "uses a judge"),
        ("name: x\ntasks:\n  - {name: a, kind: sql, data: x, database: /tmp/a.db}\n", "database|data is"),
        ("name: x\ntasks:\n  - {name: a, kind: json, json_schema: /etc/passwd, data: x}\n", "data is"),
    ],
)
def test_a_suite_from_afar_names_no_path_and_runs_no_code(context: Context, text: str, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        evaluation_orders.keep_suite(context, ME, text)
    assert files.list_files(context, "default", limit=5)[0] == []


def test_what_cannot_be_asked_for(context: Context, rows: str) -> None:
    run, running = add_run(context, "a"), add_run(context, "b", status="running")
    for candidate, kind, file_id, error in (
        ("smollm2-135m-instruct", "safety", None, RequestError),
        ("/etc", "safety", None, RequestError),
        ("http://127.0.0.1:1/v1#m", "safety", None, RequestError),
        ("run-20261125-093000-000000", "safety", None, NotFoundError),
        (running, "safety", None, ConflictError),
        (run, "suite", None, RequestError),
        (run, "suite", "../../x", RequestError),
        (run, "suite", "file-20261125-093000-000000", NotFoundError),
    ):
        with pytest.raises(error):
            evaluation_orders.start(context, ME, kind, candidate, file_id=file_id)  # type: ignore[arg-type]
    for against in ("http://127.0.0.1:1/v1#m", "/etc/passwd", "../models", "no-such-model"):
        with pytest.raises(NotFoundError):
            evaluation_orders.start(context, ME, "safety", run, against=[against])
    others = [add_run(context, letter) for letter in "cd"]
    with pytest.raises(RequestError, match="2 models to compare it with"):
        evaluation_orders.start(context, ME, "safety", run, against=others)
    assert evaluation_orders.start(context, ME, "safety", run, against=[*others[:1], run]).order.against == (others[0],)
    context.access.add_project("proj-other", "other")
    with pytest.raises(NotFoundError):
        evaluation_orders.start(context, STRANGER, "safety", run)
    order = evaluation_orders.start(context, ME, "safety", run)
    for do in (evaluation_orders.show_order, evaluation_orders.cancel, evaluation_orders.retry):
        with pytest.raises(NotFoundError):
            do(context, STRANGER, order.job.job_id)
    assert evaluation_orders.list_orders(context, STRANGER) == []
    with pytest.raises(ConflictError, match="evaluation"):
        jobs.ask(context, order.job.job_id, "pause")


SQL = """name: workshop
forgetting: false
tasks:
  - {{name: queries, kind: sql, data: {file}, database_field: db, max_new_tokens: 4}}
"""
STEAL = "SELECT json_extract('{}', (SELECT name FROM projects LIMIT 1))"
SHOP = "CREATE TABLE t(a TEXT); INSERT INTO t VALUES ('a secret of the row');"


def judged_by_sql(context: Context, tmp_path: Path, run: str, queries: list[tuple[str, str]]) -> Outcome:
    """What becomes of a suite whose rows name these databases and ask these queries."""
    rows = [{"prompt": f"Query {n}", "completion": sql, "db": db} for n, (db, sql) in enumerate(queries)]
    path = write_rows(tmp_path / "queries.jsonl", rows)
    data = files.add_file(context, "default", path, filename="queries.jsonl", purpose="fine-tune").file_id
    suite = evaluation_orders.keep_suite(context, ME, SQL.format(file=data))
    return carried_out(context, evaluation_orders.start(context, ME, "suite", run, file_id=suite.file_id))


@pytest.mark.parametrize("named", ["database", "link", "url", "relative", "passwd", "other project"])
def test_rows_of_a_suite_name_no_file_of_the_server(context: Context, run: str, tmp_path: Path, named: str) -> None:
    link = tmp_path / "link.db"
    link.symlink_to(context.settings.database_path)
    context.access.add_project("proj-other", "a secret name")
    # A copy by SQLite: it has what is in the write-ahead log, and takes no lock of the open database away.
    ours = sqlite3.connect(context.settings.database_path)
    with closing(ours), closing(sqlite3.connect(tmp_path / "x.db")) as copy:
        ours.backup(copy)
    theirs = files.add_file(context, "proj-other", tmp_path / "x.db", filename="x.db", purpose="user_data").file_id
    places = {
        "database": str(context.settings.database_path),
        "link": str(link),
        "url": f"file:{context.settings.database_path}",
        "relative": "../../../luthier.db",
        "passwd": "/etc/passwd",
        "other project": theirs,
    }
    outcome = judged_by_sql(context, tmp_path, run, [(places[named], STEAL)])
    assert outcome.status == "failed"
    assert outcome.error is not None
    assert outcome.error["expected"] == "the id of a file of this project, such as file-20261125-093000-1f2e3d"
    said = json.dumps(outcome.error)
    assert not any(secret in said for secret in ("secret name", "no such table", "JSON path"))


def test_rows_of_a_suite_name_databases_of_their_project(context: Context, run: str, tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "shop.db") as database:
        database.executescript(SHOP)
    database.close()
    mine = files.add_file(context, "default", tmp_path / "shop.db", filename="shop.db", purpose="user_data").file_id
    outcome = judged_by_sql(context, tmp_path, run, [(mine, "SELECT a FROM t"), (SHOP, "SELECT a FROM t")])
    assert (outcome.status, outcome.error) == ("succeeded", None)


def test_an_error_of_sqlite_carries_no_value_out(context: Context, run: str, tmp_path: Path) -> None:
    steal = "SELECT json_extract('{}', (SELECT a FROM t))"
    outcome = judged_by_sql(context, tmp_path, run, [(SHOP, steal), (SHOP, "SELECT absent FROM t")])
    said = json.dumps(outcome.error)
    assert "fails while it runs: OperationalError" in said
    assert "no such column: absent" in said, "what quotes the query alone is shown"
    assert "JSON path" not in said
    assert "secret of the row" not in said
