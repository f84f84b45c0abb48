#!/usr/bin/env python3
"""Does tuning make a model invent fewer citations? Base, base with examples and tuned, on the example's legal set.

    python benchmarks/invented_citations.py [--model smollm2-135m-instruct] [--epochs 10]

Tunes LoRA on the 40 rows of examples/law_firm/cited and judges by examples/law_firm/citations.yaml: 25 questions on the
law of a state that does not exist, so that no base model can know it. Prints one JSON document: all rates with 95%
intervals over topics, the paired differences, and sentences with invented citations of each system.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from machine import describe

from luthier.core.evaluation import SystemResult
from luthier.core.results.suite import CitationsTask, TaskResult
from luthier.features.datasets.documents import read_corpus
from luthier.ml.evaluation.grounding.corpus import Corpus, findings
from luthier.platform.home.context import Context

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "examples" / "law_firm"
SHOWN = 5


def recipe(model: str, epochs: float) -> dict[str, Any]:
    """Small on purpose: 40 rows, rank 16."""
    return {
        "base_model": model,
        "data": {"train": str(EXAMPLE / "cited" / "train.jsonl")},
        "method": {"name": "lora", "rank": 16, "alpha": 32},
        "training": {
            "epochs": epochs,
            "global_batch_size": 4,
            "learning_rate": 1e-3,
            "schedule": "cosine",
            "early_stopping_patience": 0,
        },
    }


def figures(system: SystemResult) -> dict[str, dict[str, float]]:
    """Value and 95% interval of each metric."""
    return {name: one.model_dump(include={"value", "low", "high"}) for name, one in system.metrics.items()}


def sentences(system: SystemResult, corpus: Corpus) -> list[dict[str, str]]:
    """The first sentences with a citation that is nowhere, or that has other parties."""
    found = [(sample, one) for sample in system.samples for one in findings(sample.output, corpus)]
    return [
        {"row": sample.row_id, "status": one.status, "citation": one.citation.text, "sentence": one.citation.sentence}
        for sample, one in found
        if one.status != "known"
    ][:SHOWN]


def document(task: TaskResult, corpus: Corpus) -> dict[str, Any]:
    """What is printed of the task's result."""
    return {
        "benchmark": "invented_citations",
        "num_held_out": task.num_rows,
        "num_topics": task.num_clusters,
        "systems": {one.name: figures(one) for one in task.systems},
        "comparisons": [one.model_dump() for one in task.comparisons],
        "sentences": {one.name: sentences(one, corpus) for one in task.systems},
        "cautions": task.cautions,
    }


def judged(home: Path, systems: list[str]) -> TaskResult:
    """The suite's one task."""
    from luthier.features.suites.service import run_suite

    with Context.open(home) as context:
        result = run_suite(context, systems, suite=EXAMPLE / "citations.yaml")
    return next(one for one in result.tasks if one.name == "citations")


def main() -> None:
    """Train, judge, print."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--model", default="smollm2-135m-instruct")
    cli.add_argument("--epochs", type=float, default=10)
    cli.add_argument("--work", type=Path, default=ROOT / ".bench")
    args = cli.parse_args()
    import luthier

    run = luthier.train(recipe(args.model, args.epochs), home=args.work / "home")
    task = judged(args.work / "home", [run.run_id, args.model])
    corpus = Corpus(read_corpus(EXAMPLE / "cited" / "corpus"), forms=CitationsTask.model_fields["forms"].default)
    print(json.dumps({**document(task, corpus), "epochs": args.epochs, "machine": describe()}, indent=1))


if __name__ == "__main__":
    main()
