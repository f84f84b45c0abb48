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

    status: `refused` is an answer of Luthier with its reason; `wrong` is another result than that of the model's own
    forward pass; `fault` is an error that nobody foresaw; `not_run` what time or an earlier part left out.
    path: by which way it works. reason, remedy: why it does not, and what to do. measures: figures that were found,
    each with its unit or what it is a share of in its name.
    """

    name: str
    status: CheckStatus
    path: str = ""
    reason: str = ""
    remedy: str = ""
    seconds: float = 0.0
    measures: dict[str, float] = Field(default_factory=dict)


class ModelCheck(FrozenModel):
    """All checks of one base model. layers: how many of its layers were computed with; all of them for small models."""

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
