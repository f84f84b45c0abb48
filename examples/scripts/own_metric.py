"""A metric of your own: judge a run by a figure that Luthier does not have, with intervals and a verdict as for others.

    .venv/bin/python examples/scripts/own_metric.py [--model NAME] [--steps N]

The task is to write an order as JSON, and the metric is the share of fields that are right: 12 rows from
`examples/suites/orders.jsonl`, a third of which judges. For other commands and a server, put the class into a package
with an entry point in the group `luthier.metrics`. It takes 37 s of one CPU core (Intel Xeon).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import luthier
from luthier.ml.evaluation.metrics.protocol import MeanMetric

ROWS = Path(__file__).parents[1] / "suites" / "orders.jsonl"


@luthier.register_metric
class FieldAccuracy(MeanMetric):
    """The mean share of the reference's fields that the answer, read as JSON, has with the same value."""

    name, title = "field_accuracy", "fields that are right"

    def value(self, output: str, reference: str) -> float:
        """From 0 to 1; 0 where the answer is not a JSON object."""
        expected = json.loads(reference)
        try:
            found = json.loads(output)
        except ValueError:
            return 0.0
        return sum(found.get(k) == v for k, v in expected.items()) / len(expected) if isinstance(found, dict) else 0.0


def main() -> None:
    """Train, and judge by the metric."""
    parser = argparse.ArgumentParser(description="A run that is evaluated by a metric of one's own.")
    parser.add_argument("--model", default="smollm2-135m-instruct", help="a base model (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=10, help="how many steps to train (default: %(default)s)")
    arguments = parser.parse_args()

    run = luthier.train(
        {
            "base_model": arguments.model,
            "data": {"train": str(ROWS), "held_out": 0.34},
            "training": {"max_steps": arguments.steps, "global_batch_size": 4, "learning_rate": 1e-3},
            "evaluation": {"metrics": ["field_accuracy"], "few_shot": 2, "max_new_tokens": 40},
        }
    )
    for system in run.evaluation.systems if run.evaluation else ():
        figure = system.metrics["field_accuracy"]
        print(f"{system.name}: {figure.value:.2f} [{figure.low:.2f}, {figure.high:.2f}]")
    print(run.verdict.headline if run.verdict else run)


if __name__ == "__main__":
    main()
