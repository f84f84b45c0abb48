"""The interface of an update rule, and its loader."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from luthier.core.import_string import import_string
from luthier.core.plan import OptimizerPlan
from luthier.ml.training.optimizers.rules import rules_of

Place = Literal["embedding", "head", "matrix", "vector"]
_UPDATES: Final = "updates"


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """A trained parameter, as passed to an update rule.

    Attributes:
        master: the fp32 (or wider) copy that is updated; its `.grad` holds the summed and clipped gradient of the step,
            and is None until a backward pass of the run has reached the weight, which must not change before.
        rate_factor: learning rate factor.
        decay: weight decay; 0 for vectors.
        place: `embedding` for tables that are looked up (tied to the head or not), `head` for an untied one, `matrix`
            for two or more dimensions anywhere else.
    """

    name: str
    master: Tensor
    rate_factor: float
    decay: float
    place: Place


class UpdateRule(Protocol):
    """Updates masters from their gradients and keeps the state for the next step."""

    def __init__(self, trained: Sequence[Trained], plan: OptimizerPlan) -> None: ...

    def update(self, rate: float) -> None:
        """Take one step. Each parameter's factor is applied to the learning rate."""
        ...

    def state(self) -> dict[str, Tensor]:
        """The state that the next step reads besides weights and step number, by `part.name`; initially empty.

        Of a weight that no step has updated it has nothing.
        """
        ...

    def load(self, state: Mapping[str, Tensor], num_steps_taken: int) -> None:
        """Load what `state` returned after that many steps, bit for bit; called only where at least one was taken."""
        ...


@runtime_checkable
class AveragingRule(UpdateRule, Protocol):
    """An update rule whose average of the weights is what is used, while it trains at others."""

    def averages(self) -> Iterator[tuple[str, Tensor]]:
        """Name and average of each parameter that has been updated, as precise as the masters; it keeps none."""
        ...


def late_start(name: str, num_updates: int, num_steps: int) -> dict[str, Tensor]:
    """Part of a state: how many updates a weight has had, where its first gradient came after the first step.

    Args:
        name: of the weight.
        num_updates: of this weight.
        num_steps: of the run.
    """
    return {} if num_updates == num_steps else {f"{_UPDATES}.{name}": torch.tensor([num_updates])}


def updates_in(state: Mapping[str, Tensor], name: str, num_steps: int) -> int:
    """How many updates a weight has had, by a state.

    Args:
        state: that a rule has returned.
        name: of the weight.
        num_steps: of the run.
    """
    found = state.get(f"{_UPDATES}.{name}")
    return num_steps if found is None else int(found)


def in_groups(trained: Sequence[Trained]) -> list[dict[str, object]]:
    """Parameter groups for an optimizer of torch: one for each pair of weight decay and rate factor."""
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for one in trained:
        groups.setdefault((one.decay, one.rate_factor), []).append(one.master)
    return [
        {"params": masters, "weight_decay": decay, "rate_factor": factor} for (decay, factor), masters in groups.items()
    ]


def load_rule(trained: Sequence[Trained], plan: OptimizerPlan) -> UpdateRule:
    """Create the rule that a plan names, for these parameters.

    Raises:
        NotFoundError: the name is not registered.
    """
    rule: UpdateRule = import_string(rules_of(plan.name).update_rule)(trained, plan)
    return rule
