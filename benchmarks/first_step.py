#!/usr/bin/env python3
"""From the call of `luthier train` to its first step, on a tiny random model: seconds by phase.

    python benchmarks/first_step.py [--runs 5]

Each run is a process of its own that carries out the real command line and is interrupted after its first step. The
first one meets an empty home, where the machine is measured and the plan rehearsed; of the later ones the medians are
printed. Phases, in order: `start` (interpreter and command line), `command` (options, home, recipe), `plan` (libraries,
model, rows, plan), `quote`, `load` (model, proofs, objective) and `step`; `cpu` is processor time of the process in all
of them, which a busy machine changes less. Asked: under 4 s from the second run on.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

_BEGAN: Final = "FIRST_STEP_BEGAN"
_PHASES: Final = ("start", "command", "plan", "quote", "load", "step")
_ASKED_SECONDS: Final = 4.0


def main() -> int:
    """Run the children one after the other, and print what they took."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--runs", type=int, default=5, help="with a home that knows the machine")
    cli.add_argument("--child", nargs=2, metavar=("RECIPE", "HOME"), help=argparse.SUPPRESS)
    args = cli.parse_args()
    if args.child:
        print(json.dumps(_run_to_first_step(*args.child)))
        return 0
    from machine import describe

    from luthier.testing.tiny import make_tiny_model

    with tempfile.TemporaryDirectory(prefix="luthier-first-step-") as name:
        folder = Path(name)
        recipe = _write_recipe(folder, make_tiny_model(folder / "tiny"))
        found = [_run_child(recipe, folder / "home") for _ in range(args.runs + 1)]
    warm = {phase: round(statistics.median(one[phase] for one in found[1:]), 3) for phase in (*_PHASES, "all", "cpu")}
    document = {"benchmark": "first_step", "cold_seconds": found[0], "warm_seconds_median": warm, "warm": found[1:]}
    print(json.dumps(document | {"machine": describe()}, indent=2))
    return 0 if warm["all"] < _ASKED_SECONDS else 1


def _write_recipe(folder: Path, model: Path) -> Path:
    """A recipe with rows to train on, to validate on and to judge on."""
    rows = [{"prompt": f"Which wood has number {i}?", "completion": f"spruce {i % 7}"} for i in range(64)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recipe = {
        "base_model": str(model),
        "data": {"train": "rows.jsonl", "validation": 0.1, "held_out": 0.1},
        "training": {"global_batch_size": 8},
    }
    place = folder / "recipe.json"
    place.write_text(json.dumps(recipe), encoding="utf-8")
    return place


def _run_child(recipe: Path, home: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--child", str(recipe), str(home)]
    # perf_counter is the system's monotonic clock on Linux: parent and child read the same one.
    environment = os.environ | {_BEGAN: repr(time.perf_counter())}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _run_to_first_step(recipe: str, home: str) -> dict[str, float]:
    """Carry out `luthier train` in this process as far as its first step; seconds by phase."""
    from luthier.cli import main as command_line
    from luthier.features.training import service

    ends: dict[str, float] = {"start": time.perf_counter()}
    spent: list[float] = []

    def noted(name: str, before: str | None = None) -> None:
        function = getattr(service, name)

        def timed(*given: Any, **named: Any) -> Any:
            if before is not None:
                ends[before] = time.perf_counter()
            found = function(*given, **named)
            ends[{"prepare": "plan", "save_quote": "quote"}[name]] = time.perf_counter()
            return found

        setattr(service, name, timed)

    def watched(record: Callable[..., Callable[[Any], None]]) -> Callable[..., Callable[[Any], None]]:
        def recorder(*given: Any, **named: Any) -> Callable[[Any], None]:
            emit = record(*given, **named)

            def told(event: Any) -> None:
                if event.kind == "run_started":
                    ends["load"] = time.perf_counter()
                if event.kind == "step":
                    ends["step"] = time.perf_counter()
                    spent.append(time.process_time())
                    raise KeyboardInterrupt
                emit(event)

            return told

        return recorder

    noted("prepare", before="command")
    noted("save_quote")
    service.recorder = watched(service.recorder)
    sys.argv = ["luthier", "train", recipe, "--home", home, "--json"]
    stdout, sys.stdout = sys.stdout, open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123 - until the end
    vars(command_line)["end_process"] = sys.exit  # what was measured is printed afterwards
    try:
        command_line.run()
    except SystemExit as ended:
        if set(ends) != set(_PHASES):
            raise RuntimeError(f"it ended with {ended.code} after {list(ends)}") from ended
    finally:
        sys.stdout = stdout
    places = [float(os.environ[_BEGAN]), *(ends[phase] for phase in _PHASES)]
    seconds = {phase: round(places[i + 1] - places[i], 3) for i, phase in enumerate(_PHASES)}
    return seconds | {"all": round(places[-1] - places[0], 3), "cpu": round(spent[0], 3)}


if __name__ == "__main__":
    sys.exit(main())
