#!/usr/bin/env python3
"""Speed, memory and bytes of LoRA training by two checkouts of Luthier, by turns on the same rows.

    git worktree add --detach build/old COMMIT
    python benchmarks/two_commits.py build/old [--pairs 5] [--num-examples 128] [--workers 1]

Each pair trains SmolLM2 once with the code of the other checkout and once with that of this one, in alternating order,
each in a fresh process of this environment and with a home folder of its own. Speed is tokens (no padding) a second of
training; memory is the largest resident size of the command's own process; the bytes are those of the adapter's
weights. With --workers this checkout trains with so many processes (`training.micro_batch_workers`) in place of its
default. Prints one JSON document: every pair, medians of the ratios (this checkout to the other one), and whether the
adapters are the same.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from machine import describe, luthier_command, run_json
from rows import wikisql_rows, write_jsonl
from train_speed import MODEL, ROOT, write_recipe


def main() -> None:
    """Run the pairs and print the document."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("other", type=Path, help="the checkout to compare with")
    cli.add_argument("--pairs", type=int, default=5)
    cli.add_argument("--num-examples", type=int, default=128)
    cli.add_argument("--workers", type=int, help="training.micro_batch_workers of this checkout")
    cli.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder with wikisql_mlx/")
    cli.add_argument("--work", type=Path, default=ROOT / ".bench" / "two_commits")
    args = cli.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    found = wikisql_rows(args.data / "wikisql_mlx/train.jsonl")[: args.num_examples]
    rows = write_jsonl(found, args.work / "rows.jsonl")
    workers: dict[str, object] = {} if args.workers is None else {"micro_batch_workers": args.workers}
    sides = {"other": (args.other.resolve(), dict[str, object]()), "this": (ROOT, workers)}
    for name, (checkout, _) in sides.items():
        _run(args.work, checkout, name, ["models", "pull", MODEL])
    pairs: list[dict[str, dict[str, Any]]] = []
    for number in range(args.pairs):
        order = list(sides) if number % 2 == 0 else list(sides)[::-1]
        pairs.append({name: _train(args.work, *sides[name], name, rows) for name in order})
        print(f"pair {number + 1}: {json.dumps(pairs[-1])}", flush=True, file=sys.stderr)
    print(json.dumps(_document(args.other, len(found), pairs), indent=2))


def _train(work: Path, checkout: Path, extra: dict[str, object], name: str, rows: Path) -> dict[str, Any]:
    """Train once with one checkout: tokens per second, peak bytes, loss, and the digest of the adapter."""
    # In names of keys that both know: older ones are aliases.
    recipe = write_recipe(work / f"{name}.yaml", rows, schedule_key="schedule", **extra)
    done = _run(work, checkout, name, ["train", str(recipe)])
    weights = max((work / f"home-{name}").rglob("adapter_model.safetensors"), key=lambda path: path.stat().st_mtime)
    return {
        "tokens_per_second": round(done.document["tokens_per_second"], 1),
        "peak_bytes": done.peak_rss_bytes,
        "train_loss": done.document["train_loss"],
        "adapter_sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
    }


def _run(work: Path, checkout: Path, name: str, arguments: list[str]) -> Any:
    command = [*luthier_command(), *arguments, "--home", str(work / f"home-{name}"), "--json"]
    return run_json(command, cwd=work, environment={"PYTHONPATH": str(checkout / "src")})


def _document(other: Path, num_examples: int, pairs: list[dict[str, dict[str, Any]]]) -> dict[str, Any]:
    ratios = {
        figure: round(statistics.median(pair["this"][figure] / pair["other"][figure] for pair in pairs), 3)
        for figure in ("tokens_per_second", "peak_bytes")
    }
    digests = {name: sorted({pair[name]["adapter_sha256"] for pair in pairs}) for name in ("other", "this")}
    return {
        "benchmark": "two_commits",
        "other": _commit(other),
        "this": _commit(ROOT),
        "num_examples": num_examples,
        "median_ratio": ratios,
        "same_adapter": digests["other"] == digests["this"] and len(digests["this"]) == 1,
        "pairs": pairs,
        "machine": describe(),
    }


def _commit(checkout: Path) -> str:
    command = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    main()
