"""Deliveries: late, in parts, again after a kill, and to trackers that are down."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

import pytest
from tests.clock import wait_until

from luthier.core.access import Caller
from luthier.core.errors import ConflictError, NotFoundError, RequestError, WorkError
from luthier.core.events import MachineSampled, RunEnded, RunStarted, ValidationDone, WarningRaised
from luthier.core.tracking import TrackerPlan
from luthier.features.trackers import delivery, job, reporting, service
from luthier.features.trackers.delivery import Delivery
from luthier.features.trackers.reporting import undelivered
from luthier.features.trackers.service import TrackerState, load_state, save_state
from luthier.ml.tracking.protocol import Point, RemoteRun, RunOutcome, TrackedRun, Tracker, TrackerRules
from luthier.platform.home.context import Context
from luthier.testing.records import RUN_ID, make_evaluation, make_plan, make_record, make_result, make_step

PLAN = TrackerPlan(name="mlflow", project="mails")


class Recorded(Tracker):
    """A tracker that keeps what it gets, and fails as often as it is told to."""

    rules: ClassVar[TrackerRules] = TrackerRules(title="Recorded", summary="for tests")
    begun: ClassVar[list[TrackedRun]] = []
    points: ClassVar[list[Point]] = []
    outcomes: ClassVar[list[RunOutcome]] = []
    fails_on: ClassVar[list[str]] = []
    closed: ClassVar[list[bool]] = []

    def begin(self, run: TrackedRun) -> RemoteRun:
        self._may_fail("begin")
        self.begun.append(run)
        return RemoteRun("theirs-1", "http://host/theirs-1")

    def log(self, points: Sequence[Point]) -> None:
        self._may_fail("log")
        self.points.extend(points)

    def end(self, outcome: RunOutcome) -> list[str]:
        self._may_fail("end")
        self.outcomes.append(outcome)
        return ["a note"]

    def close(self) -> None:
        self.closed.append(True)

    def _may_fail(self, where: str) -> None:
        if where in self.fails_on:
            self.fails_on.remove(where)
            raise ConnectionError("no answer from http://me:secret@host:5000, key=abcdefghijkl")


@pytest.fixture(autouse=True)
def tracker(monkeypatch: pytest.MonkeyPatch) -> type[Recorded]:
    for kept in (Recorded.begun, Recorded.points, Recorded.outcomes, Recorded.fails_on, Recorded.closed):
        kept.clear()
    monkeypatch.setattr(delivery, "make_tracker", lambda name: Recorded())
    monkeypatch.setattr(TrackerRules, "missing", lambda self: [])
    return Recorded


@pytest.fixture
def run_id(context: Context) -> str:
    """A run of ten steps, of which three are done."""
    context.settings.run_folder(RUN_ID).mkdir(parents=True)
    context.runs.create(make_record(status="running"), make_plan().model_copy(update={"tracking": (PLAN,)}))
    context.runs.append(RUN_ID, RunStarted(from_step=0, num_steps=10))
    for step in (1, 2, 3):
        context.runs.append(RUN_ID, make_step(step))
    return RUN_ID


def steps(name: str = "train/loss") -> list[int]:
    return [point.step for point in Recorded.points if name in point.values]


def end(context: Context, tmp_path: Path) -> None:
    """The run ends: weights, report, verdict, and the record last."""
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    (context.settings.run_folder(RUN_ID) / "report.html").write_text("<h1>")
    evaluation = make_evaluation(run_id=RUN_ID)
    context.evaluations.save(evaluation)
    context.runs.append(RUN_ID, WarningRaised(step=9, code="x", message="rises"))
    context.runs.append(RUN_ID, RunEnded(step=10, status="succeeded", reason="all steps done"))
    result = make_result().model_copy(update={"adapter_path": str(adapter)})
    context.runs.update(
        RUN_ID, status="succeeded", result=result, evaluation_id=evaluation.evaluation_id, step=10,
        stopped_because="all steps done",
    )  # fmt: skip


def test_what_there_is_is_delivered_once(context: Context, run_id: str) -> None:
    first = Delivery(context, run_id, PLAN).deliver()
    assert (first.status, first.tracker_run_id, first.num_events, first.error) == ("delivered", "theirs-1", 4, "")
    assert steps() == [1, 2, 3]
    assert Recorded.begun[0].parameters["training.learning_rate"] == 2e-4
    assert Recorded.outcomes == [], "the run has not ended"
    context.runs.append(run_id, make_step(4))
    second = Delivery(context, run_id, PLAN).deliver()
    assert steps() == [1, 2, 3, 4]
    assert Recorded.begun[1].tracker_run_id == "theirs-1", "the same run goes on"
    assert second.num_events == 5


def test_the_outcome_has_verdict_report_and_weights_and_comes_once(
    context: Context, run_id: str, tmp_path: Path
) -> None:
    end(context, tmp_path)
    state = Delivery(context, run_id, PLAN).deliver()
    (outcome,) = Recorded.outcomes
    assert (outcome.status, outcome.step, outcome.reason) == ("succeeded", 10, "all steps done")
    assert outcome.texts["verdict_headline"] == "Cannot tell."
    assert outcome.texts["warnings"] == "rises"
    assert outcome.summary["verdict/exact_match/tuned minus base_low"] == -0.1
    assert outcome.report == context.settings.run_folder(run_id) / "report.html"
    assert outcome.weights == tmp_path / "adapter"
    assert outcome.model is not None
    assert (outcome.model.folder, outcome.model.template) == (tmp_path / "adapter", "chat")
    assert (state.status, state.notes) == ("delivered", ("a note",))
    Delivery(context, run_id, PLAN).deliver()
    assert (len(Recorded.outcomes), len(Recorded.begun)) == (1, 1), "nothing is left to do"


@pytest.mark.parametrize(
    ("artifacts", "is_adapter", "has_report", "has_weights"),
    [(None, True, True, True), (None, False, True, False), (True, False, True, True), (False, True, False, False)],
)
def test_weights_of_a_whole_model_are_uploaded_where_that_is_asked_for(
    context: Context, run_id: str, tmp_path: Path,
    artifacts: bool | None, is_adapter: bool, has_report: bool, has_weights: bool,
) -> None:  # fmt: skip
    end(context, tmp_path)
    if not is_adapter:
        (tmp_path / "adapter" / "adapter_config.json").unlink()
    Delivery(context, run_id, PLAN.model_copy(update={"artifacts": artifacts})).deliver()
    (outcome,) = Recorded.outcomes
    assert (outcome.report is not None, outcome.weights is not None) == (has_report, has_weights)


def test_steps_that_are_trained_again_are_not_sent_twice(context: Context, run_id: str) -> None:
    validation = ValidationDone(step=3, loss=0.5, num_trained_tokens=9, is_best=True, seconds=1.0)
    context.runs.append(run_id, validation)
    Delivery(context, run_id, PLAN).deliver()
    context.runs.truncate_after(run_id, 1)
    context.runs.append(run_id, RunStarted(from_step=1, num_steps=10))
    for step in (2, 3, 4):
        context.runs.append(run_id, make_step(step))
    context.runs.append(run_id, validation)
    Delivery(context, run_id, PLAN).deliver()
    assert (steps(), steps("eval/loss")) == ([1, 2, 3, 4], [3])


@pytest.mark.parametrize("where", ["begin", "log", "end"])
def test_a_tracker_that_is_down_gets_all_of_it_later(
    context: Context, run_id: str, tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "abcdefghijkl")
    end(context, tmp_path)
    Recorded.fails_on.append(where)
    state = Delivery(context, run_id, PLAN).deliver()
    assert state.status == "waiting"
    assert state.error == "ConnectionError: no answer from http://…@host:5000, key=…"
    (said,) = undelivered([state], run_id)
    assert f"luthier runs track {run_id}" in said
    assert service.states(context, run_id)[0].error == state.error
    state = Delivery(context, run_id, PLAN).deliver()
    assert (state.status, state.error, steps(), len(Recorded.outcomes)) == ("delivered", "", [1, 2, 3], 1)


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("no answer from https://track.example/?write_token=abc", "no answer from https://track.example/"),
        ("GET https://other.example/api?key=abc&user=me 401", "GET https://other.example/api?key=… 401"),
        ("401 for the token hf_0123456789", "401 for the token …"),
        ("401 for the password correct-horse-battery", "401 for the password …"),
        ("a key that is short: abc", "a key that is short: abc"),
    ],
)
def test_an_error_that_members_see_has_no_credentials(said: str, shown: str) -> None:
    environment = {
        "TRACKIO_SERVER_URL": "https://track.example/?write_token=abc",
        "HF_TOKEN": "hf_0123456789",
        "MLFLOW_TRACKING_PASSWORD": "correct-horse-battery",
        "MLFLOW_TRACKING_TOKEN": "abc",
    }
    assert delivery._reason(OSError(said), environment) == f"OSError: {shown}"


def test_it_follows_a_run_until_its_end(context: Context, run_id: str, tmp_path: Path) -> None:
    is_over, seen = threading.Event(), threading.Event()

    class Watched(Recorded):
        def log(self, points: Sequence[Point]) -> None:
            super().log(points)
            seen.set()

    made = Watched()
    followed = Delivery(context, run_id, PLAN)
    followed._tracker = made
    worker = threading.Thread(target=followed.follow, args=(is_over,))
    worker.start()
    assert seen.wait(120)
    wait_until(lambda: service.states(context, run_id)[0].status == "delivering")
    with pytest.raises(ConflictError, match="being delivered"):
        service.deliver(context, run_id)
    end(context, tmp_path)
    is_over.set()
    worker.join(120)
    assert (steps(), len(Recorded.outcomes)) == ([1, 2, 3], 1)
    assert service.states(context, run_id)[0].status == "delivered"


def test_a_process_that_is_gone_leaves_what_is_undelivered(context: Context, run_id: str) -> None:
    save_state(context.settings.run_folder(run_id), TrackerState(name="mlflow", status="delivering", num_events=2))
    assert service.states(context, run_id)[0].status == "waiting"


def test_what_another_process_has_delivered_meanwhile_is_not_sent_again(
    context: Context, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "_LOCK_SECONDS", 0.0)
    monkeypatch.setattr(delivery, "_POLL_SECONDS", 0.01)
    is_over, late = threading.Event(), Delivery(context, run_id, PLAN)
    worker = threading.Thread(target=late.follow, args=(is_over,))
    other = Delivery(context, run_id, PLAN)
    with other._held():
        worker.start()
        other._finish()
        assert steps() == [1, 2, 3]
        assert worker.is_alive(), "it waits for its turn"
    wait_until(lambda: len(Recorded.begun) == 2)
    is_over.set()
    worker.join(120)
    assert steps() == [1, 2, 3]


def test_names_in_the_tracker_are_those_of_the_project_of_the_run(context: Context) -> None:
    project = "proj-20261130-120000-aaaaaa"
    context.settings.run_folder(RUN_ID).mkdir(parents=True)
    plan = PLAN.model_copy(update={"registered_model": "model"})
    tracked = make_plan().model_copy(update={"tracking": (plan,)})
    context.runs.create(make_record(status="running"), tracked, project)
    context.runs.append(RUN_ID, RunStarted(from_step=0, num_steps=10))
    assert Delivery(context, RUN_ID, plan).deliver().project == f"{project}-mails"
    begun = Recorded.begun[0].plan
    assert (begun.project, begun.registered_model) == (f"{project}-mails", f"{project}-model")
    assert [state.project for state in service.states(context, RUN_ID)] == [f"{project}-mails"]
    # A run that was begun before projects had names of their own goes on where it is.
    folder = context.settings.run_folder(RUN_ID)
    save_state(folder, TrackerState(name="mlflow", project="mails", tracker_run_id="theirs-0"))
    context.runs.append(RUN_ID, make_step(1))
    Delivery(context, RUN_ID, plan).deliver()
    assert Recorded.begun[1].plan.project == "mails"
    assert [state.project for state in service.states(context, RUN_ID)] == ["mails"]


def test_a_pause_waits_shorter_than_an_end(context: Context, run_id: str) -> None:
    assert reporting._seconds_left(context, run_id) == context.settings.tracker_wait_seconds
    context.runs.update(run_id, status="paused")
    assert reporting._seconds_left(context, run_id) == reporting._SECONDS_OF_PAUSE
    assert reporting._seconds_left(context, "run-20260101-000000-ffffff") == reporting._SECONDS_OF_PAUSE


def test_a_damaged_state_begins_again(context: Context, run_id: str) -> None:
    folder = context.settings.run_folder(run_id)
    save_state(folder, TrackerState(name="mlflow", position=9))
    (folder / "trackers" / "mlflow.json").write_text("{")
    assert load_state(folder, "mlflow") == TrackerState(name="mlflow")
    assert Delivery(context, run_id, PLAN).deliver().num_events == 4


def test_everything_again_goes_into_a_new_run(context: Context, run_id: str) -> None:
    service.deliver(context, run_id)
    service.deliver(context, run_id, from_start=True)
    assert (steps(), Recorded.begun[1].tracker_run_id) == ([1, 2, 3, 1, 2, 3], "")
    first, second = Recorded.begun
    assert (first.key, second.key, second.name) == (RUN_ID, f"{RUN_ID}-2", f"{RUN_ID}-2")


def test_a_run_without_a_tracker_is_reported_to_one_that_is_named(context: Context) -> None:
    context.settings.run_folder(RUN_ID).mkdir(parents=True)
    context.runs.create(make_record(status="running"), make_plan())
    assert service.states(context, RUN_ID) == []
    with pytest.raises(RequestError, match="has no tracker"):
        service.deliver(context, RUN_ID)
    with pytest.raises(NotFoundError, match="mlfow"):
        service.deliver(context, RUN_ID, asked=["mlfow"])
    (state,) = service.deliver(context, RUN_ID, asked=["tensorboard"])
    assert (state.name, state.status) == ("tensorboard", "delivered")
    assert service.states(context, RUN_ID) == [state]


def test_a_job_delivers_and_fails_while_the_tracker_does_not_answer(context: Context, run_id: str) -> None:
    queued = job.start(context, Caller(), run_id)
    Recorded.fails_on.append("begin")
    with pytest.raises(WorkError, match="mlflow: ConnectionError"):
        job.carry_out(context, queued)
    assert job.carry_out(context, queued).status == "succeeded"
    assert steps() == [1, 2, 3]
    with pytest.raises(ConflictError, match="are up to date"):
        job.start(context, Caller(), run_id)
    with pytest.raises(NotFoundError):
        job.start(context, Caller(project_id="other"), run_id)


SAMPLE = MachineSampled(
    step=3, at=1000.0, run_cores=1.0, machine_cores=1.0, num_cores=2, run_memory_bytes=1, machine_memory_bytes=1,
    memory_bytes=1,
)  # fmt: skip


@pytest.fixture
def next_machine(tmp_path: Path) -> Iterator[Context]:
    """Another machine that knows the run by its upload: its events, in a database of its own."""
    with Context.open(tmp_path / "next") as context:
        context.settings.run_folder(RUN_ID).mkdir(parents=True)
        context.runs.create(make_record(status="running"), make_plan().model_copy(update={"tracking": (PLAN,)}))
        context.runs.append(RUN_ID, RunStarted(from_step=0, num_steps=10))
        for event in (make_step(1), make_step(2), SAMPLE.model_copy(update={"step": 2}), make_step(3), SAMPLE):
            context.runs.append(RUN_ID, event)
        yield context


def test_the_next_machine_sends_nothing_again_that_a_server_has(
    context: Context, run_id: str, next_machine: Context
) -> None:
    Delivery(context, run_id, PLAN).deliver()
    carried = json.loads(json.dumps(service.delivered_here(context, run_id)))
    assert [(one["name"], one["last_step"]) for one in carried] == [("mlflow", 3)]
    assert "theirs-1" not in json.dumps(carried), "who writes to a bucket names no run of a tracker"
    Recorded.points.clear()
    service.adopt_deliveries(next_machine, run_id, carried)
    next_machine.runs.truncate_after(run_id, 2)
    for event in (RunStarted(from_step=2, num_steps=10), make_step(3), SAMPLE, make_step(4)):
        next_machine.runs.append(run_id, event)
    Delivery(next_machine, run_id, PLAN).deliver()
    assert steps() == [4]
    assert steps("system/run_cores") == [3], "of the last step the server may have no sample"
    assert Recorded.begun[-1].tracker_run_id == "", "found by the id of the run"
    service.adopt_deliveries(next_machine, run_id, carried)
    assert load_state(next_machine.settings.run_folder(run_id), "mlflow").last_step == 4, "it has come further"


@pytest.mark.parametrize(
    "changes",
    [{"project": "other"}, {"name": "wandb"}, {"name": "../mlflow"}, {"number": 0}, {"last_step": -1}, {"more": 1}],
)
def test_what_is_said_of_other_trackers_and_cannot_be_read_is_passed_over(
    context: Context, run_id: str, next_machine: Context, changes: dict[str, object]
) -> None:
    Delivery(context, run_id, PLAN).deliver()
    (carried,) = service.delivered_here(context, run_id)
    service.adopt_deliveries(next_machine, run_id, [carried | changes, "nothing", None])
    service.adopt_deliveries(next_machine, run_id, 5)
    folder = next_machine.settings.run_folder(run_id)
    assert not (folder / service.FOLDER).exists()
    assert load_state(folder, "mlflow").last_step == 0


@pytest.mark.parametrize(
    "url", ["/home/me/.luthier/mlflow.db", "", "http://localhost:5000/#/runs/1", "http://[::1]:5000"]
)
def test_what_a_tracker_keeps_on_one_machine_is_sent_again_by_the_next(
    context: Context, run_id: str, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setattr(Recorded, "begin", lambda self, run: RemoteRun("1", url))
    assert Delivery(context, run_id, PLAN).deliver().last_step == 3
    assert service.delivered_here(context, run_id) == []
