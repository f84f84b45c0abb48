"""Turns that a recipe has written in another way, for templates that have no place for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from luthier.core.frozen_model import FrozenModel

if TYPE_CHECKING:
    from luthier.core.plan import DataPlan
    from luthier.core.recipe import DataRecipe


class OptedTurns(FrozenModel):
    """What is written in another way, in training and wherever the model is used (`ml/inference/opted_turns.py`).

    Attributes:
        folds_system: whether a system turn becomes part of the first user turn.
        tools_as_text: whether tools and calls are written as text.
        reasoning: whether thoughts are written as text or left out; None leaves them to the template.
    """

    folds_system: bool = False
    tools_as_text: bool = False
    reasoning: Literal["as_text", "drop"] | None = None

    @classmethod
    def of(cls, data: DataRecipe | DataPlan) -> OptedTurns:
        """As a recipe asks for, or as the plan of a run has it."""
        return cls(folds_system=data.system == "fold", tools_as_text=data.tools == "as_text", reasoning=data.reasoning)


AS_THEY_ARE = OptedTurns()
"""Nothing is written in another way."""
