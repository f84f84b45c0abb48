"""A suite that judges a deployed model again and again: when it begins, who is evaluated, and what comes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.assessed import make_suite_result, make_task
from tests.fixtures.service import chat_row, write_rows

from luthier.core.access import DEFAULT_PROJECT, Caller
from luthier.core.errors import ConflictError, NotFoundError, RequestError
from luthier.core.records.deployment import Deployment, Revision, Share
from luthier.core.records.monitoring import WatchSettings
from luthier.core.records.traffic import Exchange
from luthier.core.results.suite import SuiteResult
from luthier.features.deployments import service as deployments
from luthier.features.evaluation_orders import service as evaluation_orders
from luthier.features.evaluation_orders.job import carry_out
from luthier.features.models.service import pull_model
from luthier.features.monitoring import loop as monitor_loop
from luthier.features.monitoring import scheduled_suites
from luthier.features.monitoring import service as monitoring
from luthier.features.monitoring.scheduled_suites import suite_signals
from luthier.features.traffic import service as traffic
from luthier.ml.export.bundle.manifest import EVALUATION
from luthier.ml.inference.models import sources
from luthier.platform.home.context import Context
from luthier.platform.jobs.records import Job
from luthier.testing.records import add_run

SUITE = """name: workshop
forgetting: false
tasks:
  - {name: counting, kind: generate, data: held.jsonl, metrics: [exact_match, token_f1], max_new_tokens: 4}
"""


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    write_rows(tmp_path / "held.jsonl", [chat_row(n) for n in range(300, 306)])
    (tmp_path / "suite.yaml").write_text(SUITE, encoding="utf-8")
    return tmp_path / "suite.yaml"


@pytest.fixture
def base(context: Context, tiny_model: Path) -> str:
    pull_model(context, str(tiny_model))
    return sources.local_models(context.home)[0].name


def deploy(context: Context, *shares: Share, canary: str | None = None) -> None:
    revision = Revision(number=1, kind="deploy", shares=shares, canary=canary)
    context.deployments.add(
        Deployment(deployment_id="d-shop", project_id=DEFAULT_PROJECT, name="shop", revision=revision)
    )


def settings(suite: Path) -> WatchSettings:
    return WatchSettings(suite=str(suite))


def begun(context: Context, suite: Path, model: str = "shop") -> Job:
    job = scheduled_suites.begin_due(context, DEFAULT_PROJECT, model, settings(suite))
    assert job is not None
    return job


def end(context: Context, job: Job) -> None:
    quiet = context.progress
    try:
        assert carry_out(context, job).status == "succeeded"
    finally:
        context.progress = quiet
    context.jobs.ask(job.job_id, "cancel")  # it waits for a worker still; what counts here is that it has ended


def be_due(context: Context) -> None:
    state = scheduled_suites.state_of(context, DEFAULT_PROJECT, "shop")
    document = state.model_copy(update={"next_at": 0.0}).model_dump_json()
    context.watches.put(DEFAULT_PROJECT, "suite", "shop", document)


def test_two_rounds_give_a_signal_that_compares_them(context: Context, base: str, suite: Path) -> None:
    deploy(context, Share(target=base, fraction=0.9), Share(target="run-canary", fraction=0.1), canary="run-canary")
    job = begun(context, suite)
    order = evaluation_orders.order_of(job)
    assert (order.kind, order.candidate, order.against) == ("suite", base, ())
    end(context, job)
    result = context.assessments.get("suite", SuiteResult, DEFAULT_PROJECT, order.result_id)
    assert (result.suite, result.candidate, [task.name for task in result.tasks]) == ("workshop", base, ["counting"])
    (only,) = suite_signals(context, DEFAULT_PROJECT, base)
    assert (only.state, "once" in only.sentence) == ("unknown", True)
    assert scheduled_suites.begin_due(context, DEFAULT_PROJECT, "shop", settings(suite)) is None, "a day is not over"
    be_due(context)
    end(context, begun(context, suite))
    (only,) = suite_signals(context, DEFAULT_PROJECT, base)
    assert (only.name, only.state) == ("suite_workshop_counting", "steady")


def test_none_begins_while_the_last_one_goes_on(context: Context, base: str, suite: Path) -> None:
    deploy(context, Share(target=base, fraction=1))
    job = begun(context, suite)
    be_due(context)
    assert scheduled_suites.begin_due(context, DEFAULT_PROJECT, "shop", settings(suite)) is None
    context.jobs.ask(job.job_id, "cancel")
    assert begun(context, suite).job_id != job.job_id


def test_of_two_servers_that_see_it_due_one_begins_it(
    context: Context, base: str, suite: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deploy(context, Share(target=base, fraction=1))
    real = scheduled_suites._candidate
    others: list[Job | None] = []

    def meanwhile(*arguments: Any) -> str:
        monkeypatch.setattr(scheduled_suites, "_candidate", real)
        others.append(scheduled_suites.begin_due(context, DEFAULT_PROJECT, "shop", settings(suite)))
        return real(*arguments)

    monkeypatch.setattr(scheduled_suites, "_candidate", meanwhile)
    assert scheduled_suites.begin_due(context, DEFAULT_PROJECT, "shop", settings(suite)) is None
    assert others[0] is not None
    assert len(evaluation_orders.list_orders(context, Caller())) == 1


def test_a_look_of_the_server_begins_it(context: Context, base: str, suite: Path) -> None:
    deploy(context, Share(target=base, fraction=1))
    monitoring.set_model_settings(context, DEFAULT_PROJECT, "shop", settings(suite))
    monitor_loop.check_model(context, DEFAULT_PROJECT, "shop")
    (view,) = evaluation_orders.list_orders(context, Caller())
    assert (view.order.suite_file, view.words) == (str(suite), f"{base} by the suite suite.yaml")
    assert scheduled_suites.state_of(context, DEFAULT_PROJECT, "shop").job_id == view.job.job_id
    state = monitor_loop.state_of(context, DEFAULT_PROJECT, "shop")
    assert state is not None
    assert state.problem == ""


def test_a_clock_that_was_set_back_does_not_stop_it(context: Context, base: str, suite: Path) -> None:
    deploy(context, Share(target=base, fraction=1))
    ahead = scheduled_suites.SuiteState(next_at=context.access.now() + 30 * 86_400)
    context.watches.put(DEFAULT_PROJECT, "suite", "shop", ahead.model_dump_json())
    assert begun(context, suite)


def test_who_cannot_be_judged_is_told(context: Context, suite: Path) -> None:
    deploy(context, Share(target="export:gone", fraction=1, folder=str(suite.parent / "gone")))
    with pytest.raises(ConflictError, match="it is not known here what it was made from"):
        scheduled_suites.begin_due(context, DEFAULT_PROJECT, "shop", settings(suite))


@pytest.mark.parametrize(
    "line",
    [
        "  - {name: better, kind: pairwise, data: held.jsonl}\n",
        "  - {name: runs, kind: code, data: held.jsonl}\n",
        "  - {name: arc, kind: lm_eval, task: arc_easy}\n",
        "  - {name: code, kind: graded, data: held.jsonl, allow_code: true, graders: [{grader: "
        "{type: python, source: 'def grade(sample, item): return 1'}}]}\n",
        "  - {name: judge, kind: graded, data: held.jsonl, graders: [{grader: "
        "{type: score_model, input: [{role: user, content: 'Good?'}]}}]}\n",
    ],
)
def test_what_asks_a_judge_or_runs_code_is_refused(context: Context, suite: Path, line: str) -> None:
    suite.write_text(SUITE + line, encoding="utf-8")
    with pytest.raises(RequestError, match="which runs code, or uses a judge"):
        monitoring.set_model_settings(context, DEFAULT_PROJECT, "shop", settings(suite))
    with pytest.raises(NotFoundError):
        monitoring.set_model_settings(context, DEFAULT_PROJECT, "shop", settings(suite.parent / "none.yaml"))


def test_graders_without_code_and_judge_are_scheduled(context: Context, suite: Path) -> None:
    line = (
        "  - {name: exact, kind: graded, data: held.jsonl, graders: [{grader: "
        "{type: string_check, input: '{{sample.output_text}}', reference: x, operation: eq}}]}\n"
    )
    suite.write_text(SUITE + line, encoding="utf-8")
    assert monitoring.set_model_settings(context, DEFAULT_PROJECT, "shop", settings(suite)) == settings(suite)


@pytest.mark.parametrize("higher_is_better", [True, False])
@pytest.mark.parametrize(
    ("values", "state", "words", "reference"),
    [
        # Intervals of 0.06: what is 0.085 apart differs.
        ([0.9, 0.86], "steady", "no change from the previous result", 0.9),
        ([0.9, 0.5], "changed", "worse than in the result before", 0.9),
        ([0.9, 0.86, 0.8], "changed", "worse than in the best of the 2 results before", 0.9),
        ([0.9, 0.5, 0.5], "changed", "worse than in the best of the 2 results before", 0.9),
        ([0.9, 0.5, 0.88], "changed", "better than in the result before", 0.5),
        ([0.9, 0.5, 0.88, 0.88], "steady", "no change from the previous result", 0.88),
    ],
)
def test_a_result_is_compared_with_the_last_and_the_best_before(
    context: Context, values: list[float], state: str, words: str, reference: float, higher_is_better: bool
) -> None:
    def told(value: float) -> float:
        return value if higher_is_better else 1.0 - value

    for number, value in enumerate(values):
        metrics = {"share": (0.4, told(value))}
        task = make_task("sql", metrics=metrics, candidate="a-base", higher_is_better=higher_is_better)
        result = make_suite_result(f"suite-20261126-12000{number}-aaaaaa", tasks=(task,), candidate="a-base")
        context.assessments.save("suite", result.result_id, result, project_id=DEFAULT_PROJECT, subject="a-base")
    (only,) = suite_signals(context, DEFAULT_PROJECT, "a-base")
    assert (only.state, words in only.sentence) == (state, True)
    assert (only.value, only.reference) == (pytest.approx(told(values[-1])), pytest.approx(told(reference)))
    assert bool(only.do) == ("worse" in words)


def test_a_canary_of_most_users_is_not_what_a_suite_evaluates(context: Context, base: str, suite: Path) -> None:
    deploy(context, Share(target=base, fraction=0.4), Share(target="run-canary", fraction=0.6), canary="run-canary")
    assert evaluation_orders.order_of(begun(context, suite)).candidate == base


def keep_result(context: Context, run_id: str, hour: int, value: float) -> None:
    """A result of the suite on a run, made at a full hour."""
    task = make_task("sql", metrics={"share": (0.4, value)}, candidate=run_id)
    made = make_suite_result(f"suite-20261126-{hour}0000-aaaaaa", run_id=run_id, tasks=(task,), candidate=run_id)
    made = made.model_copy(update={"created_at": f"2026-11-26T{hour}:00:00+00:00"})
    context.assessments.save("suite", made.result_id, made, project_id=DEFAULT_PROJECT, subject=run_id, run_id=run_id)


def test_a_promoted_model_is_compared_with_the_one_that_answered_before(context: Context) -> None:
    before, after = add_run(context, "a"), add_run(context, "b")
    for run_id, hour, value in ((before, 10, 0.9), (after, 11, 0.5)):
        deployments.deploy(context, Caller(), "shop", run_id)
        keep_result(context, run_id, hour, value)
    (only,) = suite_signals(context, DEFAULT_PROJECT, after, "shop")
    assert (only.state, only.value, only.reference) == ("changed", pytest.approx(0.5), pytest.approx(0.9))
    assert "worse than in the result before" in only.sentence
    (alone,) = suite_signals(context, DEFAULT_PROJECT, after)
    assert alone.state == "unknown", "by no name, there is nothing before it"
    deployments.rollback(context, Caller(), "shop")
    (again,) = suite_signals(context, DEFAULT_PROJECT, before, "shop")
    assert (again.value, again.state) == (pytest.approx(0.9), "unknown"), "what was made of the other since is not its"
    keep_result(context, before, 12, 0.9)
    (again,) = suite_signals(context, DEFAULT_PROJECT, before, "shop")
    assert (again.state, again.reference) == ("changed", pytest.approx(0.5)), "better than what answered before"


def test_the_report_has_the_suites_of_what_answers_now(context: Context) -> None:
    """Not of what has answered most of the window: that would be days after a promotion."""
    before, after = add_run(context, "a"), add_run(context, "b")
    deployments.deploy(context, Caller(), "shop", before)
    for number in range(3):
        exchange = Exchange(
            exchange_id=f"chatcmpl-{number}",
            project_id=DEFAULT_PROJECT,
            at=context.access.now(),
            model="shop",
            target=before,
        )
        traffic.record(context, exchange)
    deployments.deploy(context, Caller(), "shop", after)
    keep_result(context, before, 10, 0.9)
    keep_result(context, after, 11, 0.5)
    report = monitoring.watch(context, DEFAULT_PROJECT, "shop", since=0.0, until=context.access.now() + 60)
    assert [(one.state, one.value) for one in report.signals if one.name == "suite_workshop_sql"] == [("changed", 0.5)]


def test_an_export_in_a_folder_has_the_suites_of_its_run(context: Context, tmp_path: Path) -> None:
    run_id, folder = add_run(context, "a"), tmp_path / "packed"
    folder.mkdir()
    (folder / EVALUATION).write_text(json.dumps({"run_id": run_id}), encoding="utf-8")
    deploy(context, Share(target="export:packed", fraction=1, folder=str(folder)))
    keep_result(context, run_id, 10, 0.9)
    (only,) = suite_signals(context, DEFAULT_PROJECT, "export:packed", "shop")
    assert only.value == pytest.approx(0.9)
