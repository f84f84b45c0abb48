"""What the store promises about runs and their events."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from luthier.core import registry
from luthier.core.errors import ConflictError, NotFoundError
from luthier.core.estimate import Estimate
from luthier.core.events import CheckpointSaved, RunEnded, RunStarted, ValidationDone, WarningRaised
from luthier.core.ids import new_id
from luthier.core.plan import Plan
from luthier.core.run import BudgetPlan, FirstActions, RunRecord, TrainResult
from luthier.features.runs.store import RunStore
from luthier.platform.db.run_values import default_name
from luthier.testing.records import make_step as step

RUN = "run-20261125-093000-aaaaaa"
MakeRecord = Callable[..., RunRecord]


@pytest.fixture
def run(runs: RunStore, record: MakeRecord, plan: Plan) -> str:
    runs.create(record(), plan)
    return RUN


def test_what_goes_in_comes_out(runs: RunStore, record: MakeRecord, plan: Plan, result: TrainResult) -> None:
    whole = record().model_copy(
        update={"status": "succeeded", "result": result, "step": 10, "report_path": "/r.html", "stopped_because": "x"}
    )
    runs.create(whole, plan)
    assert runs.get(RUN) == whole
    assert runs.plan(RUN) == plan
    assert runs.plan(RUN).hash == plan.hash


def test_an_id_is_taken_once(runs: RunStore, run: str, record: MakeRecord, plan: Plan) -> None:
    with pytest.raises(ConflictError, match="exists already"):
        runs.create(record(), plan)


def test_a_run_that_is_refused_leaves_nothing(runs: RunStore, run: str, record: MakeRecord, plan: Plan) -> None:
    changed = record().model_copy(update={"base_model": "other"})
    with pytest.raises(ConflictError):
        runs.create(changed, plan)
    assert [r.base_model for r in runs.list()] == ["tiny"]


def test_a_base_model_with_a_name_of_any_length_has_a_run(runs: RunStore, record: MakeRecord, plan: Plan) -> None:
    """PostgreSQL refuses a default name that is longer than its column, 200 characters; SQLite keeps it."""
    folder = f"/models/{'m' * 250}"
    runs.create(record().model_copy(update={"base_model": folder}), plan)
    assert runs.get(RUN).base_model == folder
    assert len(default_name("rows.jsonl", None, folder, "2026-11-25T09:30:00+00:00")) == 200


def test_newest_first(runs: RunStore, record: MakeRecord, plan: Plan) -> None:
    ids = [new_id("run") for _ in range(5)]
    for run_id in ids:
        runs.create(record(run_id), plan)
    assert [r.run_id for r in runs.list()] == ids[::-1]
    assert [r.run_id for r in runs.list(limit=2)] == ids[:2:-1]


def test_update_changes_what_is_given(runs: RunStore, run: str, result: TrainResult) -> None:
    before = runs.get(run)
    after = runs.update(run, status="succeeded", step=10, result=result, evaluation_id="eval-1")
    assert after == runs.get(run)
    assert after.model_copy(update={"updated_at": before.updated_at}) == before.model_copy(
        update={"status": "succeeded", "step": 10, "result": result, "evaluation_id": "eval-1"}
    )
    assert after.updated_at != before.updated_at
    assert runs.update(run, report_path="/r").result == result


@pytest.mark.parametrize(
    "call",
    [
        lambda runs, run_id: runs.get(run_id),
        lambda runs, run_id: runs.plan(run_id),
        lambda runs, run_id: runs.update(run_id, step=1),
        lambda runs, run_id: runs.append(run_id, step(1)),
        lambda runs, run_id: runs.events(run_id),
        lambda runs, run_id: runs.truncate_after(run_id, 1),
        lambda runs, run_id: runs.delete(run_id),
    ],
)
def test_no_such_run_names_the_nearest(runs: RunStore, run: str, call: Callable[[RunStore, str], object]) -> None:
    with pytest.raises(NotFoundError, match=f"nearest: {RUN}"):
        call(runs, "run-20261125-093000-aaaaab")


def test_no_such_run_in_an_empty_home(runs: RunStore) -> None:
    with pytest.raises(NotFoundError, match="there are none yet"):
        runs.get("x")


def test_every_kind_of_event_comes_back_in_order(runs: RunStore, run: str) -> None:
    events = [
        RunStarted(from_step=0, num_steps=2),
        WarningRaised(step=0, code="short", message="few rows"),
        WarningRaised(step=0, code="slow", message="no bfloat16"),
        step(1),
        step(2),
        ValidationDone(
            step=2, loss=1.5, measures={"token_accuracy": 0.5}, num_trained_tokens=9, is_best=True, seconds=0.1
        ),
        CheckpointSaved(step=2, path="/c", num_bytes=7),
        RunEnded(step=2, status="succeeded", reason="all steps done"),
    ]
    for event in events:
        runs.append(run, event)
    assert runs.events(run) == events


def test_a_step_trained_again_replaces_the_old(runs: RunStore, run: str) -> None:
    for event in (step(1), step(2), step(3), step(2, loss=0.5)):
        runs.append(run, event)
    assert runs.events(run) == [step(1), step(2, loss=0.5), step(3)]


def test_a_step_and_that_the_run_has_reached_it_are_written_together(runs: RunStore, run: str) -> None:
    before = runs.get(run)
    runs.append(run, step(7), reached_step=7)
    assert (runs.events(run), runs.get(run).step) == ([step(7)], 7)
    runs.append(run, step(8))
    after = runs.get(run)
    assert after == before.model_copy(update={"step": 7, "updated_at": after.updated_at})
    with pytest.raises(NotFoundError, match="no run"):
        runs.append("run-20261125-093000-cccccc", step(9), reached_step=9)


def test_resume_drops_what_came_after_the_checkpoint(runs: RunStore, run: str) -> None:
    events = [RunStarted(from_step=0, num_steps=4), step(1), step(2)]
    lost = [step(3), RunEnded(step=3, status="failed", reason="killed")]
    for event in (*events, *lost):
        runs.append(run, event)
    assert runs.truncate_after(run, 2) == 2
    resumed = [RunStarted(from_step=2, num_steps=4), step(3)]
    for event in resumed:
        runs.append(run, event)
    assert runs.events(run) == [*events, *resumed]


def test_tail_gives_each_event_once_and_replaced_ones_again(runs: RunStore, run: str) -> None:
    assert runs.tail(run) == ([], 0)
    runs.append(run, step(1))
    runs.append(run, step(2))
    events, position = runs.tail(run)
    assert events == [step(1), step(2)]
    assert runs.tail(run, position) == ([], position)
    runs.append(run, step(2, loss=0.5))
    again, later = runs.tail(run, position)
    assert again == [step(2, loss=0.5)] == runs.events(run, position)
    assert later > position


def test_positions_are_never_used_again(runs: RunStore, run: str) -> None:
    """Else one who watches would miss what a resumed run writes."""
    runs.append(run, step(1))
    _, position = runs.tail(run)
    runs.truncate_after(run, 0)
    runs.append(run, step(1))
    assert runs.tail(run, position)[0] == [step(1)]


def test_delete_forgets_all_of_one_run_and_nothing_of_another(
    runs: RunStore, run: str, record: MakeRecord, plan: Plan
) -> None:
    other = "run-20261125-093000-bbbbbb"
    runs.create(record(other), plan)
    for run_id in (run, other):
        runs.append(run_id, step(1))
    runs.delete(run)
    assert [r.run_id for r in runs.list()] == [other]
    assert runs.events(other) == [step(1)]
    runs.create(record(run), plan)
    assert runs.events(run) == []


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(numbers=st.lists(st.tuples(st.integers(0, 6), st.floats(0, 9)), max_size=20))
def test_events_are_a_map_from_step_to_the_last_that_came(
    runs: RunStore, record: MakeRecord, plan: Plan, numbers: list[tuple[int, float]]
) -> None:
    run_id = new_id("run")
    runs.create(record(run_id), plan)
    for number, loss in numbers:
        runs.append(run_id, step(number, loss))
    last = dict(numbers)
    assert [(e.step, e.loss) for e in runs.events(run_id)] == sorted(last.items())  # type: ignore[union-attr]


def test_a_budget_can_be_replaced_and_nothing_else_of_a_plan(runs: RunStore, run: str, plan: Plan) -> None:
    one = Estimate(value=1.0, low=1.0, high=1.0)
    first = FirstActions(
        step_seconds=one, step_tokens=1.0, validation_seconds=1.0, checkpoint_seconds=1.0, loading_seconds=1.0
    )
    budget = BudgetPlan(
        hours=3.0, device="cpu", usd_per_hour=one, price_source="", watts=None, watts_source="", first=first
    )
    runs.set_budget(run, plan.model_copy(update={"budget": budget}))
    assert runs.plan(run) == plan.model_copy(update={"budget": budget})
    other = plan.model_copy(update={"training": plan.training.model_copy(update={"learning_rate": 0.5})})
    with pytest.raises(ConflictError, match="another plan"):
        runs.set_budget(run, other)
    assert runs.plan(run).budget == budget


def test_what_was_appended_comes_a_part_at_a_time(runs: RunStore, record: MakeRecord, plan: Plan) -> None:
    other = "run-20261125-093000-bbbbbb"
    for run_id in (RUN, other):
        runs.create(record(run_id), plan)
    for number in range(1, 8):
        runs.append(RUN, step(number))
        runs.append(other, step(number))
    first, position = runs.appended(RUN, 0, limit=3)
    more, end = runs.appended(RUN, position, limit=100)
    assert [event.step for event in [*first, *more] if event.kind == "step"] == [1, 2, 3, 4, 5, 6, 7]
    runs.append(RUN, step(2, loss=9.0))  # trained again: at its new place, and only there
    assert runs.appended(RUN, end, limit=100)[0] == [step(2, loss=9.0)]
    assert len(runs.appended(RUN, 0, limit=100)[0]) == 7
    assert runs.appended("run-20261125-093000-cccccc", 0, limit=100)[0] == []


def test_who_waits_long_does_not_read_past_others_again(
    runs: RunStore, record: MakeRecord, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("luthier.features.runs.store._MAX_UNDER_WAY", 5)
    other = "run-20261125-093000-bbbbbb"
    for run_id in (RUN, other):
        runs.create(record(run_id), plan)
    runs.append(RUN, step(1))
    for number in range(1, 21):
        runs.append(other, step(number))
    position = runs.appended(RUN, 0, limit=100)[1]
    assert position >= 15
    runs.append(RUN, step(2))
    assert runs.appended(RUN, position, limit=100)[0] == [step(2)]


def test_events_of_kinds_and_of_steps(runs: RunStore, run: str) -> None:
    told = [
        step(1),
        WarningRaised(step=1, code="a", message="m"),
        step(2),
        step(3),
        RunStarted(from_step=3, num_steps=9),
    ]
    for event in told:
        runs.append(run, event)
    assert runs.of_kinds(run, ["warning", "run_started"]) == [told[4], told[1]]
    assert runs.of_kinds(run, ["step"], limit=1) == [step(3)]
    assert runs.at_steps(run, [3, 1, 7]) == [step(1), step(3)]


def test_the_newest_events_of_several_runs(runs: RunStore, run: str, record: MakeRecord, plan: Plan) -> None:
    other, silent = "run-20261125-093000-bbbbbb", "run-20261125-093000-cccccc"
    for run_id in (other, silent):
        runs.create(record(run_id), plan)
    for event in (step(3), step(1), WarningRaised(step=9, code="a", message="m")):
        runs.append(run, event)
    warning = WarningRaised(step=2, code="b", message="n")
    for event in (step(2), warning):
        runs.append(other, event)
    found = runs.newest([run, other, silent, "run-20261125-093000-dddddd"], ("step", "warning"))
    assert found == {
        run: {"step": step(3), "warning": WarningRaised(step=9, code="a", message="m")},
        other: {"step": step(2), "warning": warning},
        silent: {},
    }
    assert {run_id: runs.last(run_id, "step") for run_id in (run, other)} == {run: step(3), other: step(2)}
    assert runs.newest([], ("step",)) == {}


class Absent:
    """What a script registers: its process alone knows it."""

    name = "absent_plug_in"


def test_a_plan_is_read_where_its_plug_ins_are_not_known(
    runs: RunStore, record: MakeRecord, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_REGISTERED", {})
    for one in (registry.METRICS, registry.OBJECTIVES, registry.METHODS, registry.OPTIMIZERS):
        registry.register(one.group, Absent)
    document = plan.model_dump(mode="json")
    for section in ("objective", "method"):
        document[section]["name"] = Absent.name
        document["recipe"][section] = {"name": Absent.name}
    document["training"]["optimizer"]["name"] = Absent.name
    document["recipe"]["training"] = {"optimizer": {"name": Absent.name}}
    document["evaluation"]["metrics"] = [Absent.name]
    document["recipe"]["evaluation"] = {"metrics": [Absent.name]}
    theirs = Plan.model_validate(document)
    runs.create(record(), theirs)
    registry._REGISTERED.clear()
    assert runs.plan(RUN) == theirs
    assert runs.plan(RUN).hash == theirs.hash
    assert runs.plan(RUN).objective.loss_unit == "nats a learned token"
    with pytest.raises(ValidationError, match="not an objective"):
        Plan.model_validate(document)  # what somebody asks for now is refused
