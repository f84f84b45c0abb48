"""Showdowns, autos and retrainings as who looks at them sees them: where they stand, why they ended, their pages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from tests.homes import (
    AUTO_ID,
    HEADLINE,
    RETRAIN_ID,
    SHOWDOWN_ID,
    add_auto,
    add_model_comparison,
    add_retrain,
)

from luthier.core.access import Caller
from luthier.core.errors import NotFoundError
from luthier.core.system.files import file_lock
from luthier.core.workflows.pipeline import Pipeline, Stage
from luthier.features.workflows import views as pipeline_views
from luthier.features.workflows.retraining.workflow import WORKFLOW
from luthier.platform.auth.service import create_project
from luthier.platform.home.context import Context
from luthier.platform.workflows.engine import Outcome, PausedError, StageSpec, Workflow, lock_of, resume
from luthier.testing.records import add_run

ME = Caller()


def test_all_kinds_stand_in_one_list_the_newest_first(context: Context) -> None:
    add_model_comparison(context)
    add_auto(context, {"status": "running"})
    add_retrain(context, {"status": "refused", "reason": "a reviewed row holds a secret"})
    found = pipeline_views.list_pipelines(context, ME)
    assert [(one.pipeline.kind, one.status, one.stage) for one in found] == [
        ("retrain", "refused", "audit"),
        ("auto", "interrupted", "tune"),
        ("showdown", "done", None),
    ]
    assert [one.asked for one in found] == [
        "support, again on reviewed answers and accepted traffic, tried on 10% of the users",
        "“Answer with one SQL query.” from orders.jsonl, within 2 h",
        "smollm2-135m-instruct, gemma3-270m: which of them for train.jsonl, within 1 h",
    ]
    assert found[2].part_of == AUTO_ID
    assert [one.pipeline.kind for one in pipeline_views.list_pipelines(context, ME, "auto")] == ["auto"]


def test_one_that_goes_on_is_told_from_one_whose_process_died(context: Context) -> None:
    add_auto(context, {"status": "running", "came": {"study_id": "study-20261126-133000-abcdef"}})
    dead = pipeline_views.view_pipeline(context, ME, AUTO_ID)
    with file_lock(lock_of(context, AUTO_ID), what="it", timeout_seconds=1):
        alive = pipeline_views.view_pipeline(context, ME, AUTO_ID)
    assert (dead.status, dead.stages[4].status, dead.stages[4].seconds) == ("interrupted", "interrupted", None)
    assert dead.command == f"luthier automl --resume {AUTO_ID}"
    assert (alive.status, alive.stages[4].status, alive.command) == ("running", "running", None)
    assert alive.stages[4].seconds is not None
    assert alive.stages[4].seconds > 60
    assert alive.stages[4].made == [], "its study is named before it is made"
    assert alive.stages[1].found == [
        "800 rows of grade A",
        "12 rows removed; rows changed or removed by reason: exact_duplicate 12",
    ]


def test_a_stage_that_fails_tells_why_and_how_to_go_on(context: Context) -> None:
    add_model_comparison(context)
    add_auto(context, {"status": "failed", "reason": f"{context.home}/rows/orders.jsonl has changed"})
    view = pipeline_views.view_pipeline(context, ME, AUTO_ID)
    assert (view.status, view.stage, view.answer, view.ended_at) == ("failed", "tune", "", None)
    assert view.stages[4].reason == f"{context.home}/rows/orders.jsonl has changed"
    assert view.stages[3].made == [("showdown", SHOWDOWN_ID)]
    assert view.command == f"luthier automl --resume {AUTO_ID}"
    assert pipeline_views.without_folders(context, view).stages[4].reason == "orders.jsonl has changed"


def test_what_was_asked_to_stop_is_paused_and_goes_on(context: Context) -> None:
    made = Pipeline(pipeline_id=RETRAIN_ID, kind="retrain", asked={"model": "x"}, stages=(Stage(name="rows"),))
    context.pipelines.create(made, ME.project_id)
    assert pipeline_views.view_pipeline(context, ME, RETRAIN_ID).status == "waiting"

    def stop(_run: object) -> Outcome:
        raise PausedError("paused: SIGTERM received", expected="its end", do="go on")

    def stages(work: Callable[[object], Outcome]) -> Workflow:
        return replace(WORKFLOW, stages=lambda _spec: [StageSpec("rows", "", work)])

    with pytest.raises(PausedError):
        resume(stages(stop), context, ME, RETRAIN_ID)
    view = pipeline_views.view_pipeline(context, ME, RETRAIN_ID)
    assert (view.status, view.stages[0].reason) == ("paused", "paused: SIGTERM received")
    assert view.command == f"luthier retrain --resume {RETRAIN_ID}"
    resume(stages(lambda _run: Outcome()), context, ME, RETRAIN_ID)
    assert pipeline_views.view_pipeline(context, ME, RETRAIN_ID).status == "done"


def test_the_answer_of_a_showdown_and_its_page_are_there_though_the_file_is_gone(context: Context) -> None:
    add_model_comparison(context)
    view = pipeline_views.view_pipeline(context, ME, SHOWDOWN_ID)
    assert view.answer == HEADLINE
    assert view.seconds == pytest.approx(95 + 140 + 2 * 680 + 0.02 * 3600 + 12)
    path = pipeline_views.report_file(context, ME, SHOWDOWN_ID)
    assert HEADLINE[:30] in path.read_text()
    path.write_text(f"<p>of {context.home}/rows</p>")
    assert pipeline_views.report_of(context, ME, SHOWDOWN_ID) == "<p>of rows</p>", "it is not written again"


def test_a_page_that_is_gone_with_its_result_is_said_to_be(context: Context) -> None:
    add_model_comparison(context, is_kept=False)
    assert pipeline_views.view_pipeline(context, ME, SHOWDOWN_ID).answer.startswith("One of them, tuned,")
    with pytest.raises(NotFoundError, match="and so is the result") as refused:
        pipeline_views.report_file(context, ME, SHOWDOWN_ID)
    assert "stages" in refused.value.do


def test_the_page_of_an_auto_is_written_anew_where_a_stage_ended_it(context: Context) -> None:
    add_auto(context, {"status": "refused", "reason": "grade F <even> after repair"}, num_done=1)
    path = pipeline_views.report_file(context, ME, AUTO_ID)
    assert "grade F &lt;even&gt; after repair" in path.read_text()
    with pytest.raises(NotFoundError, match=r"no page audit\.html"):
        pipeline_views.stage_page(context, ME, AUTO_ID, "audit.html")
    (path.parent / "audit.html").write_text(f"{context.home}/x.jsonl &amp; y")
    assert pipeline_views.stage_page(context, ME, AUTO_ID, "audit.html") == "x.jsonl &amp; y"


def test_what_is_not_done_and_a_retraining_have_no_page_of_their_own(context: Context) -> None:
    add_auto(context, {"status": "running"})
    add_retrain(context, {"status": "done", "came": {"grade": "A", "findings": [{"message": "1 short row"}]}})
    with pytest.raises(NotFoundError, match="has no report: it is an automl run that is interrupted"):
        pipeline_views.report_file(context, ME, AUTO_ID)
    with pytest.raises(NotFoundError, match="has no report: it is a retraining") as refused:
        pipeline_views.report_file(context, ME, RETRAIN_ID)
    assert "run that it trained" in refused.value.expected
    assert list(pipeline_views.view_pipeline(context, ME, RETRAIN_ID).stages[1].found) == ["grade A", "1 short row"]


def test_a_retraining_that_is_done_says_what_came_of_it(context: Context) -> None:
    run_id = add_run(context, "a")
    add_retrain(context, {"status": "done"})
    found = context.pipelines.get(RETRAIN_ID)
    came = {
        "train": {"run_id": run_id, "started_from": "base"},
        "judge": {"old": "eval-1", "new": "eval-2", "suite": "suite-1", "old_said": "better by rouge_l"},
        "canary": {"said": "offered", "command": "luthier deploy it"},
    }
    for name in ("version", "train", "judge", "gate", "canary"):
        found = found.changed(Stage(name=name, status="done", came=came.get(name, {}), began_at=1.0, ended_at=2.0))
    context.pipelines.save(found)
    view = pipeline_views.view_pipeline(context, ME, RETRAIN_ID)
    assert view.answer.startswith(f"{run_id} against run-")
    assert view.answer.endswith("old rows: better by rouge_l; offered: luthier deploy it")
    assert [list(stage.made) for stage in view.stages if stage.made] == [[("run", run_id)]], "the rest is not there"


def test_another_projects_is_not_found_nor_named(context: Context) -> None:
    other = create_project(context, "other")
    add_model_comparison(context)
    add_retrain(context, {"status": "failed"}, project_id=other.project_id)
    them = Caller(project_id=other.project_id)
    assert [one.pipeline.pipeline_id for one in pipeline_views.list_pipelines(context, ME)] == [SHOWDOWN_ID]
    for look in (pipeline_views.view_pipeline, pipeline_views.report_file):
        with pytest.raises(NotFoundError) as refused:
            look(context, them, SHOWDOWN_ID.replace("a", "b"))
        assert SHOWDOWN_ID not in refused.value.came
        with pytest.raises(NotFoundError, match="no workflow"):
            look(context, them, SHOWDOWN_ID)
    with pytest.raises(NotFoundError, match="no workflow"):
        pipeline_views.stage_page(context, ME, RETRAIN_ID, "audit.html")
    command = pipeline_views.view_pipeline(context, them, RETRAIN_ID).command
    assert command == f"luthier retrain --resume {RETRAIN_ID} --project other"


def test_the_command_of_another_project_can_be_typed(context: Context) -> None:
    other = create_project(context, "the other")
    add_auto(context, {"status": "failed"}, project_id=other.project_id)
    command = pipeline_views.view_pipeline(context, Caller(project_id=other.project_id), AUTO_ID).command
    assert command == f"luthier automl --resume {AUTO_ID} --project 'the other'"
