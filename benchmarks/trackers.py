#!/usr/bin/env python3
"""What experiment trackers cost a run: the same training without one and with each, in turns.

    python benchmarks/trackers.py [--trackers tensorboard mlflow] [--rounds 5] [--steps 60] [--base-model NAME]

Trains LoRA on made-up rows, each round once without a tracker and once with each, in an order that changes. W&B works
offline, MLflow into a SQLite file, Trackio into files; `down` is MLflow at an address where nothing answers. Prints one
JSON document with three measures of each tracker, as medians of the rounds with their ranges:

- seconds of the training steps and processor seconds of the whole run (this process and its children, user and system),
  each as a ratio to the run without a tracker in the same round. On many machines both vary by more than that costs.
- seconds that the training thread is inside the code of trackers, by a clock around its calls: where it starts their
  processes and where it waits for them at the end. Between the two it calls nothing of theirs.
- processor seconds of the trackers' own processes, imports included, which compete with the training for cores.

The last two are counted within one run, so that differences between runs do not matter, and are given as shares of the
run's seconds and of its processor seconds. Ends with 1 where the median ratio of step seconds is over 1.01.
Only figures of a quiet machine mean anything.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from machine import describe

from luthier.core.child_process.process import ChildProcess
from luthier.core.plan import Plan
from luthier.core.system.process_setup import num_usable_cores, wait_briefly
from luthier.features.recipes.service import recipe_from
from luthier.features.trackers import reporting
from luthier.features.trackers.service import TrackerState
from luthier.features.training import service
from luthier.platform.home.context import Context

MOST = 1.01
SECONDS_BETWEEN_SAMPLES = 0.2
KNOWN = ("tensorboard", "mlflow", "wandb", "trackio", "down")


def rows(folder: Path, number: int) -> Path:
    """Rows of some 60 tokens."""
    path = folder / "train.jsonl"
    text = "A tracker shows how the loss of a training falls from step to step, and what the run has cost so far."
    lines = [{"prompt": f"Say sentence {n}.", "completion": f"{n}: {text}"} for n in range(number)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def tracking(name: str, folder: Path) -> list[dict[str, Any]]:
    """The `tracking` of a recipe."""
    if name == "none":
        return []
    if name == "down":
        return [{"name": "mlflow", "location": "http://127.0.0.1:9"}]
    places = {"mlflow": f"sqlite:///{folder / 'mlflow.db'}", "tensorboard": str(folder / "tensorboard")}
    return [{"name": name, "artifacts": False} | ({"location": places[name]} if name in places else {})]


@dataclass
class Costs:
    """What trackers take within one run; complete after the block of `costs_of_trackers`.

    Attributes:
        start_seconds: of the training thread, to start their processes.
        end_seconds: the same, to wait for them at the end.
        by_process: processor seconds of their processes and of the children of these, by pid.
    """

    start_seconds: float = 0.0
    end_seconds: float = 0.0
    by_process: dict[int, float] = field(default_factory=dict)


@contextmanager
def costs_of_trackers() -> Iterator[Costs]:
    """Measure what trackers take while the block trains one run.

    What a process used between its last sample and its end is missing: at most `SECONDS_BETWEEN_SAMPLES`.
    """
    costs = Costs()
    pids: list[int] = []
    is_over = threading.Event()
    plain_child, plain_reported = reporting.ChildProcess, service.reported

    class Watched(ChildProcess):
        """Notes the pid of each process that is started."""

        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            pids.append(self.pid)

    @contextmanager
    def timed(context: Context, run_id: str, plan: Plan) -> Iterator[list[TrackerState]]:
        """All that the training thread does for trackers lies before and after the block of `reported`."""
        began = time.perf_counter()
        with plain_reported(context, run_id, plan) as states:
            costs.start_seconds = time.perf_counter() - began
            yield states
            began = time.perf_counter()
        costs.end_seconds = time.perf_counter() - began

    def sample() -> None:
        while not is_over.wait(SECONDS_BETWEEN_SAMPLES):
            for pid in list(pids):
                try:
                    own = psutil.Process(pid)
                    for process in (own, *own.children(recursive=True)):
                        times = process.cpu_times()
                        costs.by_process[process.pid] = times.user + times.system
                except psutil.Error:
                    continue

    reporting.ChildProcess, service.reported = Watched, timed
    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield costs
    finally:
        is_over.set()
        thread.join()
        reporting.ChildProcess, service.reported = plain_child, plain_reported


def processor_seconds() -> float:
    """Of this process and of its children that have ended, user and system."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def measure(context: Context, name: str, folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """Train once; what the run and its tracker took, in seconds."""
    document = {
        "base_model": options.base_model,
        "data": {"train": str(folder / "train.jsonl")},
        "method": {"name": "lora", "rank": 8},
        "training": {"max_steps": options.steps, "global_batch_size": 8, "epochs": 1000},
        "tracking": tracking(name, folder),
    }
    began, used = time.perf_counter(), processor_seconds()
    with costs_of_trackers() as costs:
        outcome = service.train(context, recipe_from(document, base_dir=folder), base_dir=folder)
    whole = time.perf_counter() - began
    assert outcome.record.result is not None
    for state in outcome.trackers:
        assert (state.status == "delivered") == (name != "down"), state
    return {
        "steps_seconds": outcome.record.result.seconds,
        "whole_seconds": whole,
        "processor_seconds": processor_seconds() - used,
        "thread_seconds_at_start": costs.start_seconds,
        "thread_seconds_at_end": costs.end_seconds,
        "tracker_processor_seconds": sum(costs.by_process.values()),
    }


def spread(values: list[float]) -> dict[str, float]:
    """Median and range."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def summary(runs: list[dict[str, float]], without: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """The measures of one tracker.

    Args:
        runs: Of each round the run with it.
        without: The runs without a tracker of the same rounds.
    """
    pairs = list(zip(runs, without, strict=True))
    in_thread = [each["thread_seconds_at_start"] + each["thread_seconds_at_end"] for each in runs]
    return {
        "ratio_of_step_seconds": spread([a["steps_seconds"] / b["steps_seconds"] for a, b in pairs]),
        "ratio_of_processor_seconds": spread([a["processor_seconds"] / b["processor_seconds"] for a, b in pairs]),
        "more_seconds_in_all": spread([a["whole_seconds"] - b["whole_seconds"] for a, b in pairs]),
        "thread_seconds": spread(in_thread),
        "thread_share_of_run": spread([a / b["whole_seconds"] for a, b in zip(in_thread, runs, strict=True)]),
        "processor_seconds": spread([each["tracker_processor_seconds"] for each in runs]),
        "share_of_processor_seconds": spread(
            [each["tracker_processor_seconds"] / each["processor_seconds"] for each in runs]
        ),
        "share_of_all_cores": spread(
            [each["tracker_processor_seconds"] / each["whole_seconds"] / num_usable_cores() for each in runs]
        ),
    }


def main() -> None:
    """Measure, and print."""
    wait_briefly()  # as the command line does, before torch is loaded
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--trackers", nargs="+", choices=KNOWN, default=["tensorboard", "mlflow", "down"])
    cli.add_argument("--rounds", type=int, default=5)
    cli.add_argument("--steps", type=int, default=60)
    cli.add_argument("--base-model", default="smollm2-135m-instruct")
    options = cli.parse_args()
    names = ["none", *options.trackers]
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        os.environ |= {"WANDB_MODE": "offline", "TRACKIO_DIR": str(folder / "trackio")}
        rows(folder, 200)
        with Context.open(None) as context:
            measure(context, "none", folder, options)  # reads the model, and measures the machine
            for number in range(options.rounds):
                # A machine that gets warmer or busier must not count against the last one of each round.
                for name in names[number % len(names) :] + names[: number % len(names)]:
                    found[name].append(measure(context, name, folder, options))
                    print(name, found[name][-1], file=sys.stderr)
    measures = {name: summary(found[name], found["none"]) for name in options.trackers}
    document = {
        "machine": describe(),
        "base_model": options.base_model,
        "steps": options.steps,
        "rounds": found,
        "trackers": measures,
    }
    print(json.dumps(document, indent=2))
    sys.exit(any(one["ratio_of_step_seconds"]["median"] > MOST for one in measures.values()))


if __name__ == "__main__":
    main()
