#!/usr/bin/env python3
"""WikiSQL judged by running the SQL: base, base with examples, tuned; beside it the exact text, which is stricter.

    python benchmarks/wikisql_sql.py [--epochs 3] [--rows 1000] [--threads 1]

Trains LoRA (rank 16, batch 16, learning rate 5e-4) and judges on the 100 test rows by a suite of one `sql` task: tables
of made-up rows under the question's columns, the answer's rows against the reference's. The run is kept in --work: a
second call takes it as it is. Prints one JSON document, all figures with 95% intervals.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import yaml
from machine import describe
from rows import wikisql_rows, write_jsonl
from wikisql_run import tuned_run

from luthier.features.suites.service import run_suite
from luthier.platform.home.context import Context

ROOT = Path(__file__).resolve().parents[1]
MODEL = "smollm2-135m-instruct"


def suite(held_out: Path, examples: Path) -> dict[str, Any]:
    """One task: four examples from the training rows for the base that is shown some."""
    task = {
        "name": "wikisql",
        "kind": "sql",
        "data": str(held_out),
        "table_field": "messages",
        "max_new_tokens": 64,
        "few_shot": 4,
        "few_shot_from": str(examples),
    }
    return {"name": "wikisql", "tasks": [task], "forgetting": False}


def main() -> None:
    """Train, judge, print."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--epochs", type=float, default=3)
    cli.add_argument("--rows", type=int, default=1000, help="Rows trained on.")
    cli.add_argument("--threads", type=int, default=1)
    cli.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder with wikisql_mlx/")
    cli.add_argument("--work", type=Path, default=ROOT / ".bench")
    args = cli.parse_args()
    work = args.work.absolute()
    rows = wikisql_rows(args.data / "wikisql_mlx/train.jsonl")[: args.rows]
    train = write_jsonl(rows, work / f"wikisql_sql_train-{args.rows}.jsonl")
    held_out = write_jsonl(wikisql_rows(args.data / "wikisql_mlx/test.jsonl"), work / "wikisql_sql_test.jsonl")
    file = work / "wikisql_sql.yaml"
    file.write_text(yaml.safe_dump(suite(held_out, train)))
    training = {
        "epochs": args.epochs,
        "global_batch_size": 16,
        "schedule": "cosine",
        "max_length_tokens": 1024,
        "num_threads": args.threads,
    }
    with Context.open(work / "home") as context:
        kept = work / f"wikisql_sql-{args.rows}-{args.epochs:g}.run"
        run_id = tuned_run(context, kept, model=MODEL, train=train, training=training)
        task = run_suite(context, [run_id, MODEL], suite=file).tasks[0]
    systems = {
        one.name: {name: figure.model_dump(include={"value", "low", "high"}) for name, figure in one.metrics.items()}
        for one in task.systems
    }
    document = {
        "benchmark": "wikisql_sql",
        "num_rows": args.rows,
        "epochs": args.epochs,
        "num_held_out": task.num_rows,
        "systems": systems,
        "comparisons": [one.model_dump(mode="json") for one in task.comparisons],
        "cautions": task.cautions,
        "machine": describe(),
    }
    print(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
