"""A search by several workers: killed and gone on with, a worker that dies, a wish to stop, and what hours mean."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from luthier.core.events import StepDone
from luthier.service import studies
from luthier.service.context import Context
from tests.service.test_studies import CHILD, recipe, request

__all__ = ["recipe"]  # the fixture


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


@pytest.fixture
def context(home):
    with Context.open(home) as opened:
        yield opened


def workers_of(home: Path) -> list[psutil.Process]:
    """The workers of a home that live."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            command = process.cmdline()
            if "luthier.service.study_child" in command and str(home) in command:
                found.append(process)
    return found


def started(home: Path, study_id: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", CHILD, str(home), study_id])


def wait_until(happened, process, seconds=180.0):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None and not happened():
        time.sleep(0.02)


def check_nothing_is_lost_or_doubled(context, study_id, *, num_searched):
    """Every trial once, each with a run of its own, each run with every step once, and no run that is no trial's."""
    study, trials = context.studies.get(study_id), context.studies.trials(study_id)
    assert study.status == "done"
    assert [trial.number for trial in trials] == list(range(len(trials)))
    assert sum(trial.kind == "search" for trial in trials) == num_searched
    assert {trial.state for trial in trials} <= {"paused", "done", "failed"}
    wanted = [tuple(sorted(trial.values.items())) for trial in trials if trial.kind == "search"]
    assert len(set(wanted)) == num_searched
    runs = [trial.run_id for trial in trials] + [study.final_run_id]
    assert Counter(runs) == Counter(record.run_id for record in context.runs.list())
    for trial in trials:
        steps = [e.step for e in context.runs.events(trial.run_id) if isinstance(e, StepDone)]
        assert steps == list(range(1, trial.results[-1].step + 1))


def test_killed_in_the_middle_with_two_workers_nothing_is_lost_or_doubled(context, recipe, home):
    study = studies.begin(context, request(recipe, workers=2, most_trials=5))
    was_at_once = False
    for num_changes in (3, 6):
        parent = started(home, study.study_id)

        def happened(num_changes=num_changes):
            trials = context.studies.trials(study.study_id)
            is_both = [trial.state for trial in trials].count("running") == 2
            return is_both and sum(1 + len(trial.results) for trial in trials) >= num_changes

        wait_until(happened, parent)
        was_at_once = was_at_once or happened()
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        wait_until(lambda: not workers_of(home), subprocess.Popen(["sleep", "5"]))
        assert not workers_of(home)  # none outlives the process that has started it
    assert was_at_once
    studies.go_on(context, study.study_id)
    check_nothing_is_lost_or_doubled(context, study.study_id, num_searched=5)


def test_a_worker_that_dies_takes_no_trial_with_it(context, recipe, home):
    study = studies.begin(context, request(recipe, workers=2, most_trials=3))
    killed: list[int] = []

    def kill_once(_study, trial):
        if trial.results and not killed and (alive := workers_of(home)):
            killed.append(alive[0].pid)
            os.kill(alive[0].pid, signal.SIGKILL)

    studies.go_on(context, study.study_id, tell=kill_once)
    assert killed
    check_nothing_is_lost_or_doubled(context, study.study_id, num_searched=3)
    assert not workers_of(home)


def test_a_wish_to_stop_leaves_every_trial_at_a_checkpoint(context, recipe, home):
    study = studies.begin(context, request(recipe, workers=2, most_trials=4))
    parent = started(home, study.study_id)
    wait_until(lambda: any(t.results for t in context.studies.trials(study.study_id)), parent)
    parent.send_signal(signal.SIGTERM)
    assert parent.wait(120) == 0
    trials = context.studies.trials(study.study_id)
    assert context.studies.get(study.study_id).status == "paused"
    assert {trial.state for trial in trials} <= {"paused", "done", "waiting"}
    assert all(record.status in ("paused", "succeeded") for record in context.runs.list())


def test_hours_of_all_workers_add_up_to_what_passed_on_the_clock(context, recipe):
    study = studies.begin(context, request(recipe, workers=2, most_trials=3))
    began = time.perf_counter()
    done = studies.go_on(context, study.study_id)
    passed = (time.perf_counter() - began) / 3600
    assert 0.8 * passed <= done.hours <= 1.02 * passed  # the report is written after the last count
    trials = context.studies.trials(study.study_id)
    assert all(context.runs.plan(t.run_id).training.num_threads == 1 for t in trials)
    assert sum(trial.hours for trial in trials) + done.overhead_hours < done.hours
