#!/usr/bin/env python3
"""What each regulariser buys on few rows: validation loss with and without, paired by seed.

    python benchmarks/regularisation.py run --arms plain,dropout --seeds 0,1,2   one part; each run in its own process
    python benchmarks/regularisation.py table                                     all parts so far, as a table

LoRA of rank 16 on few WikiSQL rows, several epochs at a high rate, so that rows are learned by heart. A seed draws the
rows, their order and the adapter; the arms of one seed differ in one setting alone. Each epoch ends with a validation;
what counts is the best of them (what Luthier keeps) and the last (what one gets without looking). Intervals of the
differences are Student's t over the seeds.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from machine import describe, run_json
from rows import wikisql_rows, write_jsonl

ROOT = Path(__file__).resolve().parents[1]
ARMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "dropout 0.1": {"method": {"dropout": 0.1}},
    "dropout 0.3": {"method": {"dropout": 0.3}},
    "weight_decay 0.1": {"training": {"weight_decay": 0.1}},
    "label_smoothing 0.1": {"objective": {"label_smoothing": 0.1}},
    "dft": {"objective": {"loss_weighting": "dft"}},
    "neftune_alpha 5": {"training": {"neftune_alpha": 5}},
    "average ema": {"training": {"average": {"kind": "ema"}}},
    "average uniform": {"training": {"average": {"kind": "uniform"}}},
    "rank 4": {"method": {"rank": 4, "alpha": 8}},
    "learning_rate 2e-4": {"training": {"learning_rate": 2e-4}},
    "replay 0": {"replay": 0.0},
    "replay 0.25": {"replay": 0.25},
}
"""Each arm: what is added to the recipe of `plain`. Those of replay are judged on general rows, too: instructions of
Self-Instruct, of which some are replayed and 60 measure what is forgotten."""

NUM_GENERAL_JUDGED = 60
MOST_GENERAL_CHARACTERS = 600


def main() -> None:
    """Run parts, or print the table of those that are there."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("what", choices=("run", "table", "child"))
    cli.add_argument("--arms", default=",".join(ARMS))
    cli.add_argument("--seeds", default="0,1,2")
    cli.add_argument("--rows", type=int, default=64, help="training rows")
    cli.add_argument("--validated", type=int, default=60, help="validation rows")
    cli.add_argument("--epochs", type=float, default=6)
    cli.add_argument("--threads", type=int, default=1)
    cli.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder with wikisql_mlx/")
    cli.add_argument("--work", type=Path, default=ROOT / ".bench")
    args = cli.parse_args()
    parts = args.work / "regularisation"
    if args.what == "table":
        print(table([json.loads(file.read_text()) for file in sorted(parts.glob("*.json"))]))
    elif args.what == "child":
        print(json.dumps(one_run(args)))
    else:
        run_parts(args, parts)


def run_parts(args: argparse.Namespace, parts: Path) -> None:
    """Each arm and seed that has no file yet, in a process of its own."""
    parts.mkdir(parents=True, exist_ok=True)
    for seed in args.seeds.split(","):
        for arm in args.arms.split(","):
            file = parts / f"{arm.replace(' ', '_')}-seed{seed}-rows{args.rows}-epochs{args.epochs:g}.json"
            if file.is_file():
                continue
            command = [sys.executable, str(Path(__file__)), "child", "--arms", arm, "--seeds", seed]
            for name in ("rows", "validated", "epochs", "threads", "data", "work"):
                command += [f"--{name}", str(getattr(args, name))]
            document = run_json(command, cwd=ROOT).document
            file.write_text(json.dumps(document, indent=1), encoding="utf-8")
            print(f"{file.stem}: best {document['best']:.4f}, last {document['last']:.4f}", flush=True)


def one_run(args: argparse.Namespace) -> dict[str, Any]:
    """Train one arm with one seed; the losses in nats a learned token, and what a step took."""
    import luthier
    from luthier.core.events import StepDone, ValidationDone

    seed, changes = int(args.seeds), ARMS[args.arms]
    draw = random.Random(seed)
    chosen = {
        name: draw.sample(wikisql_rows(args.data / f"wikisql_mlx/{name}.jsonl"), num)
        for name, num in (("train", args.rows), ("valid", args.validated))
    }
    files = {
        name: write_jsonl(rows, args.work / f"regularisation_{name}_{len(rows)}_{seed}.jsonl")
        for name, rows in chosen.items()
    }
    steps_per_epoch = -(-args.rows // 8)
    recipe: dict[str, Any] = {
        "base_model": "smollm2-135m-instruct",
        "data": {"train": str(files["train"]), "validation": str(files["valid"])},
        "method": {"name": "lora", "rank": 16, "alpha": 32, "dropout": 0.0} | changes.get("method", {}),
        "objective": {"name": "sft"} | changes.get("objective", {}),
        "training": {
            "epochs": args.epochs, "global_batch_size": 8, "learning_rate": 1e-3, "early_stopping_patience": 0,
            "validate_every_steps": steps_per_epoch, "checkpoint_every_steps": 10_000, "num_threads": args.threads,
            "seed": seed,
        } | changes.get("training", {}),
    }  # fmt: skip
    if "replay" in changes:
        _add_general_rows(recipe, args, draw, changes["replay"])
    run = luthier.train(recipe, home=args.work / "home")
    checks = [event for event in run.events if isinstance(event, ValidationDone)]
    validations = [event.loss for event in checks]
    steps = [event for event in run.events if isinstance(event, StepDone)]
    forgetting = run.evaluation.forgetting if run.evaluation is not None else None
    return {
        "forgetting": forgetting.model_dump(include={"sentence", "word", "comparisons"}) if forgetting else None,
        "arm": args.arms,
        "seed": seed,
        "rows": args.rows,
        "validated": args.validated,
        "epochs": args.epochs,
        "validations": validations,
        "best": min(validations),
        "last": validations[-1],
        "accuracy": checks[validations.index(min(validations))].measures["token_accuracy"],
        "best_epoch": 1 + validations.index(min(validations)),
        "last_train": mean(event.measures.get("plain_loss", event.loss) for event in steps[-steps_per_epoch:]),
        "seconds_per_step": mean(event.seconds for event in steps),
        "machine": describe(),
    }


def _add_general_rows(recipe: dict[str, Any], args: argparse.Namespace, draw: random.Random, fraction: float) -> None:
    """Rows to replay, others to measure what is forgotten, and a few rows of the task to judge."""
    file = args.data / "self_instruct" / "user_oriented_instructions.jsonl"
    rows = []
    for line in file.read_text(encoding="utf-8").splitlines():
        task = json.loads(line)
        prompt = "\n\n".join(filter(None, (task["instruction"], task["instances"][0]["input"])))
        answer = task["instances"][0]["output"]
        if answer and len(prompt) + len(answer) <= MOST_GENERAL_CHARACTERS:
            rows.append({"prompt": prompt, "completion": answer})
    draw.shuffle(rows)
    judged, replayed = rows[:NUM_GENERAL_JUDGED], rows[NUM_GENERAL_JUDGED:]
    task_rows = wikisql_rows(args.data / "wikisql_mlx/test.jsonl")[:20]
    work, seed = args.work, args.seeds
    recipe["data"] |= {
        "held_out": str(write_jsonl(task_rows, work / "regularisation_test_20.jsonl")),
        "replay": {
            "file": str(write_jsonl(replayed, work / f"regularisation_general_{seed}.jsonl")),
            "fraction": fraction,
            "held_out": str(write_jsonl(judged, work / f"regularisation_general_judged_{seed}.jsonl")),
        },
    }
    recipe["evaluation"] = {"metrics": ["perplexity"], "few_shot": 0}


def table(parts: list[dict[str, Any]]) -> str:
    """One row an arm: means over its seeds, and its difference from `plain` on the same seeds with a 95% interval."""
    lines = [
        "| arm | seeds | training loss at the end | best validation loss | at epoch | difference | "
        "last validation loss | difference | tokens right at the best | difference |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    plain = {part["seed"]: part for part in parts if part["arm"] == "plain"}
    for arm in ARMS:
        own = [part for part in parts if part["arm"] == arm]
        if own:
            epochs = ", ".join(str(part["best_epoch"]) for part in own)
            lines.append(
                f"| {arm} | {len(own)} | {mean(p['last_train'] for p in own):.3f} | "
                f"{mean(p['best'] for p in own):.3f} | {epochs} | {_difference(own, plain, 'best')} | "
                f"{mean(p['last'] for p in own):.3f} | {_difference(own, plain, 'last')} | "
                f"{mean(p['accuracy'] for p in own):.3f} | {_difference(own, plain, 'accuracy')} |"
            )
    told = [part for part in parts if part.get("forgetting")]
    lines += [f"\n{part['arm']}, seed {part['seed']}: {part['forgetting']['sentence']}" for part in told]
    return "\n".join(lines)


def _difference(own: list[dict[str, Any]], plain: dict[int, dict[str, Any]], name: str) -> str:
    """Mean difference from `plain` with Student's t interval, where there are at least two seeds of both."""
    from scipy.stats import t

    found = [part[name] - plain[part["seed"]][name] for part in own if part["seed"] in plain]
    if len(found) < 2 or own[0]["arm"] == "plain":
        return ""
    reach = float(t.ppf(0.975, len(found) - 1)) * stdev(found) / len(found) ** 0.5
    return f"{mean(found):+.3f} [{mean(found) - reach:+.3f}, {mean(found) + reach:+.3f}]"


if __name__ == "__main__":
    main()
