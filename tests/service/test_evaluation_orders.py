"""Evaluations by a job: a worker with real processes, one result whatever is killed, and no path from afar."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from luthier.core.access import Caller
from luthier.core.errors import ConflictError, NotFoundError, RequestError
from luthier.core.task_result import SafetyResult, SuiteResult
from luthier.service import evaluation_orders, files, jobs, training
from luthier.service.audit_log import newest_entries
from luthier.service.context import Context
from luthier.service.evaluation_orders import OrderView
from luthier.service.models import pull_model
from luthier.service.project_assessments import read_safety, read_suite
from luthier.service.project_evaluations import read_evaluation
from luthier.service.recipes import load_recipe
from luthier.testing.finished_run import add_run

from .at_work import at_work, child_of, work
from .conftest import chat_row, write_rows

ME, STRANGER = Caller(), Caller(project_id="proj-other")
SUITE = """name: workshop
forgetting: false
tasks:
  - {{name: counting, kind: generate, data: {file}, metrics: [exact_match, token_f1], max_new_tokens: 4}}
"""


def shown(context: Context, order: OrderView) -> OrderView:
    return evaluation_orders.show_order(context, ME, order.job.job_id)


@pytest.fixture
def run(context: Context, make_recipe: Callable[..., Path], tiny_model: Path) -> str:
    """A tiny model that was really trained, without an evaluation of its own."""
    pull_model(context, str(tiny_model))
    path = make_recipe(data={"train": "train.jsonl", "validation": "valid.jsonl"})
    return training.train(context, load_recipe(path), base_dir=path.parent).record.run_id


@pytest.fixture
def rows(context: Context, tmp_path: Path) -> str:
    """Held-out rows as a file of the project."""
    path = write_rows(tmp_path / "held.jsonl", [chat_row(n) for n in range(300, 306)])
    return files.add_file(context, "default", path, filename="held out [1].jsonl", purpose="fine-tune").file_id


def test_rows_are_judged_and_the_verdict_stands_on_its_page(context: Context, run: str, rows: str) -> None:
    order = evaluation_orders.start(context, ME, "rows", run, file_id=rows, most_rows=4)
    assert (order.job.status, order.order.label) == ("queued", "held out [1].jsonl")
    assert [one.job.job_id for one in evaluation_orders.list_orders(context, ME)] == [order.job.job_id]
    work(context)
    view = shown(context, order)
    assert (view.job.status, view.job.error) == ("succeeded", None)
    found = read_evaluation(context, "default", order.order.result_id)
    assert found.num_rows == 4
    assert found.held_out_file == "held_out__1_.jsonl"
    assert [system.name for system in found.systems][-1] == run
    assert found.verdict is not None
    assert view.result_page == f"/evaluations/{found.evaluation_id}"
    assert evaluation_orders.list_orders(context, ME) == []
    told = [event.message for event in context.job_events.page(order.job.job_id)[0]]
    assert any("Evaluation" in message for message in told)
    assert "evaluation.started" in [one.action for one in newest_entries(context, limit=5)]


def test_a_suite_names_its_files_by_id(context: Context, run: str, rows: str) -> None:
    suite = evaluation_orders.keep_suite(context, ME, SUITE.format(file=rows))
    order = evaluation_orders.start(context, ME, "suite", run, file_id=suite.file_id)
    work(context)
    view = shown(context, order)
    assert (view.job.status, view.job.error) == ("succeeded", None)
    found = read_suite(context, "default", order.order.result_id)
    assert isinstance(found, SuiteResult)
    assert [task.name for task in found.tasks] == ["counting"]
    assert found.run_id == run
    assert str(context.home) not in found.model_dump_json()


def test_safety_is_a_job_too(context: Context, run: str) -> None:
    order = evaluation_orders.start(context, ME, "safety", run)
    work(context)
    view = shown(context, order)
    assert (view.job.status, view.job.error) == ("succeeded", None)
    assert isinstance(read_safety(context, "default", order.order.result_id), SafetyResult)
    assert view.result_page == f"/evaluations/safety/{order.order.result_id}"


def test_a_killed_attempt_begins_anew_and_leaves_one_result(context: Context, run: str, rows: str) -> None:
    order = evaluation_orders.start(context, ME, "rows", run, file_id=rows)
    job_id = order.job.job_id
    at_work(context, job_id, order.order.against[0], lambda: os.kill(child_of(context, job_id), signal.SIGKILL))
    view = shown(context, order)
    assert (view.job.status, view.job.attempt) == ("succeeded", 2)
    assert [one.evaluation_id for one in context.evaluations.list(run_id=run)] == [order.order.result_id]


def test_an_attempt_that_died_before_its_last_word_is_not_judged_again(context: Context, run: str, rows: str) -> None:
    order = evaluation_orders.start(context, ME, "rows", run, file_id=rows)
    from luthier.service.evaluation_job import carry_out

    assert carry_out(context, order.job).status == "succeeded"
    before = context.evaluations.get(order.order.result_id)
    assert carry_out(context, order.job).status == "succeeded"
    assert context.evaluations.get(order.order.result_id) == before


def test_rows_that_were_trained_on_end_the_job_with_the_reason(context: Context, run: str, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "seen.jsonl", [chat_row(n) for n in range(3)])
    file_id = files.add_file(context, "default", path, filename="seen.jsonl", purpose="fine-tune").file_id
    order = evaluation_orders.start(context, ME, "rows", run, file_id=file_id)
    work(context)
    view = shown(context, order)
    assert view.job.status == "failed"
    assert view.job.error is not None
    assert "stand in the training rows" in view.job.error["came"]
    assert str(context.home) not in json.dumps(view.job.error)
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
        ("name: x\ntasks:\n  - {name: a, kind: rubric, data: file-20261125-093000-1f2e3d}\n", "asks a judge"),
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
