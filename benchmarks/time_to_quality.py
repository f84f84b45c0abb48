#!/usr/bin/env python3
"""Seconds of training until the validation loss with which TRL ends: its defaults, and its best rate of a sweep.

    python benchmarks/time_to_quality.py [--rows 160] [--epochs 2] [--rates 2e-4,5e-4,1e-3,2e-3] [--ours 2] [--batch 8]

TRL trains the same WikiSQL rows once with its own defaults (bf16 autocast, recomputed activations, its own rate), and
once with each of the rates in its fastest plain setting (bf16 weights, nothing recomputed); the sweep of rates itself
is not counted. Luthier trains between them with its own defaults, validates after every few steps, and has the target
at its first validation that is at or below TRL's last loss. Seconds are those of training steps alone: without loading
and without validation, on both sides. Both sides have adapters of rank 16, alpha 32, no dropout on all linear layers.
Losses are nats a learned token of 100 other rows. Each run is a process of its own, Luthier's spread between TRL's, so
that neither side has the quiet half of the time. A run that is in the file already is not repeated.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from machine import describe, luthier_command, peer_python, run_json
from rows import wikisql_rows, write_jsonl
from small_batches import curve_of, reached

ROOT = Path(__file__).resolve().parents[1]
MODEL = "smollm2-135m-instruct"
_BETWEEN_STEPS = 2


def main() -> int:
    """Run what is missing, print the table and one JSON document."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--rows", type=int, default=160)
    cli.add_argument("--epochs", type=float, default=2.0)
    cli.add_argument("--rates", default="2e-4,5e-4,1e-3,2e-3", help="of TRL's tuned setting")
    cli.add_argument("--ours", type=int, default=2, help="runs of Luthier, spread between those of TRL")
    cli.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder with wikisql_mlx/")
    cli.add_argument("--work", type=Path, default=ROOT / ".bench" / "time_to_quality")
    cli.add_argument("--home", type=Path, default=ROOT / ".bench" / "home")
    cli.add_argument("--peer", type=Path, default=ROOT / ".bench" / "peer", help="environment with TRL, made once")
    cli.add_argument("--batch", type=int, help="rows a step of Luthier, instead of its default")
    cli.add_argument("--one", help=argparse.SUPPRESS)
    args = cli.parse_args()
    if args.one is not None:
        print(json.dumps(ours(json.loads(args.one))))
        return 0
    files = {
        name: str(
            write_jsonl(
                wikisql_rows(args.data / f"wikisql_mlx/{name}.jsonl")[:limit], args.work / f"{name}_{limit}.jsonl"
            )
        )
        for name, limit in (("train", args.rows), ("valid", 100))
    }
    kept = args.work / "runs.json"
    found: list[dict[str, Any]] = json.loads(kept.read_text()) if kept.is_file() else []
    for asked in turns([float(rate) for rate in args.rates.split(",")], args.ours):
        key = asked | {"rows": args.rows, "epochs": args.epochs}
        key |= {"own_batch": args.batch} if asked["side"] == "luthier" else {}
        if any(key.items() <= one.items() for one in found):
            continue
        found.append(key | (run_ours(args, files) if asked["side"] == "luthier" else run_trl(args, files, asked)))
        kept.write_text(json.dumps(found, indent=1), encoding="utf-8")
        print(f"{asked}: {found[-1].get('seconds', '')} s, {found[-1]['loss']:.4f}", file=sys.stderr, flush=True)
    runs = [one for one in found if (one["rows"], one["epochs"]) == (args.rows, args.epochs)]
    print(table(runs, args.batch))
    print(json.dumps({"benchmark": "time_to_quality", "runs": runs, "machine": describe()}, indent=2))
    return 0


def turns(rates: list[float], num_ours: int) -> list[dict[str, Any]]:
    """What is run, in order: TRL's defaults first, and the runs of Luthier spread evenly behind the others."""
    peers: list[dict[str, Any]] = [{"side": "trl", "setting": "default", "rate": None}]
    peers += [{"side": "trl", "setting": "tuned", "rate": rate} for rate in rates]
    order: list[dict[str, Any]] = []
    for number, peer in enumerate(peers):
        order.append(peer)
        due = (number + 1) * num_ours // len(peers)
        order += [{"side": "luthier", "number": n} for n in range(number * num_ours // len(peers), due)]
    return order


def run_trl(args: argparse.Namespace, files: dict[str, str], asked: dict[str, Any]) -> dict[str, Any]:
    """One run of TRL in its environment."""
    pulled = run_json(
        [*luthier_command(), "models", "pull", MODEL, "--home", str(args.home), "--json"], cwd=args.work
    ).document["path"]
    command = [str(peer_python(args.peer)), str(Path(__file__).with_name("trl_to_quality.py")), "--model", pulled]
    command += ["--train", files["train"], "--validation", files["valid"], "--epochs", str(args.epochs)]
    command += ["--setting", asked["setting"]]
    command += [] if asked["rate"] is None else ["--learning-rate", str(asked["rate"])]
    finished = run_json(command, cwd=args.work)
    return finished.document | {"peak_rss_bytes": finished.peak_rss_bytes}


def run_ours(args: argparse.Namespace, files: dict[str, str]) -> dict[str, Any]:
    """One run of Luthier in a process of its own."""
    asked = {"files": files, "epochs": args.epochs, "home": str(args.home), "batch": args.batch}
    finished = run_json([sys.executable, __file__, "--one", json.dumps(asked)], cwd=args.work)
    return finished.document | {"peak_rss_bytes": finished.peak_rss_bytes}


def ours(asked: dict[str, Any]) -> dict[str, Any]:
    """Train with defaults; the validations, each with the seconds of steps before it."""
    import luthier

    run = luthier.train(
        {
            "base_model": MODEL,
            "data": {"train": asked["files"]["train"], "validation": asked["files"]["valid"]},
            "method": {"name": "lora", "rank": 16, "alpha": 32, "dropout": 0.0},
            "training": {
                "epochs": asked["epochs"],
                "early_stopping_patience": 0,
                "validate_every_steps": _BETWEEN_STEPS,
            }
            | ({} if asked["batch"] is None else {"global_batch_size": asked["batch"]}),
        },
        home=asked["home"],
    )
    training = run.plan.training
    curve = curve_of(run.events, training.global_batch_size)
    return {
        "learning_rate": training.learning_rate,
        "batch": training.global_batch_size,
        "precision": training.precision,
        "seconds": round(curve[-1]["seconds"], 2),
        "loss": min(point["loss"] for point in curve),
        "curve": curve,
    }


def table(runs: list[dict[str, Any]], batch: int | None) -> str:
    """A line for each run of TRL: its seconds and loss, and the median seconds in which Luthier has that loss."""
    lines = [
        "| TRL | rate | its loss, nats a token | its seconds | Luthier: seconds to that loss | ratio |",
        "|---|---|---|---|---|---|",
    ]
    mine = [one for one in runs if one["side"] == "luthier" and one.get("own_batch") == batch]
    for peer in (one for one in runs if one["side"] == "trl"):
        points = [reached(one, peer["loss"]) for one in mine]
        there = [point["seconds"] for point in points if point is not None]
        seconds = statistics.median(there) if there and len(there) == len(points) else None
        lines.append(
            f"| {peer['setting']} | {peer['learning_rate']:g} | {peer['loss']:.4f} | {peer['seconds']:.0f} | "
            + (f"{seconds:.0f} | {peer['seconds'] / seconds:.1f} |" if seconds else "not reached | |")
        )
    lines += [
        f"Luthier, run {n}: {one['seconds']:.0f} s, lowest {one['loss']:.4f} nats a token" for n, one in enumerate(mine)
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
