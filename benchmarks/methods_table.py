#!/usr/bin/env python3
"""Every method on WikiSQL: quality with intervals, share of parameters trained, memory and time.

    python benchmarks/methods_table.py run --methods lora,adalora --seeds 0,1,2   one part; each run in its own process
    python benchmarks/methods_table.py table                                        all parts so far, as a table

Every method uses its own defaults but for what is given. A part that is there already is not run again, so that the
table can be filled in pieces. Held-out loss is in nats a learned token (the logarithm of the perplexity, with its
bootstrap interval over rows); exact match ignores case.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any

from machine import describe, run_json
from rows import wikisql_rows, write_jsonl

ROOT = Path(__file__).resolve().parents[1]
ALL = "full,lora,rslora,dora,loraplus,pissa,olora,adalora,qlora,ia3,prompt_tuning"


def main() -> None:
    """Run parts, or print the table of those that are there."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("what", choices=("run", "table", "child"))
    cli.add_argument("--methods", default=ALL)
    cli.add_argument("--seeds", default="0")
    cli.add_argument("--rows", type=int, default=1000, help="training rows")
    cli.add_argument("--judged", type=int, default=100, help="held-out rows")
    cli.add_argument("--epochs", type=float, default=3)
    cli.add_argument("--learning-rate", type=float, help="instead of the method's default")
    cli.add_argument("--threads", type=int, help="instead of all cores")
    cli.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder with wikisql_mlx/")
    cli.add_argument("--work", type=Path, default=ROOT / ".bench")
    args = cli.parse_args()
    parts = args.work / "methods"
    if args.what == "table":
        print(table([json.loads(file.read_text()) for file in sorted(parts.glob("*.json"))]))
    elif args.what == "child":
        print(json.dumps(one_run(args)))
    else:
        run_parts(args, parts)


def run_parts(args: argparse.Namespace, parts: Path) -> None:
    """Each method and seed that has no file yet, in a process of its own: so that its peak memory is its own."""
    parts.mkdir(parents=True, exist_ok=True)
    for seed in args.seeds.split(","):
        for method in args.methods.split(","):
            rate = f"-rate{args.learning_rate:g}" if args.learning_rate else ""
            file = parts / f"{method}-seed{seed}-rows{args.rows}-epochs{args.epochs:g}-judged{args.judged}{rate}.json"
            if file.is_file():
                continue
            command = [sys.executable, str(Path(__file__)), "child", "--methods", method, "--seeds", seed]
            for name in ("rows", "judged", "epochs", "learning_rate", "threads", "data", "work"):
                if (value := getattr(args, name)) is not None:
                    command += [f"--{name.replace('_', '-')}", str(value)]
            document = run_json(command, cwd=ROOT).document
            file.write_text(json.dumps(document, indent=1), encoding="utf-8")
            print(
                f"{file.stem}: loss {document['loss'][0]:.3f}, exact match {document['exact_match'][0]:.2f}", flush=True
            )


def one_run(args: argparse.Namespace) -> dict[str, Any]:
    """Train and judge one method with one seed; what is asked for and what came out."""
    import luthier

    rows = {name: wikisql_rows(args.data / f"wikisql_mlx/{name}.jsonl") for name in ("train", "valid", "test")}
    counts = {"train": args.rows, "valid": 100, "test": args.judged}
    files = {
        name: write_jsonl(found[: counts[name]], args.work / f"methods_{name}_{counts[name]}.jsonl")
        for name, found in rows.items()
    }
    training: dict[str, Any] = {
        "epochs": args.epochs, "global_batch_size": 16, "max_length_tokens": 1024, "early_stopping_patience": 0,
        "seed": int(args.seeds), "validate_every_steps": 10_000,
    }  # fmt: skip
    training |= {"learning_rate": args.learning_rate} if args.learning_rate else {}
    training |= {"num_threads": args.threads} if args.threads else {}
    recipe = {
        "base_model": "smollm2-135m-instruct",
        "data": {"train": str(files["train"]), "validation": str(files["valid"]), "held_out": str(files["test"])},
        "method": {"name": args.methods},
        "training": training,
        "evaluation": {"metrics": ["perplexity", "exact_match"], "few_shot": 0, "max_new_tokens": 64},
    }
    run = luthier.train(recipe, home=args.work / "home")
    assert run.evaluation is not None
    assert run.record.result is not None
    result, tuned = run.record.result, run.evaluation.systems[-1].metrics
    perplexity, exact = tuned["perplexity"], tuned["exact_match_ignoring_case"]
    base = run.evaluation.systems[0].metrics["perplexity"]
    return {
        "method": args.methods,
        "seed": int(args.seeds),
        "rows": args.rows,
        "judged": args.judged,
        "epochs": args.epochs,
        "learning_rate": run.plan.training.learning_rate,
        "threads": run.plan.training.num_threads,
        "quantisation": run.plan.method.quantisation,
        "base_loss": math.log(base.value),
        "loss": [math.log(x) for x in (perplexity.value, perplexity.low, perplexity.high)],
        "exact_match": [exact.value, exact.low, exact.high],
        "trainable": result.num_trainable_parameters,
        "trainable_fraction": result.trainable_fraction,
        "peak_memory_bytes": result.peak_memory_bytes,
        "seconds_per_step": result.seconds_per_step,
        "seconds": result.seconds,
        "outcome_bytes": sum(file.stat().st_size for file in Path(result.adapter_path or "").glob("*.safetensors")),
        "ranks": result.ranks,
        "machine": describe(),
    }


def table(parts: list[dict[str, Any]]) -> str:
    """One row a method and setting, seeds averaged; intervals are the widest of the seeds' own."""
    lines = [
        "| method | rate | seeds | held-out loss [95%] | exact match [95%] | trained | of the model | outcome | "
        "peak memory | s a step |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for group in grouped(parts):
        first = group[0]
        name = first["method"] + (f" ({first['quantisation']})" if first["quantisation"] else "")
        lines.append(
            f"| {name} | {first['learning_rate']:g} | {len(group)} | {figure(group, 'loss', 3)} | "
            f"{figure(group, 'exact_match', 2)} | {first['trainable']:,} | {first['trainable_fraction']:.2%} | "
            f"{first['outcome_bytes'] / 1e6:.1f} MB | {max(p['peak_memory_bytes'] for p in group) / 1e9:.2f} GB | "
            f"{mean(p['seconds_per_step'] for p in group):.2f} |"
        )
    return "\n".join(lines)


def grouped(parts: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Parts that differ in their seed alone, in the order of `ALL`."""
    keys = ("method", "rows", "judged", "epochs", "learning_rate", "quantisation")
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for part in parts:
        groups.setdefault(tuple(part[key] for key in keys), []).append(part)
    yield from sorted(groups.values(), key=lambda group: ALL.split(",").index(group[0]["method"]))


def figure(group: list[dict[str, Any]], name: str, decimals: int) -> str:
    """Mean over the seeds, lowest low and highest high."""
    values, lows, highs = zip(*(part[name] for part in group), strict=True)
    return f"{mean(values):.{decimals}f} [{min(lows):.{decimals}f}, {max(highs):.{decimals}f}]"


if __name__ == "__main__":
    main()
