"""How a search hands out work, apart from training: workers that die, a budget shared by those at work, an end."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest
from tests.homes import add_study

from luthier.core.errors import NotAllowedError
from luthier.core.workflows.study import Result, Trial
from luthier.features.planning.training_data import TrainingDataLoader
from luthier.features.studies import search as study_search
from luthier.features.studies.search import MAX_DEATHS, Search
from luthier.features.studies.store import StudyStore
from luthier.features.studies.trials import Priced, expected_hours
from luthier.features.studies.workers import FinishedTask, Task, device_of
from luthier.platform.home.context import Context

HOURS = 0.9
"""What each whole training takes of the machine; its first rung a ninth of that."""


class FakeCrew:
    """Two workers that take no time: a trial's loss is its number, and those in `deadly` kill whoever trains them."""

    size = 2

    def __init__(self, *deadly: int) -> None:
        self.deadly, self.tasks, self.most_at_once = deadly, list[Task](), 0
        self.begun: list[tuple[int, int]] = []

    def stop_requested(self) -> None:
        return None

    @property
    def has_room(self) -> bool:
        return len(self.tasks) < self.size

    def begin(self, task: Task) -> None:
        self.tasks.append(task)
        self.begun.append((task.trial.number, task.rung))
        self.most_at_once = max(self.most_at_once, len(self.tasks))

    def wait(self) -> FinishedTask:
        task = self.tasks.pop(0)
        if task.trial.number in self.deadly:
            return FinishedTask(task, 0, 0.0, died="its process was ended by SIGKILL")
        step, last = task.priced.steps[task.rung], task.priced.steps[-1]
        result = Result(rung=task.rung, step=step, share=step / last, loss=float(task.trial.number))
        changed = {
            "results": (*task.trial.results, result),
            "state": "done" if step == last else "paused",
            "hours": HOURS * step / last,
        }
        return FinishedTask(task, 0, 0.0, task.trial.model_copy(update=changed))


@pytest.fixture
def home(tmp_path, monkeypatch):
    def priced(*_: Any) -> Priced:
        return Priced(SimpleNamespace(), HOURS, (1, 3, 9), True, 0.5)  # type: ignore[arg-type]

    monkeypatch.setattr(study_search, "price", priced)
    with Context.open(tmp_path / "home") as opened:
        yield opened


def search_of(home: Context, pool: FakeCrew, *, hours: float, most_trials: int) -> Search:
    study = add_study(home, {"overhead_hours": 0.0})
    store = StudyStore(home.database)
    store.remove(study.study_id)  # the trials, too: this search begins
    spec = study.spec.model_copy(update={"hours": hours, "most_trials": most_trials, "sampler": "random"})
    study = study.model_copy(update={"spec": spec})
    home.studies.create(study, "default")
    own: Any = None
    return Search(home, study, own, 0.0, lambda *_: None, pool, time.perf_counter(), TrainingDataLoader())


def test_two_train_at_once_and_every_task_is_handed_out_once(home: Context) -> None:
    pool = FakeCrew()
    search = search_of(home, pool, hours=100.0, most_trials=9)
    assert search.run()
    assert pool.most_at_once == 2
    assert len(pool.begun) == len(set(pool.begun))
    assert {number for number, _ in pool.begun} == set(range(9))
    assert [trial.number for trial in search.trials if trial.state == "done"] == [0]  # the lowest loss of all
    assert home.studies.trials(search.study.study_id) == search.trials


def test_no_trial_begins_once_access_is_lost(home: Context) -> None:
    pool = FakeCrew()
    search = search_of(home, pool, hours=100.0, most_trials=9)

    def refuse() -> None:
        if len(pool.begun) == 3:
            raise NotAllowedError("the key 'ci' was revoked", expected="a key", do="another key")

    home.check_access = refuse
    with pytest.raises(NotAllowedError, match="was revoked"):
        search.run()
    assert len(pool.begun) == 3
    assert {trial.number for trial in home.studies.trials(search.study.study_id) if trial.state == "running"} <= {
        number for number, _ in pool.begun
    }


def test_a_trial_of_which_workers_die_is_given_up_and_the_others_are_not(home: Context) -> None:
    pool = FakeCrew(1)
    search = search_of(home, pool, hours=100.0, most_trials=4)
    assert search.run()
    assert pool.begun.count((1, 0)) == MAX_DEATHS
    states = {trial.number: trial.state for trial in search.trials}
    assert states[1] == "failed"
    assert "SIGKILL" in search.trials[1].reason
    assert "failed" not in {state for number, state in states.items() if number != 1}


def test_what_others_are_at_work_on_is_not_spent_twice(home: Context) -> None:
    pool = FakeCrew()
    search = search_of(home, pool, hours=0.15, most_trials=9)  # room for one first rung (0.1 h), not for two
    assert search.run()
    assert pool.most_at_once == 1
    assert sum(trial.hours for trial in search.trials) <= 0.15


def search_with_dear_ones(home: Context, monkeypatch: pytest.MonkeyPatch, *, hours: float) -> Search:
    """Trial 1 is three times as dear as the others, and so is the end if it wins; the recipe's own end takes 1 h."""
    study, trial_hours = search_of(home, FakeCrew(), hours=hours, most_trials=2), {1: 3 * HOURS}
    study.final_hours = 1.0

    def priced(*asked: Any) -> Priced:
        return Priced(SimpleNamespace(), trial_hours.get(asked[2].number, HOURS), (1, 3, 9), True, 0.5)  # type: ignore[arg-type]

    monkeypatch.setattr(study_search, "price", priced)
    monkeypatch.setattr(study_search, "expected_hours", lambda _trials, hours: hours)
    return study


def test_what_is_kept_back_covers_the_end_of_whatever_may_win(home: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    search = search_with_dear_ones(home, monkeypatch, hours=100.0)
    assert search.end_hours == 1.0
    search.keep(_done(0, HOURS, loss=1.0))
    assert search.end_hours == pytest.approx(1.0)
    search.keep(_done(1, 3 * HOURS, loss=0.5))
    assert search.end_hours == pytest.approx(3.0)
    assert search.left_hours == pytest.approx(search.unspent_hours - 3.0)


@pytest.mark.parametrize(("more", "can"), [(0.01, True), (-0.01, False)])
def test_a_trial_whose_own_end_the_budget_would_not_cover_is_not_brought_to_its_end(
    home: Context, monkeypatch: pytest.MonkeyPatch, more: float, can: bool
) -> None:
    first, training, end, last = HOURS, 3 * HOURS, 3.0, 2
    search = search_with_dear_ones(home, monkeypatch, hours=first + training + end + more)
    search.keep(_done(0, HOURS, loss=1.0))
    dear = Trial(number=1, values={}, run_id="run-1", predicted_hours=3 * HOURS)
    search.keep(dear)
    priced = study_search.price(None, None, dear)  # type: ignore[arg-type, call-arg]
    assert search._can_pay(dear, last, priced) == can
    assert search._can_pay(dear, 0, priced)


def _done(number: int, hours: float, *, loss: float) -> Trial:
    results = tuple(Result(rung=n, step=step, share=step / 9, loss=loss) for n, step in enumerate((1, 3, 9)))
    changed = {"hours": HOURS, "predicted_hours": hours, "state": "done", "results": results}
    return Trial(number=number, values={}, run_id=f"run-{number}").model_copy(update=changed)


def test_gpus_are_dealt_out_in_turn(monkeypatch) -> None:
    import torch

    from luthier.ml.inference import accelerator

    monkeypatch.setattr(accelerator, "device_type", lambda: "cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [device_of(n, {})["CUDA_VISIBLE_DEVICES"] for n in range(3)] == ["0", "1", "0"]
    assert device_of(1, {"CUDA_VISIBLE_DEVICES": "4,7"}) == {"CUDA_VISIBLE_DEVICES": "7"}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert device_of(1, {}) == {}


def stopped_trial(hours_of_rung: float) -> Trial:
    """After its first rung, of a ninth of its steps, it has trained on for 0.4 h, and was stopped."""
    result = Result(rung=0, step=1, share=1 / 9, loss=1.0, hours=hours_of_rung)
    asked = {"state": "waiting", "results": (result,), "hours": 0.5, "predicted_hours": HOURS}
    return Trial(number=0, values={}, run_id="run-0").model_copy(update=asked)


def test_a_trial_that_was_stopped_between_two_rungs_does_not_look_slow() -> None:
    assert expected_hours([stopped_trial(0.1)], HOURS) == pytest.approx(HOURS)
    # An earlier version has not stored the hours of the rung: such a trial says nothing.
    assert expected_hours([stopped_trial(0.0)], 2.0) == 2.0


@pytest.mark.parametrize(
    ("status", "hours"), [("paused", HOURS * 4 / 9), ("running", HOURS * 8 / 9)], ids=["stopped", "killed"]
)
def test_steps_up_to_a_stop_are_not_paid_twice(
    home: Context, monkeypatch: pytest.MonkeyPatch, status: str, hours: float
) -> None:
    search, trial = search_of(home, FakeCrew(), hours=100.0, most_trials=9), stopped_trial(0.1)
    search.keep(trial)
    priced = study_search.price(None, None, trial)  # type: ignore[arg-type, call-arg]
    assert search.needed(trial, 2, priced) == pytest.approx(HOURS * 8 / 9)  # without its run
    run = SimpleNamespace(status=status, step=5)
    monkeypatch.setattr(type(home.runs), "get", lambda _store, _run_id: run)
    assert search.needed(trial, 2, priced) == pytest.approx(hours)


def test_a_result_says_what_its_trial_had_spent(home: Context) -> None:
    search = search_of(home, FakeCrew(), hours=100.0, most_trials=1)
    assert search.run()
    assert [one.hours for one in search.trials[0].results] == pytest.approx([HOURS / 9, HOURS / 3, HOURS])
