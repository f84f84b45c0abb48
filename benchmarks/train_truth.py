#!/usr/bin/env python3
"""Truth: the same rows in the same order with the same settings end at the loss that TRL ends at.

    python benchmarks/train_truth.py [--num-examples 128]

Both sides train one epoch of LoRA in fp32 on WikiSQL rows as they are given: batch 8, rank 16, alpha 32, no dropout,
linear decay from 2e-4, seed 0, no padding-free tricks on TRL's side. Prints the mean loss of the epoch and of its last
quarter on both sides, and the relative differences.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from machine import describe, luthier_command, peer_python, run_json
from rows import wikisql_rows, write_jsonl

ROOT = Path(__file__).resolve().parents[1]
MODEL = "smollm2-135m-instruct"
PEER = ROOT / "benchmarks" / "trl_in_order.py"


def main() -> None:
    """Run both sides and print the document."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--num-examples", type=int, default=128)
    cli.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder with wikisql_mlx/")
    cli.add_argument("--work", type=Path, default=ROOT / ".bench")
    args = cli.parse_args()
    rows = wikisql_rows(args.data / "wikisql_mlx/train.jsonl")[: args.num_examples]
    file, home = write_jsonl(rows, args.work / "truth.jsonl"), args.work / "home"
    pulled = run_json([*luthier_command(), "models", "pull", MODEL, "--home", str(home), "--json"], cwd=args.work)
    peer = [str(peer_python(args.work / "peer")), str(PEER), "--model", pulled.document["path"], "--train", str(file)]
    theirs = run_json(peer, cwd=args.work).document["losses"]
    ours = _luthier(home, file)
    quarter = max(1, len(ours) // 4)
    figures = {
        name: {"trl": _mean(t), "luthier": _mean(o), "relative_difference": _mean(o) / _mean(t) - 1}
        for name, t, o in (("epoch", theirs, ours), ("last_quarter", theirs[-quarter:], ours[-quarter:]))
    }
    document = {"benchmark": "train_truth", "num_examples": len(rows), "num_steps": len(ours), "loss": figures}
    print(json.dumps(document | {"trl_losses": theirs, "luthier_losses": ours, "machine": describe()}, indent=2))


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _luthier(home: Path, file: Path) -> list[float]:
    import luthier

    training = {
        "epochs": 1,
        "global_batch_size": 8,
        "learning_rate": 2e-4,
        "schedule": "linear",
        "warmup_fraction": 0.0,
        "order": "as_given",
        "precision": "float32",
        "max_length_tokens": 1024,
        "seed": 0,
    }
    method = {"name": "lora", "rank": 16, "alpha": 32, "dropout": 0.0}
    recipe = {"base_model": MODEL, "data": {"train": str(file)}, "method": method, "training": training}
    run = luthier.train(recipe, home=home)
    return [event.loss for event in run.events if event.kind == "step"]


if __name__ == "__main__":
    main()
