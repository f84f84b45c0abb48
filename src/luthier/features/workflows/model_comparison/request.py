"""What is asked of a showdown, and the recipe by which each contender is tuned."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from luthier.core.conversation import NEW_TOKENS
from luthier.core.errors import RequestError
from luthier.core.evaluation import NUM_JUDGED, NUM_SHOTS
from luthier.core.recipe import BudgetRecipe, DataRecipe, MethodRecipe, Recipe, TrainingRecipe


@dataclass(frozen=True, slots=True)
class ShowdownRequest:
    """What is asked. models: names of base models. hours: for everything.

    metric: the figure that decides; None takes it by `evaluate.verdict.primary_metric`. few_shot: examples in a prompt.
    instruction: put before prompts of models that are not tuned, as a person would tell them the task. most_judged:
    rows to judge at most. is_probed: train a few real steps with each model before sizes are chosen.
    """

    models: tuple[str, ...]
    data: Path
    held_out: Path
    hours: float
    mapping: Mapping[str, str] | None = None
    metric: str | None = None
    few_shot: int = NUM_SHOTS
    instruction: str = ""
    max_new_tokens: int = NEW_TOKENS
    most_judged: int = NUM_JUDGED
    method: str = "lora"
    seed: int = 0
    is_probed: bool = True

    def recipe(self, model: str, file: Path, epochs: float = 1.0) -> Recipe:
        """The recipe of a contender on a file of rows."""
        return recipe_of(model, str(file), mapping=self.mapping, method=self.method, seed=self.seed, epochs=epochs)


def recipe_of(
    model: str,
    file: str,
    *,
    mapping: Mapping[str, str] | None,
    method: str,
    seed: int,
    epochs: float = 1.0,
    budget: BudgetRecipe | None = None,
) -> Recipe:
    """The recipe by which a contender is tuned; what it leaves open is decided by the model's own plan."""
    return Recipe(
        base_model=model,
        data=DataRecipe(train=file, map=dict(mapping) if mapping else None),
        method=MethodRecipe(name=method),
        training=TrainingRecipe(epochs=epochs, overlong="error", seed=seed),
        budget=budget,
    )


def check(request: ShowdownRequest) -> None:
    """Raise RequestError for a budget that is none, no models, or one that is named twice."""
    if not (math.isfinite(request.hours) and request.hours > 0):
        raise RequestError(
            f"--budget-hours {request.hours}",
            expected="a finite number above 0",
            do="write for example: --budget-hours 1",
        )
    if not request.models or len(set(request.models)) < len(request.models):
        raise RequestError(
            f"models {', '.join(request.models) or '(none)'}",
            expected="at least one base model, each named once",
            do="write for example: --models smollm2-135m-instruct,gemma3-270m",
        )
