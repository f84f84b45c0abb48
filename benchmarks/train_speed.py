#!/usr/bin/env python3
"""Speed and memory of LoRA training against TRL, LLaMA-Factory or LitGPT, interleaved on the same rows.

    python benchmarks/train_speed.py [--against trl|llama-factory|litgpt] [--rows wikisql|long] [--pairs 3]

Each pair runs the peer (in an environment of its own, made on first use under .bench/) and Luthier one after the other,
each in a fresh process: rank 16, alpha 32, no dropout, all linear layers, batch 8, one epoch, linear decay from 2e-4.
Prints one JSON document: every pair, and the medians of the ratios. Speed is tokens (no padding) a second of training;
memory is the largest resident size of the whole process, loading included.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import litgpt_peer
import llama_factory
from machine import Finished, describe, luthier_command, peer_python, run_json
from rows import long_rows, wikisql_rows, write_jsonl

ROOT = Path(__file__).resolve().parents[1]
MODEL = "smollm2-135m-instruct"


def main() -> None:
    """Run the pairs and print the document."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--against", choices=["trl", "llama-factory", "litgpt"], default="trl")
    cli.add_argument("--rows", choices=["wikisql", "long"], default="wikisql")
    cli.add_argument("--pairs", type=int, default=3)
    cli.add_argument("--num-examples", type=int, default=128)
    cli.add_argument("--setting", choices=["default", "tuned"], default="tuned", help="TRL's setting")
    cli.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder with wikisql_mlx/")
    cli.add_argument("--peer", type=Path, default=ROOT.parent / "shared" / "bench" / "trl_baseline.py")
    cli.add_argument("--work", type=Path, default=ROOT / ".bench")
    args = cli.parse_args()
    made = long_rows(args.num_examples) if args.rows == "long" else wikisql_rows(args.data / "wikisql_mlx/train.jsonl")
    rows = write_jsonl(made[: args.num_examples], args.work / f"{args.rows}.jsonl")
    home = args.work / "home"
    model = run_json([*luthier_command(), "models", "pull", MODEL, "--home", str(home), "--json"], cwd=args.work)
    path = Path(model.document["path"])
    peer = _peer(args, path, rows)
    pairs = []
    for number in range(args.pairs):
        theirs = peer()
        ours = _luthier(args.work, home, rows)
        pairs.append(_pair(theirs, ours))
        print(f"pair {number + 1}: {json.dumps(pairs[-1])}", flush=True, file=__import__("sys").stderr)
    medians = {key: round(statistics.median(p[key] for p in pairs), 3) for key in ("speed_ratio", "memory_ratio")}
    document: dict[str, Any] = {
        "benchmark": "train_speed",
        "against": args.against,
        "rows": args.rows,
        "num_examples": len(made[: args.num_examples]),
    }
    print(json.dumps(document | {"median": medians, "pairs": pairs, "machine": describe()}, indent=2))


def _peer(args: argparse.Namespace, model: Path, rows: Path) -> Callable[[], Finished]:
    """What trains with the peer, once a call."""
    if args.against == "llama-factory":
        python = llama_factory.python_of(args.work / "peer_llamafactory")
        return lambda: llama_factory.train(python, model, rows, args.num_examples, args.work)
    if args.against == "litgpt":
        python = litgpt_peer.python_of(args.work / "peer_litgpt")
        return lambda: litgpt_peer.train(python, model, rows, args.num_examples, args.work)
    python = peer_python(args.work / "peer")
    return lambda: _trl(python, args, model, rows)


def _trl(python: Path, args: argparse.Namespace, model: Path, rows: Path) -> Finished:
    command = [str(python), str(args.peer), "--model", str(model), "--train", str(rows)]
    return run_json([*command, "--num-examples", str(args.num_examples), "--setting", args.setting], cwd=args.work)


def _luthier(work: Path, home: Path, rows: Path) -> Finished:
    recipe = write_recipe(work / "speed.yaml", rows)
    return run_json([*luthier_command(), "train", str(recipe), "--home", str(home), "--json"], cwd=work)


def write_recipe(file: Path, rows: Path, *, schedule_key: str = "lr_schedule", **training: object) -> Path:
    """Write the recipe of LoRA training that is compared.

    Args:
        file: the recipe.
        rows: training rows.
        schedule_key: the key of the learning rate's schedule; older code knows it as `schedule`.
        training: further keys of `training`.
    """
    own = {"epochs": 1, "global_batch_size": 8, "learning_rate": 2e-4, schedule_key: "linear", "warmup_fraction": 0.0}
    own |= {"max_length_tokens": 1024, "checkpoint_every_steps": 1000} | training
    method = {"name": "lora", "rank": 16, "alpha": 32, "dropout": 0.0}
    recipe = {"base_model": MODEL, "data": {"train": str(rows)}, "method": method, "training": own}
    file.write_text(json.dumps(recipe, indent=2), encoding="utf-8")  # YAML, too
    return file


def _pair(theirs: Finished, ours: Finished) -> dict[str, Any]:
    """The figures of one pair; ratios are Luthier to the peer."""
    return {
        "peer_tokens_per_second": theirs.document["tokens_per_second"],
        "luthier_tokens_per_second": round(ours.document["tokens_per_second"], 1),
        "speed_ratio": round(ours.document["tokens_per_second"] / theirs.document["tokens_per_second"], 3),
        "peer_peak_bytes": theirs.peak_rss_bytes,
        "luthier_peak_bytes": ours.peak_rss_bytes,
        "memory_ratio": round(ours.peak_rss_bytes / theirs.peak_rss_bytes, 3),
        "peer_train_loss": theirs.document["train_loss"],
        "luthier_train_loss": round(ours.document["train_loss"], 4),
    }


if __name__ == "__main__":
    main()
