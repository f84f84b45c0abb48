#!/usr/bin/env python3
"""Training with threads that share each product against workers that each compute micro-batches, by turns.

    python benchmarks/micro_batch_workers.py [--rounds 3] [--neighbour] [--method lora|full] [--precision float32]

Each round runs `luthier train` once with `micro_batch_workers: 1` (the training process with all its threads) and once
for each number in --workers, each in a fresh process, on the same WikiSQL rows. With --neighbour another program uses
one core the whole time (`python -c 'while True: pass'`). Prints one JSON document: tokens (no padding) a second of
training, peak memory of training process and workers together, and the losses.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from machine import describe, luthier_command, run_json
from rows import wikisql_rows, write_jsonl

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Run the rounds and print the document."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--rounds", type=int, default=3)
    cli.add_argument("--workers", default="2", help="numbers of workers, with commas between")
    cli.add_argument("--num-examples", type=int, default=96)
    cli.add_argument("--batch", type=int, default=8)
    cli.add_argument("--method", default="lora")
    cli.add_argument("--precision", default="auto")
    cli.add_argument("--dropout", type=float, default=0.0)
    cli.add_argument("--model", default="smollm2-135m-instruct")
    cli.add_argument("--neighbour", action="store_true")
    cli.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder with wikisql_mlx/")
    cli.add_argument("--work", type=Path, default=ROOT / ".bench")
    args = cli.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    made = wikisql_rows(args.data / "wikisql_mlx/train.jsonl")[: args.num_examples]
    rows = write_jsonl(made, args.work / "side_by_side.jsonl")
    home = args.work / "home"
    run_json([*luthier_command(), "models", "pull", args.model, "--home", str(home), "--json"], cwd=args.work)
    sides = [1, *map(int, args.workers.split(","))]
    found: dict[int, list[dict[str, Any]]] = {side: [] for side in sides}
    with _neighbour() if args.neighbour else contextlib.nullcontext():
        for number in range(args.rounds):
            # The order turns round, so that neither side always comes first.
            for side in sides if number % 2 == 0 else reversed(sides):
                found[side].append(_train(args, rows, home, side))
                print(f"round {number + 1}, {side} workers: {json.dumps(found[side][-1])}", file=sys.stderr, flush=True)
    speed = {side: [run["tokens_per_second"] for run in runs] for side, runs in found.items()}
    ratios = {side: statistics.median(b / a for a, b in zip(speed[1], speed[side], strict=True)) for side in sides[1:]}
    settings = {name: getattr(args, name) for name in ("method", "precision", "dropout", "batch", "neighbour")}
    document = {"benchmark": "micro_batch_workers", **settings, "num_examples": len(made), "runs": found}
    print(json.dumps(document | {"median_ratio": ratios, "machine": describe()}, indent=2))


def _train(args: argparse.Namespace, rows: Path, home: Path, workers: int) -> dict[str, Any]:
    recipe = args.work / "side_by_side.yaml"
    adapter = "" if args.method == "full" else f", rank: 16, alpha: 32, dropout: {args.dropout}"
    rate = 5.0e-5 if args.method == "full" else 2.0e-4
    recipe.write_text(
        f"base_model: {args.model}\ndata: {{train: {rows}}}\nmethod: {{name: {args.method}{adapter}}}\n"
        f"training: {{epochs: 1, global_batch_size: {args.batch}, learning_rate: {rate}, precision: {args.precision}, "
        f"max_length_tokens: 1024, checkpoint_every_steps: 1000, micro_batch_workers: {workers}}}\n",
        encoding="utf-8",
    )
    done = run_json([*luthier_command(), "train", str(recipe), "--home", str(home), "--json"], cwd=args.work)
    names = ("tokens_per_second", "train_loss", "peak_memory_bytes", "seconds")
    return {name: done.document[name] for name in names} | {"warnings": done.document.get("warnings", [])}


@contextlib.contextmanager
def _neighbour() -> Iterator[None]:
    """Another program that wants a core all the time."""
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"], start_new_session=False)
    try:
        yield
    finally:
        busy.kill()
        busy.wait()


if __name__ == "__main__":
    main()
