#!/usr/bin/env python3
"""Peak memory of runs with a task head: what the plan says of them before, and what they then take.

    python benchmarks/head_memory.py --model smollm2-135m-instruct [--only embed] [--out heads.json]
    python benchmarks/head_memory.py --model tiny

Each of the four objectives with an adapter and in full: rows of WikiSQL (the question with its table as the prompt; for
embeddings and rerankers the question and tables), a few steps, no judging. The plan is the one that `luthier plan`
makes of the recipe, without measured runs to correct it. Each run is a process of its own, and its peak that of the
whole process since training began. A plan is kept where the measured peak is at most the upper end of the interval,
which decides whether a run fits; the ratio shows how far the expected figure is off. Memory does not depend on what
else the machine does.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from machine import describe, run_json
from rows import wikisql_rows, write_jsonl

ROOT = Path(__file__).resolve().parents[1]
OBJECTIVES = ("classify", "regress", "rank", "embed")
METHODS: dict[str, dict[str, Any]] = {"lora": {"name": "lora", "rank": 16}, "full": {"name": "full"}}


@dataclass(frozen=True, slots=True)
class Sizes:
    """What all runs have in common: rows, rows a step, steps, and the precision of the weights."""

    rows: int
    batch: int
    steps: int
    precision: str


def rows_for(objective: str, file: Path, num: int) -> list[dict[str, str]]:
    """Rows that a head of this kind learns from; labels and numbers are made of the text of the table."""
    asked = [row["messages"][0]["content"] for row in wikisql_rows(file)[:num]]
    if objective in ("classify", "regress"):
        answers = [str(len(text) % 3 if objective == "classify" else len(text)) for text in asked]
        return [{"prompt": text, "completion": answer} for text, answer in zip(asked, answers, strict=True)]
    # The document of the row behind stands for one that does not answer the question.
    parts = {text.rpartition("\nQ:")[::2] for text in asked}
    pairs = sorted((question.strip(), table.strip()) for table, question in parts)
    tables = sorted({table for _, table in pairs})
    found = []
    for question, table in pairs:
        row = {"prompt": question, "completion": table}
        if objective == "rank":
            other = tables[(tables.index(table) + 1) % len(tables)]
            row = {"prompt": question, "chosen": table, "rejected": other}
        found.append(row)
    return found


def measure(objective: str, method: str, model: str, sizes: Sizes, file: Path) -> dict[str, Any]:
    """Plan a run and train it, in this very process."""
    from luthier.features.planning.quotes import device_for, workloads_of
    from luthier.features.planning.service import prepare
    from luthier.features.recipes.service import recipe_from
    from luthier.features.training.service import train
    from luthier.ml.planning.memory import predict_memory
    from luthier.platform.home.context import Context

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if model == "tiny":
            from luthier.testing.tiny import make_tiny_model

            model = str(make_tiny_model(folder / "tiny"))
        write_jsonl(rows_for(objective, file, sizes.rows), folder / "rows.jsonl")
        document = {
            "base_model": model,
            "data": {"train": str(folder / "rows.jsonl")},
            "objective": {"name": objective},
            "method": METHODS[method],
            "training": {
                "max_steps": sizes.steps,
                "global_batch_size": sizes.batch,
                "learning_rate": 1e-5,
                "precision": sizes.precision,
            },
        }
        recipe = recipe_from(document, base_dir=folder)
        with Context.open(folder / "home") as context:
            prepared = prepare(context, recipe, base_dir=folder)
            here = device_for(context, None)
            predicted = predict_memory(workloads_of(prepared, here)(here), here)
            result = train(context, recipe, base_dir=folder).record.result
    assert result is not None
    total = predicted.total_bytes
    return {
        "objective": objective,
        "method": method,
        "measured_bytes": result.peak_memory_bytes,
        "predicted_bytes": total.value,
        "low_bytes": total.low,
        "high_bytes": total.high,
        "parts": {name: round(value) for name, value in predicted.parts().items()},
    }


def table(found: list[dict[str, Any]]) -> str:
    """What was measured beside what was predicted, in GB."""
    lines = ["| objective | method | measured | plan | measured / plan | kept |", "|---|---|---:|---:|---:|---|"]
    for one in found:
        ratio = one["measured_bytes"] / one["predicted_bytes"]
        size, plan, low, high = (one[f"{name}_bytes"] / 1e9 for name in ("measured", "predicted", "low", "high"))
        is_kept = "yes" if size <= high else "no"
        lines.append(
            f"| {one['objective']} | {one['method']} | {size:.2f} | {plan:.2f} [{low:.2f}, {high:.2f}] | {ratio:.2f} "
            f"| {is_kept} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure all of them, or those that are asked for, and print the table."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder with wikisql_mlx/")
    cli.add_argument("--model", default="smollm2-135m-instruct", help="a name, a folder, or tiny")
    cli.add_argument("--rows", type=int, default=64)
    cli.add_argument("--batch", type=int, default=32, help="rows a step")
    cli.add_argument("--steps", type=int, default=2)
    cli.add_argument("--precision", default="float32", choices=("float32", "bfloat16"))
    cli.add_argument("--only", default="", help="part of an objective and method, such as embed or rank-full")
    cli.add_argument("--out", type=Path, help="write the document here as well")
    cli.add_argument("--child", help=argparse.SUPPRESS)
    args = cli.parse_args()
    sizes, file = Sizes(args.rows, args.batch, args.steps, args.precision), args.data / "wikisql_mlx" / "train.jsonl"
    if args.child:
        print(json.dumps(measure(*args.child.split("-"), args.model, sizes, file)))
        return
    found = []
    for name in (f"{objective}-{method}" for objective in OBJECTIVES for method in METHODS):
        if args.only in name:
            command = [sys.executable, __file__, *sys.argv[1:], "--child", name]
            found.append(run_json(command, cwd=Path.cwd()).document)
            print(table(found[-1:]).splitlines()[-1], file=sys.stderr, flush=True)
    document = {"benchmark": "head_memory", "model": args.model, "runs": found, "machine": describe()}
    if args.out:
        args.out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    print(table(found))
    if any(one["measured_bytes"] > one["high_bytes"] for one in found):
        sys.exit("a run takes more memory than its plan allows for")


if __name__ == "__main__":
    main()
