"""Runs as lines of a list: what is known of each, and of no other project."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.vacuous import nonempty

from luthier.core.access import Caller
from luthier.core.errors import NotFoundError, RequestError
from luthier.features.datasets.service import add_version, create_dataset, keep_rows
from luthier.features.evaluations.store import EvaluationStore
from luthier.features.runs import views as project_runs
from luthier.features.runs.entries_store import RunEntryStore
from luthier.features.runs.state import EvaluationCache, asked_of, page_of_runs
from luthier.platform.auth.service import create_project
from luthier.platform.home.context import Context
from luthier.platform.jobs.records import Job
from luthier.testing.records import RUN_ID, add_run, events_of, make_evaluation, make_plan, make_record, tell

OWN = Caller()


def test_a_line_says_what_was_trained_on_what_and_how_it_was_judged(context: Context) -> None:
    file = keep_rows(context, OWN, [b'{"text": "a"}\n'], "rows.jsonl")
    dataset, _ = create_dataset(context, OWN, "Mine", file)
    add_version(context, OWN, dataset.dataset_id, file, origin="upload", parent=None)
    context.runs.create(make_record().model_copy(update={"num_steps": 20}), make_plan(train_sha256=file.sha256))
    tell(context, RUN_ID, events_of(1, 20, 20))
    context.evaluations.save(make_evaluation("eval-20261125-093000-aaaaaa", run_id=RUN_ID, value=0.1))
    context.evaluations.save(make_evaluation("eval-20261125-093000-bbbbbb", run_id=RUN_ID, value=0.7))
    (row,) = page_of_runs(context, OWN, EvaluationCache(context)).rows
    assert row.dataset is not None
    assert (row.dataset.name, row.dataset.version, row.dataset.dataset_id) == ("Mine", 2, dataset.dataset_id)
    assert (row.base_model, row.method, row.train_file) == ("tiny", "lora", "train.jsonl")
    assert row.main_metric is not None
    assert row.main_metric.value == 0.7, "of the last evaluation"
    assert row.judged is not None
    assert all(nonempty(system.samples == () for system in row.judged.systems))
    assert row.bill is not None
    assert row.loss is not None


def test_a_waiting_one_names_its_dataset_by_the_file_that_was_asked_for(context: Context) -> None:
    file = keep_rows(context, OWN, [b'{"text": "a"}\n'], "rows.jsonl")
    create_dataset(context, OWN, "Mine", file)
    asked = {"base_model": "tiny", "data": {"train": file.file_id}}
    context.jobs.submit(Job(job_id="job-1", kind="train", document={"asked": asked}, run_id=RUN_ID))
    (row,) = page_of_runs(context, OWN, EvaluationCache(context)).rows
    assert row.dataset is not None
    assert (row.dataset.name, row.base_model) == ("Mine", "tiny")


def test_evaluations_are_read_once(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = add_run(context, "a")
    context.evaluations.save(make_evaluation(run_id=run_id))
    judged, read, get = EvaluationCache(context), list[str](), EvaluationStore.get
    monkeypatch.setattr(EvaluationStore, "get", lambda store, its_id: (read.append(its_id), get(store, its_id))[1])
    for _ in range(3):
        assert judged.of_runs([run_id])[run_id].verdict is not None
    assert len(read) == 1


def test_pages_of_one_project(context: Context) -> None:
    for letter in "abc":
        add_run(context, letter)
    first = page_of_runs(context, OWN, EvaluationCache(context), limit=2)
    assert ([row.run_id[-1] for row in first.rows], first.older) == (["c", "b"], "run-20261125-093000-bbbbbb")
    last = page_of_runs(context, OWN, EvaluationCache(context), limit=2, before=first.older)
    assert ([row.run_id[-1] for row in last.rows], last.older) == (["a"], None)
    other = Caller(project_id=create_project(context, "Other").project_id)
    assert page_of_runs(context, other, EvaluationCache(context)).rows == []


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (
            {"request": {"model": "tiny", "training_file": "f", "method": {"type": "dpo"}}},
            ("tiny", "dpo", "f"),
        ),
        ({"request": {"model": "tiny", "training_file": "f"}}, ("tiny", "supervised", "f")),
        ({"recipe": {"base_model": "/home/me/tiny", "data": {"train": "/home/me/a.jsonl"}}}, ("tiny", "", "a.jsonl")),
        (
            {"asked": {"base_model": "t", "data": {"train": [{"path": "file-a", "weight": 1}, {"path": "file-b"}]}}},
            ("t", "", "2 sources"),
        ),
        ({"recipe": {"base_model": "t", "method": {"name": "dora"}}}, ("t", "dora", "")),
        ({"recipe": 3}, (None, None, None)),
        ({}, (None, None, None)),
    ],
)
def test_what_a_waiting_job_was_asked_for(document: dict[str, object], words: tuple[str | None, ...]) -> None:
    job = Job(job_id="job-1", kind="train", document=document, run_id=RUN_ID)
    found = asked_of(job)
    assert tuple(found.get(name) for name in ("base_model", "method", "train")) == words


def test_only_runs_of_the_project_are_compared_and_reports_name_no_place(context: Context) -> None:
    one, two = add_run(context, "a"), add_run(context, "b")
    assert project_runs.compare_runs(context, "default", [one, two])["run_ids"] == [one, two]
    with pytest.raises(RequestError, match="runs to compare"):
        project_runs.compare_runs(context, "default", [one, one])
    for ask in (
        lambda: project_runs.compare_runs(context, "other", [one, two]),
        lambda: project_runs.report_of(context, "other", one),
        lambda: project_runs.report_of(context, "default", one),
    ):
        with pytest.raises(NotFoundError):
            ask()
    (context.settings.run_folder(one) / "report.html").write_text(f"in {context.home}/runs/x", encoding="utf-8")
    assert project_runs.report_of(context, "default", one) == "in runs/x"


def test_a_run_that_is_deleted_while_the_list_is_read_is_in_it_as_it_was(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids, read = [add_run(context, letter) for letter in "ab"], RunEntryStore.plan_documents

    def delete_first(store: RunEntryStore, run_ids: Sequence[str]) -> dict[str, str]:
        with ThreadPoolExecutor(1) as other:
            other.submit(context.runs.delete, ids[0]).result()
        return read(store, run_ids)

    with monkeypatch.context() as patch:
        patch.setattr(RunEntryStore, "plan_documents", delete_first)
        page = project_runs.list_runs(context, "default", after=None, limit=5)
    assert [run["run_id"] for run in page.runs] == ids[::-1]
    assert [run["run_id"] for run in project_runs.list_runs(context, "default", after=None, limit=5).runs] == ids[1:]
