#!/usr/bin/env python3
"""What experiment trackers cost a run: the same training without one and with each, in turns.

    python benchmarks/trackers.py [--trackers tensorboard mlflow] [--rounds 5] [--steps 60] [--base-model NAME]

Trains LoRA on made-up rows, each round once without a tracker and once with each, in an order that changes. W&B works
offline, MLflow into a SQLite file, Trackio into files; `down` is MLflow at an address where nothing answers. Prints one
JSON document: seconds of the training steps, and of each tracker the ratio to the run without one in the same round,
with its median and range; what waiting at the end of the run took; and the processor seconds of the tracker's own
processes, its imports included, as a share of what all cores could give during the run. Seconds of steps vary by more
than a tracker takes on many machines, processor seconds do not. Ends with 1 where a median ratio is over 1.01.
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
from pathlib import Path
from typing import Any

import psutil
from machine import describe

from luthier.core.child_process.process import ChildProcess
from luthier.core.system.process_setup import num_usable_cores, wait_briefly
from luthier.features.recipes.service import recipe_from
from luthier.features.trackers import reporting
from luthier.features.training.service import train
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


@contextmanager
def processor_seconds() -> Iterator[dict[int, float]]:
    """Processor seconds of the processes that deliver to trackers, and of theirs, by pid; complete after the block.

    What a process used between its last sample and its end is missing: at most `SECONDS_BETWEEN_SAMPLES`.
    """
    seconds: dict[int, float] = {}
    pids: list[int] = []
    is_over = threading.Event()

    class Watched(ChildProcess):
        """Notes the pid of each process that is started."""

        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            pids.append(self.pid)

    def sample() -> None:
        while not is_over.wait(SECONDS_BETWEEN_SAMPLES):
            for pid in list(pids):
                try:
                    own = psutil.Process(pid)
                    for process in (own, *own.children(recursive=True)):
                        times = process.cpu_times()
                        seconds[process.pid] = times.user + times.system
                except psutil.Error:
                    continue

    plain, reporting.ChildProcess = reporting.ChildProcess, Watched
    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield seconds
    finally:
        is_over.set()
        thread.join()
        reporting.ChildProcess = plain


def measure(context: Context, name: str, folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """Seconds of the steps of one run and of all of it, and processor seconds of its tracker."""
    document = {
        "base_model": options.base_model,
        "data": {"train": str(folder / "train.jsonl")},
        "method": {"name": "lora", "rank": 8},
        "training": {"max_steps": options.steps, "global_batch_size": 8, "epochs": 1000},
        "tracking": tracking(name, folder),
    }
    began = time.perf_counter()
    with processor_seconds() as used:
        outcome = train(context, recipe_from(document, base_dir=folder), base_dir=folder)
    whole = time.perf_counter() - began
    assert outcome.record.result is not None
    for state in outcome.trackers:
        assert (state.status == "delivered") == (name != "down"), state
    return {
        "steps_seconds": outcome.record.result.seconds,
        "whole_seconds": whole,
        "tracker_processor_seconds": sum(used.values()),
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
    pairs = {name: list(zip(found[name], found["none"], strict=True)) for name in options.trackers}
    ratios = {name: [a["steps_seconds"] / b["steps_seconds"] for a, b in some] for name, some in pairs.items()}
    document = {
        "machine": describe(),
        "base_model": options.base_model,
        "steps": options.steps,
        "rounds": found,
        "ratio_of_step_seconds": {
            name: {"median": statistics.median(some), "low": min(some), "high": max(some)}
            for name, some in ratios.items()
        },
        "tracker_processor_seconds": {
            name: statistics.median(each["tracker_processor_seconds"] for each in found[name])
            for name in options.trackers
        },
        "share_of_all_cores": {
            name: statistics.median(
                each["tracker_processor_seconds"] / each["whole_seconds"] / num_usable_cores() for each in found[name]
            )
            for name in options.trackers
        },
        "more_seconds_in_all": {
            name: statistics.median(a["whole_seconds"] - b["whole_seconds"] for a, b in some)
            for name, some in pairs.items()
        },
    }
    print(json.dumps(document, indent=2))
    sys.exit(any(statistics.median(some) > MOST for some in ratios.values()))


if __name__ == "__main__":
    main()
