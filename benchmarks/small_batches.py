#!/usr/bin/env python3
"""Time to a given validation loss with 1 to 16 rows a step, with beta2 by tokens and without.

    python benchmarks/small_batches.py [--batches 1,2,4,8,16] [--rates 0.25,0.5,1] [--target LOSS]

Each run trains on the same WikiSQL rows in steps of so many rows and is validated after every 160 rows. What counts is
when it first has the target: rows that it had learned from by then, and seconds of its training steps. Without
--target that is the lowest loss of the runs with 16 rows a step and the fixed beta2. Rates are factors of the default
one; of each batch size and beta2 the table has the rate that reached the target in the shortest time. A run that is in
the file already is not trained again. `auto` with 16 rows is the same run as 0.999, so it is left out.

Source: Marek et al., 2025, "Small Batch Size Training for Language Models", arXiv:2507.07101.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from machine import describe
from rows import wikisql_rows, write_jsonl

ROOT = Path(__file__).resolve().parents[1]
_FIXED, _BY_TOKENS = 0.999, "auto"
_USUAL_BATCH = 16


def main() -> None:
    """Train what is missing, print the table of all that is there."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--batches", default="1,2,4,8,16")
    cli.add_argument("--rates", default="0.25,0.5,1", help="factors of the default rate of the method")
    cli.add_argument("--target", type=float, help="nats a learned token, such as the final loss of another trainer")
    cli.add_argument("--rows", type=int, default=480)
    cli.add_argument("--epochs", type=float, default=2.0)
    cli.add_argument("--between", type=int, default=160, help="rows between two validations, a multiple of each batch")
    cli.add_argument("--method", default="lora")
    cli.add_argument("--model", default="smollm2-135m-instruct")
    cli.add_argument("--seed", type=int, default=0)
    cli.add_argument("--threads", type=int, help="instead of all cores")
    cli.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder with wikisql_mlx/")
    cli.add_argument("--work", type=Path, default=ROOT / ".bench" / "small_batches")
    cli.add_argument("--home", type=Path, default=ROOT / ".bench" / "home")
    args = cli.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    kept = args.work / "runs.json"
    found: list[dict[str, Any]] = json.loads(kept.read_text()) if kept.is_file() else []
    wanted = [
        {"batch": batch, "beta2": beta2, "rate": rate, "seed": args.seed, "rows": args.rows, "epochs": args.epochs}
        | {"model": args.model, "method": args.method, "between": args.between}
        for batch in map(int, args.batches.split(","))
        for beta2 in ([_FIXED] if batch == _USUAL_BATCH else [_FIXED, _BY_TOKENS])
        for rate in map(float, args.rates.split(","))
    ]
    for asked in wanted:
        if any(asked.items() <= one.items() for one in found):
            continue
        found.append(asked | one_run(args, asked))
        kept.write_text(json.dumps(found, indent=1), encoding="utf-8")
        print(f"batch {asked['batch']}, beta2 {asked['beta2']}, rate x {asked['rate']:g}", flush=True)
    runs = [one for one in found if any(asked.items() <= one.items() for asked in wanted)]
    target = args.target if args.target is not None else usual_loss(runs)
    print(table(runs, target))
    print(json.dumps({"benchmark": "small_batches", "target": target, "runs": runs, "machine": describe()}, indent=2))


def one_run(args: argparse.Namespace, asked: dict[str, Any]) -> dict[str, Any]:
    """Train one; its validations with the rows and the seconds of training steps before each."""
    import luthier

    rows = {name: wikisql_rows(args.data / f"wikisql_mlx/{name}.jsonl") for name in ("train", "valid")}
    training: dict[str, Any] = {
        "epochs": asked["epochs"],
        "global_batch_size": asked["batch"],
        "early_stopping_patience": 0,
        "seed": asked["seed"],
        "validate_every_steps": max(1, asked["between"] // asked["batch"]),
        "optimizer": {"name": "adamw", "beta2": asked["beta2"]},
    }
    training |= {"num_threads": args.threads} if args.threads else {}
    recipe: dict[str, Any] = {
        "base_model": asked["model"],
        "data": {
            "train": str(write_jsonl(rows["train"][: asked["rows"]], args.work / f"train_{asked['rows']}.jsonl")),
            "validation": str(write_jsonl(rows["valid"], args.work / "valid.jsonl")),
        },
        "method": {"name": asked["method"]},
        "training": training,
    }
    usual = luthier.plan(recipe, home=args.home).training.learning_rate
    training["learning_rate"] = usual * asked["rate"]
    run = luthier.train(recipe, home=args.home)
    return {
        "learning_rate": training["learning_rate"],
        "beta2_used": run.plan.training.optimizer.beta2,
        "curve": curve_of(run.events, asked["batch"]),
        "run_id": run.record.run_id,
    }


def curve_of(events: Sequence[Any], batch: int) -> list[dict[str, float]]:
    """Validation losses, each with the rows and the seconds of training steps before it."""
    curve, seconds = [], 0.0
    for event in events:
        if event.kind == "step":
            seconds += event.seconds
        elif event.kind == "validation":
            curve.append({"rows": event.step * batch, "seconds": seconds, "loss": event.loss})
    return curve


def usual_loss(runs: Sequence[dict[str, Any]]) -> float:
    """The lowest validation loss of the runs with 16 rows a step."""
    losses = [point["loss"] for one in runs if one["batch"] == _USUAL_BATCH for point in one["curve"]]
    if not losses:
        raise SystemExit(f"no run with {_USUAL_BATCH} rows a step: add it to --batches, or give --target LOSS")
    return min(losses)


def reached(run: dict[str, Any], target: float) -> dict[str, float] | None:
    """The first validation at or below the target; None where there is none."""
    return next((point for point in run["curve"] if point["loss"] <= target), None)


def table(runs: Sequence[dict[str, Any]], target: float) -> str:
    """One line a batch size and beta2, for the rate that was there first."""
    lines = [
        f"Time to a validation loss of {target:.4f} nats a learned token",
        "",
        "| rows a step | beta2 | best rate | rows to target | seconds to target | lowest loss |",
        "|---|---|---|---|---|---|",
    ]
    for batch, beta2 in dict.fromkeys((one["batch"], one["beta2"]) for one in runs):
        group = [one for one in runs if (one["batch"], one["beta2"]) == (batch, beta2)]
        there = [(point["seconds"], point["rows"], one) for one in group if (point := reached(one, target))]
        # Of runs that never had the target the one that came nearest.
        best = min(there, key=lambda one: one[0])[2] if there else min(group, key=lowest)
        point = reached(best, target)
        name = f"{best['beta2_used']:.6g}" + (" (auto)" if beta2 == _BY_TOKENS else "")
        rows, seconds = (f"{point['rows']:,}", f"{point['seconds']:.1f}") if point else ("not reached", "not reached")
        lines.append(f"| {batch} | {name} | {best['learning_rate']:.2g} | {rows} | {seconds} | {lowest(best):.4f} |")
    return "\n".join(lines)


def lowest(run: dict[str, Any]) -> float:
    """The lowest validation loss of a run."""
    return min(point["loss"] for point in run["curve"])


if __name__ == "__main__":
    main()
