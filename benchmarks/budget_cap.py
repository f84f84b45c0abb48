#!/usr/bin/env python3
"""The cap, with the real base model: how near a run ends to its cap, and what a kill costs.

    python benchmarks/budget_cap.py [--seconds 60 120] [--kills 2]

For each cap of some seconds: `luthier train --budget-hours` on WikiSQL rows until it pauses, then the same with the
process killed (SIGKILL) a few times on the way and resumed under the same cap. Last, one run under no cap: what its
bill said after a quarter, a half and three quarters of its steps, against what it came to. Prints one JSON document.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from machine import describe, luthier_command
from rows import wikisql_rows, write_jsonl

from luthier.core.events import BillUpdated, StepDone
from luthier.core.run import RunRecord
from luthier.ml.training.ledger import Ledger
from luthier.platform.home.context import Context

ROOT = Path(__file__).resolve().parents[1]
STEPS = 40


def main() -> None:
    """Train under each cap, with and without kills, then without a cap."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--seconds", type=float, nargs="+", default=[60.0, 120.0])
    cli.add_argument("--kills", type=int, default=2)
    cli.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder with wikisql_mlx/")
    cli.add_argument("--work", type=Path, default=ROOT / ".bench")
    cli.add_argument("--home", type=Path, default=None, help="a home; .bench/home where it is not given")
    args = cli.parse_args()
    home = args.home or args.work / "home"
    recipe = _recipe(args.data, args.work)
    draw = random.Random(0)
    document: dict[str, Any] = {"benchmark": "budget_cap", "capped": [], "killed": []}
    for seconds in args.seconds:
        document["capped"].append(_outcome(home, _run(home, recipe, seconds), seconds))
        document["killed"].append(_outcome(home, _killed(home, recipe, seconds, args.kills, draw), seconds))
    document["whole"] = _whole(home, recipe)
    document["machine"] = describe()
    print(json.dumps(document, indent=2))


def _recipe(data: Path, work: Path) -> Path:
    rows = wikisql_rows(data / "wikisql_mlx" / "train.jsonl")
    train = write_jsonl(rows[: 16 * STEPS // 2], work / "budget_train.jsonl")
    validation = write_jsonl(rows[600:640], work / "budget_valid.jsonl")
    recipe = {
        "base_model": "smollm2-135m-instruct",
        "data": {"train": str(train), "validation": str(validation)},
        "method": {"name": "lora", "rank": 16, "dropout": 0.0},
        "training": {
            "epochs": 2,
            "validate_every_steps": 10,
            "checkpoint_every_steps": 5,
            "early_stopping_patience": 0,
        },
    }
    path = work / "budget_recipe.json"
    path.write_text(json.dumps(recipe), encoding="utf-8")
    return path


def _start(home: Path, *arguments: object) -> subprocess.Popen[str]:
    command = [*luthier_command(), "train", *map(str, arguments), "--json", "--home", str(home)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _end(process: subprocess.Popen[str]) -> dict[str, Any]:
    """The document of a run that ended; empty for one that had nothing left to continue with."""
    out, errors = process.communicate()
    if process.returncode == 2 and "BudgetTooSmallError" in out:
        return {}
    if process.returncode:
        raise RuntimeError(f"ended with {process.returncode}:\n{errors[-3000:]}{out[-2000:]}")
    document: dict[str, Any] = json.loads(out)
    return document


def _run(home: Path, recipe: Path, seconds: float) -> str:
    return str(_end(_start(home, recipe, "--budget-hours", seconds / 3600))["run_id"])


def _killed(home: Path, recipe: Path, seconds: float, kills: int, draw: random.Random) -> str:
    with Context.open(home) as context:
        before = {record.run_id for record in context.runs.list()}
        process = _start(home, recipe, "--budget-hours", seconds / 3600)
        run_id = None
        for _ in range(kills):
            run_id = _after_some_steps(context, before, process, draw.uniform(0.1, 0.35) * seconds) or run_id
            if process.poll() is not None:
                break
            os.kill(process.pid, signal.SIGKILL)
            process.communicate()
            process = _start(home, "--resume", run_id)
    _end(process)
    assert run_id is not None
    return run_id


def _after_some_steps(context: Context, before: set[str], process: subprocess.Popen[str], seconds: float) -> str | None:
    """Wait until the run has begun and then so long, or until its process has ended; its id."""
    end = time.monotonic() + seconds
    new: list[RunRecord] = []
    while process.poll() is None and not (new and time.monotonic() > end):
        new = [record for record in context.runs.list() if record.run_id not in before]
        time.sleep(0.1)
    return new[0].run_id if new else None


def _outcome(home: Path, run_id: str, seconds: float) -> dict[str, Any]:
    with Context.open(home) as context:
        record = context.runs.get(run_id)
        steps = [e.seconds for e in context.runs.events(run_id) if isinstance(e, StepDone)]
        result = record.result
        whole = Ledger(context.settings.run_folder(run_id)).last().settled()
        # one that was killed for the last time and refused after that has no result, but a ledger
        spent = result.bill.hours * 3600 if result and result.bill else whole.seconds
    return {
        "cap_seconds": seconds,
        "status": record.status,
        "stopped_because": record.stopped_because,
        "steps": record.step,
        "spent_seconds": round(spent, 2),
        "over_seconds": round(spent - seconds, 2),
        "mean_step_seconds": round(sum(steps) / len(steps), 2),
        "longest_step_seconds": round(max(steps), 2),
        "over_in_mean_steps": round((spent - seconds) / (sum(steps) / len(steps)), 2),
        "seconds_with_report": round(whole.seconds, 2),
        "interrupted_seconds": round(whole.interrupted_seconds, 2),
        "tokens_paid": whole.tokens,
        "tokens_kept": result.num_tokens if result else None,
    }


def _whole(home: Path, recipe: Path) -> dict[str, Any]:
    run_id = _end(_start(home, recipe))["run_id"]
    with Context.open(home) as context:
        record = context.runs.get(run_id)
        bills = {e.step: e.bill for e in context.runs.events(run_id) if isinstance(e, BillUpdated)}
    assert record.result is not None
    assert record.result.bill is not None
    end = record.result.bill.hours * 3600
    told = []
    for share in (0.1, 0.25, 0.5, 0.75):
        final = bills[round(share * record.num_steps)].final_hours.times(3600)
        told.append(
            {
                "at_share_of_steps": share,
                "final_seconds": [round(value, 1) for value in (final.value, final.low, final.high)],
                "error": round(final.value / end - 1, 3),
                "within": final.low <= end <= final.high,
            }
        )
    return {"seconds": round(end, 1), "num_steps": record.num_steps, "told": told}


if __name__ == "__main__":
    main()
