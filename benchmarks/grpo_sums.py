"""Does reinforcement learn? Sums of small numbers, worth something only where the answer is the number and no more.

    python benchmarks/grpo_sums.py --home HOME --work FOLDER [--steps 40]

Rows are made up by a seed; held-out sums are none of those that are trained on. Prints the mean reward of each step and
the verdict on the held-out rows.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from luthier.core.events import StepDone, ValidationDone
from luthier.core.system.process_setup import wait_briefly
from luthier.features.recipes.service import load_recipe
from luthier.features.training.service import train
from luthier.platform.home.context import Context

_QUESTION = "What is {} + {}? Answer with the number alone."


def rows(num: int, seed: int) -> list[dict[str, str]]:
    """Different sums of a number from 1 to 9 and one from 1 to 12, in random order."""
    pairs = [(a, b) for a in range(1, 10) for b in range(1, 13)]
    random.Random(seed).shuffle(pairs)
    return [{"prompt": _QUESTION.format(a, b), "completion": str(a + b)} for a, b in pairs[:num]]


def recipe(model: str, num_steps: int, threads: int) -> dict[str, Any]:
    """Eight answers to each of four sums a step."""
    return {
        "base_model": model,
        "data": {"train": "train.jsonl", "held_out": "held_out.jsonl"},
        "method": {"name": "lora"},
        "objective": {
            "name": "grpo",
            "rewards": [{"metric": "exact_match"}, {"metric": "token_f1", "weight": 0.5}],
            "num_samples": 8,
            "max_new_tokens": 6,
        },
        "training": {"max_steps": num_steps, "global_batch_size": 4, "num_threads": threads},
        "evaluation": {"metrics": ["exact_match"], "few_shot": 0, "max_new_tokens": 6},
    }


def main() -> None:
    """Train, judge, and print what came."""
    wait_briefly()  # as the command line does, before torch is loaded
    cli = argparse.ArgumentParser()
    cli.add_argument("--home", type=Path, required=True)
    cli.add_argument("--work", type=Path, required=True)
    cli.add_argument("--model", default="smollm2-135m-instruct")
    cli.add_argument("--steps", type=int, default=40)
    cli.add_argument("--threads", type=int, default=1)
    args = cli.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    made = rows(108, seed=0)
    for name, part in (("train", made[:68]), ("held_out", made[68:])):
        text = "".join(json.dumps(row) + "\n" for row in part)
        (args.work / f"{name}.jsonl").write_text(text, encoding="utf-8")
    path = args.work / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe(args.model, args.steps, args.threads)), encoding="utf-8")
    start = time.perf_counter()
    with Context.open(args.home) as context:
        outcome = train(context, load_recipe(path), base_dir=args.work)
        events = context.runs.events(outcome.record.run_id)
    steps = [event for event in events if isinstance(event, StepDone)]
    for event in steps:
        figures = ", ".join(f"{name} {value:.3f}" for name, value in event.measures.items())
        sys.stdout.write(f"step {event.step}: {event.seconds:.1f} s, {figures}\n")
    for event in (event for event in events if isinstance(event, ValidationDone)):
        sys.stdout.write(f"validation after step {event.step}: reward {event.measures['reward']:.3f}\n")
    document = outcome.as_json()
    sys.stdout.write(f"{document['verdict']['headline'] if 'verdict' in document else ''}\n")
    for system in outcome.evaluation.systems if outcome.evaluation else ():
        for name, metric in system.metrics.items():
            sys.stdout.write(f"{system.name}: {name} {metric.value:.3f} [{metric.low:.3f}, {metric.high:.3f}]\n")
    peak = document["peak_memory_bytes"] / 2**30
    seconds = time.perf_counter() - start
    sys.stdout.write(f"{document['seconds_per_step']:.2f} s a step, {peak:.2f} GiB, {seconds:.0f} s in all\n")
    sys.stdout.write(f"{document['report_path']}\n")


if __name__ == "__main__":
    main()
