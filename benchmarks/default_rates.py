#!/usr/bin/env python3
"""Which learning rate is right where the recipe is silent: short and longer runs on WikiSQL at several rates.

    python benchmarks/default_rates.py [--methods lora,full] [--rows 160,480] [--rates 2e-4,5e-4,1e-3,2e-3,4e-3]
    python benchmarks/default_rates.py --tasks style intent "hateful or not" --batch 8 --methods lora --rows 240
    python benchmarks/default_rates.py --methods lora --batch 8 --rows 240 --rates 2e-3 --schedule linear

Each run trains two epochs (--epochs) of the first rows in steps of 16, or of --batch, and is validated once, at its
end, on the same 100 rows: the loss in nats a learned token. Rows are WikiSQL's, or those of the tasks of
benchmarks/baselines.py whose names are given. A run that is in the file already is not trained again.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

from baselines import TASKS
from machine import describe
from rows import wikisql_rows, write_jsonl

ROOT = Path(__file__).resolve().parents[1]
_NEVER = 10_000
_WIKISQL, _USUAL_BATCH, _NUM_VALIDATED = "wikisql", 16, 100
_USUAL: dict[str, Any] = {
    "task": _WIKISQL, "batch": _USUAL_BATCH, "optimizer": "adamw", "epochs": 2.0, "dropout": None, "schedule": None,
    "order": None,
}  # fmt: skip
"""Fields of a run that are left out of the file where they have these values; None is the default of the recipe."""


def main() -> None:
    """Train what is missing, print all that is there."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--methods", default="lora,full")
    cli.add_argument("--rows", default="160,480", help="training rows: twice as many sixteenths of them are the steps")
    cli.add_argument("--tasks", nargs="+", default=[_WIKISQL], help="names of tasks")
    cli.add_argument("--batch", type=int, default=_USUAL_BATCH, help="rows a step")
    cli.add_argument("--optimizer", default="adamw")
    cli.add_argument("--epochs", type=float, default=2.0)
    cli.add_argument("--dropout", type=float, help="instead of the method's own")
    cli.add_argument("--schedule", choices=("cosine", "linear", "constant"), help="instead of the default")
    cli.add_argument("--order", choices=("by_length", "shuffled", "as_given"), help="of rows in batches")
    cli.add_argument("--rates", default="2e-4,5e-4,1e-3,2e-3,4e-3")
    cli.add_argument("--model", default="smollm2-135m-instruct")
    cli.add_argument("--seed", type=int, default=0)
    cli.add_argument("--threads", type=int, help="instead of all cores")
    cli.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder with wikisql_mlx/")
    cli.add_argument("--work", type=Path, default=ROOT / ".bench" / "default_rates")
    cli.add_argument("--home", type=Path, default=ROOT / ".bench" / "home")
    args = cli.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    kept = args.work / "rates.json"
    found: list[dict[str, Any]] = json.loads(kept.read_text()) if kept.is_file() else []
    same = {name: getattr(args, name) for name in _USUAL if name != "task"}
    grid = [
        {"model": args.model, "method": method, "rows": rows, "rate": rate, "seed": args.seed}
        | {name: value for name, value in (same | {"task": task}).items() if value != _USUAL[name]}
        for task in args.tasks
        for method in args.methods.split(",")
        for rows in map(int, args.rows.split(","))
        for rate in map(float, args.rates.split(","))
    ]
    for asked in grid:
        if any(_is_of(one, asked) for one in found):
            continue
        found.append(asked | one_run(args, asked))
        kept.write_text(json.dumps(found, indent=1), encoding="utf-8")
        name = f"{asked.get('task', _WIKISQL)}, {asked['method']}, {asked['rows']} rows, {asked['rate']:g}"
        print(f"{name}: {found[-1]['loss']:.4f} after {found[-1]['steps']} steps", flush=True)
    print(json.dumps({"benchmark": "default_rates", "runs": found, "machine": describe()}, indent=2))


def _is_of(run: dict[str, Any], asked: dict[str, Any]) -> bool:
    """Whether a run is the one that is asked for; fields that it leaves out are the usual ones."""
    return all((_USUAL | run)[name] == value for name, value in (_USUAL | asked).items())


def rows_of(args: argparse.Namespace, task: str, num: int) -> dict[str, list[dict[str, Any]]]:
    """Training and validation rows of a task, none of them twice."""
    if task == _WIKISQL:
        found = {name: wikisql_rows(args.data / f"wikisql_mlx/{name}.jsonl") for name in ("train", "valid")}
        return {"train": found["train"][:num], "valid": found["valid"]}
    make, _ = TASKS[task]
    pairs = dict(reversed(make(args.data, random.Random(0), 2 * (num + _NUM_VALIDATED))))
    rows = [{"prompt": prompt, "completion": answer} for prompt, answer in pairs.items()]
    return {"train": rows[:num], "valid": rows[num : num + _NUM_VALIDATED]}


def one_run(args: argparse.Namespace, asked: dict[str, Any]) -> dict[str, Any]:
    """Train one, and say what its last weights lose."""
    import luthier

    task = asked.get("task", _WIKISQL)
    rows, name = rows_of(args, task, asked["rows"]), task.replace(" ", "-").replace(",", "")
    training: dict[str, Any] = {
        "epochs": args.epochs, "global_batch_size": args.batch, "max_length_tokens": 1024, "early_stopping_patience": 0,
        "seed": asked["seed"], "validate_every_steps": _NEVER, "learning_rate": asked["rate"],
        "optimizer": args.optimizer,
    }  # fmt: skip
    chosen = {"num_threads": args.threads, "lr_schedule": args.schedule, "batch_order": args.order}
    training |= {name: value for name, value in chosen.items() if value is not None}
    recipe = {
        "base_model": asked["model"],
        "data": {
            "train": str(write_jsonl(rows["train"], args.work / f"{name}_{asked['rows']}.jsonl")),
            "validation": str(write_jsonl(rows["valid"], args.work / f"{name}_valid.jsonl")),
        },
        "method": {"name": asked["method"]} | ({} if args.dropout is None else {"dropout": args.dropout}),
        "training": training,
    }
    run = luthier.train(recipe, home=args.home)
    assert run.record.result is not None
    assert run.record.result.best_validation_loss is not None
    return {
        "steps": run.plan.training.num_steps,
        "loss": run.record.result.best_validation_loss,
        "seconds": run.record.result.seconds,
        "run_id": run.record.run_id,
    }


if __name__ == "__main__":
    main()
