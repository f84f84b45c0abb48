"""A search by several workers: killed and gone on with, a worker that dies, a wish to stop, and what hours mean."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from tests.features.studies.service.test_service import CHILD, recipe, request
from tests.fixtures.forked_children import Script, SessionForkServer
from tests.vacuous import nonempty

from luthier.core.events import StepDone
from luthier.features.studies import service as studies
from luthier.platform.home.context import Context

__all__ = ["recipe"]  # the fixture


STOPPED_CHILD = """
import sys
from luthier.platform.home.context import Context
from luthier.features.studies import service as studies
from tests.fixtures.held import Hold
hold, held = Hold(), []
def tell(study, trial):
    if trial.results and not held:
        held.append(print("held", flush=True))
        hold.wait()
with Context.open(sys.argv[1]) as context:
    studies.go_on(context, sys.argv[2], tell=tell)
"""
"""Goes no further than the first result of a trial before a signal comes."""


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
            is_worker = "luthier.features.studies.workers:train_trials" in process.cmdline()
            if is_worker and any(file.path.startswith(str(home)) for file in process.open_files()):
                found.append(process)
    return found


@pytest.fixture
def started(home: Path, fork_server: SessionForkServer) -> Iterator[Callable[[str], Script]]:
    """Has a process of its own go on with a study."""
    with contextlib.ExitStack() as stack:
        yield lambda study_id: stack.enter_context(fork_server.script(CHILD, home, study_id))


def wait_until(happened, process=None, seconds=180.0):
    """Until it happened, the process has ended, or nobody would wait longer."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and (process is None or process.poll() is None) and not happened():
        time.sleep(0.02)
    return happened()


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


@pytest.mark.drill
def test_killed_in_the_middle_with_two_workers_nothing_is_lost_or_doubled(context, recipe, home, started):
    study = studies.begin(context, request(recipe, workers=2, most_trials=3))
    parent = started(study.study_id)

    def is_in_the_middle():
        trials = context.studies.trials(study.study_id)
        is_both = [trial.state for trial in trials].count("running") == 2
        return is_both and any(trial.results for trial in trials)

    assert wait_until(is_in_the_middle, parent)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert wait_until(lambda: not workers_of(home), seconds=10)  # none outlives the process that has started it
    studies.go_on(context, study.study_id)
    check_nothing_is_lost_or_doubled(context, study.study_id, num_searched=3)


@pytest.mark.drill
def test_a_worker_that_dies_takes_no_trial_with_it_and_all_hours_add_up(context, recipe, home):
    study = studies.begin(context, request(recipe, workers=2, most_trials=3))
    killed: list[int] = []

    def kill_once(_study, trial):
        if trial.results and not killed and (alive := workers_of(home)):
            killed.append(alive[0].pid)
            os.kill(alive[0].pid, signal.SIGKILL)

    began = time.perf_counter()
    done = studies.go_on(context, study.study_id, tell=kill_once)
    passed = (time.perf_counter() - began) / 3600
    assert killed
    check_nothing_is_lost_or_doubled(context, study.study_id, num_searched=3)
    assert not workers_of(home)
    trials = context.studies.trials(study.study_id)
    assert {context.runs.plan(trial.run_id).training.num_threads for trial in trials} == {1}
    assert sum(trial.hours for trial in trials) + done.overhead_hours < done.hours
    # what a dead worker had done since its last checkpoint may be counted with its trial or with the rest, or both
    assert 0.8 * passed <= done.hours <= 1.2 * passed


def test_a_wish_to_stop_leaves_every_trial_at_a_checkpoint(context, recipe, home, fork_server):
    study = studies.begin(context, request(recipe, workers=2, most_trials=4))
    with fork_server.script(STOPPED_CHILD, home, study.study_id) as parent:
        assert parent.stdout.readline() == "held\n"
        parent.send_signal(signal.SIGTERM)
        assert parent.wait(120) == 0
    assert any(trial.results for trial in context.studies.trials(study.study_id))
    trials = context.studies.trials(study.study_id)
    assert context.studies.get(study.study_id).status == "paused"
    assert {trial.state for trial in trials} <= {"paused", "done", "waiting"}
    assert all(nonempty(record.status in ("paused", "succeeded") for record in context.runs.list()))
