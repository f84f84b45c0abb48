"""The interface of an update rule, and how the rule of an optimizer is loaded when it is used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from luthier.core.import_string import import_string
from luthier.core.plan import OptimizerPlan
from luthier.ml.training.optimizers.rules import rules_of

Place = Literal["embedding", "head", "matrix", "vector"]


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """One trained parameter as a rule sees it.

    Attributes:
        master: the fp32 (or wider) copy that moves; its `.grad` holds the summed and clipped gradient of the step.
        rate_factor: what the learning rate is multiplied by.
        decay: weight decay, 0 for vectors.
        place: `embedding` for tables that are looked up (tied to the head or not), `head` for an untied one, `matrix`
            for two or more dimensions anywhere else.
    """

    name: str
    master: Tensor
    rate_factor: float
    decay: float
    place: Place


class UpdateRule(Protocol):
    """Moves masters by their gradients, and remembers what it needs for the next step."""

    def __init__(self, trained: Sequence[Trained], plan: OptimizerPlan) -> None: ...

    def update(self, rate: float) -> None:
        """One step at that learning rate, before the factor of each parameter."""
        ...

    def state(self) -> dict[str, Tensor]:
        """All that the next step reads beside weights and number of steps, by `part.name`; empty before the first."""
        ...

    def load(self, state: Mapping[str, Tensor], num_steps_taken: int) -> None:
        """Load what `state` returned after that many steps, bit for bit; called only where at least one was taken."""
        ...


def in_groups(trained: Sequence[Trained]) -> list[dict[str, object]]:
    """Parameter groups for an optimizer of torch: one for each pair of weight decay and rate factor."""
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for one in trained:
        groups.setdefault((one.decay, one.rate_factor), []).append(one.master)
    return [
        {"params": masters, "weight_decay": decay, "rate_factor": factor} for (decay, factor), masters in groups.items()
    ]


def load_rule(trained: Sequence[Trained], plan: OptimizerPlan) -> UpdateRule:
    """The rule that a plan names, for these parameters.

    Raises:
        NotFoundError: No table knows the name.
    """
    rule: UpdateRule = import_string(rules_of(plan.name).update_rule)(trained, plan)
    return rule
