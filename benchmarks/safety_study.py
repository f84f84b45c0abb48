#!/usr/bin/env python3
"""Two findings of the safety probes on a real model: what a small tuning does to stereotypes, and when canaries show.

    python benchmarks/safety_study.py --data ../shared/data

1. CrowS-Pairs (all pairs) before and after a LoRA tuning on WikiSQL rows: a task that has nothing to do with them.
2. Canaries planted among a few WikiSQL rows, trained for one epoch and for many: their exposure (in bits, chance is
   1.4), and how many are written when they are asked for.

Runs are kept in --home: a second call takes them as they are. Prints one JSON document.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rows import wikisql_rows, write_jsonl

if TYPE_CHECKING:
    from luthier.core.results.suite import TaskResult
    from luthier.features.suites.safety import SafetySuite
    from luthier.platform.home.context import Context

_COMMON = {"global_batch_size": 8, "precision": "float32", "learning_rate": 5e-4, "checkpoint_every_steps": 1000}


def main() -> None:
    """Read the options, run what was asked, print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--home", type=Path, default=Path(".safety-study"))
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--part", choices=("both", "stereotypes", "canaries"), default="both")
    parser.add_argument(
        "--rows", type=int, default=300, help="WikiSQL rows of the tuning before and after CrowS-Pairs."
    )
    parser.add_argument("--canary-rows", type=int, default=60, help="Rows that canaries are planted among.")
    parser.add_argument("--canaries", type=int, default=6)
    parser.add_argument("--epochs", default="1,20", help="Epochs of the runs with canaries.")
    parser.add_argument("--suite", choices=("default", "full"), default="full", help="How much is asked.")
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()

    from luthier.platform.home.context import Context

    rows = wikisql_rows(asked.data / "wikisql_mlx" / "train.jsonl")
    found: dict[str, Any] = {"model": asked.model}
    with Context.open(asked.home) as context:
        if asked.part in ("both", "stereotypes"):
            file = write_jsonl(rows[: asked.rows], asked.home / f"wikisql-{asked.rows}.jsonl")
            run_id = _tuned(context, asked, "stereotypes", file, epochs=1)
            pairs = asked.data / "crows_pairs" / "crows_pairs_anonymized.csv"
            found["crows_pairs"] = _figures(context, run_id, "stereotypes", asked.suite, pairs=pairs)
        if asked.part in ("both", "canaries"):
            short = sorted(rows, key=lambda row: len(json.dumps(row)))[: asked.canary_rows]
            file = write_jsonl(short, asked.home / f"short-{asked.canary_rows}.jsonl")
            for epochs in map(int, asked.epochs.split(",")):
                run_id = _tuned(context, asked, f"canaries-{epochs}", file, epochs=epochs, canaries=asked.canaries)
                found[f"canaries_after_{epochs}_epochs"] = _figures(context, run_id, "canaries", asked.suite)
    print(json.dumps(found, indent=2))


def _tuned(
    context: Context, asked: argparse.Namespace, name: str, file: Path, *, epochs: int, canaries: int | None = None
) -> str:
    """The id of a LoRA run on the rows of a file, trained at the first call."""
    from luthier.core.ids import new_id
    from luthier.features.recipes.service import recipe_from
    from luthier.features.training.service import train

    kept = asked.home / f"{name}.run"
    if kept.is_file() and any(record.run_id == kept.read_text() for record in context.runs.list()):
        return kept.read_text()
    recipe = {
        "base_model": asked.model,
        "data": {"train": str(file.absolute())} | ({"canaries": canaries} if canaries else {}),
        "method": {"name": "lora", "rank": 16, "alpha": 32, "dropout": 0.0},
        "training": _COMMON | {"epochs": epochs, "num_threads": asked.threads},
    }
    kept.write_text(new_id("run"))
    base_dir = asked.home.absolute()
    train(context, recipe_from(recipe, base_dir=base_dir), base_dir=base_dir, run_id=kept.read_text())
    return kept.read_text()


def _figures(
    context: Context, run_id: str, probe: str, suite: SafetySuite, *, pairs: Path | None = None
) -> dict[str, Any]:
    """Each figure of a probe: base, tuned and the difference, with their intervals."""
    from luthier.features.suites.safety import check_safety

    result = check_safety(context, run_id, suite=suite, pairs=pairs, only=[probe])
    return {"headline": result.headline, "concerns": result.concerns, **_rounded(result.probes[0])}


def _rounded(probe: TaskResult) -> dict[str, Any]:
    base, tuned = probe.systems
    changes = {comparison.metric: comparison for comparison in probe.comparisons}
    return {
        name: {
            "base": [round(value, 4) for value in (before.value, before.low, before.high)],
            "tuned": [round(value, 4) for value in (now.value, now.low, now.high)],
            "difference": [round(v, 4) for v in (changes[name].difference, changes[name].low, changes[name].high)],
        }
        for name, before in base.metrics.items()
        for now in (tuned.metrics[name],)
    }


if __name__ == "__main__":
    main()
