"""An objective of your own: train on a loss that Luthier does not have.

    .venv/bin/python examples/scripts/own_objective.py [--model NAME] [--steps N]

The focal loss (Lin et al., 2017, arXiv:1708.02002) counts tokens less that the model predicts well already. Rows are 24
messages to a shop. For other commands and a server, put the class into a package with an entry point in the group
`luthier.objectives`. It takes 26 s of one CPU core (Intel Xeon).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import luthier
from luthier.core.events import StepDone
from luthier.ml.training.model import MicroBatch, TrainableModel
from luthier.ml.training.objective_protocol import Losses, PlainObjective, Unit
from luthier.ml.training.objectives.rules import ObjectiveRules

ROWS = Path(__file__).parents[1] / "suites" / "triage.jsonl"


@luthier.register_objective
class Focal(PlainObjective):
    """The cross-entropy of each learned token times (1 - p) ** gamma."""

    name = "focal"
    rules = ObjectiveRules("focal loss on the answers", {}, shapes=("chat", "prompt_completion"))

    def losses(self, model: TrainableModel, units: Sequence[Unit], batch: MicroBatch) -> Losses:  # noqa: ARG002
        """The sum over the learned tokens; the loop divides it by their number in the whole batch."""
        log_p = model.log_probabilities(batch)  # [N], nats, one for each learned token
        weight = (1 - log_p.exp()) ** float(self.plan.options.get("gamma", 2.0))
        return Losses(-(weight * log_p).sum(), {"cross_entropy": -log_p.detach().sum()})


def main() -> None:
    """Train, and show loss and cross-entropy of each step."""
    parser = argparse.ArgumentParser(description="Focal loss.")
    parser.add_argument("--model", default="smollm2-135m-instruct", help="a base model (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=10, help="how many steps to train (default: %(default)s)")
    arguments = parser.parse_args()

    run = luthier.train(
        {
            "base_model": arguments.model,
            "data": {"train": str(ROWS)},
            "objective": {"name": "focal", "options": {"gamma": 2.0}},
            "training": {"max_steps": arguments.steps, "global_batch_size": 8},
        }
    )
    for event in run.events:
        if isinstance(event, StepDone):
            print(f"step {event.step}: loss {event.loss:.4f}, cross-entropy {event.measures['cross_entropy']:.4f}")


if __name__ == "__main__":
    main()
