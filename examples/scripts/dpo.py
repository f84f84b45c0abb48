"""Direct preference optimisation: learn which of two answers is preferred, from pairs of them.

    .venv/bin/python examples/scripts/dpo.py [--model NAME] [--steps N]

The preference is for a bare number over a sentence: 120 pairs made below. Replace `make_pairs` by pairs of your own:
one JSON object a line with `prompt`, `chosen` and `rejected`.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import luthier


def make_pairs(file: Path) -> Path:
    """Your data goes here."""
    draw = random.Random(1)
    lines = []
    for a, b in draw.sample([(a, b) for a in range(2, 40) for b in range(2, 40)], 120):
        prompt = f"What is {a} plus {b}?"
        rejected = f"Good question! When we add {a} and {b}, the result is {a + b}."
        lines.append(json.dumps({"prompt": prompt, "chosen": str(a + b), "rejected": rejected}))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def main() -> None:
    """Train and show what the model prefers now."""
    parser = argparse.ArgumentParser(description="Direct preference optimisation of a small model.")
    parser.add_argument("--model", default="smollm2-135m-instruct", help="a base model (default: %(default)s)")
    parser.add_argument("--steps", type=int, help="stop after so many steps (default: one epoch)")
    arguments = parser.parse_args()

    run = luthier.train(
        {
            "base_model": arguments.model,
            "data": {"train": str(make_pairs(Path("work/pairs.jsonl"))), "validation": 0.1, "held_out": 0.2},
            "objective": {"name": "dpo", "beta": 0.1},  # or ipo, orpo, simpo, kto: docs/objectives.md
            "training": {"epochs": 1, "max_steps": arguments.steps, "global_batch_size": 8},
            "evaluation": {"metrics": ["reward_accuracy", "preference_margin"]},
        }
    )
    print(run.verdict.headline if run.verdict else run)
    for system in run.evaluation.systems if run.evaluation else ():
        figures = {name: round(metric.value, 3) for name, metric in system.metrics.items()}
        print(system.name, figures)
    print("report:", run.report_path)


if __name__ == "__main__":
    main()
