"""Reinforcement by GRPO: the model writes several answers to each prompt, and learns those with the higher reward.

    .venv/bin/python examples/scripts/grpo.py [--model NAME] [--steps N]

The rewards are for a one-word answer that is right: 24 messages to a shop, from `examples/suites/triage.jsonl`. Name
your own rows in `data.train` and your own rewards: metrics, graders, a penalty on length (docs/reinforcement.md). It
prints the mean reward of each step.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import luthier
from luthier.core.events import StepDone

ROWS = Path(__file__).parents[1] / "suites" / "triage.jsonl"


def main() -> None:
    """Train and show how the reward grows."""
    parser = argparse.ArgumentParser(description="Reinforcement of a small model by GRPO.")
    parser.add_argument("--model", default="smollm2-135m-instruct", help="a base model (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=12, help="how many steps to train (default: %(default)s)")
    arguments = parser.parse_args()

    run = luthier.train(
        {
            "base_model": arguments.model,
            "data": {"train": str(ROWS)},
            "objective": {
                "name": "grpo",
                "num_generations": 8,
                "max_new_tokens": 16,
                "rewards": [
                    {"metric": "label_accuracy", "weight": 1.0},
                    {"length": {"free_tokens": 3, "max_tokens": 16}, "weight": 0.5},
                ],
            },
            "training": {"max_steps": arguments.steps, "global_batch_size": 4, "learning_rate": 2e-4},
        }
    )
    for event in run.events:
        if isinstance(event, StepDone):
            print(f"step {event.step}: reward {event.measures['reward']:+.3f}")
    print("adapter:", run.adapter_path)
    print("report:", run.report_path)


if __name__ == "__main__":
    main()
