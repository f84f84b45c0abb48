#!/usr/bin/env python3
"""Quality: WikiSQL, 1,000 rows, LoRA: exact match of the tuned model against the base model, zero-shot and 4-shot.

    python benchmarks/wikisql_quality.py [--epochs 3]

Rank 16, learning rate 5e-4, batch 16, dropout 0.05, cosine; judged on the 100 test rows, with 95% intervals. Prints the
evaluation as one JSON document and leaves the report under .bench/.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from machine import describe
from rows import wikisql_rows, write_jsonl

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Train, judge, print."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--epochs", type=float, default=3)
    cli.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder with wikisql_mlx/")
    cli.add_argument("--work", type=Path, default=ROOT / ".bench")
    args = cli.parse_args()
    files = {
        split: write_jsonl(wikisql_rows(args.data / f"wikisql_mlx/{name}.jsonl"), args.work / f"wikisql_{name}.jsonl")
        for split, name in (("train", "train"), ("validation", "valid"), ("held_out", "test"))
    }
    import luthier

    recipe = {
        "base_model": "smollm2-135m-instruct",
        "data": {split: str(file) for split, file in files.items()},
        "method": {"name": "lora", "rank": 16, "alpha": 32, "dropout": 0.05},
        "training": {
            "epochs": args.epochs,
            "global_batch_size": 16,
            "learning_rate": 5e-4,
            "schedule": "cosine",
            "max_length_tokens": 1024,
            "early_stopping_patience": 0,
        },
        "evaluation": {"metrics": ["exact_match", "perplexity", "bleu", "rouge"], "few_shot": 4, "max_new_tokens": 64},
    }
    run = luthier.train(recipe, home=args.work / "home")
    assert run.evaluation is not None
    assert run.record.result is not None
    systems = {
        s.name: {name: m.model_dump(include={"value", "low", "high"}) for name, m in s.metrics.items()}
        for s in run.evaluation.systems
    }
    document = {
        "benchmark": "wikisql_quality",
        "epochs": args.epochs,
        "num_held_out": run.evaluation.num_rows,
        "systems": systems,
        "comparisons": [c.model_dump(mode="json") for c in run.evaluation.comparisons if c.metric.startswith("exact")],
        "verdict": run.verdict.model_dump(mode="json") if run.verdict else None,
        "training": run.record.result.model_dump(mode="json"),
        "report": str(run.report_path),
        "machine": describe(),
    }
    print(json.dumps(document, indent=2))


if __name__ == "__main__":
    main()
