#!/usr/bin/env python3
"""DPO against TRL's DPOTrainer on dialogues of hh_rlhf: same rows, order and settings; speed, memory and losses.

    python benchmarks/dpo_against_trl.py [--pairs 3] [--num-examples 48]

Each round runs TRL, Luthier with `training.shared_prefix: false` and Luthier as it comes, each in a fresh process:
LoRA rank 16, alpha 32, no dropout, all linear layers, beta 0.1, batch 8, linear decay from 5e-5, one epoch, bf16
weights, rows in the order given. TRL switches the adapter off at each step for its reference, which is its
default and costs what a pass before training would; Luthier computes its reference before the first step, and that time
is counted. Speed is examples (pairs) a second; memory is the largest resident size of the whole process. Then, with
--truth, both once more in fp32, to hold the losses against each other. Prints one JSON document.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from hh_rows import hh_rows
from machine import Finished, describe, luthier_command, peer_python, run_json
from rows import write_jsonl

ROOT = Path(__file__).resolve().parents[1]
MODEL = "smollm2-135m-instruct"
PEER = ROOT / "benchmarks" / "trl_dpo.py"
SIDES = ("trl", "plain", "shared")


def main() -> None:
    """Run the rounds and print the document."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--pairs", type=int, default=3)
    cli.add_argument("--num-examples", type=int, default=48)
    cli.add_argument("--truth", action="store_true", help="a last round in fp32")
    cli.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder with hh_rlhf/")
    cli.add_argument("--work", type=Path, default=ROOT / ".bench")
    cli.add_argument("--home", type=Path, help="a home with the model in it; by default one below --work")
    args = cli.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    home = args.home or args.work / "home"
    pulled = run_json([*luthier_command(), "models", "pull", MODEL, "--home", str(home), "--json"], cwd=args.work)
    rows = hh_rows(args.data / "hh_rlhf/test.jsonl.gz")[: args.num_examples]
    file = write_jsonl(rows, args.work / "dpo.jsonl")
    rounds = []
    for number in range(args.pairs):
        rounds.append({side: _run(side, args, home, pulled.document["path"], file, len(rows)) for side in SIDES})
        print(f"round {number + 1}: {json.dumps(rounds[-1])}", file=sys.stderr, flush=True)
    document: dict[str, Any] = {
        "benchmark": "dpo_against_trl",
        "num_examples": len(rows),
        "median": {
            f"shared_to_{other}": {
                what: round(statistics.median(r["shared"][what] / r[other][what] for r in rounds), 3)
                for what in ("examples_per_second", "steps_per_second", "peak_bytes")
            }
            for other in ("trl", "plain")
            if rounds
        },
        "rounds": rounds,
    }
    if args.truth:
        made = {
            side: _run(side, args, home, pulled.document["path"], file, len(rows), "float32")["losses"]
            for side in ("trl", "shared")
        }
        apart = [ours / theirs - 1 for ours, theirs in zip(made["shared"], made["trl"], strict=True)]
        document["truth"] = made | {"largest_relative_difference": max(map(abs, apart))}
    print(json.dumps(document | {"machine": describe()}, indent=2))


def _run(
    side: str, args: argparse.Namespace, home: Path, model: str, file: Path, num: int, precision: str = "bfloat16"
) -> dict[str, Any]:
    """One side in a process of its own; its speed with and without the reference, its memory and its losses."""
    if side == "trl":
        command = [str(peer_python(args.work / "peer")), str(PEER), "--model", model, "--train", str(file)]
        done = run_json([*command, "--dtype", precision], cwd=args.work)
        seconds, losses = done.document["seconds"], done.document["losses"]
        return _figures(done, num, len(losses), seconds, seconds, losses)
    recipe = args.work / f"dpo_{side}.yaml"
    recipe.write_text(
        f"base_model: {MODEL}\ndata: {{train: {file}}}\n"
        "method: {name: lora, rank: 16, alpha: 32, dropout: 0.0}\nobjective: {name: dpo, beta: 0.1}\n"
        "training: {epochs: 1, global_batch_size: 8, learning_rate: 5.0e-5, lr_schedule: linear,\n"
        "  warmup_fraction: 0.0, batch_order: as_given, max_length_tokens: 1024, checkpoint_every_steps: 1000,\n"
        f"  precision: {precision},\n"
        f"  shared_prefix: {str(side == 'shared').lower()}}}\n",
        encoding="utf-8",
    )
    done = run_json([*luthier_command(), "train", str(recipe), "--home", str(home), "--json"], cwd=args.work)
    losses, reference = _told(home, done.document["run_id"])
    seconds = done.document["seconds"]
    return _figures(done, num, len(losses), seconds + reference, seconds, losses)


def _told(home: Path, run_id: str) -> tuple[list[float], float]:
    """The loss of each step, and the seconds that the reference took, from the run's events and its ledger."""
    from luthier.core.events import StepDone
    from luthier.ml.training.ledger import Ledger
    from luthier.platform.home.context import Context

    with Context.open(home) as context:
        losses = [event.loss for event in context.runs.events(run_id) if isinstance(event, StepDone)]
        pace = Ledger(context.settings.run_folder(run_id)).last().pace
    return losses, pace.others["reference"]


def _figures(
    done: Finished, num: int, num_steps: int, seconds: float, step_seconds: float, losses: list[float]
) -> dict[str, Any]:
    return {
        "examples_per_second": round(num / seconds, 4),
        "steps_per_second": round(num_steps / step_seconds, 4),
        "seconds": round(seconds, 2),
        "peak_bytes": done.peak_rss_bytes,
        "mean_loss": round(sum(losses) / len(losses), 5),
        "losses": losses,
    }


if __name__ == "__main__":
    main()
