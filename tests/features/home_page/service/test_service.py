"""What goes on in a project: by few rows, right after every step of a job, and honest about what is left out."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import event
from tests.clock import today

from luthier.core.access import Caller
from luthier.core.estimate import Estimate
from luthier.core.events import PLAIN_LOSS, BillUpdated
from luthier.core.ids import new_id
from luthier.core.run import Bill, RunStatus
from luthier.features.home_page import service as overview
from luthier.features.runs.state import standing
from luthier.features.runs.view import words
from luthier.platform.home.context import Context
from luthier.platform.jobs.records import Job
from luthier.testing.records import make_evaluation, make_plan, make_record, make_result, make_step


def bill(hours: float, *, is_priced: bool = True, final_hours: float | None = None) -> Bill:
    def estimate(value: float) -> Estimate:
        return Estimate(value=value, low=value / 2, high=value * 2)

    final = hours if final_hours is None else final_hours
    return Bill(
        hours=hours,
        tokens=1000,
        usd=estimate(hours) if is_priced else None,
        energy_kwh=estimate(hours / 10) if is_priced else None,
        interrupted_hours=0.0,
        final_hours=estimate(final),
        final_usd=None,
        final_energy_kwh=None,
    )


def add_ended(context: Context, number: int, its_bill: Bill | None, *, updated_at: str | None = None) -> str:
    run_id = f"run-20261125-{number // 3600:02d}{number // 60 % 60:02d}{number % 60:02d}-aaaaaa"
    result = make_result().model_copy(update={"bill": its_bill})
    record = make_record(run_id, status="succeeded", result=result)
    ended_at = updated_at or datetime.now(UTC).isoformat(timespec="seconds")
    context.runs.create(record.model_copy(update={"updated_at": ended_at}), make_plan())
    return run_id


def start(context: Context) -> Job:
    job = context.jobs.submit(
        Job(job_id=new_id("job"), kind="train", document={"base_model": "m"}, run_id=new_id("run"))
    )
    assert context.jobs.claim("w") is not None
    return job


def test_a_job_goes_from_waiting_to_running_to_judged(context: Context) -> None:
    job = context.jobs.submit(
        Job(job_id=new_id("job"), kind="train", document={"base_model": "m"}, run_id=new_id("run"))
    )
    found = overview.look_now(context, "default")
    assert [(one.job_id, one.base_model, one.status) for one in found.waiting] == [(job.job_id, "m", "queued")]
    assert (found.running, found.has_more) == ((), False)
    context.jobs.claim("w")
    (running,) = overview.look_now(context, "default").running
    assert (running.job_id, running.num_steps, running.left_seconds) == (job.job_id, 0, None)
    assert running.stage.startswith("preparing")
    context.runs.create(make_record(job.run_id, status="running"), make_plan())
    (running,) = overview.look_now(context, "default").running
    assert (running.stage, running.step, running.num_steps) == ("preparing the first step", 0, 10)
    context.runs.append(job.run_id, make_step(2))
    context.runs.update(job.run_id, step=2)
    (running,) = overview.look_now(context, "default").running
    assert (running.stage, running.loss, running.left_seconds) == ("training", 1.0, 8 * 0.25)
    context.runs.append(job.run_id, BillUpdated(step=2, bill=bill(1.0, final_hours=3.0)))
    context.runs.update(job.run_id, step=6)
    (running,) = overview.look_now(context, "default").running
    assert running.left_seconds == pytest.approx(2 * 3600 / 2), "half of the steps that the bill was reckoned for"
    context.runs.update(job.run_id, step=10)
    context.jobs.ask(job.job_id, "pause")
    (running,) = overview.look_now(context, "default").running
    assert (running.stage, running.status, running.left_seconds) == ("evaluating on held-out rows", "pausing", None)
    assert overview.look_now(context, "proj-none") == overview.Now(running=(), waiting=(), has_more=False)


def test_the_loss_of_a_running_training_is_without_regularisation_everywhere(context: Context) -> None:
    """As that of a run that has ended, and as validation losses beside it."""
    job = start(context)
    context.runs.create(make_record(job.run_id, status="running"), make_plan())
    context.runs.append(job.run_id, make_step(2, loss=1.5).model_copy(update={"measures": {PLAIN_LOSS: 0.75}}))
    (running,) = overview.look_now(context, "default").running
    assert running.loss == 0.75
    assert words(context, standing(context, Caller(), job.run_id))["loss"] == "0.75"


def test_a_run_that_stopped_early_is_evaluating_and_its_cost_counts(context: Context) -> None:
    job = start(context)
    context.runs.create(make_record(job.run_id, status="running"), make_plan())
    context.runs.append(job.run_id, make_step(4))
    result = make_result().model_copy(update={"bill": bill(0.5)})
    context.runs.update(job.run_id, step=4, result=result)
    (running,) = overview.look_now(context, "default").running
    assert (running.stage, running.step, running.left_seconds) == ("evaluating on held-out rows", 4, None)
    assert overview.spent_this_month(context, "default").hours == pytest.approx(0.5)


def test_a_paused_job_waits_and_a_long_queue_says_so(context: Context) -> None:
    job = start(context)
    context.jobs.finish(job.job_id, 1, "paused")
    for _ in range(overview.MAX_SHOWN + 1):
        context.jobs.submit(Job(job_id=new_id("job"), kind="train", document={}, run_id=new_id("run")))
    found = overview.look_now(context, "default")
    assert (len(found.waiting), found.has_more) == (overview.MAX_SHOWN, True)


def test_work_that_makes_no_run_is_listed_without_one(context: Context) -> None:
    context.jobs.submit(Job(job_id=new_id("job"), kind="train", document={}, run_id=""))
    waiting = overview.look_now(context, "default").waiting[0]
    assert (waiting.run_id, waiting.name) == (None, "Fine-tuning job")
    context.jobs.claim("w")
    running = overview.look_now(context, "default").running[0]
    assert (running.run_id, running.name) == (None, "Fine-tuning job")
    assert running.stage == "Fine-tuning job started"
    context.job_events.append(running.job_id or "", "progress-1-1", "Reading documents: 2 of 9 files")
    assert overview.look_now(context, "default").running[0].stage == "Reading documents: 2 of 9 files"


def test_a_run_of_a_command_is_running_while_its_process_lives(context: Context) -> None:
    from luthier.core.system.files import file_lock

    record = make_record(status="running")
    context.runs.create(record, make_plan())
    assert overview.look_now(context, "default").running == (), "its process is gone"
    with file_lock(context.settings.run_folder(record.run_id) / "lock", what="the run", timeout_seconds=1):
        (running,) = overview.look_now(context, "default").running
    assert (running.run_id, running.job_id, running.status) == (record.run_id, None, "running")


def test_verdicts_are_short_and_read_once(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = add_ended(context, 1, None)
    without = make_evaluation("eval-20261125-093000-bbbbbb", run_id=run_id).model_copy(update={"verdict": None})
    judged = make_evaluation(run_id=run_id)
    context.evaluations.save(judged)
    context.evaluations.save(without)
    (found,) = overview.last_verdicts(context, "default", limit=5)
    assert (found.run_id, found.word, found.metric, found.num_rows) == (run_id, "not distinguishable", "exact_match", 1)
    assert found.value is not None
    assert (found.value.low, found.value.high) == (0.25, 0.75)
    assert found.comparison is not None
    assert found.comparison.candidate == "tuned"
    few_shot = judged.comparisons[0].model_copy(update={"candidate": "base + 4 examples"})
    with_few_shot = judged.model_copy(update={"comparisons": (few_shot, *judged.comparisons)})
    assert overview._summary(with_few_shot) == found, "what was tuned, whatever was compared first"
    monkeypatch.setattr(context.evaluations, "get", lambda _: pytest.fail("it never changes"))
    assert overview.last_verdicts(context, "default", limit=5) == [found]
    assert overview.last_verdicts(context, "proj-none", limit=5) == []


def test_bills_of_this_month_are_added_up_and_those_of_others_are_not(context: Context) -> None:
    last_month = (today().replace(day=1) - timedelta(days=2)).isoformat()
    add_ended(context, 1, bill(1.0))
    add_ended(context, 2, bill(2.0, is_priced=False))
    add_ended(context, 3, None)
    add_ended(context, 4, bill(50.0), updated_at=f"{last_month}T12:00:00+00:00")
    job = start(context)
    context.runs.create(make_record(job.run_id, status="running"), make_plan())
    context.runs.append(job.run_id, BillUpdated(step=1, bill=bill(0.5)))
    spent = overview.spent_this_month(context, "default")
    assert (spent.num_runs, spent.hours, spent.num_unpriced, spent.is_all) == (4 - 1, 3.5, 1, True)
    assert spent.usd == Estimate(value=1.5, low=0.75, high=3.0)
    assert spent.energy_kwh is not None
    assert spent.energy_kwh.value == pytest.approx(0.15)
    nothing = overview.spent_this_month(context, "proj-none")
    assert (nothing.num_runs, nothing.hours, nothing.usd, nothing.energy_kwh) == (0, 0.0, None, None)


def test_a_run_that_goes_on_after_a_pause_counts_once_with_its_newest_cost(context: Context) -> None:
    today()
    paused = add_ended(context, 1, bill(1.0))
    context.runs.update(paused, status="running", step=4)
    context.runs.append(paused, BillUpdated(step=4, bill=bill(1.75)))
    result = make_result().model_copy(update={"bill": bill(32.0)})
    killed = make_record(new_id("run"), status="running", result=result)
    killed = killed.model_copy(update={"updated_at": "2026-01-01T00:00:00+00:00"})
    context.runs.create(killed, make_plan())
    context.runs.append(killed.run_id, BillUpdated(step=1, bill=bill(64.0)))
    spent = overview.spent_this_month(context, "default")
    assert (spent.num_runs, spent.hours) == (1, 1.75), "what was killed in another month counts there"


def test_runs_that_ended_without_a_result_count_in_the_month_in_which_they_ran(context: Context) -> None:
    last_month = (today().replace(day=1) - timedelta(days=2)).isoformat()

    def add(number: int, status: RunStatus, hours: float, updated_at: str) -> None:
        record = make_record(f"run-20261125-0000{number:02d}-bbbbbb", status=status)
        context.runs.create(record.model_copy(update={"updated_at": updated_at}), make_plan())
        context.runs.append(record.run_id, BillUpdated(step=1, bill=bill(hours)))

    now = datetime.now(UTC).isoformat(timespec="seconds")
    add(1, "running", 1.0, now)  # a command that was killed: nobody has closed its run
    add(2, "running", 16.0, f"{last_month}T12:00:00+00:00")
    add(3, "failed", 2.0, now)
    add(4, "failed", 32.0, f"{last_month}T12:00:00+00:00")
    spent = overview.spent_this_month(context, "default")
    assert (spent.num_runs, spent.hours) == (2, 1.0 + 2.0)


def test_many_runs_that_were_killed_count_all(context: Context) -> None:
    today()
    for number in range(overview.MAX_SHOWN + 3):
        run_id = f"run-20261125-0000{number:02d}-bbbbbb"
        now = datetime.now(UTC).isoformat(timespec="seconds")
        context.runs.create(make_record(run_id, status="running").model_copy(update={"updated_at": now}), make_plan())
        context.runs.append(run_id, BillUpdated(step=1, bill=bill(0.5)))
    spent = overview.spent_this_month(context, "default")
    assert (spent.num_runs, spent.hours) == (overview.MAX_SHOWN + 3, 0.5 * (overview.MAX_SHOWN + 3))


def test_a_sum_that_leaves_runs_out_says_so(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    today()  # near its end, the next month is waited for
    monkeypatch.setattr(overview, "MAX_SUMMED", 2)
    for number in range(3):
        add_ended(context, number, bill(1.0))
    spent = overview.spent_this_month(context, "default")
    assert (spent.num_runs, spent.is_all) == (2, False)


def test_room_counts_what_runs_hold(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = context.settings.runs_folder / "run-1" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "a").write_bytes(b"x" * 1000)
    (folder.parent / "b").write_bytes(b"x" * 500)
    found = overview.room(context)
    assert (found.runs_bytes, found.is_all_counted, found.artifacts_bytes) == (1500, True, 0)
    assert 0 < found.free_bytes < found.total_bytes
    (folder / "c").write_bytes(b"x")
    assert overview.room(context).runs_bytes == 1500, "it is looked at once a minute"
    monkeypatch.setattr(overview, "_looked", {})
    monkeypatch.setattr(overview, "_LOOK_SECONDS", -1.0)
    assert not overview.room(context).is_all_counted


def test_many_runs_take_no_more_questions_than_few(context: Context) -> None:
    asked: list[str] = []
    engine = context.database._engine

    def note(*given: object) -> None:
        asked.append(str(given[2]))

    def look() -> int:
        asked.clear()
        overview.look_now(context, "default")
        overview.last_verdicts(context, "default", limit=5)
        overview.spent_this_month(context, "default")
        return len(asked)

    for number in range(10):
        add_ended(context, number, bill(1.0))
    event.listen(engine, "before_cursor_execute", note)
    few = look()
    event.remove(engine, "before_cursor_execute", note)
    for number in range(10, 200):
        add_ended(context, number, bill(1.0))
    event.listen(engine, "before_cursor_execute", note)
    assert look() == few


class Forgetful(dict[Any, Any]):
    """As another thread makes it that clears the cache at once."""

    def __setitem__(self, key: Any, value: Any) -> None:
        pass


def test_a_cache_that_is_cleared_meanwhile_costs_nothing(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = add_ended(context, 1, None)
    context.evaluations.save(make_evaluation(run_id=run_id))
    before = overview.last_verdicts(context, "default", limit=5)
    assert len(before) == 1
    monkeypatch.setattr(overview, "_known", Forgetful())
    assert overview.last_verdicts(context, "default", limit=5) == before
