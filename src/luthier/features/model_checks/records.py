"""What a check of a base model has found: what works, by which path, and what does not, with the reason."""

from __future__ import annotations

from typing import Final, Literal

from pydantic import Field

from luthier.core.frozen_model import FrozenModel

CheckStatus = Literal["works", "refused", "wrong", "fault", "not_run"]
CHECKS: Final = (
    "template",
    "rows",
    "plan",
    "reach",
    "loss",
    "step",
    "text",
    "stream",
    "score",
)
"""Parts of a check, in their order. `rows` comes once for each kind of row: `rows: one turn`."""


class Check(FrozenModel):
    """One part of a check.

    Attributes:
        name: The part, such as `loss` or `rows: one turn`.
        status: `refused`: Luthier refuses, with a reason. `wrong`: not the result of the model's own forward pass.
            `fault`: an unexpected error. `not_run`: left out for time, or because an earlier part failed.
        path: The way by which it works.
        reason: Why it does not work.
        remedy: What to do about it.
        seconds: How long it took.
        measures: Figures that were found; each name says the unit or what it is a share of.
    """

    name: str
    status: CheckStatus
    path: str = ""
    reason: str = ""
    remedy: str = ""
    seconds: float = 0.0
    measures: dict[str, float] = Field(default_factory=dict)


class ModelCheck(FrozenModel):
    """All checks of one base model.

    Attributes:
        model: Its name.
        path: Its folder.
        architecture: The class of its configuration.
        num_parameters: All its parameters.
        context_length_tokens: Its longest sequence.
        layers: Which layers were computed with; `all` for small models.
        checks: The parts, in order.
    """

    model: str
    path: str
    architecture: str | None
    num_parameters: int
    context_length_tokens: int
    layers: str
    checks: tuple[Check, ...]

    @property
    def works(self) -> bool:
        """Whether every part works."""
        return all(check.status == "works" for check in self.checks)
